"""Stage 4 · vectors process · words that only one question has, and that make its answer another one.

    the largest planet in …     the largest planet outside …      a word of a narrowing class (narrowing.txt)
    how do I clean shoes?       how do I clean white shoes?       a member of a kind (kinds.txt)
    how do frogs live?          how do tree frogs live?           a word in front of a shared one: picks some

Not so a word behind a shared one, which mostly says what that is (an Android phone), nor verbs and adverbs.
"""

from __future__ import annotations

from metamusesd.cache import lexicon
from metamusesd.cache.reading import ARTICLES, OTHERS, Reading, Unit

CLASSES = {
    lexicon.entry(word): name
    for name, words in (line.split(":") for line in lexicon.table("narrowing.txt"))
    for word in words.split()
}
_NARROWING_KINDS = lexicon.WORDS["narrowing_kinds"]
_PURPOSES = frozenset(("for", "with", "at", "by", "from"))
_AS_GOOD_AS = {  # the light prepositions that say the same
    "inside": {"in", "within"}, "during": {"in", "at", "on"}, "while": {"in", "at", "when"}, "behind": {"of", "for"},
    "near": {"at", "in", "around"}, "against": {"with"}, "among": {"in", "of"},
}  # fmt: skip
_BEFORE_VERBS = frozenset(("i", "you", "we", "it", "one", "people", "to", "not", "who", "that", "which", "or"))


def narrowed(reading: Reading, lonely: list[Unit], shared: frozenset[int], facing: Reading) -> str:
    """Why the words that only `reading` has make it the narrower question; an empty string when they do not."""
    for unit in lonely:
        if unit.raw in lexicon.WORDS["superlatives"]:
            return f"narrower: superlative {unit.raw}"
        if _PURPOSES & set(unit.lead) and unit.word not in lexicon.WORDS["asides"] and not unit.raw.endswith("ing"):
            return f"narrower: {min(_PURPOSES & set(unit.lead))} {unit.raw}"
        kind = _classed(unit, facing)
        if kind:
            return f"narrower: {kind} {unit.raw}"
    place = _in_front(reading, lonely, shared)
    return f"narrower: {reading.units[place].raw}" if place is not None else ""


def _classed(unit: Unit, facing: Reading) -> str:
    if _AS_GOOD_AS.get(unit.word, frozenset()) & (facing.lights | set(facing.ends)):
        return ""
    name = CLASSES.get(unit.word, "") or CLASSES.get(unit.raw, "")
    kinds = {lexicon.KIND_NAMES[number] for number in lexicon.KINDS.get(unit.word, ())}
    return name or min(kinds & _NARROWING_KINDS, default="")


def _in_front(reading: Reading, lonely: list[Unit], shared: frozenset[int]) -> int | None:
    """Where a lonely word stands directly before a shared one, as an adjective or noun before its noun."""
    alone = [i for i, unit in enumerate(reading.units) if any(unit is lost for lost in lonely)]
    for i in alone:
        end = i + 1
        while end in alone and not reading.units[end].lead:
            end += 1
        if end in shared and not reading.units[end].lead and _is_modifier(reading, i):
            return i
    return None


def _is_modifier(reading: Reading, at: int) -> bool:
    """No verb (I help …, to help …, helping …) and no adverb."""
    unit = reading.units[at]
    slip = len(unit.raw) < 5 and unit.raw not in lexicon.KNOWN
    if slip or unit.word in OTHERS or unit.word in lexicon.WORDS["unmodifying"]:
        return False
    if unit.raw.endswith(("ly", "ing")) and not ARTICLES & set(unit.lead[-1:]):
        return False
    return not _BEFORE_VERBS & set(unit.lead[-1:])
