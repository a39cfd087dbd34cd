"""Stage 4 · vectors process · pair the words of two readings off, and keep what is left.

Equal words first, then those that stand for one another (synonyms, slips of a finger, one family). A pair of opposites
and a lonely negation are `turns`: each turns the meaning round, so that two of them may leave it as it was.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from metamusesd.cache import lexicon
from metamusesd.cache.frames import YES_NO
from metamusesd.cache.reading import ANYONE, ARTICLES, NEGATING, NEGATIONS, SELF, YOU, Reading, Unit

MANY = 20  # words left after the equal ones; the comparison of each with each would take long
THIN = 0.90  # what a weak likeness must score to count
SOFT = frozenset(lexicon.plain_form(word) for word in lexicon.WORDS["soft"])
NARROW = YES_NO | {"@none"}  # frames in which every word narrows: yes or no, and orders ("write …")
LESSENING = frozenset(("less", "least", "few", "fewer"))
GAINING = frozenset(("get", "have", "become", "gain"))
DENIALS = frozenset(("not", "never", "without", "no"))


@dataclass(slots=True)
class Difference:
    """What is left of two readings when equal words have been paired off."""

    pairs: list[tuple[int, int]] = field(default_factory=list)  # positions
    mine: list[Unit] = field(default_factory=list)
    theirs: list[Unit] = field(default_factory=list)
    negations: list[Unit] = field(default_factory=list)
    opposites: list[tuple[Unit, Unit]] = field(default_factory=list)
    hopeless: bool = False  # too much is left to go on
    floor: float = 0.0
    reasons: list[str] = field(default_factory=list)

    def weaken(self, floor: float, reason: str) -> None:
        self.floor = max(self.floor, floor)
        self.reasons.append(reason)


def paired(one: Reading, other: Reading) -> Difference:
    left = Difference()
    mine, theirs = _equals(one.units, other.units, left)
    if len(mine) + len(theirs) > MANY:
        left.hopeless = True
        return left
    for likeness in (_same_thing, _opposite):
        _matched(one, other, mine, theirs, likeness, left)
    left.mine = [one.units[i] for i in mine]
    left.theirs = [other.units[j] for j in theirs]
    _anybody(one, left.mine, other, left)
    _anybody(other, left.theirs, one, left)
    _lonely(left)
    if not (one.strict or other.strict) and not NARROW & {one.frame, other.frame}:
        _light(left)
    return left


def _equals(one: tuple[Unit, ...], other: tuple[Unit, ...], left: Difference) -> tuple[list[int], list[int]]:
    waiting: dict[str, deque[int]] = defaultdict(deque)
    for j, unit in enumerate(other):
        waiting[unit.word].append(j)
    mine = []
    for i, unit in enumerate(one):
        if waiting.get(unit.word):
            left.pairs.append((i, waiting[unit.word].popleft()))
        else:
            mine.append(i)
    return mine, sorted(j for places in waiting.values() for j in places)


Likeness = Callable[[Unit, Unit, Difference], bool]


def _matched(
    one: Reading, other: Reading, mine: list[int], theirs: list[int], like: Likeness, left: Difference
) -> None:
    """Take from both lists of positions what is alike; only what is the same counts as a pair."""
    for i in list(mine):
        match = next((j for j in theirs if like(one.units[i], other.units[j], left)), None)
        if match is not None:
            mine.remove(i)
            theirs.remove(match)
            if like is _same_thing:
                left.pairs.append((i, match))


def _same_thing(one: Unit, other: Unit, left: Difference) -> bool:
    a, b = one.word, other.word
    if one.number or other.number:
        return False
    if lexicon.opposites(a, b):
        return False
    if a in GAINING and b in GAINING:
        left.weaken(0.92, f"to have: {a}/{b}")
        return True
    if lexicon.synonyms(a, b):
        left.weaken(0.0, f"synonym: {a}/{b}")
        return True
    if (a in DENIALS and b in DENIALS) or (a in NEGATING and NEGATING.get(a) == NEGATING.get(b)):
        left.weaken(THIN, f"negations: {a}/{b}")
        return True
    if lexicon.slip(one.raw, other.raw) or lexicon.slip(a, b):
        left.weaken(0.0, f"typo: {one.raw}/{other.raw}")
        return True
    if not (one.name and other.name) and lexicon.kindred(a, b):
        left.weaken(THIN, f"one family: {a}/{b}")
        return True
    return False


def _opposite(one: Unit, other: Unit, left: Difference) -> bool:
    if one.number or other.number or not lexicon.opposites(one.word, other.word):
        return False
    left.opposites.append((one, other))
    return True


def _anybody(reading: Reading, side: list[Unit], facing: Reading, left: Difference) -> None:
    """`one`, `humans` and a `they` that stands for nobody else, where the other says you, we or people."""
    if reading.lights & _ANYBODY:
        return
    if not facing.lights & _ANYBODY and not _pronoun(reading.units, facing.units):
        return
    for unit in [unit for unit in side if unit.raw in ("one", "humans", "they")]:
        side.remove(unit)
        left.weaken(THIN, f"anybody: {unit.raw}")


def _pronoun(units: tuple[Unit, ...], facing: tuple[Unit, ...]) -> bool:
    """(Can) one freeze milk, beside: (can) freeze milk."""
    return (
        len(units) > 1
        and bool(facing)
        and units[0].raw == "one"
        and units[1].raw == facing[0].raw
        and not ARTICLES & set(facing[0].lead)
    )


_ANYBODY = ANYONE | SELF | YOU


def _lonely(left: Difference) -> None:
    """Negations that only one side has."""
    for side in (left.mine, left.theirs):
        for unit in list(side):
            if unit.word in NEGATIONS or unit.word in NEGATING or unit.word in LESSENING:
                left.negations.append(unit)
                side.remove(unit)


def _light(left: Difference) -> None:
    """Words that only one side has and that hardly narrow a question; in yes or no they would."""
    soft = [unit for unit in (*left.mine, *left.theirs) if unit.word in SOFT and not unit.name]
    hard = [[unit for unit in side if unit not in soft] for side in (left.mine, left.theirs)]
    if (hard[0] and soft_in(left.theirs, soft)) or (hard[1] and soft_in(left.mine, soft)):
        return  # a word in another's place is not light
    if any(lexicon.kind_shared(a.word, b.word) for a, b in leftover(left)):
        return
    left.mine, left.theirs = hard
    for unit in soft:
        left.weaken(THIN, f"light word: {unit.word}")


def soft_in(side: list[Unit], soft: list[Unit]) -> bool:
    return any(unit in soft for unit in side)


def leftover(left: Difference) -> Iterator[tuple[Unit, Unit]]:
    return ((a, b) for a in left.mine for b in left.theirs)
