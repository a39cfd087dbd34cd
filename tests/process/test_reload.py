"""Reload and drain of a whole daemon with jobs under way: nothing is lost, and only what differs is touched."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from metamusesd.client import Client
from tests.process.daemon_rig import Daemon, ended, judge, running, submit_many

TEXT = " ".join(["one two three"] * 20)


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    made = Daemon(drain_s=5.0)
    yield made
    made.close()


def change(daemon: Daemon, *pairs: tuple[str, str]) -> None:
    text = daemon.config.read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    daemon.config.write_text(text)


async def order(daemon: Daemon, *words: str) -> tuple[int, str]:
    """A command of ours: its exit code, and what it printed."""
    command = [sys.executable, "-m", "metamusesd", *words, "--config", str(daemon.config)]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode or 0, said.decode()


def pids(daemon: Daemon) -> dict[str, int]:
    status = daemon.status()
    return {each["name"]: each["pid"] for each in (status["redis"], status["dispatcher"], *status["workers"])}


async def under_way(client: Client, count: int = 24) -> list[str]:
    ids = await submit_many(client, count)
    await running(client, ids, 4)
    return ids


async def test_another_number_of_workers_touches_nobody_else(daemon: Daemon) -> None:
    """One more, then one less: the others keep their processes, and all jobs are done at their first attempt."""
    before = pids(daemon)
    change(daemon, ("workers = 2", "workers = 1"))
    async with daemon.client() as client:
        ids = await under_way(client)
        code, said = await order(daemon, "reload")
        assert (code, said.splitlines()[-1]) == (0, "reloaded"), said
        fewer = pids(daemon)
        change(daemon, ("workers = 1", "workers = 2"))
        assert (await order(daemon, "reload"))[0] == 0
        results = await ended(client, ids)
    await judge(daemon, results, TEXT)
    assert {result.attempt for result in results} == {1}
    after = pids(daemon)
    assert fewer.items() <= before.items() and set(before) - set(fewer) == {"fast-1"}
    assert fewer.items() <= after.items() and after["fast-1"] != before["fast-1"]


async def test_a_model_is_exchanged_under_load(daemon: Daemon) -> None:
    """Each worker's successor comes first; jobs of the old ones end there; dispatcher and Redis stay."""
    before = pids(daemon)
    change(daemon, ("context = 100000", "context = 90000"))
    async with daemon.client() as client:
        ids = await under_way(client)
        assert (await order(daemon, "reload"))[0] == 0
        results = await ended(client, ids)
    await judge(daemon, results, TEXT)
    assert {result.attempt for result in results} == {1}
    after = pids(daemon)
    assert [name for name in before if after[name] == before[name]] == ["redis", "dispatcher"]


async def test_a_tier_that_the_dispatcher_must_learn(daemon: Daemon) -> None:
    """With a new tier the dispatcher is replaced: running jobs end before, waiting ones after."""
    before = pids(daemon)
    change(daemon, ("workers = 2", "workers = 1"))
    daemon.config.write_text(daemon.config.read_text() + '[tiers.heavy]\nmodel = "echo"\nworkers = 1\ncores = 1\n')
    async with daemon.client() as client:
        ids = await under_way(client)
        assert (await order(daemon, "reload"))[0] == 0
        heavy = await client.execute({"user_query": "to the heavy one", "tier": "heavy"}, 20)
        results = await ended(client, ids)
    await judge(daemon, results, TEXT)
    assert (heavy.tier, heavy.worker) == ("heavy", "heavy-0")
    after = pids(daemon)
    assert after["fast-0"] == before["fast-0"] and after["dispatcher"] != before["dispatcher"]


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("workers = 2", "wokers = 2", "tiers.fast.wokers"),
        ("workers = 2", "workers = 400", "tiers.fast.workers"),
        ('appendfsync = "always"', 'appendfsync = "no"', "redis.appendfsync"),
    ],
)
async def test_a_broken_configuration_changes_nothing(daemon: Daemon, old: str, new: str, names: str) -> None:
    """The mistake is named, exit 78, and everybody lives on; a SIGHUP says the same in the log."""
    before = pids(daemon)
    change(daemon, (old, new))
    code, said = await order(daemon, "reload")
    assert code == 78 and names in said
    daemon.signal("supervisor", signal.SIGHUP)
    while names not in daemon.tail():
        await asyncio.sleep(0.01)
    assert pids(daemon) == before


async def test_a_canary_sends_the_reload_back(daemon: Daemon) -> None:
    """A model that does not say what it should is refused with its answer; what was there goes on."""
    before = pids(daemon)
    change(daemon, ("context = 100000", 'context = 90000\ncanary = { "say nothing" = "something" }'))
    async with daemon.client() as client:
        ids = await under_way(client)
        code, said = await order(daemon, "reload")
        results = await ended(client, ids)
    assert code == 1 and "does not contain 'something'" in said and "is in force" in said
    await judge(daemon, results, TEXT)
    assert pids(daemon) == before
    change(daemon, ('"something"', '"nothing"'))
    assert (await order(daemon, "reload"))[0] == 0
    counted = re.findall(r'metamusesd_reloads_total{outcome="(\w+)"} (\d)', daemon.get("/metrics"))
    assert dict(counted) == {"done": "1", "rolled_back": "1", "refused": "0"}


async def test_a_signal_is_enough(daemon: Daemon) -> None:
    """SIGHUP reloads; a second one meanwhile is not forgotten."""
    change(daemon, ("workers = 2", "workers = 3"), ("cores = 1", ""))
    daemon.signal("supervisor", signal.SIGHUP)
    daemon.until(lambda status: len(status["workers"]) == 3 and status["workers"][-1]["status"] == "ready")
    change(daemon, ("workers = 3", "workers = 1"))
    daemon.signal("supervisor", signal.SIGHUP)
    daemon.until(lambda status: len(status["workers"]) == 1)


async def test_a_worker_dies_while_it_is_exchanged(daemon: Daemon) -> None:
    """SIGKILL of old and new ones in the middle of a reload: the jobs are done, the daemon has its workers."""
    change(daemon, ("context = 100000", "context = 90000"))
    async with daemon.client() as client:
        ids = await under_way(client)
        reload = asyncio.create_task(order(daemon, "reload"))
        while "its successor starts" not in daemon.tail():
            await asyncio.sleep(0.01)
        for pid in daemon.worker_pids():
            os.kill(pid, signal.SIGKILL)
        await reload
        results = await ended(client, ids)
    await judge(daemon, results, TEXT)
    daemon.until(lambda status: [w["status"] for w in status["workers"]] == ["ready", "ready"])


async def test_a_worker_dies_while_its_model_gets_another_name(daemon: Daemon) -> None:
    """It comes back as what it was, until its turn comes; and then as what is wanted."""
    change(daemon, ("[models.echo]", "[models.other]"), ('model = "echo"', 'model = "other"'))
    async with daemon.client() as client:
        ids = await under_way(client)
        reload = asyncio.create_task(order(daemon, "reload"))
        while "its successor starts" not in daemon.tail():
            await asyncio.sleep(0.01)
        daemon.signal("fast-1")
        assert (await reload)[0] == 0
        results = await ended(client, ids)
    await judge(daemon, results, TEXT)
    assert {each["model"] for each in daemon.status()["workers"]} == {"other"}


async def test_no_job_reaches_a_model_on_trial(daemon: Daemon) -> None:
    """A worker that dies while another one's canary runs comes back with the old model."""
    slow = 'digest = "sha256:two"\ncanary = { "wait !tokens=30 !delay=50ms" = "never said" }\ncontext = 100000'
    change(daemon, ("context = 100000", 'digest = "sha256:one"\ncontext = 100000'))
    assert (await order(daemon, "reload"))[0] == 0
    change(daemon, ('digest = "sha256:one"\ncontext = 100000', slow))
    reload = asyncio.create_task(order(daemon, "reload"))
    while "its successor starts" not in daemon.tail():
        await asyncio.sleep(0.01)
    daemon.signal("fast-1")
    async with daemon.client() as client:
        asks = [client.execute({"user_query": f"q{n} !tokens=5 !delay=5ms"}, 20) for n in range(16)]
        results = await asyncio.gather(*asks)
    code, said = await reload
    assert code == 1 and "never said" in said
    assert {result.model_digest for result in results} == {"sha256:one"}


async def test_a_bad_file_in_a_good_ones_place_stays_outside(daemon: Daemon) -> None:
    """It fails its canary, and the way back does not load it either: the workers keep what they have."""
    file = daemon.folder / "m.bin"
    file.write_bytes(b"good")
    change(daemon, ("context = 100000", f'file = "{file}"\ncontext = 100000\ncanary = {{ "one" = "one" }}'))
    assert (await order(daemon, "reload"))[0] == 0
    before = pids(daemon)
    fresh = daemon.folder / "n.bin"
    fresh.write_bytes(b"bad!")
    fresh.replace(file)
    change(daemon, ('"one" = "one"', '"one" = "two"'))
    code, said = await order(daemon, "reload")
    assert code == 1 and "does not contain 'two'" in said
    assert pids(daemon) == before


async def test_all_tiers_get_another_name(daemon: Daemon) -> None:
    """The new workers take jobs."""
    change(daemon, ("[tiers.fast]", "[tiers.heavy]"))
    assert (await order(daemon, "reload"))[0] == 0
    assert daemon.status()["state"] == "ready"
    async with daemon.client() as client:
        assert (await client.execute({"user_query": "hello"}, 20)).tier == "heavy"


async def test_undrain_does_not_stop_a_reload(daemon: Daemon) -> None:
    """Who is being replaced leaves, whatever is drained and undrained meanwhile."""
    change(daemon, ("context = 100000", "context = 90000"), ("cores = 1", "cores = 1\nslots = 4"), ("slots = 8", ""))
    async with daemon.client() as client:
        ids = await under_way(client)
        reload = asyncio.create_task(order(daemon, "reload"))
        while "its successor starts" not in daemon.tail():
            await asyncio.sleep(0.01)
        assert (await order(daemon, "drain"))[0] == 0
        assert (await order(daemon, "undrain"))[0] == 0
        assert (await reload)[0] == 0
        results = await ended(client, ids)
    await judge(daemon, results, TEXT)
    assert len(daemon.status()["workers"]) == 2


async def test_a_reload_revives_who_was_given_up(daemon: Daemon) -> None:
    """Without any change: the mistake was elsewhere, and is mended."""
    change(daemon, ("restart_limit = 20", "restart_limit = 0"))
    assert (await order(daemon, "reload"))[0] == 0
    pid = daemon.pid("fast-0")
    os.kill(pid, signal.SIGABRT)  # a death that nothing explains
    daemon.until(lambda status: status["workers"][0]["status"] == "failed")
    assert "is tried again" in (await order(daemon, "reload"))[1]
    daemon.until(lambda status: status["workers"][0]["status"] == "ready")


async def test_sigterm_ends_a_reload(daemon: Daemon) -> None:
    """The daemon leaves in order from the middle of one."""
    change(daemon, ("context = 100000", "context = 90000"))
    reload = asyncio.create_task(order(daemon, "reload"))
    while "reloading" not in daemon.tail():
        await asyncio.sleep(0.01)
    assert daemon.stop() == 0
    await reload


async def test_a_drained_worker_has_no_jobs(daemon: Daemon) -> None:
    """`drain --worker --wait` returns when its jobs have ended; the other one serves; undrain gives it jobs again."""
    async with daemon.client() as client:
        ids = await under_way(client)
        code, said = await order(daemon, "drain", "--worker", "fast-0", "--wait")
        assert (code, said.splitlines()[-1]) == (0, "drained"), said
        assert worker(daemon, "fast-0")["slots_used"] == 0
        more = [await client.execute({"user_query": "x"}, 10) for _ in range(6)]
        results = await ended(client, ids)
        assert {result.worker for result in more} == {"fast-1"}
        assert (await order(daemon, "undrain"))[0] == 0
        both = await asyncio.gather(*(client.execute({"user_query": "y !tokens=9 !delay=5ms"}, 10) for _ in range(20)))
        assert {result.worker for result in both} == {"fast-0", "fast-1"}
    await judge(daemon, results, TEXT)
    assert {result.attempt for result in results} == {1}


async def test_a_drained_host_keeps_its_models(daemon: Daemon) -> None:
    """No worker takes jobs, /readyz says so, and it lasts over the dispatcher's death; the jobs wait for undrain."""
    before = daemon.worker_pids()
    assert (await order(daemon, "drain", "--wait"))[0] == 0
    assert any("undrain" in reason for reason in daemon.status()["reasons"])
    daemon.signal("dispatcher")
    async with daemon.client() as client:
        id = (await client.submit({"user_query": "hello"})).id
        while (await client.status(id)).state != "ready":
            await asyncio.sleep(0.01)
        assert (await order(daemon, "undrain"))[0] == 0
        assert (await client.wait(id, 10)).content == "hello"
    assert daemon.worker_pids() == before


async def test_what_is_too_slow_is_given_back(daemon: Daemon) -> None:
    """A job that does not end within drain_s runs again elsewhere, without a burnt attempt."""
    change(daemon, ("drain_s = 5.0", "drain_s = 0.1"))
    assert (await order(daemon, "reload"))[0] == 0
    async with daemon.client() as client:
        assert (await order(daemon, "drain", "--worker", "fast-1", "--wait"))[0] == 0
        id = (await client.submit({"user_query": "long !tokens=100 !delay=20ms"})).id
        await running(client, [id], 1)
        assert (await order(daemon, "undrain", "--worker", "fast-1"))[0] == 0
        assert (await order(daemon, "drain", "--worker", "fast-0", "--wait"))[0] == 0
        result = await client.wait(id, 20)
    assert (result.state, result.worker, result.attempt) == ("done", "fast-1", 1)


def worker(daemon: Daemon, name: str) -> dict[str, Any]:
    return next(each for each in daemon.status()["workers"] if each["name"] == name)


async def test_wrong_orders_are_refused_by_name(daemon: Daemon) -> None:
    """Garbage, an unknown order, and a worker that is not there."""
    for line, code in ((b"nonsense\n", "invalid_request"), (b'{"do": "dance"}\n', "dance")):
        reader, writer = await asyncio.open_unix_connection(str(daemon.folder / "s/run/control.sock"))
        writer.write(line)
        assert code in (await asyncio.wait_for(reader.readline(), 5)).decode()
        writer.close()
    code, said = await order(daemon, "drain", "--worker", "fast-9")
    assert code == 65 and "fast-0, fast-1" in said


async def test_answers_of_another_model_are_not_served(daemon: Daemon) -> None:
    """The cache knows which digest an answer is from: after an exchange, and after the way back."""
    change(
        daemon, ("enabled = false", "enabled = true\nsemantic = false"), ("context = 100000", 'digest = "sha256:one"')
    )
    assert (await order(daemon, "reload"))[0] == 0
    ask = {"user_query": "what do you say"}
    async with daemon.client() as client:
        assert [(await client.execute(ask, 10)).from_cache for _ in range(2)] == [False, True]
        change(daemon, ("sha256:one", "sha256:two"))
        assert (await order(daemon, "reload"))[0] == 0
        fresh = await client.execute(ask, 10)
        assert (fresh.from_cache, fresh.model_digest) == (False, "sha256:two")
        change(daemon, ("sha256:two", "sha256:one"))
        assert (await order(daemon, "reload"))[0] == 0
        known = await client.execute(ask, 10)
    assert (known.from_cache, known.model_digest) == (True, "sha256:one")
