"""The producer's side without Redis: what a reader sees, what a submit sends, what a lost answer costs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace

from metamusesd.client import Client, SyncClient, inbox, kept
from metamusesd.client.feed import MERGE_ABOVE, Feed
from metamusesd.errors import (
    DeadlineUnmeetable,
    IdConflict,
    InvalidRequest,
    JobDead,
    JobFailed,
    JobGone,
    QueueFault,
    QueueFull,
    QueueTimeout,
    QueueUnavailable,
    WaitTimeout,
)
from metamusesd.job import Result, encode_result, parse_request
from metamusesd.queues.base import JobEvent, JobView, Position, Receipt, Submission


def token(text: str, offset: int, attempt: int = 1) -> JobEvent:
    return JobEvent("", "j", "token", attempt, offset, text, 1)


def end(content: str = "", state: str = "done", **fields: object) -> JobEvent:
    data = encode_result(Result(request_id="j", state=state, content=content, **fields))  # type: ignore[arg-type]
    return JobEvent("", "j", state, data=data)


def seen(feed: Feed) -> list[tuple[str, int, str]]:
    """What the reader of a feed would get now."""
    return [(event.kind, event.offset, event.text) for event in feed._events]


def open_feed() -> Feed:
    feed = Feed()
    feed.catch_up([])
    return feed


class StubQueue:
    """A queue that answers as a test tells it: jobs end when `finish` says so."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.jobs: dict[str, Submission] = {}
        self.results: dict[str, bytes] = {}
        self.letters: list[JobEvent] = []
        self.own: dict[str, list[JobEvent]] = {}
        self.news = asyncio.Event()
        self.refuse: list[Exception] = []
        self.answers: dict[str, Receipt | QueueFull | IdConflict] = {}
        self.reads = 0
        self.closed = False
        self.spoilt: set[str] = set()  # jobs, and `mail`, whose keys somebody else has written

    async def open(self) -> None: ...

    async def close(self) -> None:
        self.closed = True

    async def submit(self, jobs: Sequence[Submission]) -> list[Receipt | QueueFull | IdConflict]:
        self.calls.append([job.id for job in jobs])
        if self.refuse:
            raise self.refuse.pop(0)
        self.jobs.update({job.id: job for job in jobs})
        self.ring()
        await asyncio.sleep(0)
        return [self.answers.get(job.id) or Receipt(job.id, "queued") for job in jobs]

    async def view(self, id: str) -> JobView | None:
        self.reads += 1
        self._look_at(id)
        return JobView(id, "queued", 1, 1, 0, "default", 0) if id in self.jobs else None

    async def result(self, id: str) -> bytes | None:
        return self.results.get(id)

    async def events(self, id: str, after: str = "0", block_ms: int = 0) -> list[JobEvent]:
        self._look_at(id)
        return await self._read(self.own.setdefault(id, []), after, block_ms)

    async def mail(self, name: str, after: str = "0", block_ms: int = 0) -> list[JobEvent]:
        self._look_at("mail")
        return await self._read(self.letters, after, block_ms)

    async def cancel(self, id: str) -> str:
        return "cancelled" if id in self.jobs else "gone"

    async def position(self, id: str) -> Position | None:
        return Position(id, "queued", "ingress", 3) if id in self.jobs else None

    async def dead(self, count: int = 100) -> list[JobView]:
        return [JobView("d", "dead", 1, 3, 3, "default", 0)][:count]

    async def revive(self, id: str) -> str:
        return "queued" if id == "d" else "gone"

    async def drop(self, id: str) -> str:
        return "dropped" if id == "d" else "gone"

    def _look_at(self, name: str) -> None:
        if name in self.spoilt:
            raise QueueFault(f"WRONGTYPE {name}")

    async def _read(self, entries: list[JobEvent], after: str, block_ms: int) -> list[JobEvent]:
        if block_ms and len(entries) <= int(after):
            await self.news.wait()
        return [_at(e, cursor) for cursor, e in enumerate(entries, 1) if cursor > int(after)]

    def post(self, event: JobEvent, *, mail: bool = True, own: bool = True) -> None:
        if mail:
            self.letters.append(event)
        if own:
            self.own.setdefault(event.id, []).append(event)
        if event.data:
            self.results[event.id] = event.data
        self.ring()

    def ring(self) -> None:
        self.news.set()
        self.news.clear()

    async def arrived(self, count: int = 1) -> None:
        """Wait until so many jobs were submitted."""
        while len(self.jobs) < count:
            await self.news.wait()


def _at(event: JobEvent, cursor: int) -> JobEvent:
    return JobEvent(
        str(cursor), event.id, event.kind, event.attempt, event.offset, event.text, event.tokens, event.data
    )


def done(id: str, content: str = "yes", state: str = "done", error: dict[str, str] | None = None) -> JobEvent:
    data = encode_result(Result(request_id=id, state=state, content=content, error=error))
    return JobEvent("", id, state, data=data)


@pytest.fixture
async def queue() -> StubQueue:
    return StubQueue()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks come at once, so that healing needs no patience."""
    monkeypatch.setattr(inbox, "TICK_S", 0.001)
    monkeypatch.setattr(inbox, "FIRST_CHECK_S", 0.001)
    monkeypatch.setattr("metamusesd.client.outbox.FIRST_PAUSE_S", 0.001)


# what a reader sees


def test_feed_drops_what_was_seen() -> None:
    """The same text from two sources is seen once, and an overlapping piece is cut to its new part."""
    feed = open_feed()
    for event in (token("Hel", 0), token("Hel", 0), token("ello", 1), token("lo", 3), end("Hello")):
        feed.offer(event)
    assert seen(feed) == [("token", 0, "Hel"), ("token", 3, "lo"), ("done", 0, "")]


def test_feed_reports_a_gap_and_fills_it() -> None:
    """Text after a gap is held back, the gap is reported, and the reader sees the whole text in order in the end."""
    feed = open_feed()
    assert not feed.offer(token("a", 0))
    assert feed.offer(token("c", 2))
    assert not feed.offer(token("b", 1))
    feed.offer(end("abc"))
    assert "".join(text for kind, _, text in seen(feed) if kind == "token") == "abc"


def test_feed_restarts_at_offset_zero() -> None:
    """After `restarted` text begins again at 0, also when the attempt kept its number, and old text stays out."""
    feed = open_feed()
    feed.offer(token("old", 0), 0)
    feed.offer(JobEvent("", "j", "restarted", 1), 1)
    feed.offer(token("old", 0), 0)
    feed.offer(token("new", 0), 1)
    feed.offer(end("new"))
    assert [item[0] + item[2] for item in seen(feed)] == ["tokenold", "restarted", "tokennew", "done"]


def test_feed_makes_up_a_lost_restart() -> None:
    """A reader is told of a restart even when the event itself never came."""
    feed = open_feed()
    feed.offer(token("old", 0), 0)
    feed.offer(end("new answer"))
    assert [item[0] + item[2] for item in seen(feed)] == ["tokenold", "restarted", "tokennew answer", "done"]


def test_feed_of_an_answer_without_tokens() -> None:
    """An answer that came without tokens (a cache hit) is one token event and the end."""
    feed = open_feed()
    feed.offer(end("from the cache"))
    assert seen(feed) == [("token", 0, "from the cache"), ("done", 0, "")]


def test_feed_ends_once() -> None:
    """Nothing follows the terminal event."""
    feed = open_feed()
    for event in (end("a"), end("a"), token("b", 1)):
        feed.offer(event)
    assert [kind for kind, _, _ in seen(feed)] == ["token", "done"]


def test_feed_holds_the_present_until_the_past_is_known() -> None:
    """What the mailbox brings while the past is being read waits for it."""
    feed = Feed()
    feed.offer(token("c", 2))
    assert seen(feed) == []
    feed.catch_up([(token("ab", 0), 0)])
    assert [text for _, _, text in seen(feed)] == ["ab", "c"]


def test_feed_merges_for_a_slow_reader() -> None:
    """A reader that does not read costs text, not events."""
    feed = open_feed()
    for at in range(10 * MERGE_ABOVE):
        feed.offer(token("x", at))
    assert len(seen(feed)) == MERGE_ABOVE
    assert sum(len(text) for _, _, text in seen(feed)) == 10 * MERGE_ABOVE


@given(st.data())
def test_feed_whatever_is_lost_doubled_or_late(data: st.DataObject) -> None:
    """Whatever the mailbox loses and however the two sources interleave, the reader sees each run's text from offset 0
    without gap or double, and the last run's text is the answer."""
    runs = data.draw(st.lists(st.lists(st.text(min_size=1, max_size=3), max_size=5), min_size=1, max_size=4))
    history: list[tuple[JobEvent, int]] = []
    for run, pieces in enumerate(runs):
        if run:
            history.append((JobEvent("", "j", "restarted", 1), run))
        history.append((JobEvent("", "j", "started", 1), run))
        for at, piece in enumerate(pieces):
            history.append((token(piece, len("".join(pieces[:at]))), run))
    history.append((end("".join(runs[-1])), len(runs) - 1))
    kept = data.draw(st.lists(st.booleans(), min_size=len(history), max_size=len(history)))
    mail = [item for item, keep in zip(history, kept, strict=True) if keep]
    own = list(history)
    feed = open_feed()
    while mail or own:
        source = mail if mail and (not own or data.draw(st.booleans())) else own
        feed.offer(*source.pop(0))
    text = ""
    for event in feed._events:
        if event.kind == "restarted":
            text = ""
        elif event.kind == "token":
            assert event.offset == len(text)
            text += event.text
    assert text == "".join(runs[-1])
    assert [event.kind for event in feed._events].count("done") == 1
    assert feed._events[-1].kind == "done"


def place(at_ms: int, ahead: int) -> JobEvent:
    return JobEvent(f"{at_ms}-0", "j", "queued", data=b'{"queue":"fast","ahead":%d}' % ahead)


def test_feed_passes_positions_in_order() -> None:
    """Positions from two sources come once, never an older one after a newer one, and none after the start."""
    feed = open_feed()
    for event in (place(1, 9), place(2, 5)):
        feed.offer(event)
    assert [event.data for event in feed._events] == [place(2, 5).data], "of those that nobody read only the last"
    feed.offer(JobEvent("3-0", "j", "started"))
    for event in (place(1, 9), place(2, 5), place(4, 1), token("a", 0), end("a")):
        feed.offer(event)
    assert [kind for kind, _, _ in seen(feed)] == ["queued", "started", "token", "done"]


def test_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By jobs, by bytes, by tries, and by the deadline, of which only the rest is given again."""
    monkeypatch.setattr(kept, "KEPT_JOBS", 2)
    monkeypatch.setattr(kept, "KEPT_BYTES", 10)
    clock = [0.0]
    keeper = kept.Kept(lambda: clock[0])
    for id in "abc":
        keeper.keep(Submission(id, b"body", "d", 1, deadline_ms=3000))
    assert keeper.again("a") is None and keeper.again("c")
    clock[0] = 2.0
    again = keeper.again("b")
    assert again is not None and again.deadline_ms == 1000
    assert [bool(keeper.again("b")) for _ in range(3)] == [True, True, False]
    clock[0] = 3.0
    assert keeper.again("c") is None
    keeper.keep(Submission("large", b"x" * 11, "d", 1))
    assert keeper.again("large") is None
    keeper.forget("c")
    keeper.forget("c")
    assert keeper.again("c") is None


# submit


async def test_submits_of_one_tick_share_one_call(queue: StubQueue) -> None:
    """Concurrent submits become one call, in the order of the calls."""
    async with Client(queue=queue) as client:
        receipts = await asyncio.gather(*(client.submit({"user_query": "q", "id": f"j{n}"}) for n in range(100)))
    assert queue.calls == [[f"j{n}" for n in range(100)]]
    assert [receipt.id for receipt in receipts] == queue.calls[0]


async def test_a_job_belongs_to_the_span_that_is_active(queue: StubQueue) -> None:
    """Its body names the span, unless it names one itself; without a span it names none. The digest is the same."""
    context = trace.SpanContext(0xABC, 0xDEF, False, trace.TraceFlags(1))
    async with Client(queue=queue) as client:
        await client.submit({"user_query": "q", "id": "none"})
        with trace.use_span(trace.NonRecordingSpan(context)):
            await client.submit({"user_query": "q", "id": "active"})
            await client.submit({"user_query": "q", "id": "own", "traceparent": "mine"})
    named = [parse_request(queue.jobs[id].body).traceparent for id in ("none", "active", "own")]
    assert named == [None, f"00-{0xABC:032x}-{0xDEF:016x}-01", "mine"]
    assert len({queue.jobs[id].digest for id in ("none", "active", "own")}) == 1


async def test_submits_during_a_call_wait_for_it(queue: StubQueue) -> None:
    """A submit never overtakes an earlier one, also when that one must be repeated."""
    queue.refuse = [QueueUnavailable("away")]
    async with Client(queue=queue) as client:
        first = asyncio.create_task(client.submit({"user_query": "q", "id": "a"}))
        while not queue.calls:
            await asyncio.sleep(0)
        await asyncio.gather(first, client.submit({"user_query": "q", "id": "b"}))
    assert queue.calls == [["a"], ["a", "b"]]


async def test_each_submit_gets_its_own_answer(queue: StubQueue) -> None:
    """In one shared call a full queue and a conflict hit only their own callers."""
    queue.answers = {"full": QueueFull(retry_after_s=2.0), "other": IdConflict()}
    async with Client(queue=queue) as client:
        ids = ("fine", "full", "other")
        calls = (client.submit({"user_query": "q", "id": id}) for id in ids)
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers] == [Receipt, QueueFull, IdConflict]
    assert len(queue.calls) == 1


async def test_submit_gives_up_after_its_timeout(queue: StubQueue, quick: None) -> None:
    """While Redis is away a submit is repeated until the caller's timeout, then QueueUnavailable says why."""
    queue.refuse = [QueueUnavailable("nobody there") for _ in range(1000)]
    async with Client(queue=queue) as client:
        with pytest.raises(QueueUnavailable, match="nobody there"):
            await client.submit({"user_query": "q"}, timeout_s=0.05)
    assert len(queue.calls) > 1
    assert len({call[0] for call in queue.calls}) == 1


async def test_an_invalid_request_sends_nothing(queue: StubQueue) -> None:
    """A mistake in the request is found before anything is sent."""
    async with Client(queue=queue) as client:
        with pytest.raises(InvalidRequest, match="user_query"):
            await client.submit({"user_query": " "})
    assert queue.calls == []


async def test_an_error_of_the_queue_reaches_the_caller(queue: StubQueue) -> None:
    """Any other error of a submit call belongs to those who wait for it, and the next submit works."""
    queue.refuse = [InvalidRequest("id", "bad", "better")]
    async with Client(queue=queue) as client:
        with pytest.raises(InvalidRequest):
            await client.submit({"user_query": "q"})
        await client.submit({"user_query": "q"})


# wait and execute


async def test_execute_returns_the_result(queue: StubQueue) -> None:
    """The mailbox brings the end of the job to its caller, and no token events were asked for."""
    async with Client(queue=queue) as client:
        call = asyncio.create_task(client.execute({"user_query": "q", "id": "j"}))
        await queue.arrived()
        queue.post(done("j", "hello"))
        assert (await call).content == "hello"
        assert not queue.jobs["j"].stream
        assert client._inbox._watches == {}


@pytest.mark.parametrize(("state", "kind"), [("failed", JobFailed), ("dead", JobDead)])
async def test_execute_raises_what_happened(queue: StubQueue, state: str, kind: type[Exception]) -> None:
    """A job that did not get done raises its error, with the error dict."""
    async with Client(queue=queue) as client:
        call = asyncio.create_task(client.execute({"user_query": "q", "id": "j"}))
        await queue.arrived()
        queue.post(done("j", "", state, {"code": "context_overflow", "message": "too long"}))
        with pytest.raises(kind, match="too long") as caught:
            await call
    assert caught.value.fields["error"]["code"] == "context_overflow"  # type: ignore[attr-defined]


async def test_a_lost_letter_is_healed(queue: StubQueue, quick: None) -> None:
    """A job whose mail is lost still returns its result."""
    async with Client(queue=queue) as client:
        call = asyncio.create_task(client.execute({"user_query": "q", "id": "j"}))
        await queue.arrived()
        queue.post(done("j"), mail=False)
        assert (await call).content == "yes"


async def test_a_spoilt_job_stops_the_checks_of_no_other(queue: StubQueue, quick: None) -> None:
    """Another program wrote over one job: who waits for it is told, and the lost mail of the others is healed."""
    async with Client(queue=queue) as client:
        spoilt = asyncio.create_task(client.execute({"user_query": "q", "id": "s"}))
        whole = asyncio.create_task(client.execute({"user_query": "q", "id": "j"}))
        await queue.arrived(2)
        queue.spoilt.add("s")
        with pytest.raises(QueueFault):
            await spoilt
        queue.post(done("j"), mail=False)
        assert (await whole).content == "yes"


async def test_a_spoilt_job_that_is_mended_is_waited_for(queue: StubQueue, quick: None) -> None:
    """One look at a foreign key ends no wait."""
    async with Client(queue=queue) as client:
        call = asyncio.create_task(client.execute({"user_query": "q", "id": "j"}))
        await queue.arrived()
        queue.spoilt.add("j")
        reads = queue.reads
        while queue.reads == reads:
            await asyncio.sleep(0)
        queue.spoilt.clear()
        queue.post(done("j"), mail=False)
        assert (await call).content == "yes"


async def test_a_spoilt_mailbox_costs_its_hints_only(queue: StubQueue, quick: None) -> None:
    """Another program wrote over the mailbox: results are found by asking, and mail is read again once it is mended."""
    async with Client(queue=queue) as client:
        queue.spoilt.add("mail")
        call = asyncio.create_task(client.execute({"user_query": "q", "id": "j"}))
        await queue.arrived()
        queue.post(done("j"), mail=False)
        assert (await call).content == "yes"
        queue.spoilt.clear()
        call = asyncio.create_task(client.execute({"user_query": "q", "id": "k"}))
        await queue.arrived(2)
        queue.letters.append(done("k"))
        queue.ring()
        assert (await call).content == "yes"


async def test_who_follows_another_ones_job_outlives_a_spoilt_stream(queue: StubQueue, quick: None) -> None:
    """Its events are read on once the key is mended."""
    async with Client(queue=queue) as client:
        queue.jobs["j"] = Submission("j", b"{}", "d", 1)
        queue.post(token("one ", 0), mail=False)
        reading = client.stream("j")
        assert (await anext(reading)).text == "one "
        queue.spoilt.add("j")
        reads = queue.reads
        queue.ring()
        while queue.reads == reads:
            await asyncio.sleep(0)
        queue.spoilt.clear()
        queue.post(done("j", "one two"), mail=False)
        assert [event.kind async for event in reading] == ["token", "done"]


async def test_a_lost_job_is_submitted_again(queue: StubQueue, quick: None) -> None:
    """Redis lost the job within its durability window: the same id is submitted again."""
    async with Client(queue=queue) as client:
        call = asyncio.create_task(client.execute({"user_query": "q", "id": "j"}))
        await queue.arrived()
        del queue.jobs["j"]
        await queue.arrived()
        queue.post(done("j"))
        assert (await call).state == "done"
    assert queue.calls == [["j"], ["j"]]


async def test_a_lost_job_is_submitted_again_for_its_readers(queue: StubQueue, quick: None) -> None:
    """Who streams a job that this client submitted hears `restarted` and the answer; who waits for it, its result."""
    async with Client(queue=queue) as client:
        await client.submit({"user_query": "q", "id": "j"})
        queue.post(token("lost", 0))
        reading = client.stream("j")
        waiting = asyncio.create_task(client.wait("j"))
        assert (await anext(reading)).text == "lost"
        queue.own.clear()
        del queue.jobs["j"]
        await queue.arrived()
        queue.post(done("j", "again"))
        assert [event.kind async for event in reading] == ["restarted", "token", "done"]
        assert (await waiting).content == "again"
    assert ["j"] * 2 <= [id for call in queue.calls for id in call] <= ["j"] * 3


@pytest.mark.parametrize("how", ["ended", "cancelled", "foreign"])
async def test_what_is_over_or_not_ours_is_gone(queue: StubQueue, quick: None, how: str) -> None:
    """A job whose end this client saw, that it cancelled, or that another one submitted, is never submitted again."""
    async with Client(queue=queue) as client, Client(queue=queue) as other:
        await client.submit({"user_query": "q", "id": "j"})
        if how == "ended":
            queue.post(done("j"))
            await client.wait("j")
            queue.results.clear()
            queue.own.clear()
        if how == "cancelled":
            await client.cancel("j")
        queue.jobs.clear()
        with pytest.raises(JobGone):
            await (other if how == "foreign" else client).wait("j")
    assert queue.calls == [["j"]]


@pytest.mark.parametrize(
    ("code", "kind"), [("deadline_unmeetable", DeadlineUnmeetable), ("queue_timeout", QueueTimeout)]
)
async def test_a_refusal_after_acceptance_says_when_to_try_again(queue: StubQueue, code: str, kind: type) -> None:
    """A job that would have come too late, or waited too long, raises its own error with `retry_after_s`."""
    async with Client(queue=queue) as client:
        call = asyncio.create_task(client.execute({"user_query": "q", "id": "j"}))
        await queue.arrived()
        queue.post(done("j", "", "failed", {"code": code, "message": "too late", "retry_after_s": 2.5}))  # type: ignore[dict-item]
        with pytest.raises(kind, match="too late") as caught:
            await call
    assert caught.value.fields["retry_after_s"] == 2.5 and caught.value.retryable


async def test_position_and_quarantine(queue: StubQueue) -> None:
    """What the queue says of places and of dead jobs reaches the caller; unknown jobs are gone."""
    async with Client(queue=queue) as client:
        await client.submit({"user_query": "q", "id": "j"})
        assert (await client.position("j")).ahead == 3
        with pytest.raises(JobGone):
            await client.position("nobody")
        assert [view.id for view in await client.dead(5)] == ["d"]
        assert [await client.revive("d"), await client.revive("x"), await client.revive("a b")] == [
            "queued",
            "gone",
            "gone",
        ]
        assert [await client.drop("d"), await client.drop("x"), await client.drop("a b")] == ["dropped", "gone", "gone"]


async def test_a_job_lost_for_ever_is_gone(queue: StubQueue, quick: None) -> None:
    """Healing is bounded: a job that vanishes each time raises JobGone."""
    queue.jobs = _Forgetful()
    async with Client(queue=queue) as client:
        with pytest.raises(JobGone):
            await client.execute({"user_query": "q", "id": "j"})
    assert 2 <= len(queue.calls) <= 10


class _Forgetful(dict[str, Submission]):
    def update(self, *args: object) -> None:  # type: ignore[override]
        """Keep nothing."""


async def test_wait_times_out_and_leaves_nothing(queue: StubQueue) -> None:
    """WaitTimeout ends the wait only, and the client keeps no trace of it."""
    async with Client(queue=queue) as client:
        receipt = await client.submit({"user_query": "q"})
        with pytest.raises(WaitTimeout):
            await client.wait(receipt.id, timeout_s=0.01)
        with pytest.raises(WaitTimeout):
            await client.execute({"user_query": "q"}, timeout_s=0.01)
        assert client._inbox._watches == {}


async def test_cancelled_waits_leave_nothing(queue: StubQueue) -> None:
    """Cancelling the tasks that execute, wait or stream leaks neither watches nor tasks."""
    before = asyncio.all_tasks()
    async with Client(queue=queue) as client:
        queue.jobs["other"] = Submission("other", b"", "", 1)
        calls = [asyncio.create_task(client.execute({"user_query": "q"})) for _ in range(10)]
        calls += [asyncio.create_task(client.wait("other")) for _ in range(10)]
        calls += [asyncio.create_task(_drain(client, "other")) for _ in range(10)]
        await queue.arrived(11)
        while "other" not in client._inbox._watches:
            await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        assert client._inbox._watches == {}
    assert asyncio.all_tasks() == before


async def _drain(client: Client, id: str) -> list[JobEvent]:
    return [event async for event in client.stream(id)]


async def test_unknown_jobs_are_gone(queue: StubQueue) -> None:
    """Waiting for, streaming or asking about a job that is not there raises JobGone at once."""
    async with Client(queue=queue) as client:
        with pytest.raises(JobGone):
            await client.wait("nobody")
        with pytest.raises(JobGone):
            await _drain(client, "nobody")
        with pytest.raises(JobGone):
            await client.status("nobody")
        assert await client.cancel("nobody") == "gone"


# stream


async def test_stream_brings_past_and_present(queue: StubQueue) -> None:
    """A stream opened late begins with the job's past and goes on without gap or double."""
    async with Client(queue=queue) as client:
        await client.submit({"user_query": "q", "id": "j"})
        queue.post(token("one ", 0))
        events = client.stream("j")
        got = [await anext(events)]
        queue.post(token("two", 4))
        queue.post(done("j", "one two"))
        got += [event async for event in events]
    assert [event.text for event in got] == ["one ", "two", ""]
    assert got[-1].kind == "done"


async def test_stream_heals_a_gap(queue: StubQueue, quick: None) -> None:
    """Token events that the mailbox lost come from the job's own stream."""
    async with Client(queue=queue) as client:
        await client.submit({"user_query": "q", "id": "j"})
        queue.post(token("a", 0))
        events = client.stream("j")
        got = [await anext(events)]
        queue.post(token("b", 1), mail=False)
        queue.post(token("c", 2))
        got += [await anext(events), await anext(events)]
        assert "".join(event.text for event in got) == "abc"
        await events.aclose()


async def test_stream_of_a_job_of_others(queue: StubQueue) -> None:
    """A job that another client submitted is followed on its own stream."""
    queue.jobs["j"] = Submission("j", b"", "", 1)
    async with Client(queue=queue) as client:
        task = asyncio.create_task(_drain(client, "j"))
        while "j" not in client._inbox._watches or client._inbox._watches["j"].follower is None:
            await asyncio.sleep(0)
        for event in (token("a", 0), JobEvent("", "j", "restarted", 1), token("b", 0), done("j", "b")):
            queue.post(event, mail=False)
        assert [event.kind for event in await task] == ["token", "restarted", "token", "done"]


async def test_two_streams_of_one_job(queue: StubQueue) -> None:
    """Two readers of one job see the same events, whenever they came."""
    async with Client(queue=queue) as client:
        await client.submit({"user_query": "q", "id": "j"})
        queue.post(token("a", 0))
        first = client.stream("j")
        await anext(first)
        queue.post(token("b", 1))
        second = asyncio.create_task(_drain(client, "j"))
        queue.post(done("j", "ab"))
        assert "".join(event.text for event in await second) == "ab"
        assert [event.text async for event in first] == ["b", ""]


async def test_a_broken_result_fails_its_own_job_only(queue: StubQueue) -> None:
    """A result that is no result is an error of its readers; the mailbox goes on."""
    async with Client(queue=queue) as client:
        bad, good = (asyncio.create_task(client.execute({"user_query": "q", "id": id})) for id in ("bad", "good"))
        await queue.arrived(2)
        queue.post(JobEvent("", "bad", "done", data=b"}{"))
        queue.post(done("good"))
        assert (await good).content == "yes"
        with pytest.raises(Exception, match="malformed"):
            await bad


async def test_close_ends_all_waits(queue: StubQueue) -> None:
    """Closing the client ends every wait with QueueUnavailable and closes the queue; twice is legal."""
    client = Client(queue=queue)
    call = asyncio.create_task(client.execute({"user_query": "q"}))
    await queue.arrived()
    await client.close()
    await client.close()
    with pytest.raises(QueueUnavailable):
        await call
    assert queue.closed


def test_sync_client_is_the_same_in_blocking() -> None:
    """SyncClient submits, streams and asks from plain code, and its thread ends with it."""
    import threading

    threads = threading.active_count()
    client = SyncClient(queue=_Instant())
    with client:
        assert client.execute({"user_query": "q", "id": "a"}).content == "yes"
        receipt = client.submit({"user_query": "q", "id": "b"})
        assert [event.kind for event in client.stream(receipt.id)] == ["token", "done"]
        assert client.wait("b").state == "done"
        assert client.status("b").id == client.position("b").id == "b"
        assert client.cancel("c") == "gone"
        assert [view.id for view in client.dead()] == ["d"]
        assert (client.revive("d"), client.drop("d")) == ("queued", "dropped")
    client.close()
    assert threading.active_count() == threads
    with pytest.raises(RuntimeError):
        client.cancel("c")


class _Instant(StubQueue):
    """Every job is done as soon as it is submitted."""

    async def submit(self, jobs: Sequence[Submission]) -> list[Receipt | QueueFull | IdConflict]:
        answers = await super().submit(jobs)
        for job in jobs:
            self.post(done(job.id))
        return answers


@pytest.mark.parametrize("id", ["", "a b", "\ud800", "x" * 129, "{metamuse}:job:*", "a\n"])
async def test_what_cannot_be_an_id_is_no_job_and_asks_nobody(queue: StubQueue, id: str) -> None:
    """Such an id never reaches the connection: it might not even be encodable there."""
    async with Client(queue=queue) as client:
        for call in (client.wait, client.status):
            with pytest.raises(JobGone):
                await call(id)
        with pytest.raises(JobGone):
            await anext(client.stream(id))
        assert await client.cancel(id) == "gone"
