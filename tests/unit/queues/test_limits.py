"""The queue's limits as the configuration says them."""

from __future__ import annotations

from metamusesd.config import CLASSES, Config, JobClass, Queue
from metamusesd.job import Priority
from metamusesd.queues.limits import limits_of


def test_bounds_and_classes() -> None:
    """Every bound of [queue] and of each class arrives; classes stand by priority, those not named have defaults."""
    queue = Queue(max_jobs=1, max_bytes=2048, max_tenant_jobs=3, max_crashes=4, result_ttl_s=5)
    low = JobClass(max_queue_size=6, max_wait_s=7.5, timeout_s=8.0, timeout_action="delay")
    limits = limits_of(Config(queue=queue, classes={"low": low}))
    bounds = (limits.max_jobs, limits.max_bytes, limits.max_tenant_jobs, limits.max_crashes, limits.result_ttl_s)
    assert bounds == (1, 2048, 3, 4, 5)
    found = limits.classes[Priority.LOW]
    assert (found.max_queue_size, found.max_wait_ms) == (6, 7500)
    assert (found.timeout_ms, found.timeout_action) == (8000, "delay")
    assert limits.classes[Priority.HIGH].max_wait_ms == CLASSES["high"].max_wait_s * 1000
