"""Stage 4 · vectors process · the same words in another order: which orders ask the same?

`reordered` takes two lists of units that pair off one to one, as positions: `places[i]` is where the i-th unit of the
one stands in the other. It names what makes the order harmless, or returns nothing: "A beat B" is not "B beat A".
"""

from __future__ import annotations

from collections.abc import Sequence

from metamusesd.cache import lexicon
from metamusesd.cache.reading import JOINTS, PREPOSITIONS, Unit

SYMMETRIC = frozenset(lexicon.plain_form(word) for word in lexicon.WORDS["symmetric"])
SEQUENCE = lexicon.WORDS["sequence"]
JOINING = frozenset((*JOINTS, ","))
BELONGING = frozenset(("of", "in", "for", "from", "on", "about", "at"))


def reordered(one: Sequence[Unit], other: Sequence[Unit], places: Sequence[int]) -> str:
    """Why the order does not matter; an empty string when it does, or may."""
    if list(places) == sorted(places):
        return "same order"
    places = _unjoined(one, places)
    if places == sorted(places):
        return "joined words"
    low = next(i for i, place in enumerate(places) if place != i)
    high = next(i for i in range(len(places) - 1, -1, -1) if places[i] != i) + 1
    for name, harmless in (
        ("symmetric relation", _symmetric),
        ("joined words", _joined),
        ("people of a nation", _nation),
        ("belonging", _belonging),
        ("phrases moved", _phrases),
        ("adverb moved", _adverb),
        ("negation moved", _denial),
    ):
        if harmless(one, other, places, low, high):
            return name
    return ""


def _unjoined(one: Sequence[Unit], places: Sequence[int]) -> list[int]:
    """Two words joined by and, or by or, that stand the other way round are put back: the good and (the) bad."""
    back = list(places)
    for i in range(len(back) - 1):
        if back[i] == back[i + 1] + 1 and JOINING & set(one[i + 1].lead) and not set(one[i + 1].lead) & SEQUENCE:
            back[i], back[i + 1] = back[i + 1], back[i]
    return back


def _joined(one: Sequence[Unit], other: Sequence[Unit], places: Sequence[int], low: int, high: int) -> bool:
    """A and B, B and A; also when both share a word: spot fixing and match fixing."""
    if any(word in SEQUENCE for unit in (*one[low:high], *other[low:high]) for word in unit.lead):
        return False
    for left in range(low, max(-1, low - 3), -1):
        for right in range(high, min(len(one), high + 2) + 1):
            parts, others = _parts(one[left:right]), _parts(other[left:right])
            if 1 < len(parts) == len(others) and sorted(parts) == sorted(others):
                return True
    return False


def _parts(units: Sequence[Unit]) -> list[tuple[str, ...]]:
    parts: list[list[str]] = [[]]
    for unit in units:
        if parts[-1] and JOINING & set(unit.lead):
            parts.append([])
        parts[-1].append(unit.word)
    return [tuple(part) for part in parts]


def _symmetric(one: Sequence[Unit], other: Sequence[Unit], places: Sequence[int], low: int, high: int) -> bool:
    """The relation taken out, its two sides have changed places as blocks, and nothing else has moved."""
    relations = [i for i, unit in enumerate(one) if unit.word in SYMMETRIC]
    if len(relations) != 1 or any("than" in unit.lead or unit.word in SEQUENCE for unit in one):
        return False
    gone = places[relations[0]]
    rest = [place - (place > gone) for i, place in enumerate(places) if i != relations[0]]
    return _rotated(rest)


def _rotated(places: Sequence[int]) -> bool:
    """Two neighbouring blocks have changed places: 0 3 4 1 2 5; or nothing has moved."""
    breaks = sum(after != before + 1 for before, after in zip((-1, *places), (*places, len(places)), strict=True))
    return breaks in (0, 3)


def _nation(one: Sequence[Unit], other: Sequence[Unit], places: Sequence[int], low: int, high: int) -> bool:
    """A German baker, a baker and German."""
    pair = {unit.word for unit in one[low:high]}
    return (
        high - low == 2
        and len(pair & lexicon.NATIONALITIES) == 1
        and any("and" in unit.lead for unit in (*one, *other))
    )


def _belonging(one: Sequence[Unit], other: Sequence[Unit], places: Sequence[int], low: int, high: int) -> bool:
    """The price of gold, the gold price; not when both are names."""
    if high - low > 5 or not _rotated([place - low for place in places[low:high]]):
        return _chained(one, other, places, low, high)
    cut = next(i for i in range(low + 1, high) if places[i] != places[i - 1] + 1)
    if one[low].name and one[cut].name:
        return False
    return _belongs(one[cut]) != _belongs(other[places[low]])


def _chained(one: Sequence[Unit], other: Sequence[Unit], places: Sequence[int], low: int, high: int) -> bool:
    """The doors of houses in Rome, Rome house doors."""
    backwards = [*range(high - 1, low - 1, -1)] == [*places[low:high]]
    mine, theirs = ({_belongs(unit) for unit in side[low + 1 : high]} for side in (one, other))
    return backwards and high - low < 4 and {True} in (mine, theirs) and {False} in (mine, theirs)


def _belongs(unit: Unit) -> bool:
    """Of, in, … it; but beans in butter are no butter beans."""
    places = BELONGING - {"in"} if lexicon.kind_shared(unit.word, unit.word) in _FOODS else BELONGING
    return bool(places & set(unit.lead)) or {"to", "do"} <= set(unit.lead)


_FOODS = frozenset(("dish", "drink", "meat", "vegetable", "fruit"))


def _phrases(one: Sequence[Unit], other: Sequence[Unit], places: Sequence[int], low: int, high: int) -> bool:
    """Phrases that begin with a preposition have travelled with it: from A to B, to B from A."""
    mine, theirs = _chunks(one), _chunks(other)
    return len(mine) > 2 and sorted(mine) == sorted(theirs)


def _chunks(units: Sequence[Unit]) -> list[tuple[str, ...]]:
    chunks: list[list[str]] = [[""]]
    for unit in units:
        opener = next((word for word in unit.lead if word in PREPOSITIONS or word in _MARKERS), "")
        if opener:
            chunks.append([opener])
        elif unit.word in _MARKERS:
            chunks.append([])
        chunks[-1].append(unit.word)
    return [tuple(chunk) for chunk in chunks]


_MARKERS = lexicon.WORDS["markers"]


def _adverb(one: Sequence[Unit], other: Sequence[Unit], places: Sequence[int], low: int, high: int) -> bool:
    """Only words like `quickly` have moved."""
    still = [place for unit, place in zip(one, places, strict=True) if not _moves_freely(unit.word)]
    return still == sorted(still)


def _denial(one: Sequence[Unit], other: Sequence[Unit], places: Sequence[int], low: int, high: int) -> bool:
    """Isn't it cold? Is it not cold? Only where there is nothing else that the `not` could deny."""
    if {"not"} != {unit.word for unit in one if unit.word in _SCOPED} or not (
        one[0].word == "not" or other[0].word == "not"
    ):
        return False
    if any(JOINING & set(unit.lead) for unit in one):
        return False
    still = [place for unit, place in zip(one, places, strict=True) if unit.word != "not"]
    return still == sorted(still)


_SCOPED = lexicon.WORDS["scoped"]


def _moves_freely(word: str) -> bool:
    return (word.endswith("ly") and len(word) > 4) or word in _FREE


_FREE = lexicon.WORDS["free"]
