"""Stage 4 · vectors process · what makes two questions two: each check names one kind of contradiction.

A check gets both readings and what was left when their words were paired off (pairing.py). It returns its reason, or
nothing; on the way it may raise the score that the pair needs (`Difference.weaken`). The first reason is the verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from metamusesd.cache import lexicon
from metamusesd.cache.frames import YES_NO, akin
from metamusesd.cache.narrowing import narrowed
from metamusesd.cache.order import reordered
from metamusesd.cache.pairing import NARROW, Difference, leftover
from metamusesd.cache.reading import ANYONE, ARTICLES, FILLERS, HELPERS, SELF, YOU, Reading, Unit

_DECISIVE = lexicon.WORDS["decisive"]  # one such word on one side only makes two questions


def _numbers(one: Reading, other: Reading, left: Difference) -> str:
    """A number that the other question does not know. One that it merely says once more is no contradiction."""
    strange: list[str] = []
    for side, facing in ((left.mine, other), (left.theirs, one)):
        known = {unit.word for unit in facing.units}
        strange.append("+".join(unit.raw for unit in side if unit.number and unit.word not in known) or "-")
        side[:] = [unit for unit in side if not unit.number or unit.word not in known]
    return f"number: {'/'.join(strange)}" if strange != ["-", "-"] else ""


def _frames(one: Reading, other: Reading, left: Difference) -> str:
    return "" if akin(one.frame, other.frame) else f"question: {one.frame}/{other.frame}"


_PAST, _FUTURE = frozenset(("did", "was", "were", "had")), frozenset(("will", "shall", "would"))
_PRESENT = frozenset(("is", "are", "do", "does"))
_TIMELESS = frozenset(("ever", "have", "has", "been", "by"))


def _tense(one: Reading, other: Reading, left: Difference) -> str:
    """What was is not what is or will be; asked of somebody's own life ("you") people mix them freely."""
    mine, theirs = (reading.lights | frozenset(reading.ends) for reading in (one, other))
    for a, b in ((mine, theirs), (theirs, mine)):
        if a & _PAST and b & _FUTURE and not a & _FUTURE and not b & _PAST:
            return "tense: past/future"
        if a & _PAST and b & _PRESENT and not a & (_PRESENT | _FUTURE) and not b & _PAST:
            return "" if one.people or other.people or (a | b) & _TIMELESS else "tense: past/present"
    return ""


def _joints(one: Reading, other: Reading, left: Difference) -> str:
    for a, b in ((one, other), (other, one)):
        if "and" in a.lights - b.lights and "or" in b.lights - a.lights:
            return "and/or"
    return ""


def _people(one: Reading, other: Reading, left: Difference) -> str:
    """Mine is not yours, unless the question is how anybody does it; and I of you is not you of me."""
    if one.people == other.people:
        return ""
    mine, theirs = set(one.people), set(other.people)
    if len(mine) == len(theirs) == 2:
        return "person: who does it to whom" if _unstuttered(one.people) != _unstuttered(other.people) else ""
    if mine and theirs and mine != theirs and len(mine) + len(theirs) == 3 and one.people[0] != other.people[0]:
        return "" if one.frame == other.frame == "@howto" else "person: who does it"
    if one.frame == other.frame and one.frame in _ANYBODY and len(mine) < 2 and len(theirs) < 2:
        return ""
    if len(mine) < 2 and len(theirs) < 2 and _impersonal(one) and _impersonal(other) and len(left.pairs) > 1:
        left.weaken(0.9, "person: anybody")
        return ""
    if mine != theirs:
        left.weaken(0.92, "person")
    if one.frame in _WHAT and len(mine) + len(theirs) == 1 and (one.lights ^ other.lights) & ANYONE:
        return "person: you or anybody"
    if len(mine) == len(theirs) == 1 and mine != theirs:
        return "person: I/you"
    return (
        "person: your" if "your" in one.lights ^ other.lights and not (mine and theirs) and one.frame in _WHAT else ""
    )


def _impersonal(reading: Reading) -> bool:
    """Nobody is asked about himself, or what is asked is what anybody can, should or needs to do."""
    said = reading.lights | {unit.word for unit in reading.units}
    return not reading.people or bool(said & _ANYBODYS)


_ANYBODYS = frozenset(("can", "could", "should", "must", "may", "need", "needs", "have_to"))
_ANYBODY = frozenset(("@howto", "@can", "@where", "@when", "@how", "@howmuch", "@should", "@happen"))
_WHAT = frozenset(("@what", "@who", "@is"))


def _unstuttered(people: tuple[str, ...]) -> list[str]:
    return [who for i, who in enumerate(people) if not i or people[i - 1] != who]


def _turned(one: Reading, other: Reading, left: Difference) -> str:
    """An opposite or a negation turns the meaning round; an opposite just behind a negation turns it back."""
    if len(left.negations) + len(left.opposites) == 2 and left.opposites and _back_again(one, other, left):
        left.reasons.append("turned twice")
        return ""
    if left.opposites:
        return f"antonym: {left.opposites[0][0].word}/{left.opposites[0][1].word}"
    return f"negation: {left.negations[0].word}" if left.negations else ""


def _back_again(one: Reading, other: Reading, left: Difference) -> bool:
    """Not lazy, diligent; less shy, more outgoing. Not first is not last: those are two of many."""
    mine, theirs = left.opposites[-1]
    if lexicon.kind_shared(mine.word, theirs.word) or {mine.word, theirs.word} & _DECISIVE:
        return False
    if left.negations:
        return _precedes(one, left.negations[0], mine) or _precedes(other, left.negations[0], theirs)
    more, less = left.opposites[0]
    measured = {more.word, less.word} & {"more", "most"}
    return bool(measured) and _precedes(one, more, mine) and _precedes(other, less, theirs)


def _precedes(reading: Reading, first: Unit, second: Unit) -> bool:
    return any(a is first and b is second for a, b in pairwise(reading.units))


def _names(one: Reading, other: Reading, left: Difference) -> str:
    named = [unit.raw for unit in (*left.mine, *left.theirs) if unit.name]
    if named:
        return f"name: {named[0]}"
    for a, b in leftover(left):
        strange = [
            u.raw for u in (a, b) if u.raw not in lexicon.KNOWN and u.word not in lexicon.KNOWN and "_" not in u.raw
        ]
        if strange:
            return f"unknown word: {a.raw}/{b.raw}"
    return ""


def _kinds(one: Reading, other: Reading, left: Difference) -> str:
    for a, b in leftover(left):
        kind = lexicon.kind_shared(a.word, b.word)
        if kind:
            return f"{kind}: {a.word}/{b.word}"
    return ""


LIGHTEST = ARTICLES | HELPERS | FILLERS
_ASIDES = lexicon.WORDS["asides"]


def _restricted(one: Reading, other: Reading, left: Difference) -> str:
    """A word that only one side has, where one word decides."""
    words = [unit.word for unit in (*left.mine, *left.theirs)]
    decisive = [word for word in words if word in _DECISIVE]
    if decisive:
        return f"decisive word: {decisive[0]}"
    if NARROW & {one.frame, other.frame} and set(words) - _POINTING:
        return f"modifier: {words[0]}"
    if (one.strict or other.strict) and _narrow(words, one, other):
        return f"{one.strict or other.strict} differs"
    mine, theirs = ([unit.word for unit in side if unit.word not in _ASIDES] for side in (left.mine, left.theirs))
    return f"other words: {mine[0]}/{theirs[0]}" if mine and theirs else ""


def _narrower(one: Reading, other: Reading, left: Difference) -> str:
    """What only one side has picks some of what the other asks for."""
    mine, theirs = (frozenset(pair[side] for pair in left.pairs) for side in (0, 1))
    compared = [one.units[i].word for i in mine if one.units[i].word in _COMPARING]
    strange = [unit.raw for unit in (*left.mine, *left.theirs) if unit.word not in _ASIDES | {"between"}]
    if compared and strange:
        return f"compared: {strange[0]}"
    return narrowed(one, left.mine, mine, other) or narrowed(other, left.theirs, theirs, one)


_COMPARING = frozenset(("difference", "relationship", "relation", "similarity", "compare", "comparison"))
_BEING = frozenset(("is", "are", "was", "were", "be", "been", "being"))


def _voice(one: Reading, other: Reading, left: Difference) -> str:
    """Who was hired is not who hired, a child that bullies is not bullied, and who is boring is not bored."""
    if "@who" in (one.frame, other.frame) and (0, 0) in left.pairs:
        done = [_is_done(reading, 0) for reading in (one, other)]
        if done[0] != done[1]:
            return f"voice: {one.units[0].raw}"
    for i, j in left.pairs:
        mine, theirs = one.units[i], other.units[j]
        if (_is_done(one, i) != _is_done(other, j) and _of_the_same(one, i, other, j, left)) or _felt(mine, theirs):
            return f"voice: {mine.raw}/{theirs.raw}"
    return ""


def _of_the_same(one: Reading, i: int, other: Reading, j: int, left: Difference) -> bool:
    """Whether both are said of the same: the word before them, or me."""
    mine, theirs = one.units[i], other.units[j]
    if (SELF | YOU | {"who"}) & set(mine.lead) & set(theirs.lead):
        return True
    return (i - 1, j - 1) in left.pairs and "do" not in (*mine.lead, *theirs.lead)


def _felt(one: Unit, other: Unit) -> bool:
    """Bored and boring, where either stands before a noun or behind is."""
    short, long = sorted((one.raw, other.raw), key=lambda raw: raw.endswith("ing"))
    return short.endswith("ed") and long.endswith("ing") and short.removesuffix("ed") in _FELT


_FELT = lexicon.WORDS["felt"]


def _is_done(reading: Reading, at: int) -> bool:
    """It is done to what stands before it: the phone was hacked, was the phone hacked."""
    unit = reading.units[at]
    if not (unit.raw.endswith("ed") or unit.raw in lexicon.PARTICIPLES | lexicon.WORDS["unchanged"]):
        return False
    lead = {
        *unit.lead,
        *(reading.units[at - 1].lead if at == 1 or (at == 2 and reading.units[0].word == "not") else ()),
    }
    return bool(_BEING & lead)


def _narrow(words: list[str], one: Reading, other: Reading) -> bool:
    return bool(words or (one.lights ^ other.lights) - LIGHTEST)


_POINTING = frozenset(("they", "this", "that", "it"))


_CROSSED = frozenset(
    (a, b)
    for a, others in (
        ("from", "to into for"),
        ("by", "for about to with"),
        ("as", "with for"),
        ("with", "about"),
        ("about", "for"),
    )
    for b in others.split()
)
_CONTAINERS = lexicon.WORDS["containers"]
_DANGLING = frozenset(("of", "for", "from", "by", "with", "as", "about", "to"))


def _directed(one: Reading, other: Reading, left: Difference) -> str:
    """To Rome is not from Rome; what it is for is not what it is."""
    dangling = (set(one.ends[-1:]) ^ set(other.ends[-1:])) & _DANGLING
    if dangling:
        return f"direction: {min(dangling)}"
    for i, j in left.pairs:
        mine, theirs = set(one.units[i].lead), set(other.units[j].lead)
        if one.units[i].word in _CONTAINERS and {"in", "on"} <= mine ^ theirs:
            return f"direction: in/on {one.units[i].word}"
        for a, b in _CROSSED:
            if (a in mine - theirs and b in theirs - mine) or (a in theirs - mine and b in mine - theirs):
                return f"direction: {a}/{b} {one.units[i].word}"
    return ""


_MUST, _MAY = frozenset(("must", "need", "needs", "have_to")), frozenset(("can", "could", "may", "might"))


def _moods(one: Reading, other: Reading, left: Difference) -> str:
    """What one must is not what one may; what one should is near to it."""
    if one.frame == "@howto":
        return ""
    for a, b in ((one.lights, other.lights), (other.lights, one.lights)):
        if a & _MUST and b & _MAY and not a & _MAY and not b & _MUST:
            return "must/may"
        if "should" in a - b and any(unit.word == "take" for unit in (*left.mine, *left.theirs)):
            return "should/takes"
        if "should" in a - b and b & _MAY and not a & _MAY:
            left.weaken(0.93, "should/can")
    return ""


_ADVICE = _MUST | _MAY | {"should"}
_ASKED = frozenset(("@what", "@who", "@when", "@howmany", "@howmuch", "@where", "@why", "@how"))


def _advised(one: Reading, other: Reading, left: Difference) -> str:
    """What children eat is not what they should eat; what I do is what I should."""
    if not all(reading.frame in _ASKED or _asks(reading) for reading in (one, other)):
        return ""
    counted = one.plain.startswith(("how much", "how many")) or one.frame == "@why"
    if (one.people or other.people) and not counted:
        return ""
    if "@why" in (one.frame, other.frame) and not (one.lights & HELPERS and other.lights & HELPERS):
        return ""
    modals = [sorted(reading.lights & _ADVICE) for reading in (one, other)]
    return f"advice: {(modals[0] or modals[1])[0]}" if bool(modals[0]) != bool(modals[1]) else ""


def _asks(reading: Reading) -> bool:
    """At what age …, for which …"""
    return reading.frame == "@none" and bool({"what", "which", "whom"} & {*reading.plain.split()[1:3]})


def _filled(one: Reading, other: Reading, left: Difference) -> str:
    """Too much is not much; in yes or no, some birds are not any, nor birds as such."""
    words = one.lights ^ other.lights
    if "too" in words and any("too" in unit.lead for unit in (*one.units, *other.units)):
        return "too"
    if not YES_NO & {one.frame, other.frame} or not words & _SOME or words & {"a", "an"}:
        return ""
    here = "there" in one.lights & other.lights or one.people or other.people
    return "" if here else f"quantity: {min(words & _SOME)}"


_SOME = frozenset(("any", "some"))


def _due(one: Reading, other: Reading, left: Difference) -> str:
    """By Monday is not on Monday."""
    for i, j in left.pairs:
        mine, theirs = set(one.units[i].lead), set(other.units[j].lead)
        for a, b in ((mine, theirs), (theirs, mine)):
            if "by" in a - b and b & {"in", "on", "at"}:
                return f"direction: by {one.units[i].raw}"
    return ""


def _ordered(one: Reading, other: Reading, left: Difference) -> str:
    pairs = sorted(left.pairs)
    ranks = {place: rank for rank, place in enumerate(sorted(j for _, j in pairs))}
    mine, theirs = [one.units[i] for i, _ in pairs], [other.units[j] for j in sorted(ranks)]
    reason = reordered(mine, theirs, [ranks[j] for _, j in pairs])
    if not reason:
        return "order"
    if reason != "same order":
        left.reasons.append(reason)
    return ""


Check = Callable[[Reading, Reading, Difference], str]
CHECKS: tuple[Check, ...] = (
    _numbers, _frames, _tense, _joints, _people, _turned, _names, _kinds, _restricted, _narrower, _voice, _moods,
    _advised, _filled, _due, _directed, _ordered,
)  # fmt: skip
