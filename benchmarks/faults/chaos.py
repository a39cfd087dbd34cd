"""Faults benchmark · bench process · seeded faults: kill and stop processes, break connections, forget scripts.

A signal goes to a process by its pidfd, so that a number that was given out again is never hit. After every supervisor
that was killed no process of its family may live on; then a restarting parent starts the next one. Every CALM_EVERY
faults there is a pause, in which order can be looked at.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable

from benchmarks.faults.family import Family
from benchmarks.faults.history import History, now_ms
from benchmarks.faults.power import Power
from benchmarks.faults.resp import Redis, ReplyError

GAP_S, NO_GAP_S = (0.3, 3.0), (0.0, 0.05)
AT_ONCE = 0.2  # of the faults come right after the one before
STOP_S = (0.05, 4.0)
CUT_S = (0.2, 1.5)  # the file's end that `everysec` may lose
CALM_EVERY, CALM_S = 10, 6.0
ORPHAN_S = 5.0
WEIGHTS = {
    "kill worker": 22, "stop worker": 12, "kill dispatcher": 18, "stop dispatcher": 8, "kill supervisor": 6,
    "stop supervisor": 4, "drain": 3, "kill redis": 9, "stop redis": 8, "script flush": 4, "client kill": 9,
}  # fmt: skip


class Chaos:
    """One task that hurts the family until it is told to end; afterwards nothing is stopped and a daemon runs."""

    def __init__(self, family: Family, history: History, seed: int, appendfsync: str) -> None:
        self._family, self._history = family, history
        self._dice = random.Random(f"{seed}/chaos")
        self._redis = Redis(family.redis_socket, timeout_s=2.0)
        self._resumes: set[asyncio.Task[None]] = set()
        self._weights = WEIGHTS if appendfsync == "always" else WEIGHTS | {"cut": 6}
        self._power = Power(family.folder / "s/redis")

    async def run(self, seconds: float) -> None:
        """Faults for so long."""
        end_s = time.monotonic() + seconds
        count = 0
        while time.monotonic() < end_s:
            await asyncio.sleep(self._dice.uniform(*(GAP_S if self._dice.random() > AT_ONCE else NO_GAP_S)))
            what = self._dice.choices(list(self._weights), list(self._weights.values()))[0]
            await self._act(what)
            count += 1
            if count % CALM_EVERY == 0:
                await asyncio.sleep(CALM_S)
        await asyncio.gather(*self._resumes)
        self._redis.close()
        self._power.close()

    async def _act(self, what: str) -> None:
        verb, _, whom = what.partition(" ")
        acts: dict[str, Callable[[str], Awaitable[None]]] = {
            "kill": self._kill, "stop": self._stop, "drain": self._drain, "script": self._flush,
            "client": self._disconnect, "cut": self._cut,
        }  # fmt: skip
        try:
            await acts[verb](whom)
        except (OSError, ReplyError) as error:
            self._history.fault(now_ms(), f"{what} failed", whom, repr(error))
        except RuntimeError as error:  # a daemon that does not start again
            self._history.wrongs.append(str(error))
            await asyncio.sleep(1.0)

    async def _victim(self, whom: str) -> tuple[str, int]:
        """(name, pid) of one that lives; raises OSError when there is none now."""
        pids = await self._family.pids()
        names = [name for name in pids if name == whom or (whom == "worker" and "-" in name)]
        if not names:
            raise ProcessLookupError(f"no {whom} now")
        name = self._dice.choice(sorted(names))
        return name, pids[name]

    async def _kill(self, whom: str) -> None:
        name, pid = await self._victim(whom)
        at_ms = now_ms()
        if whom == "supervisor":
            await self._behead()
        else:
            _signal(os.pidfd_open(pid), signal.SIGKILL)
        self._history.fault(at_ms, "kill", name, f"pid {pid}")

    async def _cut(self, _: str) -> None:
        """What a power cut leaves of a Redis that does not write `always`."""
        pids, at_ms = await self._family.pids(), now_ms()
        if "redis" not in pids:
            raise ProcessLookupError("no redis now")
        seconds = self._dice.uniform(*CUT_S)
        lost = await self._power.cut(pids["supervisor"], pids["redis"], seconds)
        self._history.fault(at_ms, "power cut", "redis", f"{seconds:.2f} s, {lost} bytes lost")

    async def _behead(self) -> None:
        """The supervisor dies; nobody of its family may survive it."""
        family = self._family
        assert family.process is not None
        before = family.marked()
        family.process.kill()
        await family.gone()
        if orphans := await family.buried(before, ORPHAN_S):
            self._history.wrongs.append(f"orphans {ORPHAN_S:g} s after their supervisor's death: {sorted(orphans)}")
        await family.start()

    async def _drain(self, _: str) -> None:
        at_ms = now_ms()
        code = await self._family.stop()
        if code:
            self._history.wrongs.append(f"the daemon left with {code} on SIGTERM")
        await self._family.start()
        self._history.fault(at_ms, "drain", "supervisor", f"exit {code}")

    async def _stop(self, whom: str) -> None:
        """SIGSTOP, and SIGCONT later, when other things have happened; unless it was replaced meanwhile."""
        name, pid = await self._victim(whom)
        pidfd, seconds = os.pidfd_open(pid), self._dice.uniform(*STOP_S)
        at_ms = now_ms()
        signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
        resume = asyncio.create_task(self._resume(pidfd, seconds, at_ms, name))
        self._resumes.add(resume)
        resume.add_done_callback(self._resumes.discard)
        if whom in ("supervisor", "redis"):  # next to nothing else can be done meanwhile
            await asyncio.wait([resume])

    async def _resume(self, pidfd: int, seconds: float, at_ms: float, name: str) -> None:
        await asyncio.sleep(seconds)
        _signal(pidfd, signal.SIGCONT)
        self._history.fault(at_ms, "stop", name, f"{seconds:.2f} s")

    async def _flush(self, _: str) -> None:
        at_ms = now_ms()
        await self._redis.ask("SCRIPT", "FLUSH")
        self._history.fault(at_ms, "script flush", "redis")

    async def _disconnect(self, _: str) -> None:
        at_ms = now_ms()
        count = await self._redis.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        self._history.fault(at_ms, "client kill", "redis", f"{count} connections")


def _signal(pidfd: int, number: int) -> None:
    """To a process that may have gone, whose descriptor is closed then."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)
