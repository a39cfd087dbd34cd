"""Stage 3 · dispatcher, command line · what can be seen in a prompt without understanding it. Pure, well under 1 ms.

Four kinds: sizes; marks of form (a code fence, a formula, lettered options); shares of known words; phrases, and known
words that stand near each other (words.py). Every value lies between 0 and about 3, so that one regularization suits
all. Of a long prompt the beginning and the end are read: the task stands in one of them.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from metamusesd.routing import words as known
from metamusesd.routing.forms import FORMS

HEAD_CHARS, TAIL_CHARS = 800, 400
WORDS_READ = 300

_WORD = re.compile(r"[^\W\d_][\w+#]*(?:['’-][^\W\d_][\w+#]*)*")
_NUMBER = re.compile(r"\d[\d,.]*")
_SENTENCE_END = re.compile(r"[.!?。！？؟।]+(?:\s|$)|\n+")
_LONG_WORD = 9

_SETS: dict[str, frozenset[str]] = {
    name.lower(): getattr(known, name)
    for name in (
        "LANGUAGES", "CODE_NOUNS", "CODE_VERBS", "CODE_SURE", "MATH_VERBS", "MATH_NOUNS", "MATH_SURE", "WORD_PROBLEM",
        "REASON_SURE", "REASON_ORDER", "REASON_ARGUMENT", "CHAT", "COMMANDS", "WRITING", "EXPLAINING", "HARD", "EASY",
        "PROOF", "DESIGN", "EXTREMES", "GRAPHS", "ADVANCED_MATHS", "SCHOLARLY", "TASK_WORDS", "SPELLED", "OPERATIONS",
        "QUANTITY", "FAMILY", "COLOURS", "MOVES", "TRUTH", "FIND", "VALUE", "MAKE", "PROGRAM", "COMPOSE", "PROSE",
        "GIVEN", "CONTAINER", "RETURN", "MUST", "TRUE", "WHICH", "SECOND_PERSON", "I_WORDS",
    )
}  # fmt: skip
_NEAR: dict[str, tuple[str, str, int]] = {  # a word of the first set, and at most so many words later one of the second
    "make_program": ("make", "program", 6),
    "compose_prose": ("compose", "prose", 6),
    "find_value": ("find", "value", 6),
    "given_container": ("given", "container", 6),
    "must_be_true": ("must", "true", 4),
    "program_in": ("program", "languages", 4),
    "sum_of_numbers": ("spelled", "operations", 2),
    "write_in_language": ("make", "languages", 6),
}
_SIZES = (
    "bias", "length", "short", "words", "sentences", "lines", "numbers", "number_share", "word_length", "long_words",
    "question_marks", "capitals", "lower_only", "one_line", "very_long", "rare_script", "sentence_length",
    "starts_second_person", "starts_asking", "starts_ordering", "small_sum", "large_sum",
)  # fmt: skip
_RARE_SCRIPTS = re.compile(r"[\u0600-\u06ff\u0900-\u097f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_PIECES = {name: re.compile("|".join(map(re.escape, pieces))) for name, pieces in known.PIECES.items()}


def _places(sets: Iterable[frozenset[str]]) -> dict[str, tuple[int, ...]]:
    """word → the numbers of the sets that have it."""
    found: dict[str, tuple[int, ...]] = {}
    for place, words in enumerate(sets):
        for word in words:
            found[word] = (*found.get(word, ()), place)
    return found


_SETS_OF = _places(_SETS.values())
_NEAR_FIRST = _places(_SETS[first] for first, _, _ in _NEAR.values())
_NEAR_SECOND = _places(_SETS[second] for _, second, _ in _NEAR.values())
_GAPS = [gap for _, _, gap in _NEAR.values()]
_PHRASES_OF = _places(known.PHRASES.values())
_PHRASE_STARTS = frozenset(phrase.split()[0] for phrase in _PHRASES_OF)

NAMES: tuple[str, ...] = (
    *_SIZES,
    *FORMS,
    *(f"{name}_{kind}" for name in _SETS for kind in ("share", "count")),
    *(f"phrase_{name}" for name in known.PHRASES),
    *(f"near_{name}" for name in _NEAR),
    *(f"abroad_{name}" for name in _PIECES),
)


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen: `values` in the order of NAMES, and the words in the order of the text, lower case."""

    values: list[float]
    words: list[str]


def look(text: str) -> Seen:
    """Look at a prompt."""
    whole = len(text)
    if whole > HEAD_CHARS + TAIL_CHARS:
        text = f"{text[:HEAD_CHARS]}\n{text[-TAIL_CHARS:]}"
    words = _WORD.findall(text.casefold())[:WORDS_READ]
    rare = _RARE_SCRIPTS.search(text) is not None
    values = _sizes(text, words, whole, rare)
    values += [form.value(text) for form in FORMS.values()]
    values += _vocabulary(words)
    if rare:
        values += [min(3.0, 1.5 * len(pieces.findall(text))) for pieces in _PIECES.values()]
    else:
        values += [0.0] * len(_PIECES)
    return Seen(values, words)


def _sizes(text: str, words: list[str], whole: int, rare: bool) -> list[float]:
    count = max(1, len(words))
    numbers, sentences = len(_NUMBER.findall(text)), len(_SENTENCE_END.findall(text)) + 1
    first = words[0] if words else ""
    numbers += sum(word in known.SPELLED for word in words)
    quantity = "how" in words and not known.QUANTITY.isdisjoint(words)
    return [
        1.0,
        min(3.0, math.log1p(whole) / 3),
        1.0 if whole < 60 else 0.0,
        min(3.0, math.log1p(count) / 2),
        min(3.0, math.log1p(sentences) / 1.5),
        min(3.0, math.log1p(text.count("\n")) / 1.5),
        min(3.0, math.log1p(numbers) / 1.3),
        min(3.0, 4 * numbers / (count + numbers)),
        min(3.0, sum(map(len, words)) / count / 3),
        min(3.0, 5 * sum(len(word) >= _LONG_WORD for word in words) / count),
        min(3.0, math.log1p(text.count("?") + text.count("？") + text.count("؟"))),
        min(3.0, 10 * sum(map(str.isupper, text)) / max(1, len(text))),
        1.0 if text.islower() and text.rstrip()[-1:] not in "?.!" else 0.0,
        1.0 if "\n" not in text.strip() else 0.0,
        min(3.0, whole / 1500),
        1.0 if rare else 0.0,
        min(3.0, count / sentences / 10),
        1.0 if not known.SECOND_PERSON.isdisjoint(words[:3]) else 0.0,
        1.0 if first in known.ASKING else 0.0,
        1.0 if first in known.ORDERING else 0.0,
        1.0 if quantity and 1 <= numbers <= 3 and count <= 60 else 0.0,
        1.0 if quantity and (numbers >= 5 or count >= 65) else 0.0,
    ]


def _vocabulary(words: list[str]) -> list[float]:
    """Of each set: the share of its words in the text, and how many different ones; then phrases and neighbours."""
    counts, different = [0] * len(_SETS), [0] * len(_SETS)
    for word, count in Counter(words).items():
        for place in _SETS_OF.get(word, ()):
            counts[place] += count
            different[place] += 1
    total, values = max(1, len(words)), list[float]()
    for count, several in zip(counts, different, strict=True):
        values += (min(3.0, 4 * count / total), min(3.0, math.log1p(several) / 1.2)) if count else (0.0, 0.0)
    return values + _phrases(words) + _neighbours(words)


def _phrases(words: list[str]) -> list[float]:
    counts = [0] * len(known.PHRASES)
    for first, second in itertools.pairwise(words):
        if first in _PHRASE_STARTS:
            for place in _PHRASES_OF.get(f"{first} {second}", ()):
                counts[place] += 1
    return [min(3.0, math.log1p(count)) for count in counts]


def _neighbours(words: list[str]) -> list[float]:
    seen, marks = [-99] * len(_NEAR), [0.0] * len(_NEAR)
    for index, word in enumerate(words):
        for place in _NEAR_SECOND.get(word, ()):
            if index - seen[place] <= _GAPS[place]:
                marks[place] = 1.0
        for place in _NEAR_FIRST.get(word, ()):
            seen[place] = index
    return marks
