"""Supervisor · which worker sits on which cores. A pure function of configuration, cores and model sizes.

    1. tiers with a list of core numbers take those          4. every `auto` tier gets its first worker
    2. tiers on GPUs take one core a worker                  5. what is left goes round, a worker at a time, to the
    3. tiers with a number of cores or workers take theirs      tiers with workers = auto, while a group fits

No two workers ever share a core: that is refused with the arithmetic. A worker's cores are of one memory node when any
node has as many free: the one with the fewest, so that large groups find room on the others.

`cores = auto` is as few cores as keep one stream above the tier's floor, by the rate that `metamusesd bench --write`
has measured, else estimated as CORE_BYTES_S / bytes of the model file a core. `auto` uses physical cores only; numbers
may spill over to second hardware threads. Workers of the echo engine compute nothing and are not pinned, unless cores
are given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from metamusesd.board import MAX_ROWS
from metamusesd.config import Config, Model, Tier, is_model
from metamusesd.control import WorkerSpec
from metamusesd.errors import ConfigError
from metamusesd.models import size_of
from metamusesd.supervisor.cpus import Cores

CORE_BYTES_S = 8e9  # of a model's weights that a core reads while it decodes: measured on small ones, else a guess
UNMEASURED: Mapping[str, float] = {}

Pace = tuple[float, str]  # tokens/s of one stream on one core, and how that is known


@dataclass(slots=True)
class Demand:
    """What one tier asks for, and what it has got so far."""

    name: str
    tier: Tier
    model: Model
    group: int  # cores a worker; 0: not pinned
    least: int  # workers
    grows: bool  # takes more workers while cores are left
    reason: str
    given: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def wish(self) -> str:
        """The arithmetic of the least that it needs."""
        return f"{self.name}: {self.least} worker{'s' * (self.least > 1)} x {self.group} core{'s' * (self.group > 1)}"


@dataclass(frozen=True, slots=True)
class Placement:
    """The workers, and one line a tier for people that says why."""

    workers: tuple[WorkerSpec, ...]
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()  # what will be slower than it looks, each with its remedy

    @property
    def lines(self) -> tuple[str, ...]:
        """Everything for people."""
        return self.reasons + self.warnings


def place(
    config: Config, cores: Cores, model_bytes: Mapping[str, int], core_rates: Mapping[str, float] = UNMEASURED
) -> Placement:
    """`model_bytes` by model name, 0 or missing when unknown; `core_rates` as `measured.core_rates` has them.

    ConfigError: it does not fit, with the arithmetic.
    """
    pool = _Pool(cores)
    demands = [
        _demand(name, tier, config, _pace(tier, model_bytes, core_rates), pool)
        for name, tier in config.enabled_tiers().items()
    ]
    for demand in demands:
        if isinstance(demand.tier.cores, list):
            _give_listed(demand, pool)
    rest = [demand for demand in demands if not isinstance(demand.tier.cores, list)]
    _shrink(rest, pool)
    _refuse_oversubscription(rest, pool)
    for demand in sorted(rest, key=lambda demand: _is_auto(demand.tier)):
        demand.given += [pool.take(demand.group) for _ in range(demand.least)]
    _hand_round(rest, pool)
    workers = tuple(spec for demand in demands for spec in _specs(demand, cores.nodes))
    if len(workers) > MAX_ROWS:
        raise ConfigError(f"tiers: {len(workers)} workers are more than {MAX_ROWS}; lower the tiers' workers")
    return Placement(workers, tuple(_line(demand) for demand in demands), tuple(_warnings(workers, cores)))


def model_sizes(config: Config) -> dict[str, int]:
    """Bytes of every model that is there, by its name."""
    paths = {name: config.model_path(model) for name, model in config.models.items() if model.file}
    return {name: size_of(path) for name, path in paths.items() if is_model(path)}


class _Pool:
    """The cores that nobody has yet."""

    def __init__(self, cores: Cores) -> None:
        self.numbers = cores.numbers
        limit = len(cores.usable) if cores.quota is None else max(1, math.floor(cores.quota))
        self.free = [core.number for core in cores.usable][:limit]
        self.physical = {core.number for core in cores.usable if core.physical}
        self._nodes = {core.number: core.node for core in cores.usable}
        self.total, self.quota = len(self.free), cores.quota
        self._named: set[int] = set()

    def take(self, count: int) -> tuple[int, ...]:
        """Of one node if that can be, else physical cores of several, else whatever is free."""
        near: dict[int, list[int]] = {}
        for number in self.free:
            if number in self.physical:
                near.setdefault(self._nodes[number], []).append(number)
        enough = [numbers for numbers in near.values() if len(numbers) >= count]
        most_first = sorted(near.values(), key=len, reverse=True)
        taken = min(enough, key=len, default=[number for numbers in most_first for number in numbers])[:count]
        taken += [number for number in self.free if number not in taken][: count - len(taken)]
        self.free = [number for number in self.free if number not in taken]
        return tuple(sorted(taken))

    def claim(self, number: int) -> bool:
        """This very core. Under a quota it costs one of those that may be used, whichever it is."""
        if number in self._named or not self.free:
            return False
        if number in self.free:
            self.free.remove(number)
        elif self.quota is not None and number in self.numbers:
            self.free.pop()
        else:
            return False
        self._named.add(number)
        return True

    @property
    def free_physical(self) -> int:
        return sum(number in self.physical for number in self.free)


def _demand(name: str, tier: Tier, config: Config, pace: Pace, pool: _Pool) -> Demand:
    model = config.models[tier.model]
    group, reason = _group(tier, model, pace)
    least = len(tier.models)
    if isinstance(tier.workers, int) and tier.workers < least:
        raise ConfigError(
            f"tiers.{name}.workers: {tier.workers} for {least} models; each needs one: set workers = {least} or more"
        )
    if tier.gpus and isinstance(tier.workers, int) and tier.workers > len(tier.gpus):
        raise ConfigError(
            f"tiers.{name}.workers: {tier.workers} workers on {len(tier.gpus)} GPUs; a GPU serves one worker, "
            f"name more GPUs or set workers = {len(tier.gpus)}"
        )
    if isinstance(tier.workers, int):
        return Demand(name, tier, model, group, tier.workers, False, reason)
    if tier.gpus:
        return Demand(name, tier, model, group, len(tier.gpus), False, reason)
    if group == 0:
        return Demand(name, tier, model, 0, max(least, len(pool.physical)), False, reason)
    return Demand(name, tier, model, group, least, True, reason)


def _pace(tier: Tier, model_bytes: Mapping[str, int], core_rates: Mapping[str, float]) -> Pace:
    """Of the slowest of the tier's models; (0, "") when nothing is known of them."""
    paces = []
    for name in tier.models:
        size, rate = model_bytes.get(name, 0), core_rates.get(name, 0.0)
        if rate > 0:
            paces.append((rate, f"{name}, measured at {rate:.0f} tokens/s a core,"))
        elif size > 0:
            guess = CORE_BYTES_S / size
            paces.append((guess, f"{size / 1e6:.0f} MB at about {guess:.0f} tokens/s a core"))
    return min(paces, default=(0.0, ""))


def _group(tier: Tier, model: Model, pace: Pace) -> tuple[int, str]:
    """(cores a worker, why)."""
    one_core_tokens_s, words = pace
    if isinstance(tier.cores, int):
        return tier.cores, "as configured"
    if tier.gpus:
        return 1, "the GPU computes"
    if model.engine == "echo":
        return (1 if isinstance(tier.cores, list) else 0), "echo computes nothing"
    if one_core_tokens_s <= 0:
        return 1, "the model's size is unknown"
    group = max(1, math.ceil(tier.floor_tokens_s / one_core_tokens_s))
    return group, f"{words} keeps one stream above {tier.floor_tokens_s:g} tokens/s"


def _give_listed(demand: Demand, pool: _Pool) -> None:
    """`cores = [4, 5, 6, 7]`: these, cut into equal groups when the number of workers is given."""
    wanted: list[int] = demand.tier.cores  # type: ignore[assignment]
    where = f"tiers.{demand.name}.cores"
    for number in wanted:
        if not isinstance(number, int) or isinstance(number, bool) or number not in pool.numbers:
            usable = ", ".join(map(str, sorted(pool.numbers)))
            raise ConfigError(f"{where}: core {number!r} is not usable here; choose from {usable}")
        if not pool.claim(number):
            raise ConfigError(f"{where}: core {number} is given twice or over the quota; name every core once")
    if isinstance(demand.tier.workers, int) or demand.tier.gpus:
        demand.group = len(wanted) // demand.least
    group = max(1, min(demand.group, len(wanted)))
    count = demand.least if isinstance(demand.tier.workers, int) or demand.tier.gpus else len(wanted) // group
    if not wanted or group * count > len(wanted) or (isinstance(demand.tier.workers, int) and len(wanted) % count):
        raise ConfigError(
            f"{where}: {len(wanted)} cores do not divide among {count} workers; give a multiple of {count}"
        )
    demand.given = [tuple(wanted[start * group : (start + 1) * group]) for start in range(count)]


def _is_auto(tier: Tier) -> bool:
    return tier.cores == "auto" and not tier.gpus


def _shrink(demands: Sequence[Demand], pool: _Pool) -> None:
    """When the `auto` groups do not fit side by side, the largest give cores up: better slow than not at all."""

    def needed() -> int:
        return sum(demand.group * demand.least for demand in demands)

    autos = [demand for demand in demands if _is_auto(demand.tier)]
    while needed() > pool.free_physical and (large := [demand for demand in autos if demand.group > 1]):
        demand = max(large, key=lambda demand: demand.group)
        demand.group -= 1
        if "BELOW" not in demand.reason:
            demand.reason += ", BELOW the floor here: this host has too few cores"


def _refuse_oversubscription(demands: Sequence[Demand], pool: _Pool) -> None:
    needed = sum(demand.group * demand.least for demand in demands)
    if needed > len(pool.free):
        wishes = " + ".join(demand.wish for demand in demands if demand.group)
        quota = "" if pool.quota is None else f" under the quota of {pool.quota:g} CPUs"
        raise ConfigError(
            f"tiers: {wishes} = {needed} cores, and {len(pool.free)} of {pool.total} are free{quota}; workers never "
            "share a core: lower workers or cores, or disable a tier"
        )


def _hand_round(demands: Sequence[Demand], pool: _Pool) -> None:
    room = MAX_ROWS - sum(len(demand.given) for demand in demands)
    growing = [demand for demand in demands if demand.grows]
    while room > 0 and (growing := [demand for demand in growing if demand.group <= pool.free_physical]):
        demand = growing.pop(0)
        demand.given.append(pool.take(demand.group))
        growing.append(demand)
        room -= 1


def _specs(demand: Demand, nodes: Mapping[int, int]) -> list[WorkerSpec]:
    tier, count = demand.tier, len(demand.given)
    slots = [tier.slots] * count
    if tier.concurrency:
        slots = [max(1, tier.concurrency // count + (index < tier.concurrency % count)) for index in range(count)]
    gpus: list[tuple[str, ...]] = [tuple(str(each).split("+")) for each in tier.gpus] or [()] * count
    return [
        WorkerSpec(
            f"{demand.name}-{index}",
            demand.name,
            tier.models[index % len(tier.models)],
            given,
            gpus[index],
            slots[index],
            tier.reserve_slots,
            tuple(sorted({nodes[number] for number in given if number in nodes})),
        )
        for index, given in enumerate(demand.given)
    ]


def _line(demand: Demand) -> str:
    where = " ".join("+".join(map(str, given)) or "any" for given in demand.given)
    gpus = f", GPUs {' '.join(map(str, demand.tier.gpus))}" if demand.tier.gpus else ""
    count = len(demand.given)
    return f"tier {demand.name}: {count} worker{'s' * (count > 1)} on cores {where}{gpus} ({demand.reason})"


def _warnings(workers: Sequence[WorkerSpec], cores: Cores) -> Iterator[str]:
    """Two workers on one physical core, and workers on cores of several nodes."""
    homes, owners = cores.homes, dict[int, str]()
    for worker in workers:
        for number in worker.cores:
            other = owners.setdefault(homes[number], worker.name)
            if other != worker.name:
                yield (
                    f"{worker.name} and {other} share the physical core {homes[number]} (core {number} is its second "
                    "hardware thread): each gets about half of it; lower workers or cores"
                )
        if len(worker.nodes) > 1:
            yield (
                f"{worker.name} has cores of the memory nodes {' and '.join(map(str, worker.nodes))}: part of its "
                "memory is far; give it fewer cores, or a list of cores of one node"
            )
