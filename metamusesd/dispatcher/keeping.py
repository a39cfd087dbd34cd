"""Stage 10 · dispatcher · the caches learn an answer: the exact one by the settle itself, the semantic one after it."""

from __future__ import annotations

import time
from dataclasses import replace

import msgspec

from metamusesd.cache.base import Entry, encode_entry, entry_id
from metamusesd.cache.eligible import Eligibility, eligibility, keepable
from metamusesd.cache.partition import Question, question_of
from metamusesd.dispatcher.caching import MOST_CHARS, Rules
from metamusesd.dispatcher.identities import Identities
from metamusesd.dispatcher.ledger import Ledger
from metamusesd.dispatcher.run import Run
from metamusesd.dispatcher.vectors_link import VectorsLink
from metamusesd.errors import InvalidRequest
from metamusesd.job import Answer, Result, decode_result, encode_answer, parse_request
from metamusesd.queues.answers import Kept
from metamusesd.queues.base import Requeue, Settlement, Verdict
from metamusesd.route import Route, decode_route
from metamusesd.wire import Keep, Withdraw


class Keeping:
    """What is kept of the runs of one dispatcher."""

    def __init__(self, rules: Rules, identities: Identities, vectors: VectorsLink, ledger: Ledger) -> None:
        self._rules, self._identities, self._vectors, self._ledger = rules, identities, vectors, ledger

    def prepare(self, run: Run, outcome: Settlement | Requeue | None) -> Settlement | Requeue | None:
        """The end with its answer for the exact cache, if it may be kept. What follows the settle is set aside. Never
        raises: an answer that cannot be kept is no less an answer."""
        if not self._rules.enabled or not isinstance(outcome, Settlement):
            return outcome
        try:
            return self._prepare(run, outcome)
        except Exception as error:
            self._ledger.lookup_failed(error)
            return outcome

    def _prepare(self, run: Run, outcome: Settlement) -> Settlement:
        seen = self._question(run)
        if seen is None:
            return outcome
        question, may, routing = seen
        promises = question.promises(self._identities.all_of(routing.tiers))
        run.news = Withdraw([entry_id(promises, question.text)]) if may.share and may.semantic else None
        result = decode_result(outcome.result)
        if not may.write or run.link is None or run.link.hello is None:
            return outcome
        if not keepable(result, self._rules.most_answer_bytes) or run.flawed:
            return outcome
        identity = self._identities.of_worker(run.link.hello)
        answer = encode_answer(_answer(run.claim.id, result))
        if may.semantic and self._rules.semantic and len(question.text) <= MOST_CHARS:
            run.news = Keep(encode_entry(self._entry(question, identity, result, answer)), promises)
        return replace(outcome, answer=Kept(question.key(identity), answer, question.labels(result.model_digest)))

    def settled(self, run: Run, outcome: Settlement | Requeue | None, verdict: Verdict) -> None:
        """The queue has spoken: only what became of the job there is learnt."""
        news, run.news = run.news, None
        ended = isinstance(outcome, Settlement) and verdict is Verdict.OK
        if ended and isinstance(outcome, Settlement) and outcome.answer is not None:
            self._ledger.kept("exact")
        if isinstance(news, Keep) and ended:
            self._ledger.kept("semantic")
            self._vectors.tell(news)
        elif isinstance(news, Withdraw):
            self._vectors.tell(news)

    def _question(self, run: Run) -> tuple[Question, Eligibility, Route] | None:
        try:
            request, routing = parse_request(run.claim.body), decode_route(run.claim.route)
        except (InvalidRequest, msgspec.MsgspecError):
            return None
        may = eligibility(request, routing.domain, self._rules.exact_domains, routing.confidence)
        return (question_of(request), may, routing) if may.write or may.share else None

    def _entry(self, question: Question, identity: str, result: Result, answer: bytes) -> Entry:
        now_ms, partition = time.time_ns() // 1_000_000, question.partition(identity)
        return Entry(
            id=entry_id(partition, question.text), partition=partition, query=question.text, answer=answer,
            tenant=question.tenant, muse=question.muse, model=result.model_digest, tags=question.tags,
            created_ms=now_ms, expires_ms=now_ms + self._rules.ttl_ms, used_ms=now_ms,
        )  # fmt: skip


def _answer(id: str, result: Result) -> Answer:
    return Answer(
        content=result.content, model_name=result.model_name, model_digest=result.model_digest, tier=result.tier,
        finish_reason=result.finish_reason, usage=result.usage, tokens_generated=result.tokens_generated,
        created_ms=time.time_ns() // 1_000_000, job=id,
    )  # fmt: skip
