"""Placement: never two workers on a core, physical cores first, refusals with the arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from metamusesd.config import Config, Model, Tier
from metamusesd.errors import ConfigError
from metamusesd.supervisor.cpus import arrange, parse_list, usable_cores
from metamusesd.supervisor.placement import place

SMALL, LARGE = 98_000_000, 4_000_000_000  # 82 and 2 tokens/s a core


def cores(count: int, threads: int = 1, quota: float | None = None):
    """`count` physical cores; with two threads, core n is CPUs n and n + count, as Linux numbers them."""
    siblings = {
        number: {number % count + count * thread for thread in range(threads)} for number in range(count * threads)
    }
    return arrange(range(count * threads), siblings, quota)


def config(**tiers: Tier) -> Config:
    models = {"small": Model(file="s.gguf"), "large": Model(file="l.gguf"), "echo": Model(engine="echo")}
    return Config(models=models, tiers=tiers)


def placed(where, **tiers: Tier) -> dict[str, tuple[int, ...]]:
    found = place(config(**tiers), where, {"small": SMALL, "large": LARGE})
    return {worker.name: worker.cores for worker in found.workers}


def test_auto_is_one_core_a_worker_for_a_small_model():
    """A small model gets as many one-core workers as there are cores."""
    assert placed(cores(4), fast=Tier("small")) == {"fast-0": (0,), "fast-1": (1,), "fast-2": (2,), "fast-3": (3,)}


def test_auto_leaves_second_hardware_threads_alone():
    """Two threads of one core are not two cores."""
    assert placed(cores(2, threads=2), fast=Tier("small")) == {"fast-0": (0,), "fast-1": (1,)}


def test_auto_gives_a_large_model_the_cores_that_its_floor_needs():
    """4 GB at 8 GB/s a core: five cores for ten tokens/s."""
    assert placed(cores(16), fast=Tier("large")) == {
        "fast-0": (0, 1, 2, 3, 4),
        "fast-1": (5, 6, 7, 8, 9),
        "fast-2": (10, 11, 12, 13, 14),
    }


def test_tiers_share_what_is_there_and_what_is_left_goes_round():
    """Every tier has its first worker before any has its second."""
    found = placed(cores(8), fast=Tier("small"), heavy=Tier("large"))
    assert found == {"fast-0": (0,), "heavy-0": (1, 2, 3, 4, 5), "fast-1": (6,), "fast-2": (7,)}


def test_a_measured_rate_goes_before_the_estimate():
    """Four gigabytes that were measured at 4 tokens/s a core get three cores, and the reason says that."""
    found = place(config(fast=Tier("large", workers=1)), cores(16), {"large": LARGE}, {"large": 4.0})
    assert found.workers[0].cores == (0, 1, 2)
    assert "large, measured at 4 tokens/s a core" in found.reasons[0]


def test_the_slowest_model_of_a_tier_decides():
    """A tier of two models has the cores that its slower one needs, whether it was measured or estimated."""
    both = config(fast=Tier("small", more_models=["large"], workers=2))
    sizes = {"small": SMALL, "large": LARGE}
    assert len(place(both, cores(16), sizes, {"large": 20.0}).workers[0].cores) == 1
    assert len(place(both, cores(16), sizes, {"small": 2.0}).workers[0].cores) == 5


def test_a_model_too_large_for_the_host_runs_below_its_floor_and_says_so():
    """Slow beats not at all, but not silently."""
    found = place(config(fast=Tier("small"), heavy=Tier("large")), cores(3), {"small": SMALL, "large": LARGE})
    assert [worker.cores for worker in found.workers] == [(0,), (1, 2)]
    assert "BELOW the floor" in found.reasons[1]
    assert "BELOW" not in found.reasons[0]


def test_numbers_and_lists_are_obeyed():
    """Configured cores come before automatic ones."""
    found = placed(
        cores(8), fast=Tier("small"), medium=Tier("small", workers=2, cores=2), heavy=Tier("small", cores=[0, 1])
    )
    assert found["heavy-0"] == (0,)
    assert found["heavy-1"] == (1,)
    assert (found["medium-0"], found["medium-1"]) == ((2, 3), (4, 5))
    assert (found["fast-0"], found["fast-1"]) == ((6,), (7,))


def test_a_list_is_cut_into_equal_groups():
    """Two workers on four named cores have two each."""
    assert placed(cores(8), fast=Tier("small", workers=2, cores=[7, 6, 5, 4])) == {"fast-0": (7, 6), "fast-1": (5, 4)}


def test_gpu_workers_have_a_gpu_and_a_core_each():
    """One worker a GPU, on one core."""
    found = place(config(fast=Tier("large", gpus=[0, "GPU-1"])), cores(4), {"large": LARGE})
    assert [(worker.gpus, worker.cores) for worker in found.workers] == [(("0",), (0,)), (("GPU-1",), (1,))]
    [both] = place(config(fast=Tier("large", gpus=["0+GPU-1"])), cores(4), {"large": LARGE}).workers
    assert both.gpus == ("0", "GPU-1")


def test_echo_workers_are_not_pinned():
    """The echo engine computes nothing and takes no core from the others."""
    found = placed(cores(2), fast=Tier("echo", workers=5), medium=Tier("small"))
    assert [found[f"fast-{index}"] for index in range(5)] == [()] * 5
    assert (found["medium-0"], found["medium-1"]) == ((0,), (1,))


def test_concurrency_is_spread_over_the_workers():
    """Ten slots on three workers: 4, 3, 3; never none."""
    found = place(config(fast=Tier("small", workers=3, concurrency=10)), cores(4), {"small": SMALL})
    assert [worker.slots for worker in found.workers] == [4, 3, 3]
    found = place(config(fast=Tier("small", workers=3, concurrency=1)), cores(4), {"small": SMALL})
    assert [worker.slots for worker in found.workers] == [1, 1, 1]


def test_a_quota_bounds_the_cores():
    """A cgroup that pays for two and a half CPUs has two workers, on whatever cores."""
    assert len(placed(cores(8, quota=2.5), fast=Tier("small"))) == 2
    assert len(placed(cores(8, quota=0.5), fast=Tier("small"))) == 1


@pytest.mark.parametrize(
    ("count", "tiers", "message"),
    [
        (2, {"fast": Tier("small", workers=3)}, "fast: 3 workers x 1 core = 3 cores, and 2 of 2 are free"),
        (4, {"fast": Tier("small", workers=2, cores=3)}, "fast: 2 workers x 3 cores = 6 cores, and 4 of 4"),
        (1, {"fast": Tier("small"), "heavy": Tier("large")}, "= 2 cores, and 1 of 1"),
        (2, {"fast": Tier("small", cores=[0, 5])}, "tiers.fast.cores: core 5 is not usable here; choose from 0, 1"),
        (2, {"fast": Tier("small", cores=[0, 0])}, "core 0 is given twice"),
        (4, {"fast": Tier("small", cores=[0, 1]), "heavy": Tier("small", cores=[1, 2])}, "core 1 is given twice"),
        (4, {"fast": Tier("small", workers=2, cores=[0, 1, 2])}, "3 cores do not divide among 2 workers"),
        (4, {"fast": Tier("small", cores=[])}, "0 cores do not divide"),
        (4, {"fast": Tier("small", cores=["x"])}, "core 'x' is not usable"),
        (4, {"fast": Tier("small", workers=2, gpus=[0])}, "2 workers on 1 GPUs"),
        (128, {"fast": Tier("echo", workers=64), "heavy": Tier("small", workers=1)}, "65 workers are more than 64"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_arithmetic(count, tiers, message):
    """Oversubscription is a mistake of the configuration, told in one line."""
    with pytest.raises(ConfigError) as caught:
        placed(cores(count), **tiers)
    assert message in str(caught.value)


TIER = st.builds(
    Tier,
    model=st.sampled_from(["small", "large", "echo"]),
    workers=st.one_of(st.just("auto"), st.integers(1, 6)),
    cores=st.one_of(st.just("auto"), st.integers(1, 5), st.lists(st.integers(0, 12), max_size=5)),
    gpus=st.lists(st.integers(0, 3), max_size=2),
    floor_tokens_s=st.floats(0.1, 100),
)
TIERS = st.dictionaries(st.sampled_from(["fast", "medium", "heavy", "code"]), TIER, min_size=1)


@example(tiers={"fast": Tier("small", cores=[0]), "code": Tier("small", cores=[0])}, count=1, threads=2, quota=2.0)
@given(tiers=TIERS, count=st.integers(1, 12), threads=st.sampled_from([1, 2]), quota=st.none() | st.floats(0.1, 30))
def test_no_two_workers_ever_share_a_core(tiers, count, threads, quota):
    """Whatever is asked for: it is refused, or nobody shares a core, nobody is off the host, every tier is served."""
    where = cores(count, threads, quota)
    try:
        found = place(config(**tiers), where, {"small": SMALL, "large": LARGE}).workers
    except ConfigError:
        return
    given_out = [core for worker in found for core in worker.cores]
    assert len(given_out) == len(set(given_out))
    assert set(given_out) <= where.numbers
    assert {worker.tier for worker in found} == set(tiers)
    assert quota is None or len(given_out) <= max(1, quota)
    assert len({worker.name for worker in found}) == len(found)


def test_cores_are_read_from_the_kernel(tmp_path):
    """Siblings and the quota of the group and its parents come from /sys and /proc."""
    import os

    allowed = sorted(os.sched_getaffinity(0))
    for number in allowed:
        directory = tmp_path / f"sys/devices/system/cpu/cpu{number}/topology"
        directory.mkdir(parents=True)
        (directory / "thread_siblings_list").write_text(f"{allowed[0]}-{allowed[-1]}\n")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("9:cpu,cpuacct:/box\n0::/a.slice/b.service\n")
    (tmp_path / "sys/fs/cgroup/a.slice/b.service").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/a.slice/b.service/cpu.max").write_text("max 100000\n")
    (tmp_path / "sys/fs/cgroup/a.slice/cpu.max").write_text("350000 100000\n")
    (tmp_path / "sys/fs/cgroup/cpu/box").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us").write_text("150000\n")
    (tmp_path / "sys/fs/cgroup/cpu/box/cpu.cfs_period_us").write_text("100000\n")
    found = usable_cores(tmp_path)
    assert found.numbers == set(allowed)
    assert [core.physical for core in found.usable] == [True] + [False] * (len(allowed) - 1)
    assert found.quota == 1.5


def two_nodes(each: int, threads: int = 1):
    """Two nodes of so many cores, CPUs numbered node by node; second threads after all first ones."""
    count = 2 * each
    siblings = {number: {number % count + count * turn for turn in range(threads)} for number in range(count * threads)}
    nodes = {number: number % count // each for number in range(count * threads)}
    return arrange(range(count * threads), siblings, None, nodes)


def test_a_group_never_straddles_two_nodes_when_it_need_not():
    """Groups of three on nodes of four: one a node, and single cores fill what is left of both."""
    found = place(config(fast=Tier("small"), heavy=Tier("small", cores=3, workers=2)), two_nodes(4), {"small": SMALL})
    where = {worker.name: (worker.cores, worker.nodes) for worker in found.workers}
    assert where["heavy-0"] == ((0, 1, 2), (0,))
    assert where["heavy-1"] == ((4, 5, 6), (1,))
    assert {where["fast-0"], where["fast-1"]} == {((3,), (0,)), ((7,), (1,))}
    assert found.warnings == ()


def test_small_workers_leave_room_for_large_ones():
    """A single core comes from the node that is broken into already, not from the whole one."""
    found = placed(two_nodes(4), fast=Tier("small", workers=1), medium=Tier("small", cores=3, workers=1),
                   heavy=Tier("small", cores=4, workers=1))  # fmt: skip
    assert found == {"fast-0": (3,), "medium-0": (0, 1, 2), "heavy-0": (4, 5, 6, 7)}


def test_a_group_that_must_straddle_says_so():
    """Six cores on nodes of four: from the node with most, and told; its memory is bound to neither."""
    found = place(config(heavy=Tier("small", cores=6, workers=1)), two_nodes(4), {"small": SMALL})
    assert found.workers[0].nodes == (0, 1)
    assert found.warnings[0].startswith("heavy-0 has cores of the memory nodes 0 and 1")
    assert found.lines[-1] == found.warnings[0]


def test_second_threads_of_a_near_node_come_after_physical_cores_of_a_far_one():
    """`auto` never takes a second hardware thread, whatever the nodes: the next worker goes to the other node."""
    found = placed(two_nodes(2, threads=2), fast=Tier("small"))
    assert sorted(found.values()) == [(0,), (1,), (2,), (3,)]


def test_one_node_is_not_named():
    """Where there is one node, there is nothing to be near to."""
    found = place(config(fast=Tier("small")), cores(2), {"small": SMALL})
    assert [worker.nodes for worker in found.workers] == [(), ()]


@pytest.mark.parametrize("tier", [Tier("small", workers=2, cores=[0, 2]), Tier("small", workers=4)])
def test_two_workers_on_one_physical_core_are_told(tier):
    """Listed cores, and numbers that spill over to second threads, are obeyed; and the price is named."""
    found = place(config(fast=tier), cores(2, threads=2), {"small": SMALL})
    assert "fast-1 and fast-0 share the physical core 0" in " ".join(found.warnings).replace("fast-2", "fast-1")
    assert "each gets about half" in found.warnings[0]


def test_one_worker_on_both_threads_of_a_core_is_nobodys_business():
    """Only workers that take from each other are told."""
    found = place(config(fast=Tier("small", workers=1, cores=[0, 2])), cores(2, threads=2), {"small": SMALL})
    assert found.warnings == ()


def test_quick_cores_come_first():
    """On a processor of two kinds of cores `auto` starts with the quick ones, wherever their numbers are."""
    where = arrange(range(6), {}, None, slow={0, 1, 2, 3})
    assert placed(where, fast=Tier("small", workers=3)) == {"fast-0": (4,), "fast-1": (5,), "fast-2": (0,)}


def fake_sys(root, online: str, nodes: dict[int, str], atoms: str = "", capacities: dict[int, int] | None = None):
    """A /sys with these nodes; hybrid by Intel's list or by capacities."""
    for node, numbers in nodes.items():
        directory = root / f"sys/devices/system/node/node{node}"
        directory.mkdir(parents=True)
        (directory / "cpulist").write_text(numbers + "\n")
    if atoms:
        (root / "sys/devices/cpu_atom").mkdir(parents=True)
        (root / "sys/devices/cpu_atom/cpus").write_text(atoms + "\n")
    for number in parse_list(online):
        directory = root / f"sys/devices/system/cpu/cpu{number}/topology"
        directory.mkdir(parents=True)
        (directory / "thread_siblings_list").write_text(f"{number}\n")
        if capacities:
            (directory.parent / "cpu_capacity").write_text(f"{capacities[number]}\n")
    return root


@pytest.mark.parametrize("hybrid", [{"atoms": "0-1"}, {"capacities": {0: 512, 1: 512, 2: 1024, 3: 1024}}])
def test_nodes_and_kinds_of_cores_are_read_from_the_kernel(tmp_path, monkeypatch, hybrid):
    """CPUs 4 and 5 are offline: they are in no affinity mask, whatever the nodes still list."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0, 1, 2, 3})
    root = fake_sys(tmp_path, "0-3", {0: "0,2,4-5", 1: "1,3"}, **hybrid)
    found = usable_cores(root)
    assert [core.number for core in found.usable] == [2, 3, 0, 1]
    assert found.nodes == {0: 0, 1: 1, 2: 0, 3: 1}


def test_a_kernel_without_nodes_has_one(tmp_path, monkeypatch):
    """No directory of nodes, no capacities: plain cores."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0, 1})
    found = usable_cores(fake_sys(tmp_path, "0-1", {}))
    assert found.nodes == {}
    assert [core.number for core in found.usable] == [0, 1]


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        (
            "0::/a/b/c\n",
            {"a/b/c/cpu.max": "max 100000", "a/b/cpu.max": "200000 100000", "a/cpu.max": "100000 50000"},
            2.0,
        ),
        (
            "0::/../outside\n",
            {"cpu.max": "150000 100000"},
            1.5,
        ),  # in a container: its own group is the root of the mount
        ("3:cpu:/x/y\n", {"cpu/x/cpu.cfs_quota_us": "50000", "cpu/x/cpu.cfs_period_us": "100000"}, 0.5),
        ("3:cpu:/x\n0::/\n", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_the_least_quota_of_all_nested_groups_counts(tmp_path, groups, files, quota):
    """cgroup v2 and v1, parents included, a container's view, no quota."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        (tmp_path / "sys/fs/cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys/fs/cgroup" / name).write_text(text + "\n")
    assert usable_cores(tmp_path).quota == quota


def test_kernel_lists():
    """The kernel writes 0-3,8."""
    assert parse_list("0-3,8\n") == {0, 1, 2, 3, 8}
    assert parse_list("") == set()
