"""Stage 8 · dispatcher · embed jobs: from ingress to the vectors process and to their end. They need no tier.

not wanted here ─► failed(embedder_failed)          the process is away, or has much to do ─► again, in a moment
a text is longer than the window ─► failed(context_overflow), unless the request says truncate
"""

from __future__ import annotations

import time

import msgspec

from metamusesd.dispatcher.endings import refusal
from metamusesd.dispatcher.run import Back, Lost, Run
from metamusesd.dispatcher.vectors_link import VectorsLink
from metamusesd.errors import ContextOverflow, EmbedderFailed
from metamusesd.job import InferenceRequest, Result, Timings, encode_result
from metamusesd.queues.base import Requeue, Settlement
from metamusesd.wire import Embedded

MOST_TEXTS = 256  # that the vectors process has at a time, or one job: about two seconds of work
BUSY_MS, AWAY_MS = 100, 1000  # until the next try
PATIENCE_S = 60.0  # an embedder that stays away for so long is none
REMEDY = "see `metamusesd status` for what it lacks"


class Embedding:
    """Of one dispatcher. `wanted`: the configuration asks for the vectors process; `model`: its embedder's name."""

    def __init__(self, vectors: VectorsLink, *, wanted: bool, model: str) -> None:
        self._vectors, self._wanted, self._model = vectors, wanted, model
        self._texts = 0

    def __repr__(self) -> str:
        return f"<Embedding texts={self._texts}>"

    async def outcome(self, run: Run, request: InferenceRequest) -> Settlement | Requeue | None:
        """How it ends, or goes on; None: somebody else has ended it."""
        claim = run.claim
        if not self._wanted:
            return refusal(claim, EmbedderFailed("this daemon has no embedder: cache.enabled or cache.semantic is off"))
        count = len(request.input)
        if self._texts and self._texts + count > MOST_TEXTS:
            return self._later(run, "no_capacity", BUSY_MS)
        handle = self._vectors.embed(request.input, claim.priority, run.finish)
        if not handle:
            return self._away(run)
        self._texts += count
        try:
            end = await run.end
        finally:
            self._texts -= count
            self._vectors.leave(handle)
        if isinstance(end, Embedded):
            return self._end(run, request, end)
        if isinstance(end, Lost):
            return self._away(run)
        return self._later(run, end.reason, end.delay_ms) if isinstance(end, Back) else None

    def _end(self, run: Run, request: InferenceRequest, end: Embedded) -> Settlement:
        if end.error is not None:
            return refusal(run.claim, EmbedderFailed(str(end.error.get("message"))))
        if end.cut and request.truncate == "never":
            error = ContextOverflow(
                f"longer than the embedder's window of {end.window} tokens", field=f"input[{end.cut[0]}]",
                remedy='shorten or split it, or send truncate: "oldest" to embed its beginning alone',
            )  # fmt: skip
            return refusal(run.claim, error)
        ran_ms = round((time.monotonic_ns() - run.claimed_ns) / 1e6, 3)
        result = Result(
            request_id=run.claim.id, model_name=self._model, model_digest=end.model, finish_reason="stop",
            attempt=run.claim.attempt, worker="vectors", latency_ms=run.queued_ms + ran_ms,
            timings=Timings(queue_ms=float(run.queued_ms), total_ms=run.queued_ms + ran_ms),
            embeddings=msgspec.Raw(end.vectors), cut=end.cut,  # type: ignore[arg-type] # it is JSON already
        )  # fmt: skip
        return Settlement(run.claim.id, run.claim.token, "done", encode_result(result))

    def _away(self, run: Run) -> Settlement | Requeue:
        if self._vectors.away_s > PATIENCE_S:
            return refusal(run.claim, EmbedderFailed(f"the embedder is away; {REMEDY}"))
        return self._later(run, "embedder_away", AWAY_MS)

    def _later(self, run: Run, reason: str, delay_ms: int) -> Requeue:
        return Requeue(run.claim.id, run.claim.token, reason, delay_ms=delay_ms, reroute=True)
