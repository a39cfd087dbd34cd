"""Stage 8 · worker · the only importer of mistralrs: its surroundings, the model, a request, its errors in our words.

DANGER: a Runner may be borrowed once at a time. Who sends while another thread tokenizes gets a RuntimeError, so a lock
stands before both; and tokenizing waits for the step that mistral.rs is in, which may be a whole prompt. So neither may
happen on the step thread once there is something to compute: streams send on threads of their own.
"""

from __future__ import annotations

import os
import queue
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metamusesd.engines.base import EngineSpec
from metamusesd.engines.mistralrs.source import Source
from metamusesd.engines.mistralrs.stream import Said, Usage
from metamusesd.errors import ContextOverflow, EngineFailed, InvalidGrammar, MetamusesdError, ModelLoadFailed

OPTIONS = {"cached_sequences": "prefix_cache_n", "in_situ_quant": "in_situ_quant", "memory_goal": "memory_goal"}
ALL_LAYERS = 9999  # worker/boot.py says so for -1
# The template is rendered by us, around sentinels: to mistral.rs the whole prompt is one message, which it passes on.
IDENTITY = "{%- for message in messages -%}{{ message['content'] }}{%- endfor -%}"


class Model:
    """A loaded model. `count` and `run` may be called from any thread, and block: see above."""

    def __init__(self, spec: EngineSpec, source: Source) -> None:
        _surround(spec)
        import mistralrs

        self._rs = mistralrs
        self._lock = threading.Lock()
        self._counting = False  # a thread is at it, or stuck behind a long prompt
        self._runner: Any = self._load(spec)
        self.trained_context = int(self._runner.max_sequence_length() or spec.context)
        self._bos = source.bos
        self._writes_bos = self._tokens("a", True) > self._tokens("a", False)  # the tokenizer does, by itself
        self._begins = source.begins

    def _load(self, spec: EngineSpec) -> Any:
        with tempfile.NamedTemporaryFile("w", suffix=".jinja", encoding="utf-8") as template:
            template.write(IDENTITY)
            template.flush()
            try:
                return self._rs.Runner(
                    which=self._which(Path(spec.model_path)),
                    max_seqs=spec.slots + spec.reserve_slots,
                    token_source="none",  # noqa: S106 - it means that there is none
                    jinja_explicit=template.name,
                    **{OPTIONS[name]: value for name, value in spec.options.items()},
                )
            except BaseException as error:  # a panic of Rust is no Exception
                if isinstance(error, KeyboardInterrupt | SystemExit):
                    raise
                raise ModelLoadFailed(f"{spec.model_path}: mistral.rs: {str(error)[:600]}") from error

    def _which(self, path: Path) -> Any:
        if path.is_dir():
            return self._rs.Which.Plain(model_id=str(path))
        return self._rs.Which.GGUF(tok_model_id=None, quantized_model_id=str(path.parent), quantized_filename=path.name)

    def begun(self, prompt: str) -> str:
        """The prompt so that it has exactly one BOS when it is tokenized, if the model wants one."""
        if not self._bos or not (self._writes_bos or self._begins):
            return prompt
        while prompt.startswith(self._bos):
            prompt = prompt.removeprefix(self._bos)
        return prompt if self._writes_bos else self._bos + prompt

    def count(self, prompt: str, patience_s: float) -> int | None:
        """Tokens of the prompt. None: mistral.rs is at a step that takes longer than `patience_s`."""
        if self._counting:
            return None
        self._counting = True
        answer: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()

        def ask() -> None:
            try:
                with self._lock:
                    answer.put(self._tokens(prompt, True))
            except BaseException as error:
                answer.put(error)
            self._counting = False

        threading.Thread(target=ask, name="count", daemon=True).start()
        try:
            found = answer.get(timeout=patience_s)
        except queue.Empty:
            return None
        if isinstance(found, BaseException):
            raise EngineFailed(f"mistral.rs cannot tokenize: {str(found)[:600]}") from found
        return found

    def _tokens(self, text: str, special: bool) -> int:
        return len(self._runner.tokenize_text(text, special, None))

    def run(self, prompt: str, sampling: dict[str, Any]) -> Iterator[Said]:
        """Send one request; yields its tokens as they come. Who drops the iterator ends the sequence."""
        request = self._rs.ChatCompletionRequest(model="default", messages=prompt, stream=True, **sampling)
        try:
            with self._lock:
                chunks = self._runner.send_chat_completion_request(request)
            for chunk in chunks:
                yield _said(chunk, sampling.get("top_logprobs") or 0)
        except ValueError as error:
            raise _translated(str(error)) from error

    def close(self) -> None:
        """Let go of the model; mistral.rs' threads end when its last sequence does. Legal twice."""
        self._runner = None


def _surround(spec: EngineSpec) -> None:
    """What mistral.rs takes from the environment, once: the log's level at its import, the rest at its first use."""
    os.environ["RAYON_NUM_THREADS"] = os.environ["TOKIO_WORKER_THREADS"] = str(spec.threads)
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("RUST_LOG", "off")  # it would go to stdout
    if spec.gpu_layers == 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if 0 < spec.gpu_layers < ALL_LAYERS:
        raise ModelLoadFailed(
            f"gpu_layers is {spec.gpu_layers}; mistral.rs places layers itself: say -1 for the GPU, or 0 for the CPU"
        )
    if unknown := sorted(spec.options.keys() - OPTIONS.keys()):
        raise ModelLoadFailed(f"options.{unknown[0]} is no option of engine mistralrs; it knows {', '.join(OPTIONS)}")


def _said(chunk: Any, alternatives: int) -> Said:
    choice, usage = chunk.choices[0], chunk.usage
    reason = choice.finish_reason or ""
    return Said(
        text=choice.delta.content or "",
        reason="length" if "length" in reason else "stop" if reason else "",
        ended=reason == "stop" and choice.stop_sequence is None,
        logprobs=[_logprobs(choice.logprobs, alternatives)] if choice.logprobs is not None else None,
        usage=_usage(usage) if usage is not None else None,
    )


def _logprobs(entry: Any, alternatives: int) -> dict[str, Any]:
    top = [{"token": other.bytes or "", "logprob": other.logprob} for other in entry.top_logprobs[:alternatives]]
    return {"token": entry.token, "logprob": entry.logprob, "top": top}


def _usage(usage: Any) -> Usage:
    details = usage.prompt_tokens_details
    cached = int(details.cached_tokens or 0) if details is not None else 0
    return Usage(usage.prompt_tokens, usage.completion_tokens, cached, float(usage.avg_prompt_tok_per_sec))


def _translated(message: str) -> MetamusesdError:
    if message.startswith("Invalid grammar"):
        return InvalidGrammar(f"mistral.rs: {message[:600]}", field="params.json_schema", remedy="simplify the schema")
    if message.startswith("Prompt sequence length"):
        return ContextOverflow(f"mistral.rs: {message[:300]}")
    return EngineFailed(f"mistral.rs: {message[:600]}")
