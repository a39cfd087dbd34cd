"""What control groups leave a process of memory: version two and one, the group and its parents."""

from __future__ import annotations

from pathlib import Path

import pytest

from metamusesd.supervisor import cgroup, proc
from metamusesd.supervisor.cgroup import memory_left, memory_limit
from tests.unit.supervisor.test_coroner import kernel_of

V1 = "sys__fs__cgroup__memory__"


def box(root: Path, groups: str, **files: str) -> Path:
    """A made-up machine; a double underscore in a name is a slash."""
    return kernel_of(
        root, proc__self__cgroup=groups, **{name.replace("DOT", "."): text for name, text in files.items()}
    )


def test_the_least_limit_counts(tmp_path):
    """The parent's here; version one's huge number for `no limit` is none."""
    v1 = f"{V1}a__memoryDOTlimit_in_bytes"
    inner = f"{V1}a__b__memoryDOTlimit_in_bytes"
    root = box(tmp_path, "8:pids:/x\n4:memory:/a/b\n", **{v1: "8192\n", inner: "9223372036854771712\n"})
    assert memory_limit(root) == 8192
    v2 = {"sys__fs__cgroup__c__memoryDOTmax": "4096\n", "sys__fs__cgroup__c__d__memoryDOTmax": "max\n"}
    assert memory_limit(box(tmp_path, "4:memory:/a/b\n0::/c/d\n", **v2)) == 4096


def test_what_is_left_is_the_tightest_groups(tmp_path):
    """A group with a higher limit may have less left, for others use it, too; its file pages can be dropped."""
    files = {
        "sys__fs__cgroup__s__memoryDOTmax": "10000\n",
        "sys__fs__cgroup__s__memoryDOTcurrent": "9000\n",
        "sys__fs__cgroup__s__memoryDOTstat": "anon 5000\nactive_file 300\ninactive_file 100\nfile_mapped 77\n",
        "sys__fs__cgroup__s__d__memoryDOTmax": "6000\n",
        "sys__fs__cgroup__s__d__memoryDOTcurrent": "2000\n",
    }
    assert memory_left(box(tmp_path, "0::/s/d\n", **files)) == 1400


def test_version_one_counts_with_what_lies_below(tmp_path):
    """Its memory.stat has the group alone, and the totals; one without a limit says nothing."""
    files = {
        f"{V1}a__memoryDOTlimit_in_bytes": "5000\n",
        f"{V1}a__memoryDOTusage_in_bytes": "7000\n",
        f"{V1}a__memoryDOTstat": "active_file 1\ntotal_active_file 1000\ntotal_inactive_file 500\n",
        f"{V1}memoryDOTlimit_in_bytes": f"{cgroup.NO_LIMIT}\n",
        f"{V1}memoryDOTusage_in_bytes": "1\n",
    }
    assert memory_left(box(tmp_path, "4:memory,hugetlb:/a\n", **files)) == 0


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("", {}),
        ("broken\n0::/a\n", {"sys__fs__cgroup__a__memoryDOTmax": "max\n"}),
        ("0::/a\n", {"sys__fs__cgroup__a__memoryDOTmax": "5\n"}),
        ("0::/a\n", {"sys__fs__cgroup__a__memoryDOTmax": "5\n", "sys__fs__cgroup__a__memoryDOTcurrent": "?\n"}),
    ],
)
def test_who_tells_nothing_limits_nothing(tmp_path, groups, files):
    """No group, no limit, no use."""
    assert memory_left(box(tmp_path, groups, **files)) is None
    assert memory_left(tmp_path / "nowhere") is None


def test_a_load_is_admitted_by_the_host_and_by_the_cgroup(tmp_path):
    """The lesser of both. A cgroup that is full is not the same as one that says nothing, which is 0."""
    assert proc.available_bytes(root=tmp_path) == 0
    kernel_of(tmp_path, proc__meminfo="MemTotal: 9 kB\nMemAvailable: 8 kB\n")
    assert proc.available_bytes(root=tmp_path) == 8192
    limit, used = "sys__fs__cgroup__a__memoryDOTmax", "sys__fs__cgroup__a__memoryDOTcurrent"
    box(tmp_path, "0::/a\n", **{limit: "5000\n", used: "1000\n"})
    assert proc.available_bytes(root=tmp_path) == 4000
    assert proc.available_bytes(3000, tmp_path) == 7000  # a file's pages are dropped, should the group be full
    box(tmp_path, "0::/a\n", **{limit: "99999\n", used: "1000\n"})
    assert proc.available_bytes(root=tmp_path) == 8192
    box(tmp_path, "0::/a\n", **{limit: "5000\n", used: "5000\n"})
    assert proc.available_bytes(root=tmp_path) == 1
    (tmp_path / "proc/meminfo").unlink()
    box(tmp_path, "0::/a\n", **{limit: "5000\n", used: "1000\n"})
    assert proc.available_bytes(root=tmp_path) == 4000
