"""Stage 4 · command line · the semantic cache on anybody's questions, by the daemon's own code, without a daemon.

A line of a file becomes a request; partition, eligibility, embedder, store and verifier are those that serve jobs. What
is missing is Redis: an equal question is found by its entry's id instead of the exact cache's key.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metamusesd.cache.base import Entry, decode_entry, encode_entry, entry_id
from metamusesd.cache.eligible import eligibility
from metamusesd.cache.memory import MemoryStore
from metamusesd.cache.partition import Question, digest, question_of
from metamusesd.cache.semantic import Semantic
from metamusesd.commands import screen
from metamusesd.config import Config
from metamusesd.dispatcher.router import analyse
from metamusesd.errors import InvalidRequest
from metamusesd.job import Answer, InferenceRequest, encode_answer
from metamusesd.wire import Found, Keep, Look

PROTOCOLS = ("paraphrase", "distinct", "stream")
AT_A_TIME = 64  # pairs: one batch of the embedder
MODEL = digest("evaluation")
TTL_MS = 3_600_000


@dataclass(slots=True)
class Tally:
    """How the lines of one kind went."""

    same: int = 0
    different: int = 0
    hits: int = 0
    false_hits: int = 0
    unlabelled: int = 0
    served: int = 0

    def add(self, same: bool | None, hit: bool) -> None:
        self.served += hit
        if same is None:
            self.unlabelled += 1
        elif same:
            self.same += 1
            self.hits += hit
        else:
            self.different += 1
            self.false_hits += hit

    def row(self, kind: str) -> tuple[str, ...]:
        precision = _share(self.hits, self.hits + self.false_hits)
        lines = self.same + self.different + self.unlabelled
        return kind, str(lines), str(self.served), _share(self.hits, self.same), _share(
            self.false_hits, self.different), precision  # fmt: skip


@dataclass(slots=True)
class Trial:
    """One evaluation: the cache, the policy, and what came of it."""

    semantic: Semantic
    exact_domains: Sequence[str]
    tallies: dict[str, Tally] = field(default_factory=dict)
    handles: int = 0

    async def keep(self, questions: Iterable[tuple[Question, InferenceRequest, str]]) -> None:
        """Store an answer to each, if it may be kept; it holds the line's name."""
        keeps = []
        for question, request, name in questions:
            may = self._may(request)
            if may.write and may.semantic:
                partition = question.partition(MODEL)
                answer = encode_answer(Answer(content=name))
                entry = Entry(
                    id=entry_id(partition, question.text), partition=partition, query=question.text, answer=answer
                )
                keeps.append(Keep(encode_entry(entry)))
        await self.semantic.keep(keeps)

    async def look(self, questions: Sequence[tuple[Question, InferenceRequest]]) -> list[Found]:
        """What the cache says to each."""
        looks, answers = [], list[Found]()
        for question, request in questions:
            may = self._may(request)
            self.handles += 1
            if may.read and may.semantic:
                looks.append(Look(self.handles, question.text, question.partitions([MODEL])))
            else:
                answers.append(Found(self.handles, "miss", reason=may.reason))
        answers += [found for found in await self.semantic.look(looks) if found is not None]
        return sorted(answers, key=lambda found: found.handle)

    def tally(self, kind: str, same: bool | None, hit: bool) -> None:
        for name in dict.fromkeys((kind, "all")):
            self.tallies.setdefault(name, Tally()).add(same, hit)

    def _may(self, request: InferenceRequest) -> Any:
        return eligibility(request, analyse(request.user_query or "")[0], self.exact_domains)


def evaluate(config: Config, args: argparse.Namespace) -> int:
    """Run one protocol over the file and print the rates."""
    lines = _lines(Path(args.file), ("a", "b") if args.protocol == "paraphrase" else ("q",))
    predictions, trial = asyncio.run(_run(config, args, lines))
    if args.out:
        text = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in predictions)
        Path(args.out).write_text(text, "utf-8")
    rows = [trial.tallies[kind].row(kind) for kind in sorted(trial.tallies, key=lambda kind: (kind == "all", kind))]
    screen.show(screen.table(("kind", ">lines", ">hits", ">recall", ">false hits", ">precision"), rows))
    return 0


async def _run(
    config: Config, args: argparse.Namespace, lines: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], Trial]:
    async with _cache(config) as semantic:
        trial = Trial(semantic, config.cache.exact_domains if args.policy == "daemon" else ())
        work = _paraphrase if args.protocol == "paraphrase" else _stream
        return [each async for each in work(trial, lines, args.protocol)], trial


@asynccontextmanager
async def _cache(config: Config) -> AsyncIterator[Semantic]:
    """The daemon's cache with a store of its own, which is gone afterwards."""
    from metamusesd.cache.embedder import FastEmbedder
    from metamusesd.cache.qdrant_embedded import EmbeddedStore
    from metamusesd.vectors.furnish import terms_of

    embedder = FastEmbedder(config.embedder_dir, config.cache.embedder_threads)
    with tempfile.TemporaryDirectory(prefix="metamusesd-evaluate-") as folder:
        semantic = Semantic(embedder, EmbeddedStore(Path(folder) / "store"), MemoryStore(), terms_of(config))
        await semantic.open()
        try:
            yield semantic
        finally:
            await semantic.close()


async def _paraphrase(trial: Trial, lines: list[dict[str, Any]], _: str) -> AsyncIterator[dict[str, Any]]:
    """Each pair behind walls of its own: a tenant."""
    for first in range(0, len(lines), AT_A_TIME):
        batch = lines[first : first + AT_A_TIME]
        pairs = [
            (_ask(line["a"], f"line{first + n}"), _ask(line["b"], f"line{first + n}")) for n, line in enumerate(batch)
        ]
        await trial.keep((*stored, "a") for stored, _ in pairs)
        for line, found in zip(batch, await trial.look([asked for _, asked in pairs]), strict=True):
            hit = found.verdict == "hit"
            trial.tally(str(line.get("kind", "lines")), line.get("same"), hit)
            yield {"id": line["id"], "hit": hit, "score": round(found.score, 4), "reason": found.reason}


async def _stream(trial: Trial, lines: list[dict[str, Any]], protocol: str) -> AsyncIterator[dict[str, Any]]:
    """One after another, all behind the same walls."""
    answers = {str(index): line.get("answer") for index, line in enumerate(lines)}
    for index, line in enumerate(lines):
        asked = _ask(line["q"], "stream")
        [found] = await trial.look([asked])
        hit = found.verdict == "hit"
        source = json.loads(decode_entry(found.entry).answer)["content"] if hit else ""
        same = None
        if protocol == "distinct":
            same = False
        elif line.get("answer") is not None and hit:
            same = answers[source] == line["answer"]
        trial.tally(str(line.get("source", "lines")), same, hit)
        await trial.keep([(*asked, str(index))])
        hit_id = lines[int(source)]["id"] if hit else None
        yield {"id": line["id"], "hit_id": hit_id, "score": round(found.score, 4), "reason": found.reason}


def _ask(text: str, tenant: str) -> tuple[Question, InferenceRequest]:
    request = InferenceRequest(user_query=text, tenant=tenant, user_address="evaluation")
    return question_of(request), request


def _lines(path: Path, needed: Sequence[str]) -> list[dict[str, Any]]:
    """The file's lines, each with an id. Raises InvalidRequest with the number of the first bad one."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(str(path), f"cannot be read: {error}", "give a readable file of JSON lines") from error
    lines = []
    for number, raw in enumerate(text.splitlines(), 1):
        if not raw.strip():
            continue
        try:
            line = json.loads(raw)
        except ValueError as error:
            raise InvalidRequest(f"{path}:{number}", f"is no JSON: {error}", "write one object a line") from error
        for name in needed:
            if not isinstance(line, dict) or not isinstance(line.get(name), str):
                raise InvalidRequest(f"{path}:{number}", f"has no text {name!r}", f"give {', '.join(needed)}")
        line.setdefault("id", number)
        lines.append(line)
    if not lines:
        raise InvalidRequest(str(path), "holds no line", "give a file of JSON lines")
    return lines


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.4f}" if whole else "–"
