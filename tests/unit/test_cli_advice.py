"""What `status` says is wrong, and what it tells to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from metamusesd.board import RedisTrouble
from metamusesd.commands import advice, redis_facts, top
from metamusesd.commands.advice import Complaint, advise, health_of
from metamusesd.commands.redis_facts import RedisFacts
from metamusesd.commands.status import EXIT_BY_HEALTH, complaints_of, frame
from metamusesd.config import Config, Daemon

CONFIG = Config(daemon=Daemon(state_dir="/srv/mm"))


def answer(**more: Any) -> dict[str, Any]:
    """A healthy daemon's /status."""
    worker = {"name": "fast-0", "tier": "fast", "status": "ready", "restarts": 0, "since_s": 9.0}
    healthy = {"state": "ready", "reasons": [], "degraded": [], "workers": [worker],
               "dispatcher": {"redis_ok": True, "redis_trouble": "none"}, "redis": {"status": "ready"}}  # fmt: skip
    return healthy | more


def worker(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "tier": name.partition("-")[0], "status": "ready", "restarts": 0, "since_s": 9.0} | more


def test_a_healthy_daemon_has_no_complaint() -> None:
    """Nothing is wrong: `ready`, exit 0."""
    assert advise(answer(), CONFIG) == [] and EXIT_BY_HEALTH[health_of([])] == 0


def test_what_takes_no_work_comes_first_and_is_75() -> None:
    """One bad complaint makes it not ready, whatever else is degraded."""
    found = advise(answer(reasons=["no worker is ready"], degraded=["semantic cache off: vectors is backoff"]), CONFIG)
    assert [complaint.bad for complaint in found] == [True, False]
    assert EXIT_BY_HEALTH[health_of(found)] == 75 and EXIT_BY_HEALTH[health_of(found[1:])] == 1


@pytest.mark.parametrize("trouble", [trouble.name.lower() for trouble in RedisTrouble if trouble])
def test_every_trouble_of_redis_has_a_remedy_of_its_own(trouble: str) -> None:
    """Memory, disk, policy, a replica …: each is mended in another way."""
    dispatcher = {"redis_ok": False, "redis_trouble": trouble}
    (found,) = advise(answer(reasons=["redis is in trouble"], dispatcher=dispatcher), CONFIG)
    assert found.remedy == advice.TROUBLES[trouble]
    assert list(advice.TROUBLES.values()).count(found.remedy) == 1


@pytest.mark.parametrize(
    ("reasons", "more", "word"),
    [
        (["the daemon is starting"], {"state": "starting"}, "models load"),
        (["the daemon is draining"], {"state": "draining"}, "daemon.drain_s"),
        (["the dispatcher's heartbeat is 9 s old"], {}, "/srv/mm/evidence"),
        (["the dispatcher is backoff"], {}, "child died"),
        (["redis is backoff: no space"], {"redis": {"status": "backoff"}}, "/srv/mm/redis/redis.log"),
        (["the dispatcher has no connection to redis"], {}, "start that Redis"),
    ],
)
def test_every_reason_of_readyz_has_a_remedy(reasons: list[str], more: dict[str, Any], word: str) -> None:
    """The sentence stands as the daemon says it; beside it, what to do."""
    (found,) = advise(answer(reasons=reasons, **more), CONFIG)
    assert found.text == reasons[0] and word in found.remedy


def test_a_worker_in_backoff_says_why_and_where_its_stacks_are() -> None:
    """How it died, how often, its evidence, and the quarantine for a job that may be to blame."""
    died = worker("fast-1", status="backoff", restarts=3, last_exit="killed by SIGSEGV")
    (found,) = advise(answer(workers=[worker("fast-0"), died]), CONFIG)
    assert "fast-1 is in back-off: it died (killed by SIGSEGV), 3 restarts" in found.text
    assert "/srv/mm/evidence/fast-1-*.stacks" in found.remedy and "dead list" in found.remedy


def test_a_failed_worker_tells_what_its_model_said() -> None:
    """The message of its last error stands there, and `check` is the first thing to run."""
    failed = worker("fast-1", status="failed", last_exit="exit code 78", last_error={"message": "no such file"})
    (found,) = advise(answer(workers=[worker("fast-0"), failed]), CONFIG)
    assert "exit code 78: no such file" in found.text and "metamusesd check" in found.remedy


def test_a_tier_that_nobody_serves_is_named_while_others_serve() -> None:
    """With how far its models are loaded; when no tier at all is served, /readyz says that already."""
    heavy = worker("heavy-0", status="starting", loaded=0.4)
    (found,) = advise(answer(workers=[worker("fast-0"), heavy]), CONFIG)
    assert found.text == "tier heavy has no worker" and "40%" in found.remedy
    assert advise(answer(workers=[heavy]), CONFIG) == []
    asleep = worker("heavy-0", status="asleep", restarts=1)
    assert advise(answer(workers=[worker("fast-0"), asleep]), CONFIG) == []  # it comes back for the first job
    assert "1/2 workers (1 asleep)" in str(frame(answer(workers=[worker("fast-0"), asleep]))[0])


def test_a_worker_that_was_replaced_lately_is_worth_a_word() -> None:
    """For five minutes; after that it has proven itself."""
    fresh = worker("fast-0", restarts=1, since_s=12.0, last_exit="killed by SIGKILL")
    (found,) = advise(answer(workers=[fresh]), CONFIG)
    assert "replaced 12 s ago (killed by SIGKILL)" in found.text
    assert advise(answer(workers=[fresh | {"since_s": 999.0}]), CONFIG) == []


def test_a_worker_that_starts_again_is_told_and_one_that_starts_first_is_not() -> None:
    """Only a death is worth a word."""
    (found,) = advise(answer(workers=[worker("fast-0"), worker("fast-1", status="starting", restarts=1)]), CONFIG)
    assert found.text.startswith("fast-1 starts again")
    assert advise(answer(workers=[worker("fast-0"), worker("fast-1", status="starting")]), CONFIG) == []


def test_jobs_older_than_their_class_allows_are_a_complaint() -> None:
    """Against the most patient class that waits there; stale figures prove nothing; who has no limit has none."""

    def queues(oldest_s: float, **waiting: int) -> dict[str, Any]:
        return {"by_queue": {"fast": waiting | {"oldest_ms": oldest_s * 1000}}}

    (found,) = advise(answer(queues=queues(130, normal=3, high=1)), CONFIG)
    assert "waited 130 s; class normal should wait 120 s" in found.text
    assert "metamusesd jobs --tier fast" in found.remedy and "tiers.fast.workers" in found.remedy
    assert advise(answer(queues=queues(110, normal=3, high=1)), CONFIG) == []
    assert advise(answer(queues=queues(999, critical=1)), CONFIG) == []
    assert advise(answer(queues=queues(130, normal=3) | {"stale": True}), CONFIG) == []


def test_quarantine_and_drains_are_told() -> None:
    """Quarantined jobs make it degraded; a drained worker is a warning, all of them drained is not ready."""
    (found,) = advise(answer(), CONFIG, quarantined=2)
    assert found.text.startswith("2 jobs are quarantined") and "dead retry" in found.remedy and not found.bad
    crew = [worker("fast-0", drained=True), worker("fast-1")]
    (found,) = advise(answer(workers=crew), CONFIG)
    assert not found.bad and "--worker fast-0" in found.remedy
    reason = "every worker is drained: `metamusesd undrain` gives them jobs again"
    (found,) = advise(answer(workers=crew[:1], reasons=[reason]), CONFIG)
    assert found.bad and "maintenance" in found.remedy


def test_a_full_redis_is_told_though_the_idle_dispatcher_has_not_met_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Status asks Redis itself, and only while the daemon has nothing worse to say."""
    full = RedisFacts({"used_memory": "100", "maxmemory": "100"}, {"maxmemory-policy": "noeviction"}, dead=1)
    monkeypatch.setattr(redis_facts, "ask_redis", lambda config, timeout_s: full)
    texts = [complaint.text for complaint in complaints_of(answer(), CONFIG)]
    assert texts[0].startswith("redis: ") and texts[1].startswith("1 job is quarantined")
    (only,) = complaints_of(answer(reasons=["the daemon is starting"], state="starting"), CONFIG)
    assert only.text == "the daemon is starting"
    monkeypatch.setattr(redis_facts, "ask_redis", lambda config, timeout_s: RedisFacts(trouble="no answer"))
    assert complaints_of(answer(), CONFIG) == []


def test_complaints_are_on_the_screen_with_their_remedies() -> None:
    """Brackets in what a child said stay brackets; the headline has the worst grade."""
    shown = frame(answer(), complaints=[Complaint("a [b] c", "do [d]", bad=True)])
    assert "not ready" in str(shown[0]) and any("a \\[b] c" in str(part) for part in shown)
    assert "  → do \\[d]" in shown


def test_top_shows_complaints_where_a_short_screen_does_not_cut_them_off() -> None:
    """Before the tables; status has them at the end, above the prompt. Only the worst few are in top."""
    complaint = Complaint("it burns", "put it out")
    above, below = (
        frame(answer(), complaints=[complaint], top=first).index("  → put it out") for first in (True, False)
    )
    assert above == 3 and below == len(frame(answer(), complaints=[complaint])) - 1
    crowd = [worker(f"fast-{n}", status="backoff", restarts=1) for n in range(9)]
    drawn = top._frame(answer(workers=crowd), CONFIG)
    assert sum(str(part).startswith("  → ") for part in drawn) == top.MOST_COMPLAINTS
    assert drawn[-1] == "5 more complaints: `metamusesd status`"


def test_an_older_daemon_that_leaves_things_out_is_no_error() -> None:
    """Whatever is missing from /status is not complained about."""
    assert advise({}, CONFIG) == []
    assert advise({"workers": [{}], "queues": {"by_queue": {"fast": {}}}}, replace(CONFIG)) == []
