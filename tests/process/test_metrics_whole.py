"""/metrics of a whole daemon after real jobs: it adds up, on every path that a job can take."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from metamusesd.errors import JobFailed
from metamusesd.job import InferenceRequest, Params
from metamusesd.metrics import PREFIX
from tests.process.daemon_rig import Daemon

pytestmark = pytest.mark.timeout(90)
JOBS = 12


class Caching(Daemon):
    """With the exact cache."""

    def text(self) -> str:
        return super().text().replace("enabled = false", "semantic = false")


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    daemon = Caching()
    yield daemon
    daemon.close()


async def test_what_was_done_is_what_is_counted(daemon: Daemon) -> None:
    """So many answers, so many of them from the cache, so many first tokens by class, a job that nobody can serve; the
    page passes Prometheus' parser, and its linter where there is one."""
    async with daemon.client() as client:
        for number in range(JOBS):
            request = InferenceRequest(
                user_query=f"name {number} rivers", params=Params(max_tokens=8), muse_id=number,
                priority="high" if number % 2 else "normal",
            )  # fmt: skip
            await client.execute(request)
        with pytest.raises(JobFailed):
            await client.execute(InferenceRequest(user_query="hi", tier="heavy"))
    daemon.until(lambda status: status["dispatcher"]["settled"] == JOBS + 1 and status["dispatcher"]["running"] == 0)
    text = daemon.get("/metrics")

    def total(name: str, **labels: str) -> float:
        families = text_string_to_metric_families(text)
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == PREFIX + name and labels.items() <= sample.labels.items()
        )

    assert total("requests_total", state="done") == JOBS
    assert total("requests_total", state="failed") == total("refusals_total", code="unknown_tier") == 1
    assert total("time_to_first_token_seconds_count", tier="fast", **{"class": "high"}) == JOBS / 2
    assert total("e2e_request_latency_seconds_count") == total("requests_served_total") == JOBS
    assert total("generation_tokens_total") == total("worker_generation_tokens_total") > 0
    assert total("requests_routed_total") == total("cache_lookups_total", outcome="miss") == JOBS
    assert total("claims_total", queue="ingress") == JOBS + 1
    assert total("leases_held") == total("num_requests_running") == total("num_requests_inflight") == 0
    assert total("workers_ready", tier="fast") == total("redis_up") * 2 == 2
    assert total("redis_trouble") == total("dispatcher_stale") == total("child_exits_total") == 0
    processes = ("supervisor", "redis", "dispatcher", "fast-0", "fast-1")
    assert all(total("process_resident_memory_bytes", process=process) > 1 << 20 for process in processes)
    if promtool := shutil.which("promtool"):
        done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")
