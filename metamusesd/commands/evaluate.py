"""Stage 4 · command line · the semantic cache on anybody's questions, by the daemon's own code, without a daemon.

A line of a file becomes a request; partition, eligibility, embedder, store and verifier are those that serve jobs. What
is missing is Redis, with it the rule about users who repeat themselves, and the budget: a slow machine hits as well.
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
from metamusesd.cache.eligible import Eligibility, eligibility
from metamusesd.cache.memory import MemoryStore
from metamusesd.cache.partition import Question, digest, question_of
from metamusesd.cache.semantic import Semantic
from metamusesd.commands import screen
from metamusesd.config import Config
from metamusesd.errors import InvalidRequest
from metamusesd.job import Answer, InferenceRequest, decode_answer, encode_answer
from metamusesd.routing.analysis import analyse
from metamusesd.wire import Found, Keep, Look

PROTOCOLS = ("paraphrase", "distinct", "stream")
AT_A_TIME = 64  # pairs: one batch of the embedder
MODEL = digest("evaluation")
TTL_MS = 3_600_000


@dataclass(slots=True)
class Tally:
    """How the lines of one kind went. A line is labelled when its file says whether it should hit."""

    lines: int = 0
    hits: int = 0
    same: int = 0  # labelled lines that should hit
    right: int = 0  # and did, with an answer that fits
    different: int = 0  # labelled lines that should not hit
    wrong: int = 0  # labelled lines that got an answer which does not fit

    def add(self, hit: bool, should: bool | None, fits: bool | None) -> None:
        self.lines += 1
        self.hits += hit
        if should is not None:
            self.same += should
            self.different += not should
            self.right += bool(hit and fits)
            self.wrong += bool(hit and not fits)

    def row(self, kind: str) -> tuple[str, ...]:
        return (
            kind, str(self.lines), str(self.hits), _share(self.right, self.same), _share(self.wrong, self.different),
            _share(self.right, self.right + self.wrong),
        )  # fmt: skip


@dataclass(slots=True)
class Trial:
    """One evaluation: the caches, the policy, and what came of it."""

    semantic: Semantic
    exact_domains: Sequence[str]
    exact: dict[str, str] = field(default_factory=dict)  # key → the line whose answer it is
    tallies: dict[str, Tally] = field(default_factory=dict)
    handles: int = 0

    async def keep(self, questions: Iterable[tuple[Question, InferenceRequest, str]]) -> None:
        """Store an answer to each, if it may be kept; it holds the line's name."""
        keeps = []
        for question, request, name in questions:
            may = self._may(request)
            if may.write:
                self.exact[question.key(MODEL)] = name
            if may.write and may.semantic:
                partition = question.partition(MODEL)
                answer = encode_answer(Answer(content=name))
                entry = Entry(
                    id=entry_id(partition, question.text), partition=partition, query=question.text, answer=answer
                )
                keeps.append(Keep(encode_entry(entry)))
        await self.semantic.keep(keeps)

    async def look(self, questions: Sequence[tuple[Question, InferenceRequest]]) -> list[tuple[Found, str]]:
        """What the caches say to each, and whose answer that is."""
        looks, said = [], dict[int, tuple[Found, str]]()
        first = self.handles
        for question, request in questions:
            may = self._may(request)
            self.handles += 1
            if may.read and (name := self.exact.get(question.key(MODEL))) is not None:
                said[self.handles] = Found(self.handles, "hit", 1.0, "the same text"), name
            elif may.read and may.semantic:
                looks.append(Look(self.handles, question.text, question.partitions([MODEL])))
            else:
                said[self.handles] = Found(self.handles, "miss", reason=may.reason), ""
        for found in await self.semantic.look(looks):
            if found is not None:
                hit = found.verdict == "hit"
                name = decode_answer(decode_entry(found.entry).answer).content if hit else ""
                said[found.handle] = found, name
        return [said[handle] for handle in range(first + 1, self.handles + 1)]

    def tally(self, kind: str, hit: bool, should: bool | None, fits: bool | None) -> None:
        for name in dict.fromkeys((kind, "all")):
            self.tallies.setdefault(name, Tally()).add(hit, should, fits)

    def _may(self, request: InferenceRequest) -> Eligibility:
        found = analyse(request.user_query or "")
        return eligibility(request, found.domain, self.exact_domains, found.confidence)


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
        for line, (found, _name) in zip(batch, await trial.look([asked for _, asked in pairs]), strict=True):
            hit, same = found.verdict == "hit", line.get("same")
            trial.tally(_kind(line), hit, same, same)
            yield {"id": line["id"], "hit": hit, "score": round(found.score, 4), "reason": found.reason}


async def _stream(trial: Trial, lines: list[dict[str, Any]], protocol: str) -> AsyncIterator[dict[str, Any]]:
    """One after another, all behind the same walls. A line of `stream` should hit when its answer was given before."""
    answered: set[Any] = set()
    for index, line in enumerate(lines):
        asked, answer = _ask(line["q"], "stream"), line.get("answer")
        [(found, source)] = await trial.look([asked])
        hit = found.verdict == "hit"
        should, fits = (False, False) if protocol == "distinct" else (None, None)
        if protocol == "stream" and answer is not None:
            should, fits = json.dumps(answer) in answered, hit and lines[int(source)].get("answer") == answer
        trial.tally(_kind(line), hit, should, fits)
        await trial.keep([(*asked, str(index))])
        answered.add(json.dumps(answer))
        hit_id = lines[int(source)]["id"] if hit else None
        yield {"id": line["id"], "hit_id": hit_id, "score": round(found.score, 4), "reason": found.reason}


def _kind(line: dict[str, Any]) -> str:
    return str(line.get("kind", line.get("source", "lines")))


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
    for number, raw in enumerate(text.split("\n"), 1):
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
