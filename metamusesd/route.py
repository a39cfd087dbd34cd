"""Stages 3 to 6, 10 · any process · what was decided about a job, and why; it stands in the job and in its result.

Plain, frozen data; one encoder and one decoder. Unknown fields are ignored: another version may have written them.
"""

from __future__ import annotations

import msgspec


class CacheNote(msgspec.Struct, frozen=True, kw_only=True):
    """What the caches had to do with a result, or why they had not.

    kind: `exact`, `semantic`, `flight` (an equal job's run was shared), `miss`, or `off` (not looked up).
    """

    kind: str = "off"
    score: float = 0.0  # cosine: of the hit, or of the nearest question that was refused
    age_s: float = 0.0  # of the answer
    entry: str = ""  # its name: for explaining it, and for complaints
    reason: str = ""


class Outlook(msgspec.Struct, frozen=True, kw_only=True):
    """What was expected of one tier when a job was routed. None: nothing was measured yet."""

    tier: str
    wait_s: float | None = None
    run_s: float | None = None
    workers: bool = True  # there was one


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """One worker as the scheduler saw it when it placed a job."""

    worker: str
    finish_s: float = 0.0  # when the job was predicted to be finished there
    jobs: int = 0
    room: int = 0
    waiting_tokens: int = 0  # of prompts that it had not computed yet
    decode_rate: float = 0.0  # tokens/s; 0: not measured yet
    warm: bool = False  # it held the beginning of the prompt


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """Which worker got a job, and why. `loads`: the workers that could have, the first eight."""

    worker: str
    tier: str
    reason: str = ""
    expected_tokens: float = 0.0  # of the answer
    loads: tuple[Seen, ...] = ()


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """What the router decided: the acceptable tiers, best first, and why; then what became of it."""

    tiers: tuple[str, ...]
    domain: str = "general"
    complexity: str = "simple"  # simple, moderate, complex
    score: float = 0.0  # complexity, 0…1
    confidence: float = 1.0  # of the domain, 0…1
    features: tuple[tuple[str, float], ...] = ()  # of the text, those that decided, with their weight
    reason: str = ""
    requested_tier: str | None = None  # what the request names, or such a prompt wants
    policy: str = "upgrade_ok"
    queued: tuple[str, ...] = ()  # the tiers that it was to wait for; empty: all of them
    outlook: tuple[Outlook, ...] = ()  # why those
    placed: Placed | None = None
    escalated: str = ""  # why an answer of a lighter tier was not good enough
    lookup: CacheNote | None = None  # what the caches said when it was routed; the last field: see lua/common.lua


def encode_route(route: Route) -> bytes:
    """The route as JSON bytes, as it stands in the job hash."""
    return _JSON.encode(route)


def decode_route(raw: bytes) -> Route:
    """A route from the job hash."""
    return _ROUTE.decode(raw)


def read_route(raw: bytes) -> Route | None:
    """The same; None where there is none, or one of another version, or somebody wrote it by hand."""
    try:
        return decode_route(raw) if raw else None
    except msgspec.MsgspecError:
        return None


_JSON = msgspec.json.Encoder()
_ROUTE = msgspec.json.Decoder(Route)
