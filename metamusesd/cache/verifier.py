"""Stage 4 · vectors process · the second look: may this stored answer be given?

A cosine cannot tell "before" from "after". `verify` reads both questions (reading.py), pairs their words off
(pairing.py), looks for what makes them two (contradictions.py: a number, a negation, an opposite, a name, another
order; narrowing.py: a word that picks some), and calls them the same only when nothing is left that counts. It is pure
and symmetric, and it errs towards no.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from metamusesd.cache import lexicon
from metamusesd.cache.contradictions import CHECKS
from metamusesd.cache.frames import near
from metamusesd.cache.pairing import Difference, paired
from metamusesd.cache.reading import VERBATIM, Reading, Unit, read

BARE = 0.88  # what must be scored when all the difference lies in words that we do not look at
ONE_WORD = 0.93  # and when there is only one word to look at
EXTRA = 0.93  # and when one question has words more that narrow nothing, or a second question ("… and why?")
ENOUGH = 3  # words that must be shared for that
LONGEST = 8_000  # characters; nobody looks twice at longer ones


class Verdict(enum.StrEnum):
    """May the one's answer be given to the other?"""

    SAME = "same"
    UNSURE = "unsure"
    DIFFERENT = "different"


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict and, for people, why. SAME counts from the score `floor` on."""

    verdict: Verdict
    reason: str
    floor: float = 0.0


def verify(asked: str, stored: str) -> Judgement:
    """Compare two questions. Never raises; the order of the two does not matter to the verdict."""
    if asked == stored:
        return Judgement(Verdict.SAME, "equal text")
    if max(len(asked), len(stored)) > LONGEST:
        return _different("too long for a second look")
    first, second = sorted((asked, stored))
    one, other = read(first), read(second)
    return _outright(one, other) or _compared(one, other)


def _different(reason: str) -> Judgement:
    return Judgement(Verdict.DIFFERENT, reason)


def _outright(one: Reading, other: Reading) -> Judgement | None:
    """What needs no pairing of words."""
    if not one.plain or not other.plain:
        return _different("nothing to compare")
    strict = one.strict or other.strict
    if strict in VERBATIM:
        same = one.exact == other.exact if strict == "code" else one.exact.lower() == other.exact.lower()
        return Judgement(Verdict.SAME, "equal but for spaces") if same else _different(f"{strict} differs")
    if one.signs != other.signs:
        return _different("sign differs")
    cased = next((word for word in sorted(one.cased) if _recased(word, one.cased, other.cased)), "")
    if cased:
        return _different(f"case: {cased}")
    if one.plain == other.plain:
        return Judgement(Verdict.SAME, "equal but for case, spaces and marks")
    if one.foreign or other.foreign:
        return _different("not in English")
    if _astray(one, other):
        return Judgement(Verdict.SAME, "typo: a space or a letter went astray")
    return None


def _recased(word: str, mine: frozenset[str], theirs: frozenset[str]) -> bool:
    """Whether the other writes the word as well, but with other capitals, and each of them in one way alone."""
    ways = [{other for other in side if other.lower() == word.lower()} for side in (mine, theirs)]
    return len(ways[0]) == len(ways[1]) == 1 and ways[0] != ways[1]


def _astray(one: Reading, other: Reading) -> bool:
    """Equal but for a space, or for two neighbouring letters, one of which may have jumped over a space."""
    same = one.squeezed == other.squeezed or lexicon.transposed(one.squeezed, other.squeezed)
    if not same or _figures(one) != _figures(other):
        return False
    mine, theirs = set(one.plain.split()), set(other.plain.split())
    if any(
        word.upper() in re.findall(r"\w+", reading.exact) for reading in (one, other) for word in _short(mine ^ theirs)
    ):
        return False
    strange = [word for word in mine ^ theirs if word.isalpha() and word not in lexicon.KNOWN]
    return any(lexicon.plain_form(word) not in lexicon.KNOWN for word in strange)


def _short(words: set[str]) -> list[str]:
    """Those that may be abbreviations, of which CPR and CRP are two."""
    return [word for word in words if 1 < len(word) < 6]


def _figures(reading: Reading) -> list[str]:
    return [word for word in reading.plain.split() if any(ch.isdigit() for ch in word)]


def _compared(one: Reading, other: Reading) -> Judgement:
    left = paired(one, other)
    if left.hopeless:
        return _different("many words differ")
    for check in CHECKS:
        reason = check(one, other, left)
        if reason:
            return _different(reason)
    return _concluded(one, other, left)


def _concluded(one: Reading, other: Reading, left: Difference) -> Judgement:
    words = [unit.word for unit in (*left.mine, *left.theirs)]
    asked = near(one.frame, other.frame)
    if asked > 1:
        return Judgement(Verdict.UNSURE, f"question: {one.frame}/{other.frame}")
    if words and not _more(one, other, left, words):
        return Judgement(Verdict.UNSURE, f"words left: {', '.join(words[:4])}")
    if words:
        left.weaken(EXTRA, f"words more: {', '.join(words[:4])}")
    floor = max(left.floor, asked, ONE_WORD if len(one.units) < 2 else 0.0 if left.reasons else BARE)
    return Judgement(Verdict.SAME, "; ".join(left.reasons) or "only function words differ", floor)


def _more(one: Reading, other: Reading, left: Difference, words: list[str]) -> bool:
    """Whether the one question is the other with some words more, and those of little weight."""
    if (left.mine and left.theirs) or any(word.endswith("ly") for word in words):
        return False
    if any(_heads(reading, unit) for reading, side in ((one, left.mine), (other, left.theirs)) for unit in side[:1]):
        return False
    return len(left.pairs) >= ENOUGH or (len(left.pairs) > 1 and words[0] in lexicon.WORDS["asides"])


def _heads(reading: Reading, unit: Unit) -> bool:
    """Whether it stands right behind a word, which may make that word its own: an order, an order confirmation."""
    at = next(i for i, mine in enumerate(reading.units) if mine is unit)
    return at > 0 and not unit.lead and unit.word not in lexicon.WORDS["asides"] | lexicon.WORDS["unmodifying"]
