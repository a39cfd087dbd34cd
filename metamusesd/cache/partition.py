"""Stages 3, 4, 10 · dispatcher · what must be equal before an answer may be given again. Pure.

    walls      everything of a request that shapes its answer, but for the last question: tenant, muse, user (where it
               counts), system text, the turns before, parameters, response format
    identity   everything of a model that does: file, template, engine, its defaults
    partition  digest of walls and one identity: a hard filter of every search
    flight     digest of walls, question and all identities that may serve it: equal jobs that are computed once

What is not in here does not change an answer: id, priority, deadline, stream, reply_to, on_restart, the tier's name.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence

import msgspec

from metamusesd.cache.speech import is_personal
from metamusesd.job import InferenceRequest, Message
from metamusesd.prompt import messages_of

_JSON = msgspec.json.Encoder(order="sorted")


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """One request as the caches see it. `text` is what is compared and embedded: the last turn, NFC, trimmed."""

    text: str
    walls: str  # digest
    shared: str  # digest of the walls less the user's, where that one is up by the text alone: see `partitions`
    user: str  # digest of whoever asks; empty: nobody in particular
    tenant: str
    muse: str
    tags: tuple[str, ...]

    def partition(self, identity: str) -> str:
        """Where answers of this model to questions behind these walls live."""
        return digest(self.walls, identity)

    def partitions(self, identities: Sequence[str]) -> list[str]:
        """Where answers to it are looked for by meaning. A text that speaks of its user may get what was answered to a
        question that speaks of nobody: that is no other user's. The answers to it are its user's alone."""
        walls = [self.walls, *filter(None, [self.shared])]
        return [digest(each, identity) for each in walls for identity in identities]

    def key(self, identity: str) -> str:
        """Of the exact cache."""
        return digest(self.partition(identity), self.text)

    def promises(self, identities: Sequence[str]) -> str:
        """The partition of the promises of jobs that may be served by any of these models."""
        return digest("promises", self.walls, *sorted(identities))

    def flight(self, identities: Sequence[str]) -> str:
        """Equal for equal jobs."""
        return digest(self.promises(identities), self.text)

    @property
    def asked(self) -> str:
        """Equal when the same user asks the same again; empty when nobody knows who asks."""
        return digest("asked", self.user, self.walls, self.text) if self.user else ""

    def labels(self, model_digest: str) -> bytes:
        """For invalidation, as lua/forget.lua reads them."""
        return _JSON.encode(
            {"tenant": self.tenant, "muse": self.muse, "model": model_digest, "tags": " ".join(self.tags)}
        )


def question_of(request: InferenceRequest) -> Question:
    """The request with its walls. The form (user_query or messages) makes no difference."""
    *before, last = messages_of(request)
    text = normal(last.content)
    user = digest("user", request.tenant, request.user_address) if request.user_address else ""
    muse = "" if request.muse_id is None else f"{type(request.muse_id).__name__}:{request.muse_id}"
    personal, by_text = _personal(request, before, text)
    walls = {
        "tenant": request.tenant,
        "muse": muse,
        "user": user if personal else None,
        "last": last.role,
        "turns": [(turn.role, turn.content) for turn in before],
        "params": msgspec.json.encode(request.params).decode(),  # as given: the order of a schema shapes the answer
        "truncate": request.truncate,
    }
    shared = digest(_JSON.encode(walls | {"user": None}).decode()) if by_text else ""
    return Question(
        text=text, walls=digest(_JSON.encode(walls).decode()), shared=shared, user=user, tenant=request.tenant,
        muse=muse.partition(":")[2], tags=tuple(request.cache.tags),
    )  # fmt: skip


def identity(file_digest: str, template_digest: str, engine: str, **defaults: float) -> str:
    """Digest of everything of a model that shapes its answers; `defaults` are its parameters for requests without."""
    return digest(file_digest, template_digest, engine, _JSON.encode(defaults).decode())


def normal(text: str) -> str:
    """NFC and outer trim only: folding case or inner space would merge different code."""
    return unicodedata.normalize("NFC", text).strip()


def digest(*parts: str) -> str:
    """128 bits in hex. Parts cannot run into each other."""
    made = hashlib.blake2b(digest_size=16)
    for part in parts:
        raw = part.encode()
        made.update(len(raw).to_bytes(8, "little") + raw)
    return made.hexdigest()


def _personal(request: InferenceRequest, before: Sequence[Message], text: str) -> tuple[bool, bool]:
    """Whether the user is a wall, and whether that is by the text alone. By default: where there is a conversation, or
    the text speaks of the user."""
    if request.cache.scope != "auto":
        return request.cache.scope == "user", False
    if any(turn.role != "system" for turn in before):
        return True, False
    by_text = is_personal(text)
    return by_text, by_text
