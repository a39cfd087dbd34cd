"""What travels through the pipe between the dispatcher and a worker, or the vectors process.

    frame     ┌──────────────┬─────────┬───────────┬──────────────┬─────────────────┐
    (little   │ length  u32  │ type u8 │ zero  u24 │ epoch   u32  │ payload msgpack │
     endian)  │ of payload   │         │           │              │ length bytes    │
              └──────────────┴─────────┴───────────┴──────────────┴─────────────────┘

    dispatcher ──► worker      GENERATE list[Generate] · CANCEL list[handle] · RAISE list[(handle, priority)]
    worker ──► dispatcher      HELLO Hello · EVENTS list[Token | Finished | Refused]
    dispatcher ──► vectors     ASK list[Look | Keep | Withdraw | Complain | Forget | Weigh | Count | Embed | Leave]
    vectors ──► dispatcher     ANSWER list[Found | Told | Embedded]

An *epoch* is one life of the pipe: every socketpair has its own number, and a frame of another epoch is refused, so
that a new dispatcher never hears the end of an older one's sentence. A *handle* names one attempt at one job and is
unique in its epoch. A frame cut off by EOF is dropped. Structs are arrays on the wire: fields may only be added at
the end.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import Any

import msgspec

from metamusesd.errors import WireError

HEADER = struct.Struct("<IB3xI")
DATED = "dated:"  # begins the digest of a template that tells the model the date
MAX_PAYLOAD_BYTES = 64 * 1024 * 1024


class Frame(enum.IntEnum):
    """The type of a frame."""

    HELLO = 1
    GENERATE = 2
    CANCEL = 3
    EVENTS = 4
    ASK = 5
    ANSWER = 6
    RAISE = 7


class Generate(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Run this job. `body` is the request JSON as submitted; `deadline_in_ms` counts from now, 0: none."""

    handle: int
    priority: int
    body: bytes
    aged: bool = False
    deadline_in_ms: int = 0
    id: str = ""  # for the worker's log and its evidence after a crash
    attempt: int = 1


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """The worker is ready on this pipe; everything of older epochs is dropped. Mirrors engines.base.ModelInfo."""

    worker: str
    tier: str
    model: str
    digest: str
    architecture: str
    context: int
    slots: int
    reserve_slots: int
    template_digest: str = ""
    pid: int = 0
    generation: int = 0
    engine: str = ""


class Token(msgspec.Struct, array_like=True, tag="t", gc=False):
    """New text of one sequence in this step. `text` may be empty while a stop string or a character is incomplete."""

    handle: int
    text: str
    tokens: int  # tokens generated in this step
    first: bool = False  # the first of its sequence
    logprobs: list[Any] | None = None


class Finished(msgspec.Struct, array_like=True, tag="f", gc=False):
    """The last word about a handle: `reason` or `error` is set. The sequence holds no slot any more."""

    handle: int
    reason: str = ""  # stop | length | cancelled | deadline
    error: dict[str, Any] | None = None  # MetamusesdError.to_dict()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0  # prompt tokens whose KV was reused
    prefill_ms: float = 0.0
    decode_ms: float = 0.0


class Refused(msgspec.Struct, array_like=True, tag="r", gc=False):
    """The worker has no room for this handle now; the job goes back to its queue, unburnt. `reason` is a code."""

    handle: int
    reason: str = "no_capacity"


Event = Token | Finished | Refused

# The vectors process answers what has a handle; an `entry` is cache.base.encode_entry of one.


class Look(msgspec.Struct, frozen=True, array_like=True, tag="l", gc=False):
    """Search an answer for `text`. Without one `promise`, an entry, is kept: who looks next finds it in the partition
    `promises`. Whoever asked stops waiting at `until_ns` (monotonic): later it need not be answered."""

    handle: int
    text: str
    partitions: list[str]
    promises: str = ""
    promise: bytes = b""
    until_ns: int = 0


class Found(msgspec.Struct, frozen=True, array_like=True, tag="f", gc=False):
    """`verdict`: hit · flight (an equal job is under way) · miss · beyond (longer than the window) · failed."""

    handle: int
    verdict: str
    score: float = 0.0  # of `entry`, or of the nearest one that was refused; 0: nothing was near
    reason: str = ""  # of the verifier
    entry: bytes = b""


class Keep(msgspec.Struct, frozen=True, array_like=True, tag="k", gc=False):
    """Store this answer; a promise of the same text is withdrawn."""

    entry: bytes
    promises: str = ""  # the partition of that promise


class Withdraw(msgspec.Struct, frozen=True, array_like=True, tag="w", gc=False):
    """A promise is not going to be kept."""

    ids: list[str]


class Complain(msgspec.Struct, frozen=True, array_like=True, tag="c", gc=False):
    """Somebody says that a hit on this entry, with this score, was wrong."""

    id: str
    score: float


class Forget(msgspec.Struct, frozen=True, array_like=True, tag="p", gc=False):
    """Purge by label; all that are not empty must match. Told: {"removed"}."""

    handle: int
    tenant: str = ""
    muse: str = ""
    model: str = ""
    tag: str = ""


class Weigh(msgspec.Struct, frozen=True, array_like=True, tag="e", gc=False):
    """Explain a lookup: every neighbour from the candidate threshold on, with the verifier's word. Told:
    {"fits", "neighbours": [{"id", "query", "score", "verdict", "reason", "age_s", "model", "bar"}]}."""

    handle: int
    text: str
    partitions: list[str]


class Count(msgspec.Struct, frozen=True, array_like=True, tag="s", gc=False):
    """Told: facts about store, embedder and counters."""

    handle: int


class Told(msgspec.Struct, frozen=True, array_like=True, tag="t", gc=False):
    """A JSON object."""

    handle: int
    data: bytes


class Embed(msgspec.Struct, frozen=True, array_like=True, tag="v", gc=False):
    """The vectors of these texts, for an `embed` job of this class."""

    handle: int
    texts: list[str]
    priority: int = 1


class Leave(msgspec.Struct, frozen=True, array_like=True, tag="x", gc=False):
    """Nobody waits for that Embed any more; no answer comes."""

    handle: int


class Embedded(msgspec.Struct, frozen=True, array_like=True, tag="w", gc=False):
    """One vector of length 1 a text, as JSON: it goes into the result as it is. `cut`: the texts (indices) whose end is
    beyond the window. Instead of all that, an `error`."""

    handle: int
    vectors: bytes = b"[]"
    cut: list[int] = []
    model: str = ""  # the embedder's identity: vectors of another one are not comparable
    window: int = 0  # tokens
    error: dict[str, Any] | None = None


Question = Look | Keep | Withdraw | Complain | Forget | Weigh | Count | Embed | Leave
Answer = Found | Told | Embedded

_ENCODER = msgspec.msgpack.Encoder()
_DECODERS: dict[Frame, msgspec.msgpack.Decoder[Any]] = {
    Frame.HELLO: msgspec.msgpack.Decoder(Hello),
    Frame.GENERATE: msgspec.msgpack.Decoder(list[Generate]),
    Frame.CANCEL: msgspec.msgpack.Decoder(list[int]),
    Frame.EVENTS: msgspec.msgpack.Decoder(list[Event]),
    Frame.RAISE: msgspec.msgpack.Decoder(list[tuple[int, int]]),
    Frame.ASK: msgspec.msgpack.Decoder(list[Question]),
    Frame.ANSWER: msgspec.msgpack.Decoder(list[Answer]),
}


def encode(frame: Frame, epoch: int, payload: Any) -> bytes:
    """One whole frame."""
    data = _ENCODER.encode(payload)
    if len(data) > MAX_PAYLOAD_BYTES:
        raise WireError(f"a {frame.name} payload of {len(data)} bytes is over the limit of {MAX_PAYLOAD_BYTES}")
    return HEADER.pack(len(data), frame, epoch) + data


class FrameReader:
    """Cuts a byte stream into frames of one epoch. After a WireError the stream is lost: close it."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Frame, Any]]:
        """Take `data` in and yield every frame that is complete, decoded. Raises WireError on garbage."""
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= HEADER.size:
                length, kind, epoch = HEADER.unpack_from(buffer, start)
                if length > MAX_PAYLOAD_BYTES:
                    raise WireError(f"a frame says it has {length} bytes; the limit is {MAX_PAYLOAD_BYTES}")
                end = start + HEADER.size + length
                if len(buffer) < end:
                    break
                payload = bytes(buffer[start + HEADER.size : end])
                start = end
                yield self._decode(kind, epoch, payload)
        finally:
            del buffer[:start]

    def _decode(self, kind: int, epoch: int, payload: bytes) -> tuple[Frame, Any]:
        if epoch != self.epoch:
            raise WireError(f"a frame of epoch {epoch} on the pipe of epoch {self.epoch}")
        try:
            frame = Frame(kind)
            return frame, _DECODERS[frame].decode(payload)
        except (ValueError, msgspec.DecodeError) as error:
            raise WireError(f"a frame of type {kind} cannot be read: {error}") from error
