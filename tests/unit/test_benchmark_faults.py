"""The fault oracle: it sees every kind of broken promise, and finds nothing wrong with a sound history."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.faults import broken, picture
from benchmarks.faults.history import Fault, History, Life, Sight
from benchmarks.faults.oracle import Facts, indeterminate, judge, order
from benchmarks.faults.plan import ENDS, SPOILS, WEIGHTS, Job, calm, job
from benchmarks.report import Report, absolute
from metamusesd.engines.base import EngineSpec, Task
from metamusesd.engines.echo import EchoEngine
from metamusesd.job import InferenceRequest, Priority
from metamusesd.wire import Token

PLAIN = Job(number=1, id="a", kind="plain", ends=frozenset({"done"}), query="one two", text="one two")


def sound() -> tuple[Life, Facts]:
    """A job that was restarted once, with everything in order."""
    life = Life(PLAIN, "a", accepted_ms=1.0, notes=[(1.0, "submitted")])
    life.sights = [Sight("wait", "done", "one two"), Sight("stream", "done", "one two")]
    events = [
        (1, {"kind": "started", "attempt": "1"}),
        (2, {"kind": "token", "attempt": "1", "offset": "0", "text": "one"}),
        (3, {"kind": "restarted", "attempt": "2", "data": "worker_died"}),
        (4, {"kind": "started", "attempt": "2"}),
        (5, {"kind": "token", "attempt": "2", "offset": "0", "text": "one"}),
        (6, {"kind": "token", "attempt": "2", "offset": "3", "text": " two"}),
        (7, {"kind": "done", "attempt": "2"}),
    ]
    return life, Facts({"state": "done", "ended": "7"}, events, {"state": "done", "content": "one two"})


def rules(life: Life, facts: Facts) -> set[str]:
    return {violation.rule for violation in judge(life, facts, History(0))}


def test_a_sound_history_is_accepted() -> None:
    """A restarted job with one end, whole text and agreeing readers breaks nothing."""
    assert rules(*sound()) == set()


def test_a_vanished_job_is_lost() -> None:
    """Accepted, and not there: lost. Never acknowledged, and not there: nothing."""
    life, _ = sound()
    assert rules(life, Facts()) == {"lost"}
    life.accepted_ms = 0.0
    assert rules(life, Facts()) == set()


def test_a_job_that_was_gone_for_a_while_is_lost_as_well() -> None:
    """Healing by the producer does not hide what Redis lost."""
    life, facts = sound()
    life.lost = 1
    assert rules(life, facts) == {"lost"}


def test_two_ends_are_seen() -> None:
    """Two terminal events, none, or one of another kind."""
    life, facts = sound()
    facts.events.append((8, {"kind": "failed", "attempt": "2"}))
    assert rules(life, facts) == {"one end", "stream"}
    life, facts = sound()
    del facts.events[-1]
    assert rules(life, facts) == {"one end"}


def test_a_job_that_still_runs_has_no_end() -> None:
    """At the end of a run every job has ended."""
    life, facts = sound()
    facts.hash["state"] = "running"
    assert "one end" in rules(life, facts)


def test_a_result_of_another_state_is_seen() -> None:
    """Hash and result must agree, and the result must be there."""
    life, facts = sound()
    facts.result = {"state": "failed", "content": "one two"}
    assert rules(life, facts) == {"one end"}
    facts.result = None
    assert "one end" in rules(life, facts)


@pytest.mark.parametrize(
    ("place", "fields"),
    [
        (4, {"kind": "token", "attempt": "1", "offset": "3", "text": " late"}),  # an old attempt after `restarted`
        (6, {"kind": "token", "attempt": "2", "offset": "0", "text": "one"}),  # a double
        (5, {"kind": "token", "attempt": "2", "offset": "3", "text": " gap"}),  # before its turn
    ],
)
def test_interleaved_attempts_are_seen(place: int, fields: dict[str, str]) -> None:
    """A token of an older attempt, a double and a gap break the stream."""
    life, facts = sound()
    facts.events.insert(place, (place, fields))
    assert "stream" in rules(life, facts)


def test_another_text_is_seen() -> None:
    """The result, and the stream beside it, must say what the engine was asked to say."""
    life, facts = sound()
    facts.events[5] = (6, {"kind": "token", "attempt": "2", "offset": "3", "text": " too"})
    assert rules(life, facts) == {"content"}


def test_readers_must_agree() -> None:
    """Somebody saw another end, or another text."""
    life, facts = sound()
    life.sights.append(Sight("wait", "failed", ""))
    assert rules(life, facts) == {"readers"}
    life, facts = sound()
    life.sights.append(Sight("wait", "done", "one"))
    assert rules(life, facts) == {"readers"}


def test_an_innocent_is_never_dead_and_poison_never_done() -> None:
    """How a job may end is the plan's word."""
    life, facts = sound()
    life.job = replace(PLAIN, kind="poison", ends=frozenset({"dead"}))
    assert rules(life, facts) == {"ending"}


def test_a_cancel_keeps_its_word() -> None:
    """Told `cancelled`, the job is not done."""
    life, facts = sound()
    life.cancels = ["cancelled"]
    assert rules(life, facts) == {"ending"}


def test_a_late_end_is_seen_unless_a_fault_was_near() -> None:
    """Seconds after its deadline with nothing to blame."""
    life, facts = sound()
    facts.hash |= {"deadline": "1000", "ended": "9000"}
    assert rules(life, facts) == {"late"}
    near = History(0, faults=[Fault(5000.0, "stop", "dispatcher", 6000.0)])
    assert judge(life, facts, near) == []


def test_a_durability_window_is_told_apart() -> None:
    """Only a Redis that does not write always, and only jobs that lived when it was killed."""
    life, facts = sound()
    killed = History(0, faults=[Fault(5.0, "kill", "redis", 5.0)])
    assert indeterminate(life, facts, killed, "everysec")
    assert indeterminate(life, facts, History(0, faults=[Fault(5.0, "power cut", "redis", 5.0)]), "everysec")
    assert not indeterminate(life, facts, killed, "always")
    assert not indeterminate(life, facts, History(0), "everysec")


def test_an_overtaking_start_is_seen() -> None:
    """Of two jobs of one class and tier the older starts first."""

    def one(id: str, score: str, started: int) -> tuple[Life, Facts]:
        hash = {"score": score, "tiers": "fast", "prio": "1", "attempt": "1", "submitted": "1", "state": "done"}
        return Life(replace(PLAIN, id=id), id), Facts(hash, [(started, {"kind": "started", "attempt": "1"})])

    assert order([one("a", "1", 10), one("b", "2", 10), one("c", "3", 11)], History(0)) == ([], 3)
    found, _ = order([one("a", "1", 10), one("b", "2", 12), one("c", "3", 11)], History(0))
    assert [violation.id for violation in found] == ["c"]


def test_the_plan_is_the_same_for_the_same_seed() -> None:
    """Job n of a seed is always the same job, and all kinds come."""
    jobs = [job(7, number) for number in range(2000)]
    assert jobs == [job(7, number) for number in range(2000)]
    assert jobs != [job(8, number) for number in range(2000)]
    assert {one.kind for one in jobs} == set(WEIGHTS)
    assert {one.spoil for one in jobs} == {"", *SPOILS}
    assert all(one.ends <= ENDS | {"refused"} for one in jobs)
    assert calm(7, 1) == calm(7, 1)


def test_the_expected_text_is_what_the_engine_says() -> None:
    """The plan's own words for what echo answers."""
    for number in range(300):
        one = job(3, number)
        if one.kind not in ("plain", "cancel", "race"):
            continue
        query = re.sub(r"!(delay|prefill|prepare)=\w+", "", one.query)
        engine = EchoEngine(EngineSpec(engine="echo", model_name="echo", slots=1, context=300_000))
        engine.admit(engine.prepare(Task(1, InferenceRequest(user_query=query), Priority.NORMAL)))
        said = ""
        while engine.busy():
            said += "".join(event.text for event in engine.step() if isinstance(event, Token))
        assert said == one.text


def test_a_broken_promise_is_not_a_missed_bar() -> None:
    """Exit 1 is for violations; a figure that misses its bar is another matter."""
    report = Report(benchmark="faults", command="")
    report.rows.append(absolute("slow", "", "ms", [5.0], bar="<= 1"))
    assert not broken(report)
    report.rows.append(absolute("violations: lost", "", "violations", [1.0], bar="<= 0"))
    assert broken(report)


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    """Every curve with its name, in one well-formed file."""
    import xml.etree.ElementTree as tree

    path = tmp_path / "curve.svg"
    picture.draw(path, "A & B", "machine", "jobs", "µs", {"one": [(10, 40.0), (1000, 42.0)], "two": [(10, 90.0)]})
    texts = [element.text for element in tree.parse(path).iter() if element.tag.endswith("text")]
    assert {"A & B", "one", "two", "10", "1 000"} <= set(texts)
