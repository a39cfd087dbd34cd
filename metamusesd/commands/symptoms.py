"""Stage 0 · command line · what a machine's facts mean for the daemon. Pure: snapshot in, findings out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from metamusesd.commands.machine import Machine
from metamusesd.config import Config
from metamusesd.control import WorkerSpec

BUSY_SHARE = 0.2  # of a core: from here on a stranger is felt
STEAL_SHARE = 0.05
LOAD_A_CORE = 1.5
LEAST_FILES = 4096
JUMP_S = 0.05
MIB = 1 << 20
GRADES = ("ok", "warn", "bad")


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact, why it matters, and the command or option that mends it."""

    topic: str
    grade: str  # one of GRADES
    fact: str
    why: str = ""
    remedy: str = ""


def worst(findings: Sequence[Finding]) -> str:
    """The worst grade; ok when there is none."""
    return max((finding.grade for finding in findings), key=GRADES.index, default="ok")


def of_cores(machine: Machine, workers: Sequence[WorkerSpec]) -> Iterator[Finding]:
    """How many cores there are, who may use them, and whether two workers share one."""
    usable, cores = machine.cores.numbers, sorted({core for worker in workers for core in worker.cores})
    quota = machine.cores.quota
    under = f", the cgroup pays for {quota:g}" if quota is not None else ""
    fact = f"{len(workers)} workers on {len(cores)} of {len(usable)} usable cores ({machine.online} online{under})"
    if quota is not None and quota < len(usable):
        yield Finding(
            "cores",
            "warn",
            fact,
            "a group over its quota stands still for the rest of every 100 ms: tokens stutter",
            "systemctl set-property metamusesd CPUQuota= and AllowedCPUs=LIST instead: whole cores, no pauses",
        )
    else:
        yield Finding("cores", "ok", fact)
    for first, second, core in _shared(machine, workers):
        yield Finding(
            "cores",
            "warn",
            f"{first} and {second} share physical core {core} as its two hardware threads",
            "each gets about half of it",
            "name one thread of each core in tiers.*.cores, or lower tiers.*.workers",
        )
    for worker in workers:
        if spread := [node for node, mine in machine.nodes.items() if mine & set(worker.cores)][1:]:
            yield Finding(
                "numa",
                "warn",
                f"{worker.name} spans NUMA nodes: {len(spread) + 1} of {len(machine.nodes)}",
                "half of its weights are read from the other node's memory, at half the speed or less",
                f"tiers.{worker.tier}.cores = [cores of one node]; `lscpu` lists them",
            )
    if len(machine.nodes) <= 1:
        yield Finding("numa", "ok", "one node: all memory is equally near")


def _shared(machine: Machine, workers: Sequence[WorkerSpec]) -> Iterator[tuple[str, str, int]]:
    owner: dict[int, str] = {}
    for worker in workers:
        for core in {min(machine.siblings.get(number) or {number}) for number in worker.cores}:
            if core in owner:
                yield owner[core], worker.name, core
            owner.setdefault(core, worker.name)


def of_load(machine: Machine, workers: Sequence[WorkerSpec], daemon_pid: int | None) -> Iterator[Finding]:
    """Who else uses our cores."""
    ours = {core for worker in workers for core in worker.cores} or machine.cores.numbers
    strangers = [
        busy
        for busy in machine.busy
        if busy.core in ours
        and busy.share >= BUSY_SHARE
        and not (daemon_pid and daemon_pid in (busy.pid, *busy.parents))
    ]
    if not strangers:
        yield Finding("load", "ok", f"nobody else is busy on the workers' cores; load {machine.load:g}")
    else:
        names = ", ".join(
            f"{busy.name} (pid {busy.pid}, {busy.share:.0%} of core {busy.core})" for busy in strangers[:5]
        )
        yield Finding(
            "load",
            "warn",
            f"{len(strangers)} busy processes on the workers' cores: {names}",
            "a worker beside a busy process has half its speed, and a worker of several cores far less",
            f"taskset -pc OTHER-CORES {strangers[0].pid}, or leave that core out of tiers.*.cores",
        )
    if strangers and machine.load > LOAD_A_CORE * machine.online:
        yield Finding(
            "load",
            "warn",
            f"load {machine.load:g} on {machine.online} cores",
            "more wants to run than there are cores",
            "`top -o %CPU`; move other services away, or give the daemon fewer workers",
        )


def of_clocking(machine: Machine, workers: Sequence[WorkerSpec]) -> Iterator[Finding]:
    """Whether the cores are there in full: the hypervisor, the governor."""
    ours = {core for worker in workers for core in worker.cores} or machine.cores.numbers
    if machine.steal >= STEAL_SHARE:
        yield Finding(
            "steal",
            "warn",
            f"the hypervisor takes {machine.steal:.0%} of the CPU time",
            "its other guests slow this one down, by turns",
            "a host or a plan with dedicated cores",
        )
    slow = {word for number, word in machine.governors.items() if number in ours} - {"performance", "schedutil"}
    if slow:
        yield Finding(
            "governor",
            "warn",
            f"CPU governor {', '.join(sorted(slow))}",
            "cores clock up late in every burst",
            "cpupower frequency-set -g performance",
        )


def of_memory(machine: Machine, needed: int, at_most: int, *, running: bool) -> Iterator[Finding]:
    """`needed` soon after the start, `at_most` with a full queue; bytes. Running: what it has is taken already."""
    available, total = machine.memory.get("MemAvailable", 0), machine.memory.get("MemTotal", 0)
    limit = machine.memory_limit
    arithmetic = f"{_mib(needed)} are needed, {_mib(at_most)} with a full queue"
    if limit is not None and needed > limit:
        yield Finding(
            "memory",
            "bad",
            f"{arithmetic}; the cgroup allows {_mib(limit)}",
            "the kernel kills workers",
            "raise MemoryMax= of the unit, or lower slots, context or workers",
        )
    elif not running and available and needed > available:
        yield Finding(
            "memory",
            "bad",
            f"{arithmetic}; {_mib(available)} are available",
            "it will swap or be killed",
            "lower tiers.*.workers, models.*.context or models.*.kv_cells, or set models.*.kv_cache_type to q8_0; "
            "`metamusesd check --explain`",
        )
    elif at_most > (limit or total) > 0:
        yield Finding(
            "memory",
            "warn",
            f"{arithmetic}; there are {_mib(limit or total)}",
            "a queue that fills up takes the models' memory",
            "lower queue.max_bytes",
        )
    elif running and total and available < total / 20:
        yield Finding(
            "memory",
            "warn",
            f"{_mib(available)} of {_mib(total)} are available",
            "little is left",
            "`ps aux --sort=-rss | head`; tiers.*.recycle_mb bounds a worker",
        )
    else:
        yield Finding("memory", "ok", f"{arithmetic}; {_mib(available)} of {_mib(total)} are available")


def of_swap(machine: Machine) -> Iterator[Finding]:
    """Whether anything was swapped out."""
    swapped = machine.memory.get("SwapTotal", 0) - machine.memory.get("SwapFree", 0)
    if swapped > 64 * MIB:
        yield Finding(
            "swap",
            "warn",
            f"{_mib(swapped)} of swap are in use",
            "a swapped model answers in minutes",
            "MemorySwapMax=0 in the unit, or sysctl vm.swappiness=1",
        )
    else:
        yield Finding("swap", "ok", "no swap in use" if machine.memory.get("SwapTotal") else "no swap")


def of_pages(machine: Machine) -> Iterator[Finding]:
    """Huge pages: transparent ones, and those that are set aside."""
    if machine.huge_pages == "always":
        yield Finding(
            "huge pages",
            "warn",
            "transparent huge pages: always",
            "while Redis rewrites its file every write copies 2 MiB instead of 4 KiB: its latency jumps",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        )
    elif machine.huge_pages:
        yield Finding("huge pages", "ok", f"transparent huge pages: {machine.huge_pages}")
    aside = machine.memory.get("HugePages_Free", 0) * machine.memory.get("Hugepagesize", 0)
    if aside > 256 * MIB:
        yield Finding(
            "huge pages",
            "warn",
            f"{_mib(aside)} are set aside as huge pages and free",
            "nobody else can use that memory",
            "sysctl vm.nr_hugepages=0, unless something needs them",
        )


def of_limits(machine: Machine) -> Iterator[Finding]:
    """Descriptors, locked memory, cores."""
    files, core = machine.limits.get("Max open files", 0), machine.limits.get("Max core file size", 0)
    if files is not None and files < LEAST_FILES:
        yield Finding(
            "limits",
            "bad" if files < 256 else "warn",
            f"{files} open files at most",
            "every worker, producer and health client takes some",
            f"LimitNOFILE={LEAST_FILES} in the unit",
        )
    else:
        locked = machine.limits.get("Max locked memory", 0)
        words = "no limit" if locked is None else _mib(locked)
        yield Finding("limits", "ok", f"{files or 'any number of'} open files, {words} of locked memory")
    if core is None or core:
        yield Finding("limits", "ok", "core files are on here; children of the daemon write none all the same")


def of_clock(machine: Machine) -> Iterator[Finding]:
    """Jobs go by the Redis server's clock; certificates, logs and several hosts want a right one."""
    if abs(machine.jump_s) > JUMP_S:
        yield Finding(
            "clock",
            "warn",
            f"the clock was set by {machine.jump_s:+.3f} s while doctor looked",
            "deadlines of jobs go by the clock of Redis, and jump with it",
            "let chronyd slew, not step",
        )
    if machine.synchronized is False:
        yield Finding(
            "clock",
            "warn",
            "nobody keeps the clock right",
            "times in logs and records drift apart",
            "timedatectl set-ntp true, or install chrony",
        )
    elif not abs(machine.jump_s) > JUMP_S:
        yield Finding("clock", "ok", "synchronized" if machine.synchronized else "steady")


def of_gpus(machine: Machine, config: Config, visible: str | None) -> Iterator[Finding]:
    """`visible`: CUDA_VISIBLE_DEVICES as doctor has it. A worker sets its own."""
    asked = [(name, str(gpu)) for name, tier in config.enabled_tiers().items() for gpu in tier.gpus]
    count = len(machine.gpus)
    for tier, gpu in asked:
        known = (
            any(each.startswith(gpu) for each in machine.gpu_ids)
            if gpu.startswith("GPU-")
            else (gpu.isdigit() and int(gpu) < count)
        )
        if not known:
            there = ", ".join(machine.gpu_ids) or f"{count} NVIDIA devices under /dev"
            yield Finding(
                "gpu",
                "bad",
                f"tiers.{tier}.gpus: {gpu} is not visible ({there})",
                "its worker cannot start, or computes on the CPU",
                "`nvidia-smi -L`; DeviceAllow= and SupplementaryGroups= of systemd/metamusesd-gpu.conf",
            )
    if asked and visible is not None:
        yield Finding(
            "gpu",
            "warn",
            f"CUDA_VISIBLE_DEVICES={visible} is set",
            "workers replace it by tiers.*.gpus",
            "remove it, and name GPUs in tiers.*.gpus",
        )
    if count and not machine.driver:
        yield Finding(
            "gpu",
            "warn",
            "device nodes without a driver (/proc/driver/nvidia)",
            "CUDA will not start",
            "modprobe nvidia",
        )
    if not asked:
        yield Finding("gpu", "ok", f"{count} here, none is asked for in tiers.*.gpus" if count else "none, none needed")


def _mib(count: int) -> str:
    return f"{count / MIB:.0f} MiB"
