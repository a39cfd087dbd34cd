"""The words that travel: what a producer asks for, how a job stands, and what comes back.

Every type here is plain, frozen data. No object knows its queue, and nothing here does I/O. There is
one encoder and one decoder per type, made once, at the end of the file. `parse_request` is the only way in for
bytes from outside: it names the field, the problem and the remedy of the first mistake that it finds.

    a job's life (the state in its Redis hash)

        queued ──► ready ──► running ──► done | failed
          │  ▲       │  ▲       │
          │  └───────┴──┴───────┘ given back: a worker died, a dispatcher died, a retry, a drain
          └──────────┴──────────┴──► cancelled | expired | dead
"""

from __future__ import annotations

import enum
import hashlib
import json
import math
import uuid
from typing import Annotated, Any, Literal

import msgspec

from metamusesd.errors import InvalidRequest
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
    truncate: Literal["never", "oldest"] = "never"

    @property
    def class_(self) -> Priority:
        """The priority as an enum; `parse_request` has proven that it is one."""
        return parse_priority(self.priority)


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """What the router decided: the acceptable tiers, best first, and why."""

    tiers: tuple[str, ...]
    domain: str = "general"
    complexity: str = "simple"
    score: float = 0.0  # complexity, 0…1
    reason: str = ""
    requested_tier: str | None = None


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
        raise _no_json(body, error) from error
    if len(raw) > MAX_BODY_BYTES:
        raise InvalidRequest("body", f"{len(raw)} bytes long", f"send at most {MAX_BODY_BYTES} bytes")
    try:
        return _REQUEST.decode(raw)
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _no_json(raw, error) from error


def _encode(body: bytes | str | dict[str, Any] | InferenceRequest) -> bytes:
    if isinstance(body, InferenceRequest | dict):
        _check_bytes("", body if isinstance(body, dict) else {"user_query": body.user_query, "persona": body.persona})
        _check_numbers(body.params if isinstance(body, InferenceRequest) else body.get("params"))
        return _JSON.encode(body)
    return body.encode() if isinstance(body, str) else body


def _check_bytes(field: str, value: object) -> None:
    """The encoder writes bytes as base64, and that is what the model would be asked."""
    if isinstance(value, bytes | bytearray | memoryview):
        raise InvalidRequest(field, "bytes are no text", "decode them and give a str")
    if isinstance(value, dict):
        for name, part in value.items():
            _check_bytes(f"{field}.{name}" if field else str(name), part)
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            _check_bytes(f"{field}[{number}]", part)


def _check_numbers(params: object) -> None:
    """JSON knows no NaN and no infinity: the encoder writes null for them, and null means the default."""
    if isinstance(params, Params):
        params = {name: getattr(params, name) for name in _FRACTIONS}
    for name, value in params.items() if isinstance(params, dict) else ():
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidRequest(f"params.{name}", f"{value} is no number", "give a finite number, or leave it out")


def _no_json(body: object, error: Exception) -> InvalidRequest:
    """Say what is wrong with a body that is no JSON for us; a lone surrogate by the field that holds it."""
    if isinstance(error, RecursionError):
        return InvalidRequest("body", "it nests too deep to be read", "send a flatter JSON object")
    if field := _lone_surrogate(body):
        return InvalidRequest(field, "contains a lone surrogate, half a character", "send whole characters in UTF-8")
    if isinstance(error, UnicodeDecodeError):
        return InvalidRequest("body", f"it is not valid UTF-8: {error.reason}", "send one JSON object in UTF-8")
    if isinstance(error, TypeError | OverflowError):
        return InvalidRequest("body", f"it is not JSON: {error}", "send plain JSON values")
    return InvalidRequest("body", f"it is not JSON: {error}", "send one JSON object in UTF-8")


def _lone_surrogate(body: object) -> str:
    """The field whose text (or whose own name) cannot be encoded; empty if there is none, or none can be found."""
    try:
        todo = [("", json.loads(body) if isinstance(body, bytes | str) else msgspec.to_builtins(body))]
    except (ValueError, TypeError, RecursionError):
        return ""
    while todo:
        place, value = todo.pop()
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            return place.lstrip(".").encode("ascii", "replace").decode()[:200] or "body"
        if isinstance(value, dict):
            todo += [(f"{place}.{name}", pair) for name, inner in value.items() for pair in (name, inner)]
        elif isinstance(value, list):
            todo += [(f"{place}[{index}]", inner) for index, inner in enumerate(value)]
    return ""


def _explain(text: str) -> InvalidRequest:
    """Turn msgspec's "Expected `int`, got `str` - at `$.params.seed`" into field, problem, remedy."""
    problem, _, place = text.partition(" - at `$")
    field = place.rstrip("`").lstrip(".").replace("[...]", "[]") or "body"
    if problem.startswith(("Object contains unknown field", "Object missing required field")):
        name = problem.split("`")[1]
        whole = name if field == "body" else f"{field}.{name}"
        if "unknown" in problem:
            return InvalidRequest(whole, "unknown field", "remove it or correct its name")
        return InvalidRequest(whole, "missing", "give it")
    remedy = _CHOICES.get(field.rpartition(".")[2], "an allowed value")
    if problem.startswith("Expected"):
        remedy = _wanted(problem.removeprefix("Expected ").split(", got")[0])
    return InvalidRequest(field, (problem[0].lower() + problem[1:]).replace("`", ""), f"give {remedy}")


def _wanted(kind: str) -> str:
    """msgspec's words for what it expected, in plain ones."""
    for pattern, words in _PATTERNS.items():
        if pattern in kind:
            return words
    names, _, bound = kind.lstrip("`").partition("`")
    return " or ".join(_KINDS.get(name, name) for name in names.split(" | ")) + bound


def _check_texts(request: InferenceRequest) -> None:
    """At least one non-empty text to answer, and no text with a NUL (C would end there)."""
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


def body_digest(request: InferenceRequest) -> str:
    """What makes two submits of one id the same request: everything but id and created_at. Hex, 128 bits."""
    plain = msgspec.structs.replace(request, id="", created_at=None)
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


def encode_route(route: Route) -> bytes:
    """The route as JSON bytes, as it stands in the job hash."""
    return _JSON.encode(route)


def decode_route(raw: bytes) -> Route:
    """A route from the job hash."""
    return _ROUTE.decode(raw)


_FRACTIONS = tuple(name for name, kind in Params.__annotations__.items() if "float" in kind and "dict" not in kind)
_KINDS = {"int": "an integer", "str": "a text", "float": "a number", "array": "a list", "object": "an object",
          "bool": "true or false"}  # fmt: skip
_CHOICES = {
    "role": "system, user, assistant or tool",
    "scope": "auto, tenant, muse or user",
    "on_restart": "restart or fail",
    "truncate": "never or oldest",
}
_PATTERNS = {
    "[A-Za-z0-9_.:-]{1,128}": "1 to 128 of A-Z a-z 0-9 _ . : -",
    "[A-Za-z0-9_.-]{1,64}": "1 to 64 of A-Z a-z 0-9 _ . -",
}
_JSON = msgspec.json.Encoder()
_REQUEST = msgspec.json.Decoder(InferenceRequest)
_RESULT = msgspec.json.Decoder(Result)
_ROUTE = msgspec.json.Decoder(Route)
