"""Who sleeps, who wakes, and who makes room for whom."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from metamusesd import control
from metamusesd.board import Board, SlotStatus
from metamusesd.config import Config
from metamusesd.config.options import Daemon, Model, Tier
from metamusesd.control import EXIT_BOOT, WorkerSpec
from metamusesd.log import get_logger
from metamusesd.supervisor.retire import Retiring
from metamusesd.supervisor.room import MARGIN_BYTES
from metamusesd.supervisor.sleep import Sleeping
from metamusesd.supervisor.slot import Slot
from metamusesd.supervisor.spec import ChildSpec, Kind

GIB = 1 << 30


class Family:
    """One worker in each of three tiers, no processes, a dispatcher that listens, and a machine with so much memory."""

    def __init__(self, folder: Path) -> None:
        (folder / "m.gguf").write_bytes(b"x" * 1000)
        tiers = {name: Tier(model="m", idle_unload_s=60.0) for name in ("fast", "medium")} | {"heavy": Tier(model="m")}
        config = replace(
            Config(), tiers=tiers, models={"m": Model(file="m.gguf")}, daemon=Daemon(models_dir=str(folder))
        )
        self.board, self.now_s, self.free = Board(3), 10_000.0, 64 * GIB
        self.slots = [self._slot(row, tier) for row, tier in enumerate(tiers)]
        self.dispatcher = Slot(ChildSpec("dispatcher", Kind.DISPATCHER))
        ours, self.heard = control.pair()
        self.heard.setblocking(False)
        self.dispatcher.started(10**8, ours)
        self.dispatcher.ready()
        self.sockets: list[socket.socket] = [ours, self.heard]
        log = get_logger("test")
        retiring = Retiring(config, self.slots, self.dispatcher, log)
        self.sleeping = Sleeping(config, self.board, self.slots, self.dispatcher, retiring, log, lambda _: self.free)

    def _slot(self, row: int, tier: str) -> Slot:
        spec = WorkerSpec(f"{tier}-0", tier, "m", (row,))
        slot = Slot(ChildSpec(spec.name, Kind.WORKER, row=row, worker=spec), self.board.slots[row])
        slot.started(10**8 + row, None)
        slot.ready()
        slot.epoch, slot.private_bytes = row + 1, GIB
        slot.started_s = slot.ready_s = self.now_s - 3600.0 + row
        return slot

    def turn(self, later_s: float = 2.0) -> list[str]:
        """Who falls asleep at the next look, as far as the dispatcher is told."""
        self.now_s += later_s
        before = {slot.name for slot in self.slots if slot.sleeping}
        self.sleeping.turn(self.now_s)
        return [slot.name for slot in self.slots if slot.sleeping and slot.name not in before]

    def told(self) -> list[dict[str, object]]:
        found = []
        while True:
            try:
                received = control.receive(self.heard)
            except BlockingIOError:
                return found
            assert received is not None
            found.append(received[0])

    def gone(self, slot: Slot) -> None:
        """As the burial does it."""
        slot.buried(0, True)
        slot.sleeping = False
        slot.move("slept")


@pytest.fixture
def family(tmp_path):
    family = Family(tmp_path)
    yield family
    for each in family.sockets:
        each.close()


def test_only_tiers_that_may_sleep_do(family: Family) -> None:
    """The pinned one never; one with a job, or whose queue holds some, does not."""
    family.board.workers[0].write(slots_used=1)
    family.board.queues.write(**{"medium.normal": 1})
    assert family.turn() == []
    family.board.queues.write(**{"medium.normal": 0})
    assert family.turn() == ["medium-0"]
    assert [message["do"] for message in family.told()] == ["asleep", "retire"]
    family.board.workers[0].write(slots_used=0, last_step_ns=int(family.now_s * 1e9))
    assert family.turn() == []
    assert family.turn(61) == ["fast-0"]


def test_it_wakes_when_it_is_wanted(family: Family) -> None:
    """At once if there is memory; the dispatcher is told when its worker is there."""
    family.turn()
    for slot in family.slots[:2]:
        family.gone(slot)
    family.told()
    family.sleeping.wanted("fast")
    family.turn()
    assert [slot.status for slot in family.slots] == [SlotStatus.BACKOFF, SlotStatus.ASLEEP, SlotStatus.READY]
    assert family.slots[0].due_s <= family.now_s
    family.slots[0].started(10**8 + 9, None)
    family.slots[0].ready()
    family.slots[0].ready_s = family.now_s
    family.turn()
    assert [set(message["tiers"]) for message in family.told()] == [{"medium"}]  # type: ignore[call-overload]


def test_who_was_idle_longest_makes_room(family: Family) -> None:
    """Without memory the load waits and says so; the pinned tier is left alone."""
    family.board.workers[1].write(last_step_ns=int((family.now_s - 10) * 1e9))
    assert family.turn() == ["fast-0"]
    family.gone(family.slots[0])
    family.free = GIB
    family.sleeping.wanted("fast")
    assert family.turn() == ["medium-0"]
    assert "memory: about" in family.sleeping.waits["fast"] and family.slots[0].status is SlotStatus.ASLEEP
    assert family.turn() == []
    family.gone(family.slots[1])
    family.free = 2 * GIB + MARGIN_BYTES
    family.turn()
    assert family.slots[0].status is SlotStatus.BACKOFF and not family.sleeping.waits


def test_a_gpu_that_is_full_is_made_free(family: Family) -> None:
    """Two tiers on one GPU that carries one of them: who wants it gets it, and the one that sleeps elsewhere stays."""
    fast, medium, _ = family.slots
    for slot, gpus in ((fast, ("0",)), (medium, ("0",))):
        assert slot.spec.worker is not None
        slot.spec = replace(slot.spec, worker=replace(slot.spec.worker, gpus=gpus))
        family.board.workers[slot.spec.row].write(
            vram_wanted_bytes=50 * GIB, vram_total_bytes=80 * GIB, vram_used_bytes=51 * GIB
        )
    family.board.workers[1].write(last_step_ns=int((family.now_s - 10) * 1e9))
    assert family.turn() == ["fast-0"]
    family.gone(fast)
    family.sleeping.wanted("fast")
    assert family.turn() == ["medium-0"]
    assert "GPU 0: about 51200 MB are needed, 29696 MB" in family.sleeping.waits["fast"]
    family.gone(medium)
    family.turn()  # nobody who is awake could say that it is full: the load itself looks
    assert fast.status is SlotStatus.BACKOFF and not family.sleeping.waits
    fast.started(10**8 + 9, None)
    family.sleeping.wanted("medium")
    family.turn()
    assert "where another worker loads" in family.sleeping.waits["medium"] and medium.status is SlotStatus.ASLEEP


def on_gpus(family: Family, *, used: int, **tiers: str) -> list[Slot]:
    """Puts tiers on GPUs of 80 GiB, so many GiB of which are used; each wants 50."""
    slots = [slot for slot in family.slots if slot.tier in tiers]
    for slot in slots:
        assert slot.spec.worker is not None
        worker = replace(slot.spec.worker, gpus=(tiers[slot.tier],))
        slot.spec, slot.vram_bytes = replace(slot.spec, worker=worker), 50 * GIB
        family.board.workers[slot.spec.row].write(vram_total_bytes=80 * GIB, vram_used_bytes=used * GIB)
    return slots


def full(family: Family, slot: Slot) -> None:
    """Its process has found its GPU full, and the burial has put it to sleep."""
    slot.started(10**8 + 11, None)
    slot.last_error = {"code": "gpu_full", "message": "GPU 0: 51200 MiB are needed, 1 MiB are free"}
    slot.buried(EXIT_BOOT << 8)
    slot.move("slept")
    slot.since_s = family.now_s


def test_who_met_a_full_gpu_comes_when_somebody_else_has_left(family: Family) -> None:
    """What is not ours cannot be put to sleep: it says so, tries now and then, and nothing is held against it."""
    (fast,) = on_gpus(family, used=1, fast="0")
    family.turn()
    for slot in family.slots[:2]:
        family.gone(slot)
    for _ in range(3):
        family.sleeping.wanted("fast")
        family.turn()
        assert fast.status is SlotStatus.BACKOFF
        full(family, fast)
        family.sleeping.wanted("fast")
        family.turn()
        assert fast.status is SlotStatus.ASLEEP and "1 MiB are free" in family.sleeping.waits["fast"]
        family.now_s += 20.0
    assert fast.boot_deaths == 0 and all(death.explained for death in fast.deaths)


def test_workers_on_other_gpus_come_alone(family: Family) -> None:
    """Of one tier on two GPUs, one of which a pinned tier holds."""
    fast, medium, _ = on_gpus(family, used=51, fast="0", medium="1", heavy="0")
    assert medium.spec.worker is not None
    medium.spec = replace(medium.spec, worker=replace(medium.spec.worker, tier="fast"))
    family.turn()
    for slot in (fast, medium):
        family.gone(slot)
    family.sleeping.wanted("fast")
    family.turn()
    assert (fast.status, medium.status) == (SlotStatus.ASLEEP, SlotStatus.BACKOFF)
    assert not family.sleeping.waits


def test_a_sleeper_does_not_come_before_a_pinned_one_that_restarts(family: Family) -> None:
    """The memory of who is about to come back is not free."""
    fast, heavy = on_gpus(family, used=51, fast="0", heavy="0")
    family.turn()
    family.gone(fast)
    heavy.buried(9)
    heavy.move("died")
    family.sleeping.wanted("fast")
    family.turn()
    assert fast.status is SlotStatus.ASLEEP and "another worker loads" in family.sleeping.waits["fast"]


def test_a_pinned_one_that_finds_its_gpu_full_gets_it(family: Family) -> None:
    """From a tier that may sleep, however short it has been idle."""
    _, heavy = on_gpus(family, used=51, fast="0", heavy="0")
    family.board.workers[0].write(last_step_ns=int(family.now_s * 1e9))
    family.board.workers[1].write(slots_used=1)
    heavy.buried(9)
    heavy.move("died")
    heavy.started(10**8 + 12, None)
    heavy.last_error = {"code": "gpu_full", "message": "full"}
    heavy.buried(EXIT_BOOT << 8)
    heavy.move("died")
    assert family.turn() == ["fast-0"]


def test_nobody_sleeps_for_a_figure_that_is_old(family: Family) -> None:
    """Somebody has just left that GPU: what a neighbour says of it is waited for, before the next one must go."""
    fast, medium, _ = on_gpus(family, used=75, fast="0", medium="0", heavy="0")
    tiers = family.sleeping.config.tiers | {"heavy": Tier(model="m", idle_unload_s=6000.0)}
    family.sleeping.config = replace(family.sleeping.config, tiers=tiers)
    assert family.turn() == ["fast-0", "medium-0"]
    for slot in (fast, medium):
        family.gone(slot)
        slot.vram_bytes = 20 * GIB
    medium.since_s = family.now_s
    family.sleeping.wanted("fast")
    assert family.turn(1.0) == [] and "GPU 0: about" in family.sleeping.waits["fast"]
    family.sleeping.wanted("fast")
    assert family.turn(5.0) == ["heavy-0"]


def test_a_gpu_of_somebody_else_is_left_alone(family: Family) -> None:
    """Nobody sleeps in vain: what would be freed lies on another GPU."""
    fast, medium, heavy = family.slots
    for slot, gpus in ((fast, ("0",)), (medium, ("1",)), (heavy, ("0",))):
        assert slot.spec.worker is not None
        slot.spec = replace(slot.spec, worker=replace(slot.spec.worker, gpus=gpus))
        family.board.workers[slot.spec.row].write(
            vram_wanted_bytes=50 * GIB, vram_total_bytes=80 * GIB, vram_used_bytes=51 * GIB
        )
    family.board.workers[1].write(last_step_ns=int((family.now_s - 10) * 1e9))
    assert family.turn() == ["fast-0"]
    family.gone(fast)
    family.sleeping.wanted("fast")
    assert family.turn() == [] and "GPU 0" in family.sleeping.waits["fast"]


def test_a_new_dispatcher_is_told_again(family: Family) -> None:
    """Who sleeps, and how long the last load took."""
    family.turn()
    family.told()
    family.dispatcher.generation += 1
    family.turn()
    [message] = family.told()
    assert message == {"do": "asleep", "tiers": {"fast": 0.0, "medium": 0.0}}
