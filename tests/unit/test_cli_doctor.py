"""What `doctor` sees of a machine, and what it makes of it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from metamusesd.commands import estimate, machine, premises, symptoms
from metamusesd.commands.doctor import EXIT_BY_GRADE
from metamusesd.commands.machine import Busy, Machine
from metamusesd.commands.redis_facts import RedisFacts, of_redis
from metamusesd.commands.symptoms import Finding, worst
from metamusesd.config import Config, Daemon, Model, Queue, Redis, Tier
from metamusesd.control import WorkerSpec
from metamusesd.queues.base import Host, Service
from metamusesd.supervisor.cpus import arrange
from tests.unit.test_cli import run

GIB = 1 << 30


def sight(threads: int = 1, **more: object) -> Machine:
    """Four usable CPUs; with two threads, CPUs n and n + 2 are one core."""
    siblings = {n: frozenset({n % (4 // threads) + 4 // threads * t for t in range(threads)}) for n in range(4)}
    memory = {"MemTotal": 16 * GIB, "MemAvailable": 12 * GIB}
    plain = Machine(arrange(range(4), {n: set(each) for n, each in siblings.items()}, None), 4, siblings, memory=memory)
    return replace(plain, **more)  # type: ignore[arg-type]


def workers(*cores: tuple[int, ...]) -> list[WorkerSpec]:
    return [WorkerSpec(f"fast-{index}", "fast", "small", each) for index, each in enumerate(cores)]


def grades(found: list[Finding]) -> dict[str, str]:
    """The worst grade by topic."""
    topics = dict.fromkeys(finding.topic for finding in found)
    return {topic: worst([finding for finding in found if finding.topic == topic]) for topic in topics}


def test_every_finding_that_is_not_well_has_a_reason_and_a_remedy() -> None:
    """Whoever reads it knows why it matters and what to run."""
    ill = sight(
        threads=2, load=9.0, steal=0.2, governors={0: "powersave"}, huge_pages="always", synchronized=False, jump_s=1.0,
        busy=(Busy(77, "backup", 0.9, 0),), limits={"Max open files": 128}, gpus=("/dev/nvidia0",),
        nodes={0: frozenset({0, 2}), 1: frozenset({1, 3})},
        memory={"MemTotal": GIB, "MemAvailable": GIB // 2, "SwapTotal": GIB, "HugePages_Free": 512,
                "Hugepagesize": 2 << 20},
    )  # fmt: skip
    crew, config = workers((0, 1), (2,)), Config(tiers={"fast": Tier(model="smollm2", gpus=[5])})
    found = [
        *symptoms.of_cores(ill, crew), *symptoms.of_load(ill, crew, None), *symptoms.of_clocking(ill, crew),
        *symptoms.of_memory(ill, GIB, 2 * GIB, running=False), *symptoms.of_swap(ill), *symptoms.of_pages(ill),
        *symptoms.of_limits(ill), *symptoms.of_clock(ill), *symptoms.of_gpus(ill, config, "0"),
    ]  # fmt: skip
    expected = {"cores": "warn", "numa": "warn", "load": "warn", "steal": "warn", "governor": "warn", "memory": "bad",
                "swap": "warn", "huge pages": "warn", "limits": "bad", "clock": "warn", "gpu": "bad"}  # fmt: skip
    assert grades(found) == expected
    assert all(finding.why and finding.remedy for finding in found if finding.grade != "ok")


def test_a_healthy_machine_is_all_ok() -> None:
    """No finding of a quiet host with room is a warning."""
    well, crew = sight(synchronized=True, huge_pages="madvise", limits={"Max open files": 65536}), workers((0,), (1,))
    found = [
        *symptoms.of_cores(well, crew), *symptoms.of_load(well, crew, None), *symptoms.of_clocking(well, crew),
        *symptoms.of_memory(well, GIB, 2 * GIB, running=False), *symptoms.of_swap(well), *symptoms.of_pages(well),
        *symptoms.of_limits(well), *symptoms.of_clock(well), *symptoms.of_gpus(well, Config(), None),
    ]  # fmt: skip
    assert worst(found) == "ok" and len(found) >= 8


def test_a_quota_below_the_cores_is_told_with_the_arithmetic() -> None:
    """1.5 CPUs paid for four usable ones."""
    held = sight()
    held = replace(held, cores=replace(held.cores, quota=1.5))
    first, *_ = symptoms.of_cores(held, workers((0,)))
    assert (
        first.grade == "warn" and "1 workers on 1 of 4 usable cores (4 online, the cgroup pays for 1.5)" in first.fact
    )


def test_only_strangers_on_the_workers_cores_count() -> None:
    """The daemon's own children, idle processes and busy ones elsewhere are no trouble."""
    crowd = sight(busy=(
        Busy(1, "worker", 1.0, 0, parents=(50,)), Busy(2, "cron", 0.05, 0), Busy(3, "backup", 0.9, 3),
    ))  # fmt: skip
    assert worst(list(symptoms.of_load(crowd, workers((0,)), 50))) == "ok"
    (found,) = symptoms.of_load(crowd, workers((0,)), None)
    assert "worker (pid 1, 100% of core 0)" in found.fact and "taskset" in found.remedy


def test_memory_is_judged_by_the_tightest_bound() -> None:
    """The cgroup's limit, then what is available; a running daemon has its part already."""
    assert grades(list(symptoms.of_memory(sight(memory_limit=GIB), 2 * GIB, 3 * GIB, running=True)))["memory"] == "bad"
    assert grades(list(symptoms.of_memory(sight(), 13 * GIB, 14 * GIB, running=False)))["memory"] == "bad"
    assert grades(list(symptoms.of_memory(sight(), 13 * GIB, 14 * GIB, running=True)))["memory"] == "ok"
    assert grades(list(symptoms.of_memory(sight(), GIB, 99 * GIB, running=False)))["memory"] == "warn"


def test_gpus_are_known_by_index_and_by_uuid() -> None:
    """A GPU that is there by either name is no finding."""
    box = sight(gpus=("/dev/nvidia0", "/dev/nvidia1"), gpu_ids=("GPU-aa-1", "GPU-bb-2"), driver="NVRM 570")
    for gpu, grade in ((0, "ok"), (1, "ok"), (2, "bad"), ("GPU-aa", "ok"), ("GPU-cc", "bad")):
        config = Config(tiers={"fast": Tier(model="smollm2", gpus=[gpu])})
        assert worst(list(symptoms.of_gpus(box, config, None))) == grade, gpu


def kernel(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_kernel_is_read_from_any_root(tmp_path: Path) -> None:
    """Memory, limits, nodes, governors, huge pages, GPUs, as files of a made-up machine."""
    kernel(tmp_path, **{
        "proc/meminfo": "MemTotal: 1000 kB\nHugePages_Total: 3\nstrange\n",
        f"proc/{os.getpid()}/limits": f"{'Limit':<26}Soft Limit\n{'Max open files':<26}1024   4096 files\n"
                         f"{'Max locked memory':<26}unlimited unlimited bytes\n",
        "proc/loadavg": "1.25 1 1 1/1 1\n",
        f"proc/{os.getpid()}/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/memory.max": "4096\n", "sys/fs/cgroup/a/b/memory.max": "max\n",
        "sys/devices/system/cpu/cpu3/topology/thread_siblings_list": "3,7\n",
        "sys/devices/system/cpu/cpu3/cpufreq/scaling_governor": "powersave\n",
        "sys/devices/system/node/node1/cpulist": "4-7\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
        "dev/nvidia0": "", "proc/driver/nvidia/gpus/a/information": "Model: X\nGPU UUID: \t GPU-1\n",
    })  # fmt: skip
    seen = machine.look(os.getpid(), tmp_path, sample_s=0.0)
    assert seen.memory == {"MemTotal": 1024000, "HugePages_Total": 3} and seen.memory_limit == 4096
    assert seen.limits == {"Max open files": 1024, "Max locked memory": None} and seen.load == 1.25
    assert seen.siblings == {3: {3, 7}} and seen.governors == {3: "powersave"} and seen.nodes == {1: {4, 5, 6, 7}}
    assert seen.huge_pages == "madvise" and seen.gpu_ids == ("GPU-1",) and len(seen.gpus) == 1


def test_a_machine_that_tells_nothing_is_no_error(tmp_path: Path) -> None:
    """A container may hide any of these files."""
    seen = machine.look(None, tmp_path, sample_s=0.0)
    assert seen.memory == {} and seen.memory_limit is None and seen.busy == () and seen.steal == 0.0
    assert worst(list(symptoms.of_cores(seen, []))) == "ok"


def test_a_running_daemon_is_judged_by_its_own_cgroup_and_cores(tmp_path: Path) -> None:
    """Doctor's own shell may be confined otherwise; a daemon that has just left is no error."""
    files = {f"proc/{os.getpid()}/cgroup": "0::/d\n", "proc/self/cgroup": "0::/s\n"}
    limits = {"sys/fs/cgroup/d/memory.max": "77\n", "sys/fs/cgroup/d/cpu.max": "150000 100000\n"}
    kernel(tmp_path, **files, **limits)
    seen = machine.look(os.getpid(), tmp_path, sample_s=0.0)
    assert seen.memory_limit == 77 and seen.cores.quota == 1.5
    assert machine.look(None, tmp_path, sample_s=0.0).memory_limit is None
    assert machine.look(1 << 30, tmp_path, sample_s=0.0).cores.numbers == os.sched_getaffinity(0)


def test_work_is_the_difference_of_two_looks(tmp_path: Path) -> None:
    """Ticks over time, with the parents, so that the daemon's family is known."""
    before = {5: ("a", 4, 100, 0), 4: ("b", 1, 0, 1)}
    after = {5: ("a", 4, 150, 0), 4: ("b", 1, 0, 1), 6: ("new", 4, 9, 1)}
    (busy,) = machine._busy(before, after, 1.0)
    assert (busy.pid, busy.core, busy.parents) == (5, 0, (4, 1)) and busy.share == pytest.approx(50 / machine.TICKS_S)


# files, permissions


def home(tmp_path: Path, **sections: object) -> Config:
    return replace(Config(daemon=Daemon(state_dir=str(tmp_path / "s"))), **sections)  # type: ignore[arg-type]


def test_a_password_that_everybody_may_read_is_bad(tmp_path: Path) -> None:
    """A secret in a file for all; the same file without one, or closed, is well."""
    path = tmp_path / "c.toml"
    path.write_text("")
    secret = home(tmp_path, redis=Redis(url="redis://:pw@host"), source=str(path))
    path.chmod(0o644)
    (found,) = [each for each in premises.of_permissions(secret) if each.grade != "ok"]
    assert found.grade == "bad" and f"chmod 0640 {path}" in found.remedy
    assert worst(list(premises.of_permissions(replace(secret, redis=Redis(url="redis://host"))))) == "ok"
    path.chmod(0o640)
    assert worst(list(premises.of_permissions(secret))) == "ok"


def test_a_state_directory_open_to_others_is_a_warning(tmp_path: Path) -> None:
    """Prompts lie in there."""
    config = home(tmp_path)
    config.state_dir.mkdir(mode=0o755)
    config.state_dir.chmod(0o755)
    assert worst(list(premises.of_permissions(config))) == "warn"
    config.state_dir.chmod(0o700)
    assert worst(list(premises.of_permissions(config))) == "ok"


def test_a_full_disk_under_the_state_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With megabytes left the queue will soon stop."""
    room = premises.os.statvfs(tmp_path)
    few = type("Room", (), {"f_bavail": 10, "f_frsize": 4096, "f_blocks": room.f_blocks})
    monkeypatch.setattr(premises.os, "statvfs", lambda _: few)
    assert next(iter(premises.of_disks(home(tmp_path)))).grade == "bad"


def test_the_daemon_speaks_for_itself(tmp_path: Path) -> None:
    """Not running is no trouble; not ready is; another configuration than the one looked at is a warning."""
    config = home(tmp_path)
    assert worst(list(premises.of_daemon(config, None, "no daemon answers"))) == "ok"
    assert worst(list(premises.of_daemon(config, None, "no permission", closed=True))) == "warn"
    sick = {"state": "degraded", "reasons": ["no worker is ready"], "config": config.source}
    assert worst(list(premises.of_daemon(config, sick, ""))) == "bad"
    assert worst(list(premises.of_daemon(config, {"state": "ready", "config": "/etc/x.toml"}, ""))) == "warn"


def test_a_daemon_that_runs_something_else_than_it_would_now_is_a_warning() -> None:
    """Workers, models and cores are compared; with nothing to compare there is no finding."""
    status = {"workers": [{"name": "fast-0", "tier": "fast", "model": "small", "cores": [0]}]}
    running = premises.workers_of(status)
    assert running == (WorkerSpec("fast-0", "fast", "small", (0,), slots=0),)
    assert list(premises.of_drift(running, workers((0,)))) == []
    (found,) = premises.of_drift(running, workers((1,), (2,)))
    assert found.grade == "warn" and "fast-0, fast-1 differ" in found.fact and "metamusesd reload" in found.remedy
    assert list(premises.of_drift(running, ())) == []


# Redis

GOOD = {"aof_enabled": "1", "redis_version": "7.0.15", "used_memory": "1000000"}
KEEPS = {"appendfsync": "everysec", "maxmemory-policy": "noeviction"}


@pytest.mark.parametrize(
    ("info", "options", "grade"),
    [
        ({}, {}, "ok"),
        ({"aof_enabled": "0"}, {}, "warn"),
        ({"aof_last_write_status": "err"}, {}, "bad"),
        ({"aof_last_bgrewrite_status": "err"}, {}, "bad"),
        ({}, {"appendfsync": "no"}, "warn"),
        ({}, {"maxmemory-policy": "allkeys-lru"}, "bad"),
        ({"maxmemory": "1000001"}, {}, "bad"),
        ({"maxmemory": str(1 << 29)}, {}, "warn"),
    ],
)
def test_redis_is_judged_by_what_it_says(info: dict[str, str], options: dict[str, str], grade: str) -> None:
    """Persistence, policy, room: each with its own finding."""
    facts = RedisFacts(GOOD | info, KEEPS | options, (0.0001,) * 3)
    assert worst(list(of_redis(Config(), facts, "me"))) == grade


def test_redis_that_does_not_tell_its_options_is_still_judged() -> None:
    """CONFIG is refused by managed servers; INFO names the policy."""
    facts = RedisFacts(GOOD | {"maxmemory_policy": "volatile-lru"})
    assert worst(list(of_redis(Config(), facts, "me"))) == "bad"


def test_a_slow_redis_and_an_absent_one() -> None:
    """Five milliseconds a PING are felt; an embedded server without its daemon is no trouble, another one is."""
    assert worst(list(of_redis(Config(), RedisFacts(GOOD, KEEPS, (0.02,) * 3), "me"))) == "warn"
    away = RedisFacts(trouble="refused")
    assert worst(list(of_redis(Config(), away, ""))) == "ok"
    assert worst(list(of_redis(Config(redis=Redis(url="redis://x")), away, ""))) == "bad"


def test_other_daemons_on_the_prefix_are_named_and_compared() -> None:
    """Another host is welcome; another model under the same tier is not."""
    me, same = Host("me:1", {"fast": Service("a", identity="x")}), Host("other:2", {"fast": Service("a", identity="x")})
    other = Host("third:3", {"fast": Service("b", identity="y")})
    facts = RedisFacts(GOOD, KEEPS, (), (me, same))
    assert [each.grade for each in of_redis(Config(), facts, "me") if each.topic == "hosts"] == ["ok"]
    worse = replace(facts, hosts=(me, same, other))
    assert grades(list(of_redis(Config(), worse, "me")))["hosts"] == "warn"
    assert not [each for each in of_redis(Config(), replace(facts, hosts=(me,)), "me") if each.topic == "hosts"]


# the command


def test_the_exit_code_is_the_worst_finding(tmp_path: Path) -> None:
    """A missing model is bad: 78, and the JSON says which finding it was."""
    assert EXIT_BY_GRADE == {"ok": 0, "warn": 1, "bad": 78}
    done = run("doctor", "--json", "--set", f"daemon.state_dir={tmp_path}", MODELS_DIR=str(tmp_path))
    assert done.returncode == 78, done.stderr
    found = json.loads(done.stdout)
    assert [each["topic"] for each in found if each["grade"] == "bad"] == ["models"]
    assert {"daemon", "cores", "memory", "limits", "clock", "gpu", "disk", "redis"} <= {each["topic"] for each in found}


def test_cores_that_do_not_suffice_are_a_finding_and_no_end(tmp_path: Path) -> None:
    """Doctor goes on after what would stop the daemon."""
    done = run("doctor", "--set", f"daemon.state_dir={tmp_path}", "--set", "tiers.fast.cores=5000",
               MODELS_DIR=str(tmp_path))  # fmt: skip
    assert done.returncode == 78 and "never share a core" in done.stdout and "redis" in done.stdout


def test_sockets_that_everybody_may_reach_are_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket for all in a directory for all."""
    config = home(tmp_path)
    config.runtime_dir.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as plug:
        monkeypatch.chdir(config.runtime_dir)
        plug.bind("health.sock")
        config.state_dir.chmod(0o700)
        config.health_socket.chmod(0o777)
        monkeypatch.setattr(premises, "_entrance", lambda _: 1)
        assert "everybody may talk to" in next(iter(premises.of_permissions(config))).fact


def test_what_the_configuration_needs_is_the_sum_of_its_parts() -> None:
    """Weights once a file, a process a worker, the bound of Redis only with the embedded one."""
    config = Config(models={"echo": Model(engine="echo")}, tiers={"fast": Tier(model="echo")},
                    queue=Queue(max_bytes=GIB))  # fmt: skip
    crew = [WorkerSpec("fast-0", "fast", "echo", ()), WorkerSpec("fast-1", "fast", "echo", ())]
    found = estimate.parts(config, crew)
    assert [part.name for part in found] == ["fast-0", "fast-1", "supervisor, dispatcher", "vectors", "redis"]
    assert estimate.total_bytes(found) - estimate.usual_bytes(found) == GIB + config.cache.max_bytes
    elsewhere = estimate.parts(replace(config, redis=Redis(url="redis://x")), crew)
    assert "redis" not in [part.name for part in elsewhere]


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv here")
@pytest.mark.parametrize("command", [["doctor", "--quiet"], ["check"], ["status"], ["jobs"], ["bench"]])
def test_a_user_who_may_see_nothing_gets_words_and_no_traceback(command: list[str], tmp_path: Path) -> None:
    """State directory and models are closed: each command says so, and whose turn it is."""
    shut = tmp_path / "s"
    (shut / "models").mkdir(parents=True)
    shut.chmod(0)
    bare = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]
    if os.geteuid() != 0:
        bare = []
    words = [*bare, sys.executable, "-m", "metamusesd", *command, "--set", f"daemon.state_dir={shut}"]
    environ = {"PATH": os.environ["PATH"], "MODELS_DIR": str(shut / "models")}
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=50, env=environ, check=False)
    finally:
        shut.chmod(0o700)
    said = done.stdout + done.stderr
    assert "Traceback" not in said and done.returncode in (69, 78)
    assert "no permission" in said or "closed to this user" in said
