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


def test_kernel_lists():
    """The kernel writes 0-3,8."""
    assert parse_list("0-3,8\n") == {0, 1, 2, 3, 8}
    assert parse_list("") == set()
