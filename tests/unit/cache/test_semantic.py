"""The semantic cache without a process: hits, refusals, promises, complaints, and what a failing part costs."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from metamusesd.cache.base import DIMENSION, Entry, decode_entry, encode_entry, entry_id
from metamusesd.cache.memory import MemoryStore
from metamusesd.cache.semantic import MOST_OPEN, REST_NS, Semantic, Terms
from metamusesd.cache.upkeep import QUIET_NS, SWEEP_NS
from metamusesd.errors import EmbedderFailed, StoreFailed
from metamusesd.wire import Complain, Forget, Found, Keep, Look, Weigh, Withdraw

ASKED = "What is the capital of France?"
LIKE = "what is the capital of france"  # the same but for case and marks
TWIN = "What is the capital of Spain?"  # near, and another question
FAR = "How do I bake bread?"
ANGLES = {ASKED: 0.0, LIKE: 0.25, TWIN: 0.1, FAR: 1.5}  # cosines to ASKED: 1, 0.969, 0.995, 0.07
WALL, FLIGHTS = "partition", "partition of promises"
HOUR_MS = 3_600_000


class ToyEmbedder:
    """Every text is an angle. Notes its calls; fails or waits when it is told to."""

    identity, window = "toy", 8

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.failure = ""
        self.gate = threading.Event()
        self.gate.set()

    def fits(self, text: str) -> bool:
        return len(text) < 1000

    def cuts(self, text: str) -> bool:
        return not self.fits(text)

    def embed(self, texts: Sequence[str]) -> Sequence[np.ndarray]:
        self.calls.append(list(texts))
        assert self.gate.wait(10)
        if self.failure:
            raise EmbedderFailed(self.failure)
        return [vector(ANGLES.get(text, 2.0 + len(text) / 100)) for text in texts]


class FailingStore(MemoryStore):
    """Fails as long as `failure` says why."""

    failure = ""
    searches = tends = 0

    async def search(self, *given, **more):
        self.searches += 1
        self.fail()
        return await super().search(*given, **more)

    async def put(self, *given):
        self.fail()
        await super().put(*given)

    async def count(self) -> int:
        self.fail()
        return await super().count()

    async def tend(self) -> bool:
        self.tends += 1
        return True

    def fail(self) -> None:
        if self.failure:
            raise StoreFailed(self.failure)


class Bench:
    """A semantic cache with its parts at hand, and clocks that only the test moves."""

    def __init__(self, **terms: float) -> None:
        self.now_ms, self.now_ns = 1_000_000, 1_000_000_000
        self.embedder, self.answers, self.promises = ToyEmbedder(), FailingStore(), MemoryStore()
        self.cache = Semantic(
            self.embedder, self.answers, self.promises, Terms(**terms),  # type: ignore[arg-type]
            now_ms=lambda: self.now_ms, now_ns=lambda: self.now_ns,
        )  # fmt: skip

    async def keep(self, text: str, answer: bytes = b"Paris", **fields: object) -> str:
        """An answer in the cache; returns its entry's id."""
        entry = Entry(id=entry_id(WALL, text), partition=WALL, query=text, answer=answer, **fields)  # type: ignore[arg-type]
        await self.cache.keep([Keep(encode_entry(entry), FLIGHTS)])
        return entry.id

    async def look(self, text: str, **fields: object) -> Found:
        (found,) = await self.cache.look([Look(7, text, [WALL], **fields)])  # type: ignore[arg-type]
        assert found is not None
        assert found.handle == 7
        return found

    async def claim(self, text: str, flight: str = "f1") -> Found:
        """Look with a promise in hand, as the dispatcher does."""
        return await self.look(text, promises=FLIGHTS, promise=promise(text, flight))

    def rest_is_over(self) -> None:
        self.now_ns += REST_NS + 1


def vector(angle: float) -> np.ndarray:
    found = np.zeros(DIMENSION, np.float32)
    found[0], found[1] = math.cos(angle), math.sin(angle)
    return found


def promise(text: str, flight: str) -> bytes:
    return encode_entry(Entry(id=entry_id(FLIGHTS, text), partition=FLIGHTS, query=text, flight=flight))


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.cache.vectorizer.close()


async def test_a_question_that_means_the_same_hits(bench):
    """Its answer comes with the score and the verifier's reason."""
    await bench.keep(ASKED)
    found = await bench.look(LIKE)
    assert (found.verdict, decode_entry(found.entry).answer) == ("hit", b"Paris")
    assert found.score == pytest.approx(math.cos(0.25), abs=1e-5)
    assert found.reason
    assert bench.cache.counted["hits"] == 1


async def test_the_very_same_question_hits_without_the_verifier(bench, monkeypatch):
    """Score 1.0, and nobody is asked; not even a bar stands in the way."""
    monkeypatch.setattr("metamusesd.cache.semantic.verify", lambda *_: pytest.fail("the verifier was asked"))
    await bench.keep(ASKED, bar=1.1)
    found = await bench.look(ASKED)
    assert (found.verdict, found.score) == ("hit", 1.0)


async def test_a_near_question_about_something_else_is_refused(bench):
    """A cosine of 0.995 is no hit when the words differ; score and reason say why it was none."""
    await bench.keep(ASKED)
    found = await bench.look(TWIN)
    assert (found.verdict, found.entry) == ("miss", b"")
    assert found.score == pytest.approx(math.cos(0.1), abs=1e-5)
    assert found.reason


async def test_the_next_best_neighbour_hits_when_the_best_is_refused(bench):
    """Neighbours are weighed from the best down, and the first that is admitted wins."""
    await bench.keep(TWIN, b"Madrid")
    await bench.keep(LIKE, b"Paris")
    found = await bench.look(ASKED)
    assert (found.verdict, decode_entry(found.entry).answer) == ("hit", b"Paris")


async def test_nothing_near_and_nothing_of_another_partition_is_found(bench):
    """A miss with score 0, whatever there is behind other walls."""
    await bench.keep(ASKED)
    assert (await bench.look(FAR)).score == 0
    (found,) = await bench.cache.look([Look(1, ASKED, ["elsewhere"])])
    assert found is not None
    assert (found.verdict, found.score) == ("miss", 0)


async def test_what_the_embedder_does_not_see_as_a_whole_is_not_looked_up(bench):
    """Too long, or empty: beyond, without a search and without a promise."""
    for text in ("", "x" * 2000):
        found = await bench.claim(text)
        assert found.verdict == "beyond"
    assert bench.answers.searches == 0
    assert await bench.promises.count() == 0


async def test_who_asks_what_is_promised_already_finds_the_flight(bench):
    """The first to ask promises; an equal question, and one that means the same, find its flight."""
    assert (await bench.claim(ASKED, "f1")).verdict == "miss"
    for text, score in ((ASKED, 1.0), (LIKE, math.cos(0.25))):
        found = await bench.claim(text, "f2")
        assert (found.verdict, decode_entry(found.entry).flight) == ("flight", "f1")
        assert found.score == pytest.approx(score, abs=1e-5)
    assert (await bench.claim(TWIN, "f3")).verdict == "miss"


async def test_of_many_who_ask_the_same_at_once_one_promises(bench):
    """Twenty looks in one moment: one miss, and nineteen follow its flight."""
    looks = [Look(n, ASKED, [WALL], FLIGHTS, promise(ASKED, f"f{n}")) for n in range(20)]
    found = await bench.cache.look(looks)
    assert sorted(each.verdict for each in found if each) == ["flight"] * 19 + ["miss"]
    flights = {decode_entry(each.entry).flight for each in found if each and each.entry}
    (leader,) = [each.handle for each in found if each and each.verdict == "miss"]
    assert flights == {f"f{leader}"}


async def test_an_answer_takes_the_place_of_its_promise(bench):
    """After `keep` the same question hits, and no promise is left."""
    await bench.claim(ASKED)
    await bench.keep(ASKED)
    assert await bench.promises.count() == 0
    assert (await bench.claim(ASKED, "f2")).verdict == "hit"


async def test_a_promise_that_is_not_kept_is_withdrawn(bench):
    """The next one who asks promises anew."""
    await bench.claim(ASKED, "f1")
    await bench.cache.withdraw(Withdraw([entry_id(FLIGHTS, ASKED)]))
    assert (await bench.claim(ASKED, "f2")).verdict == "miss"
    assert decode_entry((await bench.claim(LIKE, "f3")).entry).flight == "f2"


async def test_a_promise_does_not_last_for_ever(bench):
    """Whoever promised and was never heard of again keeps nobody waiting."""
    await bench.claim(ASKED, "f1")
    bench.now_ms += HOUR_MS
    assert (await bench.claim(ASKED, "f2")).verdict == "miss"


async def test_an_answer_lives_as_long_as_its_terms_say(bench):
    """Without times of its own it gets them: made now, given until the ttl is over."""
    await bench.keep(ASKED)
    bench.now_ms += 23 * HOUR_MS
    found = await bench.look(ASKED)
    assert decode_entry(found.entry).expires_ms == 1_000_000 + 24 * HOUR_MS
    bench.now_ms += HOUR_MS
    assert (await bench.look(ASKED)).verdict == "miss"


async def test_who_is_too_late_gets_no_answer_and_costs_no_embedding(bench):
    """Looks whose askers have stopped waiting are skipped while the embedder was busy with others."""
    bench.embedder.gate.clear()
    first = asyncio.create_task(bench.look(ASKED, until_ns=bench.now_ns + 1_000_000))
    await called(bench.embedder, 1)
    late = asyncio.create_task(bench.cache.look([Look(1, LIKE, [WALL], until_ns=bench.now_ns + 1_000_000)]))
    in_time = asyncio.create_task(bench.look(FAR, until_ns=bench.now_ns + 50_000_000))
    await asyncio.sleep(0)
    bench.now_ns += 2_000_000
    bench.embedder.gate.set()
    assert await late == [None]
    assert (await in_time).verdict == "miss"
    with pytest.raises(AssertionError):  # the first was embedded, and late for the search
        await first
    assert bench.embedder.calls == [[ASKED], [FAR]]
    assert bench.cache.counted["late"] == 2


async def test_a_text_that_was_just_looked_up_is_not_embedded_again(bench):
    """The answer to a question is kept with the vector of its lookup."""
    await bench.look(ASKED)
    await bench.keep(ASKED)
    await bench.look(ASKED)
    assert bench.embedder.calls == [[ASKED]]


async def test_a_failing_store_is_a_verdict_and_is_left_alone_for_a_moment(bench):
    """`failed` with the reason, no exception; the next lookups do not even ask it, until it has had its rest."""
    await bench.keep(ASKED)
    bench.answers.failure = "no disk"
    found = await bench.claim(ASKED)
    assert (found.verdict, found.reason) == ("failed", "no disk")
    assert (await bench.look(ASKED)).verdict == "failed"
    assert bench.answers.searches == 1
    assert bench.cache.trouble == "no disk"
    bench.answers.failure = ""
    bench.rest_is_over()
    assert (await bench.look(ASKED)).verdict == "hit"
    assert bench.cache.trouble == ""
    assert bench.cache.counted["failures"] == 2


async def test_an_answer_that_cannot_be_kept_is_counted_and_its_promise_withdrawn(bench):
    """Nobody follows a flight whose answer will never be there."""
    await bench.claim(ASKED)
    bench.answers.failure = "no disk"
    await bench.keep(ASKED)
    assert (bench.cache.counted["unkept"], bench.cache.counted["kept"]) == (1, 0)
    assert await bench.promises.count() == 0


async def test_a_failing_embedder_is_a_verdict(bench):
    """`failed` with the reason, and well again by itself."""
    bench.embedder.failure = "no weights"
    found = await bench.look(ASKED)
    assert (found.verdict, found.reason, bench.cache.trouble) == ("failed", "no weights", "no weights")
    bench.embedder.failure = ""
    assert (await bench.look(ASKED)).verdict == "miss"
    assert bench.cache.trouble == ""


async def test_garbage_for_an_entry_harms_nobody(bench):
    """A promise that cannot be read fails its lookup, an answer that cannot be read is not kept."""
    assert (await bench.look(ASKED, promises=FLIGHTS, promise=b"\xc1")).verdict == "failed"
    await bench.cache.keep([Keep(b"\xc1")])
    assert bench.cache.counted["unkept"] == 1
    assert bench.cache.trouble == ""
    assert (await bench.look(ASKED)).verdict == "miss"


async def test_a_flood_of_lookups_is_refused(bench):
    """Only so many wait at a time; the rest fail at once. Many in one call are no flood."""
    looks = [Look(n, ASKED, [WALL]) for n in range(MOST_OPEN + 5)]
    bench.embedder.gate.clear()
    flood = asyncio.gather(*map(bench.cache.look_up, looks))
    await called(bench.embedder, 1)
    bench.embedder.gate.set()
    verdicts = [found.verdict for found in await flood if found]
    assert (verdicts.count("failed"), verdicts.count("miss")) == (5, MOST_OPEN)
    assert {found.verdict for found in await bench.cache.look(looks) if found} == {"miss"}


async def test_a_complaint_raises_the_bar_and_the_third_one_drops_the_entry(bench):
    """A reported hit does not come again with that score; three reports are enough."""
    id = await bench.keep(ASKED)
    score = (await bench.look(LIKE)).score
    await bench.cache.complain(Complain(id, score))
    assert (await bench.look(LIKE)).verdict == "miss"
    entry = await bench.answers.get(id)
    assert entry is not None
    assert (entry.bar, entry.complaints) == (pytest.approx(score + 0.01), 1)
    for _ in range(2):
        await bench.cache.complain(Complain(id, 0.5))
    assert await bench.answers.get(id) is None
    await bench.cache.complain(Complain(id, 0.5))  # of one that is gone: nothing


async def test_a_complaint_about_an_equal_question_drops_the_entry_at_once(bench):
    """No bar could keep these two apart."""
    id = await bench.keep(ASKED)
    await bench.cache.complain(Complain(id, 1.0))
    assert await bench.answers.get(id) is None


async def test_forgetting_is_by_label(bench):
    """All labels that are given must match; promises go as well."""
    await bench.keep(ASKED, tenant="t", muse="m")
    await bench.keep(FAR, tenant="t", muse="other")
    await bench.claim(TWIN)
    assert await bench.cache.forget(Forget(1, tenant="t", muse="m")) == 1
    assert (await bench.look(FAR)).verdict == "hit"
    assert await bench.cache.forget(Forget(1)) == 2


async def test_a_lookup_is_explained(bench):
    """Every neighbour from the candidate threshold on, with the verifier's word and whether it would hit."""
    await bench.keep(ASKED, model="sha256:1")
    await bench.keep(TWIN)
    bench.now_ms += 5000
    told = await bench.cache.weigh(Weigh(1, LIKE, [WALL]))
    assert told["fits"]
    assert [(each["query"], each["admitted"]) for each in told["neighbours"]] == [(TWIN, False), (ASKED, True)]
    assert {"id", "score", "verdict", "reason", "bar"} < set(told["neighbours"][0])
    assert (told["neighbours"][1]["age_s"], told["neighbours"][1]["model"]) == (5.0, "sha256:1")
    assert await bench.cache.weigh(Weigh(1, "x" * 2000, [WALL])) == {"fits": False, "neighbours": []}


async def test_the_facts_are_counted(bench):
    """Store, promises, embedder, counters."""
    await bench.claim(ASKED)
    await bench.keep(FAR)
    facts = await bench.cache.count()
    assert (facts["store"]["entries"], facts["promises"], facts["embedder"]["identity"]) == (1, 1, "toy")
    assert (facts["counted"]["misses"], facts["counted"]["kept"]) == (1, 1)


async def test_uses_are_noted_and_the_least_recently_used_goes(bench):
    """A hit counts as a use, in the next turn of the upkeep; beyond max_entries the others go first."""
    bench = Bench(max_entries=1)
    id = await bench.keep(ASKED)
    bench.now_ms += 1000
    await bench.keep(FAR)
    bench.now_ms += 1000
    await bench.look(ASKED)
    bench.now_ns += SWEEP_NS
    await bench.cache.tend_once()
    assert bench.cache.upkeep.swept == 1
    entry = await bench.answers.get(id)
    assert entry is not None
    assert (entry.used_ms, bench.cache.entries) == (1_002_000, 1)


async def test_maintenance_waits_for_a_quiet_moment(bench):
    """While somebody asks it is not begun; the board hears before it begins and after it."""
    heard: list[bool] = []
    bench.cache.upkeep.tending = heard.append
    bench.cache.upkeep._tended_ns = bench.now_ns
    await bench.look(ASKED)
    await bench.cache.tend_once()
    assert (bench.answers.tends, heard) == (0, [])
    bench.now_ns += QUIET_NS
    await bench.cache.tend_once()
    assert (bench.answers.tends, heard) == (1, [True, False])


async def test_a_store_that_is_well_again_is_noticed_without_a_lookup(bench):
    """The upkeep asks it."""
    bench.answers.failure = "away"
    await bench.look(ASKED)
    await bench.cache.tend_once()
    assert bench.cache.trouble == "away"
    bench.answers.failure = ""
    await bench.cache.tend_once()
    assert bench.cache.trouble == ""


async def test_the_oldest_question_is_known(bench):
    """For the watchdog: since when somebody waits, and nothing when nobody does."""
    bench.embedder.gate.clear()
    look = asyncio.create_task(bench.look(ASKED))
    await called(bench.embedder, 1)
    began_ns, bench.now_ns = bench.now_ns, bench.now_ns + 1000
    assert (bench.cache.oldest_ns, bench.cache.oldest_text_ns) == (began_ns, began_ns)
    bench.embedder.gate.set()
    await look
    assert (bench.cache.oldest_ns, bench.cache.oldest_text_ns) == (0, 0)


async def test_one_store_for_answers_and_promises_serves_both(bench):
    """As on a server that hosts share: an answer is preferred, a promise is found, and nothing is counted twice."""
    shared = MemoryStore()
    cache = Semantic(ToyEmbedder(), shared, shared, now_ms=lambda: 1_000_000)
    look = Look(1, ASKED, [WALL], FLIGHTS, promise(ASKED, "f1"))
    verdicts = [(await cache.look([look]))[0] for _ in range(2)]
    assert [found.verdict for found in verdicts if found] == ["miss", "flight"]
    entry = Entry(id=entry_id(WALL, ASKED), partition=WALL, query=ASKED, answer=b"Paris")
    await cache.keep([Keep(encode_entry(entry), FLIGHTS)])
    (found,) = await cache.look([look])
    assert found is not None
    assert found.verdict == "hit"
    assert await cache.forget(Forget(1)) == 1
    await cache.close()


async def called(embedder: ToyEmbedder, times: int) -> None:
    """Until the embedder is at work, on its thread."""
    async with asyncio.timeout(10):
        while len(embedder.calls) < times:
            await asyncio.sleep(0.001)
