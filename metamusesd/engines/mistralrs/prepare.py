"""Stage 8 · worker · turn a task into a prompt and what mistral.rs is to do with it, or refuse it by name.

May run on another thread while mistral.rs computes. What a request can get wrong for this engine is found here; only
what its grammar compiler finds is said later.

mistral.rs takes text, not tokens, and reads a control token wherever its spelling stands, in a user's words as well. So
texts that contain one are refused: what a user types is never anything but text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from metamusesd.engines.asked import DEFAULT_TOP_K, biases, check_size, given, naming_the_prompt, room_after
from metamusesd.engines.base import EngineSpec, Prepared, Task
from metamusesd.engines.mistralrs.native import Model
from metamusesd.engines.mistralrs.schema import guidance
from metamusesd.engines.mistralrs.source import Source
from metamusesd.engines.template import CHATML, CHATML_END, ChatTemplate, Piece
from metamusesd.errors import EngineFailed, InvalidRequest
from metamusesd.job import InferenceRequest, Message, Params
from metamusesd.prompt import fitted, messages_of

USUAL_BYTES_A_TOKEN = 4
SOON_S, LATEST_S = 0.25, 20.0  # to wait for a count
BANNED = -1e9  # an infinity becomes NaN where a bias bans all that a grammar allows


@dataclass(frozen=True, slots=True)
class MistralPrepared(Prepared):
    """A prepared task. `sampling` are the arguments of mistral.rs' request."""

    prompt: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)


class Preparer:
    """Prepares tasks for one model. Thread-safe."""

    def __init__(self, model: Model, source: Source, spec: EngineSpec, context: int) -> None:
        self._model, self._source, self._spec, self.context = model, source, spec, context
        self.template = ChatTemplate(source.template or CHATML, source.bos, source.eos)
        self._stops = () if source.template or CHATML_END in source.controls else (CHATML_END,)
        longest_first = sorted(source.controls, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def prepare(self, task: Task) -> MistralPrepared:
        """Render, bound, and check everything that may be refused."""
        with naming_the_prompt(task.request):
            return self._prepared(task)

    def _prepared(self, task: Task) -> MistralPrepared:
        params = task.request.params
        wanted = params.max_tokens or self._spec.default_max_tokens
        sampling = self._sampling(params)
        messages = messages_of(task.request)
        check_size(messages, self.context)
        self._check_forgery(task.request)
        if task.request.truncate == "oldest":
            most = self.context - min(wanted, self.context // 4)
            messages = fitted(messages, lambda kept: self._fits(kept, most))
        prompt = self._rendered(messages)
        count = self._count(prompt, self.context - wanted)
        room = room_after(count, self.context)
        sampling |= {"max_tokens": min(wanted, room), "stop_seqs": [*params.stop, *self._stops] or None}
        return MistralPrepared(task, count, min(wanted, room), prompt, sampling)

    def _check_forgery(self, request: InferenceRequest) -> None:
        for name, text in _texts(request):
            found = self._control.search(text) or self._control.search(unicodedata.normalize("NFKC", text))
            if found is not None:
                raise _forged(name, found.group())

    def _rendered(self, messages: list[Message]) -> str:
        """The whole prompt, in which no control token has come about where the template and a text meet."""
        pieces = self.template.render(messages)
        prompt = "".join(piece.text for piece in pieces)
        if len(self._control.findall(prompt)) != sum(map(self._written, pieces)):
            raise _forged("messages", "one across the end of a message")
        return self._model.begun(prompt)

    def _written(self, piece: Piece) -> int:
        return len(self._control.findall(piece.text)) if piece.trusted else 0

    def _fits(self, messages: list[Message], room: int) -> bool:
        return self._count(self._rendered(messages), room) <= room

    def _count(self, prompt: str, room: int) -> int:
        """Tokens of the prompt. While mistral.rs is at a long one, an estimate has to do for what surely fits into
        `room`, since no token has less than a byte; raises EngineFailed for what may not."""
        size = len(prompt.encode())
        count = self._model.count(prompt, SOON_S if size < room else LATEST_S)
        if count is None and size >= room:
            raise EngineFailed("mistral.rs is computing a long prompt, and could not count the tokens of this one")
        return count if count is not None else min(size, 1 + size // USUAL_BYTES_A_TOKEN)

    def _sampling(self, params: Params) -> dict[str, Any]:
        spec = self._spec
        temperature = given(params.temperature, spec.default_temperature)
        self._check_support(params, temperature)
        sampling: dict[str, Any] = {
            "temperature": temperature,
            "top_p": given(params.top_p, spec.default_top_p),
            "top_k": given(params.top_k, DEFAULT_TOP_K) or self._source.vocabulary,
            "min_p": given(params.min_p, 0.0),
            "repetition_penalty": given(params.repeat_penalty, 1.0),
            "presence_penalty": given(params.presence_penalty, 0.0),
            "frequency_penalty": given(params.frequency_penalty, 0.0),
            "logit_bias": biases(params.logit_bias or {}, self._source.vocabulary, BANNED) or None,
            "ignore_eos": params.ignore_eos and params.json_schema is None,
        }
        if params.logprobs is not None:
            sampling |= {"logprobs": True, "top_logprobs": params.logprobs or None}
        if params.json_schema is not None:
            sampling |= {"grammar": guidance(params.json_schema), "grammar_type": "json_schema"}
        return sampling

    def _check_support(self, params: Params, temperature: float) -> None:
        if params.grammar is not None:
            raise InvalidRequest(
                "params.grammar", "this model runs on mistral.rs, which takes no GBNF",
                "use params.json_schema, or a model of engine llamacpp",
            )  # fmt: skip
        if params.seed is not None and temperature > 0:
            raise InvalidRequest(
                "params.seed", "this model runs on mistral.rs, which draws from one stream for all requests",
                "leave it out, set temperature to 0, or use a model of engine llamacpp",
            )  # fmt: skip


def _texts(request: InferenceRequest) -> Iterator[tuple[str, str]]:
    """Every text that people wrote, by its field."""
    yield "persona", request.persona or ""
    for name, messages in (("context", request.context), ("messages", request.messages or ())):
        for place, message in enumerate(messages):
            yield f"{name}[{place}].content", message.content
    yield "user_query", request.user_query or ""


def _forged(name: str, what: str) -> InvalidRequest:
    return InvalidRequest(
        name, f"it contains {what!r}, a control token of this model, which mistral.rs cannot keep as text",
        "leave it out, spell it differently, or use a model of engine llamacpp",
    )  # fmt: skip
