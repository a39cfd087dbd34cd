"""Stages 4, 10 · tests · the exact cache of a memory queue: recall.lua, forget.lua, complain.lua, the end of settle."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from metamusesd.job import decode_result
from metamusesd.queues.answers import Complaint, Kept, Recall, Recalled
from metamusesd.queues.memory_store import Store


@dataclass(slots=True)
class Shelf:
    """What is kept, the least recently used first; who asked what, and until when that counts."""

    kept: OrderedDict[str, tuple[Kept, int]] = field(default_factory=OrderedDict)
    asked: dict[str, tuple[str, int]] = field(default_factory=dict)
    complaints: list[Complaint] = field(default_factory=list)
    complained: set[str] = field(default_factory=set)

    def bytes(self) -> int:
        return sum(len(kept.key) + len(kept.value) + len(kept.labels) for kept, _ in self.kept.values())


class MemoryAnswers:
    """The answers' part of MemoryQueue."""

    _store: Store
    _shelf: Shelf

    async def recall(self, asks: Sequence[Recall]) -> list[Recalled]:
        """See base.Queue and lua/recall.lua."""
        return [self._recall(ask) for ask in asks]

    async def complain(self, id: str) -> str:
        """See base.Queue and lua/complain.lua."""
        job = self._store.get(id)
        if job is None or job.result is None:
            return "gone"
        try:
            note = decode_result(job.result).cache
        except msgspec.MsgspecError:
            return "not_cached"
        if note is None or note.kind not in ("exact", "semantic"):
            return "not_cached"
        if id not in self._shelf.complained:
            self._shelf.complained.add(id)
            if note.kind == "exact":
                self._shelf.kept.pop(note.entry, None)
            else:
                self._shelf.complaints.append(Complaint(note.entry, note.score))
        return "noted"

    async def complaints(self, most: int = 100) -> list[Complaint]:
        """See base.Queue."""
        taken, self._shelf.complaints = self._shelf.complaints[:most], self._shelf.complaints[most:]
        return taken

    async def forget(self, *, tenant: str = "", muse: str = "", model: str = "", tag: str = "") -> int:
        """See base.Queue and lua/forget.lua."""
        wanted = {"tenant": tenant, "muse": muse, "model": model}
        gone = []
        for key, (kept, _) in self._shelf.kept.items():
            labels = json.loads(kept.labels)
            same = all(not value or labels.get(name) == value for name, value in wanted.items())
            if same and (not tag or tag in labels.get("tags", "").split()):
                gone.append(key)
        for key in gone:
            del self._shelf.kept[key]
        return len(gone)

    async def kept(self) -> tuple[int, int]:
        """See base.Queue."""
        return len(self._shelf.kept), self._shelf.bytes()

    def remember(self, kept: Kept) -> None:
        """Part of settle."""
        shelf, limits = self._shelf, self._store.limits.answers
        shelf.kept.pop(kept.key, None)
        shelf.kept[kept.key] = kept, self._store.now_ms() + limits.ttl_ms
        while len(shelf.kept) > limits.most or shelf.bytes() > limits.most_bytes:
            shelf.kept.popitem(last=False)

    def _recall(self, ask: Recall) -> Recalled:
        shelf, now_ms, repeat_ms = self._shelf, self._store.now_ms(), self._store.limits.answers.repeat_ms
        if ask.asked and repeat_ms:
            id, until_ms = shelf.asked.get(ask.asked, ("", 0))
            shelf.asked[ask.asked] = ask.id, now_ms + repeat_ms
            if id not in ("", ask.id) and until_ms > now_ms:
                return Recalled(repeated=True)
        for key in ask.keys:
            kept, ends_ms = shelf.kept.get(key, (None, 0))
            if kept and ends_ms > now_ms:
                shelf.kept.move_to_end(key)
                return Recalled(key, kept.value)
        return Recalled()
