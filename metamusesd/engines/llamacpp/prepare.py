"""Stage 8 · worker · turn a task into tokens and limits, or refuse it. Nothing here touches the KV cache.

May run on another thread while a step computes. Whatever a request can get wrong for this engine is found here: after
`prepare` a task can only wait for room, run, or fail because the engine does.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from metamusesd.engines.asked import DEFAULT_TOP_K, biases, check_size, given, naming_the_prompt, room_after
from metamusesd.engines.base import EngineSpec, Prepared, Task
from metamusesd.engines.llamacpp.gbnf import schema_to_gbnf
from metamusesd.engines.llamacpp.grammar import GrammarShelf
from metamusesd.engines.llamacpp.native import Grammar, Model
from metamusesd.engines.llamacpp.prompt import PromptTokenizer
from metamusesd.engines.llamacpp.sampling import Choice
from metamusesd.engines.template import CHATML, CHATML_END, ChatTemplate
from metamusesd.errors import ContextOverflow, InvalidGrammar, InvalidRequest, RequestError
from metamusesd.job import Message, Params
from metamusesd.prompt import fitted, messages_of


@dataclass(frozen=True, slots=True)
class LlamaPrepared(Prepared):
    """A prepared task with what the step loop needs."""

    prompt: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    choice: Choice = field(default_factory=lambda: Choice(0.0))
    grammar: Grammar | None = None
    stops: tuple[str, ...] = ()


class Preparer:
    """Prepares tasks for one model. Thread-safe."""

    def __init__(self, model: Model, spec: EngineSpec, context: int) -> None:
        self._model, self._spec, self.context = model, spec, context
        self.template = ChatTemplate(model.template or CHATML, *model.special_texts())
        control = model.control_tokens()
        self._tokenizer = PromptTokenizer(model.tokenize, control, model.bos())
        self._stops = () if model.template or CHATML_END in control else (CHATML_END,)
        self._ends = tuple(sorted(model.end_tokens()))
        self._grammars = GrammarShelf(schema_to_gbnf, self._exercise, model.grammar)

    def prepare(self, task: Task) -> LlamaPrepared:
        """Render, tokenize, and check everything that may be refused."""
        with naming_the_prompt(task.request):
            return self._prepared(task)

    def _prepared(self, task: Task) -> LlamaPrepared:
        params = task.request.params
        grammar = self._grammar(params)
        choice = self._choice(params, grammar is not None)
        wanted = params.max_tokens or self._spec.default_max_tokens
        messages = messages_of(task.request)
        if task.request.truncate == "oldest":
            most = self.context - min(wanted, self.context // 4)
            prompt = self._tokens(fitted(messages, lambda kept: self._fits(kept, most)))
        else:
            prompt = self._tokens(messages)
        room = room_after(len(prompt), self.context)
        ids = np.array(prompt, np.int32)
        return LlamaPrepared(task, len(ids), min(wanted, room), ids, choice, grammar, (*params.stop, *self._stops))

    def _tokens(self, messages: list[Message]) -> list[int]:
        check_size(messages, self.context)
        return self._tokenizer.tokens(self.template.render(messages))

    def _fits(self, messages: list[Message], room: int) -> bool:
        try:
            return len(self._tokens(messages)) <= room
        except ContextOverflow:
            return False

    def _grammar(self, params: Params) -> Grammar | None:
        compiled: Grammar | None = None
        if params.json_schema is not None:
            compiled = self._grammars.of_schema(params.json_schema)
        elif params.grammar is not None:
            compiled = self._grammars.of_gbnf(params.grammar)
        return compiled

    def _exercise(self, text: str) -> None:
        """In the disposable process: compile the grammar and walk some tokens of it."""
        grammar = self._model.grammar(text)
        if grammar is None:
            raise InvalidGrammar(
                "it cannot be parsed, refers to a missing rule, recurses to the left, or repeats what repeats too often"
            )
        everything = np.arange(self._model.vocabulary, dtype=np.int32)
        for turn in range(4):
            allowed = everything[grammar.allows(everything)]
            if not turn and not len(allowed):
                raise InvalidGrammar("it allows no token and no end at the start", remedy="let root allow some text")
            allowed = allowed[~np.isin(allowed, self._ends)]
            if not len(allowed):
                break
            grammar.accept(int(allowed[(turn * 7919) % len(allowed)]))

    def _choice(self, params: Params, constrained: bool) -> Choice:
        spec = self._spec
        return Choice(
            temperature=given(params.temperature, spec.default_temperature),
            top_p=given(params.top_p, spec.default_top_p),
            top_k=given(params.top_k, DEFAULT_TOP_K),
            min_p=given(params.min_p, 0.0),
            repeat_penalty=given(params.repeat_penalty, 1.0),
            presence_penalty=given(params.presence_penalty, 0.0),
            frequency_penalty=given(params.frequency_penalty, 0.0),
            seed=given(params.seed, secrets.randbits(32)),
            bias=biases(params.logit_bias or {}, self._model.vocabulary, -np.inf),
            logprobs=params.logprobs,
            banned=self._ends if params.ignore_eos and not constrained else (),
        )


def dead_end(prepared: LlamaPrepared) -> RequestError:
    """What a request got wrong after which no token may come: another try would end there as well."""
    params = prepared.task.request.params
    if prepared.choice.bans:
        beside = ", of those that the grammar allows" if prepared.grammar is not None else ""
        return InvalidRequest("params.logit_bias", f"it bans every token that may come next{beside}", "ban fewer")
    field = "params.grammar" if params.json_schema is None else "params.json_schema"
    return InvalidGrammar(
        "the grammar allows neither a token nor an end here", field=field, remedy="let each rule be completed by text"
    )
