"""All stages · dispatcher · from the fork to a working dispatcher, and out again.

Redis may be absent for as long as it likes: links are taken, the board is beaten, and claiming starts when it answers.
Exit codes: 0 drained; 78 Redis would lose jobs (its eviction policy, its version); 71 one of the loops failed.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from typing import Any

import uvloop

from metamusesd.child import Child
from metamusesd.control import EXIT_BAD_CONFIG, Birth
from metamusesd.dispatcher.caching import rules_of
from metamusesd.dispatcher.dispatcher import Dispatcher
from metamusesd.dispatcher.endings import Retries
from metamusesd.dispatcher.identities import defaults_of
from metamusesd.dispatcher.outbox import pause_s
from metamusesd.dispatcher.rounds import Rounds
from metamusesd.dispatcher.router import routing_rules_of, views_of
from metamusesd.dispatcher.traces import Traces
from metamusesd.errors import ConfigError, QueueError, QueueRefused
from metamusesd.log import get_logger
from metamusesd.queues.base import Queue
from metamusesd.queues.limits import limits_of
from metamusesd.routing.analysis import analyse
from metamusesd.tracing import CLOSE_S, Exporter

CONFIGURE_S = 5.0


def main(birth: Birth) -> int:
    """The dispatcher's whole life; returns its exit code. Call it in the forked child, on its main thread."""
    from metamusesd.queues.redis_queue import RedisQueue

    config = birth.config
    return uvloop.run(Boot(birth).run(RedisQueue(config.redis_url, config.redis.prefix, limits_of(config))))


class Boot:
    """Wires the parts and ends with the exit code."""

    def __init__(self, birth: Birth) -> None:
        self._birth = birth
        self._log = get_logger(birth.name, pid=os.getpid())
        self._owner = f"{birth.instance}:{secrets.token_hex(6)}"
        self._tiers = views_of(birth.config)
        self._lease_ms = int(birth.config.queue.lease_s * 1000)

    async def run(self, queue: Queue) -> int:
        """Until drained (0), or until something cannot go on."""
        child = self._child = Child(self._birth, self._log)
        config, names = self._birth.config, list(self._birth.config.enabled_tiers())
        exporter = self._open_traces()
        traces = Traces(exporter, config.telemetry.sample, self._log, config.queue.max_crashes)
        dispatcher = self._dispatcher = Dispatcher(
            queue, self._birth.board, self._tiers, self._owner, self._log, lease_ms=self._lease_ms,
            max_crashes=config.queue.max_crashes,
            retries=Retries(config.queue.max_retries, config.queue.retry_s, config.queue.retry_most_s),
            rules=rules_of(config), routing=routing_rules_of(config), defaults=defaults_of(config),
            vectors_lost=self._vectors_lost, traces=traces, wanted=self._wanted,
        )  # fmt: skip
        self._rounds = Rounds(dispatcher, queue, self._owner, names, self._lease_ms, config.daemon.hang_s)
        analyse("")  # reads its weights: not under the first job
        dispatcher.ledger.started(os.getpid(), self._birth.generation)
        child.listen(self._heard, lambda: self._drain(0.0))
        child.start(self._rounds.beat(), "beat")
        child.start(self._serve(queue), "serve")
        child.say({"say": "ready"})  # Redis may come when it likes
        try:
            return await child.exit
        finally:
            await child.stop()
            dispatcher.fleet.close()
            dispatcher.vectors.close()
            await queue.close()
            if exporter is not None:
                exporter.close(sent := threading.Event())
                await asyncio.to_thread(sent.wait, CLOSE_S)
            await asyncio.sleep(0)  # connections are lost in the next turn of the loop

    def _open_traces(self) -> Exporter | None:
        """Without the library the service goes on, and says what is missing."""
        endpoint = self._birth.config.telemetry.otlp_endpoint
        try:
            return Exporter(endpoint, self._birth.instance) if endpoint else None
        except ConfigError as error:
            self._log.error("no traces", problem=error.message)
            return None

    async def _serve(self, queue: Queue) -> None:
        """Everything that needs Redis: first the door, then what an older self held, then the work."""
        await self._open(queue)
        await self._take_over(queue)
        dispatcher, rounds = self._dispatcher, self._rounds
        for name in ("cancels", "renew", "reap", "survey", "sample"):
            self._child.start(getattr(rounds, name)(), name)
        self._child.start(self._configure(queue), "limits")
        self._child.start(dispatcher.outbox.run(), "outbox")
        await rounds.surveyed.wait()  # or a job of another host's tier would be refused
        self._child.start(dispatcher.pump.watch(), "markers")
        self._child.start(dispatcher.pump.run(), "claims")

    async def _open(self, queue: Queue) -> None:
        tries = 0
        while True:
            try:
                await queue.open()
                await queue.configure()
                self._dispatcher.ledger.redis(None)
                return
            except QueueRefused as error:
                self._log.error("redis refused", problem=error.message)
                self._child.say({"say": "failed", "error": error.to_dict(), "permanent": True})
                self._child.leave(EXIT_BAD_CONFIG)
                await asyncio.Future()
            except QueueError as error:
                self._dispatcher.ledger.redis(error)
                await asyncio.sleep(pause_s(tries))
                tries += 1

    async def _configure(self, queue: Queue) -> None:
        """Publish the limits again and again: a Redis that was emptied has forgotten them."""
        while True:
            await asyncio.sleep(CONFIGURE_S)
            try:
                await queue.configure()
            except QueueError as error:
                self._dispatcher.ledger.redis(error)

    async def _take_over(self, queue: Queue) -> None:
        """What this instance held under another nonce goes back, unburnt, before anything is claimed."""
        tries = 0
        while True:
            try:
                reaped = await queue.reap(self._owner, takeover=True)
            except QueueError as error:
                self._dispatcher.ledger.redis(error)
                await asyncio.sleep(pause_s(tries))
                tries += 1
                continue
            if reaped.requeued:
                self._log.info("took over", jobs=len(reaped.requeued))
            if not reaped.more:
                return

    # the supervisor

    def _heard(self, message: dict[str, Any], fd: int | None) -> None:
        do = message.get("do")
        if do == "link" and fd is not None:
            link = self._dispatcher.fleet.connect(
                int(message["row"]), int(message["epoch"]), str(message["worker"]), str(message["tier"]), fd
            )
            self._child.start(link, "link")
        elif do == "vectors" and fd is not None:
            self._child.start(self._dispatcher.vectors.connect(int(message["epoch"]), fd), "vectors")
        elif do == "unlink":
            self._dispatcher.fleet.unlink(message)
        elif do == "retire":
            self._child.start(self._retire(int(message["row"]), int(message["epoch"])), "retire")
        elif do == "asleep":
            self._dispatcher.outlook.asleep = {str(tier): float(s) for tier, s in message["tiers"].items()}
        elif do == "resume":
            self._dispatcher.fleet.resume(int(message["row"]), int(message["epoch"]))
        elif do == "drain":
            self._drain(float(message.get("within_s", 0.0)))
        elif fd is not None:
            os.close(fd)

    async def _retire(self, row: int, epoch: int) -> None:
        if await self._dispatcher.retire(row, epoch, self._birth.config.daemon.drain_s):
            self._child.say({"say": "retired", "row": row, "epoch": epoch})

    def _wanted(self, tier: str) -> None:
        self._child.say({"say": "wanted", "tier": tier})

    def _vectors_lost(self, epoch: int) -> None:
        self._child.say({"say": "relink vectors", "epoch": epoch})

    def _drain(self, within_s: float) -> None:
        if not self._rounds.draining:
            self._rounds.draining = True
            self._child.start(self._drained(within_s), "drain")

    async def _drained(self, within_s: float) -> None:
        self._log.info("draining", within_s=within_s, held=len(self._dispatcher.held))
        try:
            await self._dispatcher.drain(within_s)
        except TimeoutError as error:
            self._log.warning("drain incomplete", problem=str(error))
        self._child.leave(0)
