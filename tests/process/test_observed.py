"""A whole daemon that is watched: its journal on a socket of ours, its traces at a collector of ours."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace

from metamusesd.log.events import MESSAGE_IDS
from tests.process.daemon_rig import PATIENCE_S, Daemon, ended, running, submit_many
from tests.unit.collector import Collector
from tests.unit.test_log import fields

SECRET = "xyzzy-secret"
LONG = f"{SECRET} one two three !tokens=60 !delay=10ms"
RUN = """
import sys
from metamusesd import config, log
from metamusesd.supervisor import supervisor
log.configure("info", "journal", journal_socket=sys.argv[2])
sys.exit(supervisor.run(config.load(sys.argv[1], environ={})))
"""

Story = list[dict[str, str]]


class Watched(Daemon):
    """It says who works."""

    def busy(self) -> str:
        """The worker that has the job."""

        def who(status: dict[str, Any]) -> list[str]:
            return [worker["name"] for worker in status["workers"] if worker["slots_used"]]

        return who(self.until(lambda status: bool(who(status))))[0]


class Journaled(Watched):
    """Its lines go to the journal at `path`."""

    path = ""

    def command(self) -> list[str]:
        return [sys.executable, "-c", RUN, str(self.config), self.path]


class Traced(Watched):
    """Its traces go to `endpoint`."""

    endpoint = ""

    def text(self) -> str:
        return f'{super().text()}\n[telemetry]\notlp_endpoint = "{self.endpoint}"\n'


@contextmanager
def journal(path: Path) -> Iterator[Callable[[Callable[[Story], bool]], Story]]:
    """A journal of ours that reads as it comes; the yielded function waits until what was written is enough."""
    told: Story = []
    changed = threading.Condition()
    door = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def read() -> None:
        while data := door.recv(1 << 20):
            with changed:
                told.append(dict(fields(data)))
                changed.notify_all()

    def wait(enough: Callable[[Story], bool]) -> Story:
        with changed:
            assert changed.wait_for(lambda: enough(told), PATIENCE_S), told[-20:]
            return list(told)

    with door:
        door.bind(str(path))
        reading = threading.Thread(target=read)
        reading.start()
        try:
            yield wait
        finally:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
                last.sendto(b"", str(path))
            reading.join()


async def test_the_journal_tells_a_jobs_story(tmp_path: Path) -> None:
    """Its worker is killed: what METAMUSES_JOB_ID finds is the loss and the end, what METAMUSES_WORKER finds is the
    supervisor's word, too; every kind has its MESSAGE_ID, and nothing says what was asked."""
    Journaled.path = str(tmp_path / "j")
    with journal(tmp_path / "j") as wait:
        daemon = Journaled()
        try:
            async with daemon.client() as client:
                [id] = await submit_many(client, 1, LONG)
                await running(client, [id], 1)
                name = daemon.busy()
                daemon.signal(name)
                [result] = await ended(client, [id])
            assert result.state == "done"
            story = await asyncio.to_thread(wait, lambda told: any(_ends(line, id) for line in told))
            assert daemon.stop() == 0
            whole = wait(lambda told: any(line["METAMUSES_EVENT"] == "stopped" for line in told))
        finally:
            daemon.close()
    about = [line for line in story if line.get("METAMUSES_JOB_ID") == id]
    assert [line["METAMUSES_EVENT"] for line in about] == ["job lost its worker", "job ended"]
    assert [line["METAMUSES_ATTEMPT"] for line in about] == ["1", "2"] and about[0]["METAMUSES_WORKER"] == name
    died = [line for line in story if line.get("MESSAGE_ID") == MESSAGE_IDS["child died"]]
    assert [(line["METAMUSES_WORKER"], line["METAMUSES_PROCESS"], line["PRIORITY"]) for line in died] == [
        (name, "supervisor", "4")
    ]
    assert {line["METAMUSES_PROCESS"] for line in whole} >= {"supervisor", "dispatcher", "fast-0", "fast-1"}
    assert {line["SYSLOG_IDENTIFIER"] for line in whole} == {"metamusesd"} and SECRET not in repr(whole)


def _ends(line: dict[str, str], id: str) -> bool:
    return line.get("METAMUSES_JOB_ID") == id and line["METAMUSES_EVENT"] == "job ended"


async def test_a_trace_spans_producer_and_attempts() -> None:
    """The producer has an active span; its worker is killed; the job's span is below the producer's, with two attempts
    by two workers, and phases below them."""
    with Collector() as collector:
        Traced.endpoint = collector.endpoint
        daemon = Traced()
        try:
            context = trace.SpanContext(0xABC, 0xDEF, False, trace.TraceFlags(1))
            async with daemon.client() as client:
                with trace.use_span(trace.NonRecordingSpan(context)):
                    [id] = await submit_many(client, 1, LONG)
                await running(client, [id], 1)
                daemon.signal(daemon.busy())
                [result] = await ended(client, [id])
            assert result.state == "done"
            await asyncio.to_thread(collector.wait, "chat echo", "settle", "decode")
            assert daemon.stop() == 0
        finally:
            daemon.close()
    whole = next(span for span in collector.spans if span.name == "chat echo")
    attempts = [span for span in collector.spans if span.name == "attempt"]
    assert {span.trace for span in collector.spans} == {f"{0xABC:032x}"} and whole.parent == f"{0xDEF:016x}"
    assert [(span.facts["metamusesd.attempt"], bool(span.error)) for span in attempts] == [(1, True), (2, False)]
    assert {span.parent for span in attempts} == {whole.id} and whole.facts["gen_ai.usage.output_tokens"] == 60
    below = {span.name for span in collector.spans if span.parent == attempts[1].id}
    assert below == {"prepare", "prefill", "decode"} and SECRET not in repr(collector.spans)


@pytest.mark.parametrize("listens", [False, True])
async def test_a_collector_that_does_not_answer_costs_no_job(listens: bool) -> None:
    """Nobody at its address, or somebody who takes connections and is silent: all jobs are done, and the stop is clean
    and in time. That traces are lost is said once, with the number."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        if listens:
            taken.listen()
        Traced.endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        daemon = Traced(drain_s=5.0)
        try:
            async with daemon.client() as client:
                ids = await submit_many(client, 30, "one !tokens=3")
                assert {result.state for result in await ended(client, ids)} == {"done"}
                async with asyncio.timeout(PATIENCE_S):
                    while "traces are lost" not in daemon.tail():
                        await asyncio.sleep(0.05)
            assert daemon.stop() == 0
            assert daemon.tail().count("traces are lost") == 1 and "Transient error" not in _raw(daemon.tail())
        finally:
            daemon.close()


def _raw(tail: str) -> str:
    """What somebody wrote to standard error without our log."""
    return "\n".join(line for line in tail.splitlines() if not line.startswith("{"))
