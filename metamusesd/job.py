"""The words that travel: what a producer asks for, how a job stands, and what comes back.

Every type here is plain, frozen data. No object knows its queue, and nothing here does I/O. There is
one encoder and one decoder per type, made once, at the end of the file. `parse_request` is the only way in for
bytes from outside: it names the field, the problem and the remedy of the first mistake that it finds.

    a job's life (the state in its Redis hash)

        queued ──► ready ──► running ──► done | failed
          │  ▲       │  ▲       │
          │  └───────┴──┴───────┘ given back: a worker died, a dispatcher died, a retry, a drain
          └──────────┴──────────┴──► cancelled | expired | dead

    or, in place of ready and running, `following`: an equal job is under way, and its result will be this one's, too.
"""

from __future__ import annotations

import enum
import hashlib
import math
import uuid
from typing import Annotated, Any, Literal

import msgspec

from metamusesd.errors import InvalidRequest
from metamusesd.mistakes import check_bytes, explain, no_json
from metamusesd.route import CacheNote, Route
from metamusesd.tiers import TIERS

MAX_BODY_BYTES = 4 * 1024 * 1024
MAX_OUTPUT_TOKENS = 131_072


class Priority(enum.IntEnum):
    """The class of a job. On the wire it is this number or its name in any case."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    CRITICAL = 3


class State(enum.StrEnum):
    """How a job stands."""

    QUEUED = "queued"  # submitted, in `ingress`, not yet routed
    READY = "ready"  # routed, waits for a slot in one or more tiers
    RUNNING = "running"  # leased by a dispatcher
    DELAYED = "delayed"  # waits for its next try
    FOLLOWING = "following"  # an equal job leads, and is computed for both
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DEAD = "dead"


TERMINAL = frozenset({State.DONE, State.FAILED, State.CANCELLED, State.EXPIRED, State.DEAD})

Trait = Annotated[int, msgspec.Meta(ge=0, le=100)]
ShortText = Annotated[str, msgspec.Meta(max_length=256)]


class _Plain(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Base of what producers send: immutable, no unknown fields, defaults left out on the wire."""


class Message(_Plain, frozen=True):
    """One turn of a conversation. `timestamp` (seconds or milliseconds) is kept, and never part of a prompt."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    timestamp: float | None = None


class Traits(_Plain, frozen=True):
    """The personality of a muse, each 0…100; they become a sentence of the system prompt."""

    creativity: Trait = 50
    wisdom: Trait = 50
    humor: Trait = 50
    empathy: Trait = 50
    logic: Trait | None = None


class Params(_Plain, frozen=True):
    """How to generate. None means: the model's own default. Units: tokens, probabilities, logit offsets."""

    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_OUTPUT_TOKENS)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0.0, le=5.0)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] | None = None  # 0: no limit
    min_p: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] | None = None
    repeat_penalty: Annotated[float, msgspec.Meta(ge=0.01, le=10.0)] | None = None
    presence_penalty: Annotated[float, msgspec.Meta(ge=-2.0, le=2.0)] | None = None
    frequency_penalty: Annotated[float, msgspec.Meta(ge=-2.0, le=2.0)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 2)] | None = None
    stop: Annotated[list[Annotated[str, msgspec.Meta(min_length=1, max_length=256)]], msgspec.Meta(max_length=16)] = []
    logit_bias: dict[str, Annotated[float, msgspec.Meta(ge=-100.0, le=100.0)]] | None = None  # token id → offset
    json_schema: dict[str, Any] | None = None
    grammar: Annotated[str, msgspec.Meta(min_length=1, max_length=65_536)] | None = None  # GBNF
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None  # how many alternatives a token
    ignore_eos: bool = False  # for benchmarks: go on until max_tokens


class CachePolicy(_Plain, frozen=True):
    """What the answer caches may do with this job."""

    read: bool = True
    write: bool = True
    scope: Literal["auto", "tenant", "muse", "user"] = "auto"
    tags: Annotated[list[Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.:-]{1,64}$")]],
                    msgspec.Meta(max_length=16)] = []  # for invalidation: `metamusesd cache purge --tag`  # fmt: skip


class InferenceRequest(_Plain, frozen=True):
    """One request, in the names of the service that this one succeeds.

    Either `user_query` (with `context`, `persona`, `personality_traits`) or `messages` says what to answer.
    `parse_request` validates; constructing it by hand does not, but every door that takes one validates again.
    """

    id: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")] = ""
    muse_id: Annotated[int, msgspec.Meta(ge=0)] | ShortText | None = None
    user_query: str | None = None
    user_address: ShortText = ""
    context: Annotated[list[Message], msgspec.Meta(max_length=4096)] = []
    persona: str | None = None  # system prompt text of the muse: name, description
    personality_traits: Traits | None = None
    messages: Annotated[list[Message], msgspec.Meta(max_length=4096)] | None = None
    priority: int | str = "normal"
    created_at: float | None = None  # seconds since the epoch
    tier: str | None = None
    model: ShortText | None = None
    params: Params = Params()
    deadline_ms: Annotated[int, msgspec.Meta(ge=1, le=86_400_000)] | None = None  # from submit
    idempotency_key: ShortText | None = None
    tenant: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = "default"
    cache: CachePolicy = CachePolicy()
    stream: bool = True
    reply_to: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] | None = None  # a mailbox
    on_restart: Literal["restart", "fail"] = "restart"
    tier_policy: Literal["strict", "prefer", "degrade_ok", "upgrade_ok"] | None = None  # whether another tier may help
    truncate: Literal["never", "oldest"] = "never"
    kind: Literal["generate", "embed"] = "generate"  # embed: the vectors of `input`, and nothing else of the above
    input: Annotated[list[Annotated[str, msgspec.Meta(max_length=16_384)]], msgspec.Meta(max_length=128)] = []
    traceparent: Annotated[str, msgspec.Meta(max_length=256)] | None = None  # W3C: the trace that it is a part of

    @property
    def class_(self) -> Priority:
        """The priority as an enum; `parse_request` has proven that it is one."""
        return parse_priority(self.priority)


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts. `cached_tokens` of the prompt were reused and not computed again."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time went, in milliseconds; `ttft_ms` counts from submit."""

    queue_ms: float = 0.0
    route_ms: float = 0.0
    ttft_ms: float = 0.0
    decode_ms: float = 0.0
    total_ms: float = 0.0


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """How a job ended. `state` is terminal; `error` is set unless it is `done`.

    All fields stand on the wire, for readers that do not know our defaults. Unknown fields are ignored.
    """

    request_id: str
    state: str = "done"
    content: str = ""
    model_name: str = ""
    model_digest: str = ""
    tier: str = ""
    latency_ms: float = 0.0
    from_cache: bool = False
    tokens_generated: int = 0
    finish_reason: str = ""  # stop | length
    usage: Usage = Usage()
    timings: Timings = Timings()
    route: Route | None = None
    attempt: int = 1
    worker: str = ""
    logprobs: list[Any] | None = None
    error: dict[str, Any] | None = None
    embeddings: list[list[float]] | None = None  # of an embed job: one vector of length 1 a text
    cut: list[int] = []  # the texts of which only the beginning was embedded
    cache: CacheNote | None = None  # the last field, and no other is named so: lua/common.lua relies on it


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the caches keep of a result."""

    content: str
    model_name: str = ""
    model_digest: str = ""
    tier: str = ""
    finish_reason: str = "stop"
    usage: Usage = Usage()
    tokens_generated: int = 0
    created_ms: int = 0  # since the epoch
    job: str = ""  # whose result it was


def parse_priority(value: int | str) -> Priority:
    """`value` (a name in any case, 0…3, or such a number as text) as a Priority, or InvalidRequest."""
    try:
        text = str(value).strip().upper()
        return Priority(int(text)) if text.isascii() and text.isdecimal() else Priority[text]
    except (KeyError, ValueError):
        raise InvalidRequest(
            "priority", f"{value!r} is no priority", "use low, normal, high, critical or 0 to 3"
        ) from None


def parse_request(body: bytes | str | dict[str, Any] | InferenceRequest) -> InferenceRequest:
    """Validate `body` (JSON bytes, JSON text, a dict or a request) into an InferenceRequest with an id.

    Raises InvalidRequest for the first mistake: its field, what is wrong, what would be right.
    """
    request = _decode(body)
    _check_texts(request)
    parse_priority(request.priority)
    if request.tier is not None and request.tier.lower() not in TIERS:
        raise InvalidRequest("tier", f"{request.tier!r} is no tier", f"use one of {', '.join(TIERS)}")
    if request.params.json_schema is not None and request.params.grammar is not None:
        raise InvalidRequest("params.grammar", "json_schema is given as well", "give one of the two")
    if not request.id:
        request = msgspec.structs.replace(request, id=str(uuid.uuid4()))
    return request


def _decode(body: bytes | str | dict[str, Any] | InferenceRequest) -> InferenceRequest:
    try:
        raw = _encode(body)
    except (UnicodeEncodeError, TypeError, RecursionError, OverflowError) as error:
        raise no_json(body, error) from error
    if len(raw) > MAX_BODY_BYTES:
        raise InvalidRequest("body", f"{len(raw)} bytes long", f"send at most {MAX_BODY_BYTES} bytes")
    try:
        return _REQUEST.decode(raw)
    except msgspec.ValidationError as error:
        raise explain(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise no_json(raw, error) from error


def _encode(body: bytes | str | dict[str, Any] | InferenceRequest) -> bytes:
    if isinstance(body, InferenceRequest | dict):
        check_bytes("", body if isinstance(body, dict) else {"user_query": body.user_query, "persona": body.persona})
        _check_numbers(body.params if isinstance(body, InferenceRequest) else body.get("params"))
        return _JSON.encode(body)
    return body.encode() if isinstance(body, str) else body


def _check_numbers(params: object) -> None:
    """JSON knows no NaN and no infinity: the encoder writes null for them, and null means the default."""
    if isinstance(params, Params):
        params = {name: getattr(params, name) for name in _FRACTIONS}
    for name, value in params.items() if isinstance(params, dict) else ():
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidRequest(f"params.{name}", f"{value} is no number", "give a finite number, or leave it out")


def _check_texts(request: InferenceRequest) -> None:
    """At least one non-empty text to answer, and no text with a NUL (C would end there)."""
    if request.kind == "embed" or request.input:
        _check_embed(request)
        return
    if request.messages is not None:
        if request.user_query is not None or request.context:
            raise InvalidRequest("messages", "user_query or context is given as well", "give one form or the other")
        if not any(message.content.strip() for message in request.messages):
            raise InvalidRequest("messages", "no message has content", "give at least one message with text")
        texts = [("messages[].content", message.content) for message in request.messages]
    elif request.user_query is None or not request.user_query.strip():
        raise InvalidRequest("user_query", "missing or empty", "give the text to answer, or messages")
    else:
        texts = [("user_query", request.user_query)]
        texts += [("context[].content", message.content) for message in request.context]
    texts.append(("persona", request.persona or ""))
    for field, text in texts:
        if "\0" in text:
            raise InvalidRequest(field, "contains a NUL character", "remove it")


def _check_embed(request: InferenceRequest) -> None:
    if request.kind != "embed":
        raise InvalidRequest("input", "is for jobs of kind embed", 'send kind: "embed", or user_query')
    for name in ("user_query", "messages", "context", "persona", "tier", "model"):
        if getattr(request, name):
            raise InvalidRequest(name, "an embed job has none", "give the texts as input, and leave this out")
    if not request.input:
        raise InvalidRequest("input", "missing or empty", "give 1 to 128 texts")
    for index, text in enumerate(request.input):
        if not text.strip():
            raise InvalidRequest(f"input[{index}]", "empty", "give a text, or leave it out")
        if "\0" in text:
            raise InvalidRequest(f"input[{index}]", "contains a NUL character", "remove it")


def body_digest(request: InferenceRequest) -> str:
    """What makes two submits of one id the same request: all but id, created_at and traceparent. Hex, 128 bits."""
    plain = msgspec.structs.replace(request, id="", created_at=None, traceparent=None)
    return hashlib.blake2b(encode_request(plain), digest_size=16).hexdigest()


def encode_request(request: InferenceRequest) -> bytes:
    """The job body as it stands in Redis: JSON, defaults left out."""
    return _JSON.encode(request)


def encode_result(result: Result) -> bytes:
    """The result as JSON bytes."""
    return _JSON.encode(result)


def decode_result(raw: bytes) -> Result:
    """A result from JSON bytes that one of our dispatchers wrote."""
    return _RESULT.decode(raw)


def encode_answer(answer: Answer) -> bytes:
    """An answer as the caches keep it."""
    return _JSON.encode(answer)


def decode_answer(raw: bytes) -> Answer:
    """The inverse. Raises msgspec.MsgspecError when somebody else wrote it."""
    return _ANSWER.decode(raw)


_FRACTIONS = tuple(name for name, kind in Params.__annotations__.items() if "float" in kind and "dict" not in kind)
_JSON = msgspec.json.Encoder()
_REQUEST = msgspec.json.Decoder(InferenceRequest)
_RESULT = msgspec.json.Decoder(Result)
_ANSWER = msgspec.json.Decoder(Answer)
