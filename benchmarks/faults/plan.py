"""Faults benchmark · bench process · which jobs are submitted, how they misbehave, and how each of them may end. Pure.

Job `n` of a seed is always the same job, whatever the timing of the run. The echo engine says the query's words again,
so that the expected text is known here, by other code than the engine's.

    plain      done                                    failing   failed(engine_failed) after its retries
    cancel     cancelled, or as plain                  bad       failed(invalid_request)
    deadline   expired, failed(deadline_unmeetable),   unknown   failed(unknown_tier)
               or as plain                             huge      refused at the door, or a megabyte that is done
    race       one id for all, then as plain           conflict  the second body under the same key is refused
    twin       as plain; equal to others of its litter, and so computed once for those that are under way together
    poison     dead, never done                        spoilt    its keys are broken by a foreign hand: anything,
                                                                 but nobody else suffers and nothing live is left
"""

from __future__ import annotations

import random
from dataclasses import dataclass

ENDS = frozenset({"done", "failed", "cancelled", "expired", "dead"})
WORDS = (
    "muse", "echo", "naïve", "Ω", "日本語", "🎉", "river", "stone", "Zürich", "of", "the", "and", "blue", "é́", "seven",
    "ﬁne", "tail",
)  # fmt: skip
WEIGHTS = {
    "plain": 500, "twin": 80, "cancel": 120, "deadline": 90, "race": 50, "failing": 30, "bad": 60, "unknown": 20,
    "conflict": 20, "huge": 10, "poison": 6, "spoilt": 15,
}  # fmt: skip
POISONS = {  # with weights: a worker that computes for ever is given up late
    "!crash=step{step}": 5, "!segv=step{step}": 4, "!exit=3": 4, "!prepare-crash": 3, "!hang=step{step}": 3,
    "!stall=step{step}": 2, "!spin=step{step}": 1,
}  # fmt: skip
BAD_BODIES = (b"\xff\x00{{{", b"", b"[]", b'{"user_query": 7}', b'{"user_query":""}', b'"text"', b"null", b"{" * 5000)
SPOILS = ("no body", "no fields", "text fields", "no hash", "no job but a text", "a ghost in the queue")
CANCELS = ("at once", "started", "token", "later")
CLASS_WEIGHTS = (30, 45, 20, 5)  # low … critical


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job of the plan, and what the oracle knows of it."""

    number: int
    id: str
    kind: str
    ends: frozenset[str]  # the states in which it may end
    codes: frozenset[str] = frozenset()  # if failed, with one of these
    query: str = ""
    text: str = ""  # its content when it is done
    body: bytes | None = None  # a raw body, as a careless producer writes it; else made from the fields
    priority: int = 1
    tenant: str = "default"
    tier: str | None = None
    stream: bool = True
    deadline_ms: int = 0
    key: str = ""  # its idempotency key
    racers: int = 0
    cancel: str = ""  # one of CANCELS
    spoil: str = ""  # one of SPOILS
    raw: bool = False  # by the raw producer, not by our client
    pause_s: float = 0.0  # before a cancel that comes later


def job(seed: int, number: int) -> Job:
    """Job `number` of `seed`."""
    dice = random.Random(f"{seed}/{number}")
    kind = dice.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    return _MAKERS[kind](dice, number, f"s{seed}-{number}")


def calm(seed: int, number: int) -> Job:
    """A job of the burst after the last fault: plain, short, of one tier, to look at order."""
    dice = random.Random(f"{seed}/calm/{number}")
    query, text = _say(dice, 8)
    return Job(
        number=number, id=f"s{seed}-calm-{number}", kind="plain", ends=frozenset({"done"}), query=query, text=text,
        priority=dice.choices(range(4), CLASS_WEIGHTS)[0], tier=dice.choice(("fast", "medium")), raw=True,
    )  # fmt: skip


def _say(dice: random.Random, most: int = 80) -> tuple[str, str]:
    """(query, what the engine has to answer)."""
    words = [dice.choice(WORDS) for _ in range(dice.randint(1, 12))]
    tokens = dice.randint(1, most)
    query = f"{' '.join(words)} !tokens={tokens} !delay={dice.choice((1, 2, 5, 10, 20))}ms"
    return query, " ".join(words[place % len(words)] for place in range(tokens))


def _plain(dice: random.Random, number: int, id: str, kind: str = "plain") -> dict[str, object]:
    """The fields that every good job has."""
    query, text = _say(dice)
    if dice.random() < 0.1:
        query += dice.choice((" !prefill=120ms", " !prepare=60ms"))
    return {
        "number": number, "id": id, "kind": kind, "ends": frozenset({"done"}), "query": query, "text": text,
        "priority": dice.choices(range(4), CLASS_WEIGHTS)[0], "tenant": dice.choice(("default", "a", "b")),
        "tier": dice.choice((None, "fast", "fast", "medium")), "stream": dice.random() < 0.85,
        "raw": dice.random() < 0.25,
    }  # fmt: skip


def _make_plain(dice: random.Random, number: int, id: str) -> Job:
    return Job(**_plain(dice, number, id))  # type: ignore[arg-type]


def _make_twin(dice: random.Random, number: int, id: str) -> Job:
    """Of a litter of some twenty, near each other in time."""
    litter = random.Random(f"{id.partition('-')[0]}/litter/{number // 250}/{dice.randint(0, 1)}")
    query, text = _say(litter)
    fields = _plain(dice, number, id, "twin") | {"query": query, "text": text, "tenant": "default", "tier": "fast"}
    return Job(**fields)  # type: ignore[arg-type]


def _make_cancel(dice: random.Random, number: int, id: str) -> Job:
    fields = _plain(dice, number, id, "cancel")
    words = dice.choice(("!tokens=200 !delay=10ms", "!tokens=40 !delay=5ms", "!prefill=3s", "!prepare=200ms !tokens=9"))
    tokens = next((int(word[8:]) for word in words.split() if word.startswith("!tokens")), 0)
    fields |= {"query": f"never mind {words}", "text": " ".join(("never mind " * 150).split()[: tokens or 2])}
    fields |= {"ends": frozenset({"done", "cancelled"}), "cancel": dice.choice(CANCELS), "stream": True}
    return Job(**fields, pause_s=dice.uniform(0, 1.5))  # type: ignore[arg-type]


def _make_deadline(dice: random.Random, number: int, id: str) -> Job:
    fields = _plain(dice, number, id, "deadline")
    fields |= {"ends": frozenset({"done", "expired", "failed"}), "codes": frozenset({"deadline_unmeetable"})}
    return Job(**fields, deadline_ms=int(dice.choice((30, 150, 600, 3000)) * dice.uniform(0.5, 2)))  # type: ignore[arg-type]


def _make_race(dice: random.Random, number: int, id: str) -> Job:
    fields = _plain(dice, number, id, "race") | {"raw": False}
    return Job(**fields, key=f"key-{id}", racers=dice.choice((2, 5, 20, 50)))  # type: ignore[arg-type]


def _make_conflict(dice: random.Random, number: int, id: str) -> Job:
    fields = _plain(dice, number, id, "conflict") | {"raw": False}
    return Job(**fields, key=f"key-{id}")  # type: ignore[arg-type]


def _make_failing(dice: random.Random, number: int, id: str) -> Job:
    fields = _plain(dice, number, id, "failing")
    fields |= {"query": f"a b c d e f !fail=step{dice.randint(1, 5)}", "text": "", "ends": frozenset({"failed"})}
    return Job(**fields, codes=frozenset({"engine_failed"}))  # type: ignore[arg-type]


def _make_bad(dice: random.Random, number: int, id: str) -> Job:
    fields = _plain(dice, number, id, "bad") | {"text": "", "raw": True, "ends": frozenset({"failed"}), "query": ""}
    return Job(**fields, body=dice.choice(BAD_BODIES), codes=frozenset({"invalid_request"}))  # type: ignore[arg-type]


def _make_unknown(dice: random.Random, number: int, id: str) -> Job:
    fields = _plain(dice, number, id, "unknown") | {"tier": "math", "ends": frozenset({"failed"})}
    return Job(**fields, codes=frozenset({"unknown_tier"}))  # type: ignore[arg-type]


def _make_huge(dice: random.Random, number: int, id: str) -> Job:
    """Half of them are too large for the door; the others are a megabyte and short of answer."""
    fields = _plain(dice, number, id, "huge") | {"raw": True}
    if dice.random() < 0.5:
        return Job(**(fields | {"ends": frozenset({"refused"})}), body=b"x" * (4_194_304 + 1))  # type: ignore[arg-type]
    return Job(**(fields | {"query": "words " * 150_000 + "!tokens=5", "text": "words words words words words"}))  # type: ignore[arg-type]


def _make_poison(dice: random.Random, number: int, id: str) -> Job:
    poison = dice.choices(list(POISONS), list(POISONS.values()))[0].format(step=dice.randint(1, 4))
    fields = _plain(dice, number, id, "poison")
    fields |= {"query": f"a b c d e f {poison}", "text": "", "ends": frozenset({"dead"})}
    return Job(**fields)  # type: ignore[arg-type]


def _make_spoilt(dice: random.Random, number: int, id: str) -> Job:
    fields = _plain(dice, number, id, "spoilt") | {"raw": True, "ends": ENDS}
    return Job(**fields, spoil=dice.choice(SPOILS))  # type: ignore[arg-type]


_MAKERS = {
    "plain": _make_plain, "twin": _make_twin, "cancel": _make_cancel, "deadline": _make_deadline, "race": _make_race,
    "huge": _make_huge, "failing": _make_failing, "bad": _make_bad, "unknown": _make_unknown,
    "conflict": _make_conflict, "poison": _make_poison, "spoilt": _make_spoilt,
}  # fmt: skip
