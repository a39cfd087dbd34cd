"""Stage 4 · vectors process · from a score and a second look to a yes or no."""

from __future__ import annotations

from metamusesd.cache.verifier import Judgement, Verdict


def admits(
    judgement: Judgement,
    score: float,
    *,
    similarity_threshold: float = 0.95,
    candidate_threshold: float = 0.85,
    bar: float = 0.0,
) -> bool:
    """Whether a stored answer may be given: `score` is the cosine, `bar` the entry's own lowest score.

    From `similarity_threshold` on the score suffices, unless the words contradict it; from `candidate_threshold` on the
    words must carry it, and thin evidence asks for a higher score (`Judgement.floor`); below that nothing does.
    """
    if score < max(candidate_threshold, bar) or judgement.verdict is Verdict.DIFFERENT:
        return False
    return score >= similarity_threshold or (judgement.verdict is Verdict.SAME and score >= judgement.floor)
