"""`metamusesd jobs`: its filters, its order, and what a hostile name may not do to the terminal."""

from __future__ import annotations

import argparse
import json

import pytest

from metamusesd.client import Client
from metamusesd.commands import overview
from metamusesd.queues.base import Submission, Want
from metamusesd.queues.census import LiveJob
from metamusesd.queues.memory import MemoryQueue


def asked(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    overview.add_jobs(parser)
    return parser.parse_args(words)


def job(id: str = "j", state: str = "ready", **more: object) -> LiveJob:
    return LiveJob(id, state, 1, "blue", 1000, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "one", "fits"),
    [
        (["--tier", "fast"], job(tiers=("fast", "heavy")), True),
        (
            ["--tier", "heavy"],
            job("r", "running", queue="fast", tiers=("fast", "heavy")),
            False,
        ),  # where it runs counts
        (["--tier", "ingress"], job(state="queued"), True),
        (["--tier", "ingress"], job(tiers=("fast",)), False),
        (["--tenant", "blue"], job(), True),
        (["--tenant", "red"], job(), False),
        (["--class", "normal", "--state", "ready"], job(), True),
        (["--class", "normal", "--state", "running"], job(), False),
    ],
)
def test_filters_are_all_to_be_met(words: list[str], one: LiveJob, fits: bool) -> None:
    """Tier, tenant, class and state, each alone and together."""
    assert overview.fits(one, asked(*words)) is fits


def test_orders() -> None:
    """The oldest first; the most urgent class first; the longest run first, those that wait behind it."""
    old, urgent = LiveJob("old", "ready", 0, "b", 1), LiveJob("urgent", "ready", 3, "a", 5)
    runs = LiveJob("runs", "running", 1, "a", 9, claimed_ms=10)
    expected = {"age": "old", "class": "urgent", "tenant": "urgent", "state": "old", "running": "runs"}
    assert {name: min((old, urgent, runs), key=key).id for name, key in overview.SORTS.items()} == expected


async def test_the_list_is_cut_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """`--count` bounds what is shown, not what is looked at: pages are gone through to the end."""
    queue = MemoryQueue()
    await queue.submit([Submission(f"j{n}", b"{}", "d", 1, tenant="blue" if n % 2 else "red") for n in range(2500)])
    async with Client(queue=queue) as client:
        assert await overview._list(client, asked("--tenant", "blue", "--count", "2")) == 0
        shown = capsys.readouterr().out
        assert "j1 " in shown and "j3 " in shown and "j0 " not in shown and "1248 more; --count 1250" in shown
        await overview._list(client, asked("--tenant", "nobody"))
        assert capsys.readouterr().out == "none of 2500 jobs fits\n"


async def test_a_running_job_shows_where_and_for_how_long(capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON: class, age, time since its claim, the dispatcher that holds it."""
    now = [1000]
    queue = MemoryQueue(now_ms=lambda: now[0])
    await queue.submit([Submission("a", b"{}", "d", 3)])
    now[0] = 4000
    await queue.claim("host:1", "n", [Want("ingress", 1)], lease_ms=60_000)
    now[0] = 6000
    async with Client(queue=queue) as client:
        await overview._list(client, asked("--json"))
    (told,) = json.loads(capsys.readouterr().out)["jobs"]
    assert (told["state"], told["class"], told["queue"], told["owner"]) == ("running", "critical", "ingress", "host:1")
    assert (told["age_ms"], told["running_ms"]) == (5000, 2000)


async def test_names_of_others_do_not_steer_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenant that somebody wrote into the hash by hand is shown harmlessly, its brackets as brackets."""
    queue = MemoryQueue()
    await queue.submit([Submission("a", b"{}", "d", 1)])

    async def spoilt(skip: int, count: int) -> tuple[int, list[LiveJob]]:
        return 2000, [LiveJob("a", "ready", 1, "\x1b[31m[bold]x", 1000)]

    monkeypatch.setattr(queue, "live", spoilt)
    async with Client(queue=queue) as client:
        await overview._list(client, asked("--list"))
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\\x1b[31m[bold]x" in shown
