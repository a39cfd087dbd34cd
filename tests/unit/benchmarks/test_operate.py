"""The soak's day, its rule of what is level, and its picture."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from benchmarks.operate import day, level, soak_picture
from benchmarks.operate.watch import Sample, read, write
from benchmarks.report import Report


def samples(sizes: list[float], fds: list[int] | None = None, pids: list[int] | None = None) -> list[Sample]:
    """One process, a sample a second."""
    count = len(sizes)
    fds, pids = fds or [9] * count, pids or [1] * count
    return [
        Sample(
            at_s=float(at),
            pss_mb={"w": sizes[at]},
            own_mb={"w": sizes[at]},
            fds={"w": fds[at]},
            pids={"w": pids[at]},
            done=at,
        )
        for at in range(count)
    ]


def test_a_peak_that_stays_is_level():
    """A process that has grown with the first peak and keeps that is level; the peak itself does not count."""
    verdict = level.memory(samples([50.0] * 10 + [100.0] * 90), "w")
    assert verdict is not None and verdict.level


def test_steady_growth_is_not_level():
    """A quarter more within the day is growth, by the medians and by the line."""
    verdict = level.memory(samples([100.0 + at / 2 for at in range(100)]), "w")
    assert verdict is not None and not verdict.level
    assert verdict.a_day == pytest.approx(49.5, rel=0.01)


def test_growth_that_has_only_begun_is_seen_by_the_line():
    """The last quarter's median is still allowed; the line says where a day would lead."""
    sizes = [200.0] * 60 + [200.0 + 0.7 * at for at in range(40)]
    verdict = level.memory(samples(sizes), "w")
    assert verdict is not None
    assert verdict.late <= verdict.allowed
    assert not verdict.level


def test_descriptors_have_their_own_slack():
    """Two more are noise, twenty are a leak."""
    few = level.descriptors(samples([1.0] * 100, fds=[10] * 70 + [12] * 30), "w")
    many = level.descriptors(samples([1.0] * 100, fds=[10] * 70 + [30] * 30), "w")
    assert few is not None and few.level
    assert many is not None and not many.level


def test_a_process_that_was_replaced_late_is_not_judged():
    """Only the life that lasts to the end counts, and half a day is the least."""
    assert level.memory(samples([1.0] * 100, pids=[1] * 70 + [2] * 30), "w") is None
    young = level.memory(samples([500.0] * 30 + [90.0] * 70, pids=[1] * 30 + [2] * 70), "w")
    assert young is not None and (young.early, young.late) == (90.0, 90.0)


def test_redis_at_rest():
    """Answers that the cache keeps are no leak, keys of jobs that are over are."""
    before = Sample(0.0, keys=10, redis_mb=2.0)
    kept, leaked = Sample(0.0, keys=300, answers=285, redis_mb=3.0), Sample(0.0, keys=300, answers=100, redis_mb=3.0)
    assert all(verdict.level for verdict in level.rests(before, kept))
    assert not level.rests(before, leaked)[0].level


def test_the_same_seed_is_the_same_day():
    """Jobs, their times and their ends are drawn from the seed alone; they come in order, most of them at the peaks."""
    first, again = list(day.jobs(7, 3600, 2.0)), list(day.jobs(7, 3600, 2.0))
    assert first == again != list(day.jobs(8, 3600, 2.0))
    assert [job.at for job in first] == sorted(job.at for job in first)
    morning = sum(2 / 24 <= job.at < 4 / 24 for job in first)
    night = sum(18 / 24 <= job.at < 20 / 24 for job in first)
    assert morning > 5 * night > 0
    assert {job.kind for job in first} == set(day.WEIGHTS)


def test_every_kind_knows_how_it_may_end():
    """A good job may only be done; a cancelled one may have been quicker."""
    kinds = {job.kind: job for job in day.jobs(1, 3600, 2.0)}
    assert kinds["chat"].may_end == kinds["real"].may_end == {"done"}
    assert kinds["cancelled"].may_end == {"cancelled", "done"}
    assert kinds["cancelled"].cancel_s > 0


def test_samples_are_read_as_they_were_written(tmp_path):
    """One JSON object a line."""
    path, taken = tmp_path / "samples.jsonl", samples([1.5, 2.5])
    for sample in taken:
        write(path, sample)
    assert read(path) == taken


def test_the_picture_is_xml_with_every_strip(tmp_path):
    """A strip a series, all names beside their curves, the kills as marks."""
    path = tmp_path / "soak.svg"
    report = Report(benchmark="operate", command="test")
    soak_picture.draw(path, samples([float(at) for at in range(1, 40)]), [(0.5, "w")], 40.0, report)
    root = ElementTree.fromstring(path.read_text())
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"memory (PSS), MiB", "open descriptors", "Redis: keys", "w", "08 h"} <= texts
    assert sum(element.get("class") == "kill" for element in root.iter()) == len(soak_picture.series([], 1.0))
