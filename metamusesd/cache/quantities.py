"""Stage 4 · vectors process · numbers as they are written: 1,000 and 1k and one thousand.

`number` gives the value of a word as a canonical string, or nothing when the word is no number. "one" is no number
(it is mostly a pronoun), and "second" is none (it is mostly a time).
"""

from __future__ import annotations

import re
from functools import lru_cache

_UNITS = (
    "zero . two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_ORDINALS = "first . third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
WORDS = {word: str(value) for value, word in enumerate(_UNITS.split()) if word != "."}
WORDS |= {word: str(10 * value) for value, word in enumerate(_TENS.split(), 2)}
WORDS |= {word: f"{value}th" for value, word in enumerate(_ORDINALS.split(), 1) if word != "."}
WORDS |= {"hundred": "100", "thousand": "1000", "million": "1000000", "billion": "1000000000", "dozen": "12"}
WORDS |= {"lakh": "100000", "crore": "10000000", "trillion": "1000000000000", "twice": "2x", "thrice": "3x"}
_SCALE = {"k": 10**3, "m": 10**6, "mn": 10**6, "b": 10**9, "bn": 10**9, "": 1}
_PLAIN = re.compile(r"(\d{1,3}(?:,\d{2,3})*,\d{3}|\d+)(\.\d+)?(k|m|mn|b|bn)?")
_ORDINAL = re.compile(r"(\d+)(?:st|nd|rd|th)")


@lru_cache(maxsize=4096)
def number(word: str) -> str:
    """Its value, or an empty string. What may be a code keeps its zeros (007), and so does 0,25, which is not 25."""
    word = word.rstrip(",")
    if word in WORDS:
        return WORDS[word]
    if word[:1] == "-" and word[1:2].isdigit():
        return f"-{number(word[1:])}"
    if not word[:1].isdigit():
        return ""
    found = _ORDINAL.fullmatch(word)
    if found:
        return f"{found[1].lstrip('0')}th"
    found = _PLAIN.fullmatch(word)
    if not found:
        return word
    whole, part, scale = found[1].replace(",", ""), found[2] or "", found[3] or ""
    part = "" if part in (".0", ".00") else part  # version 3.10 is not 3.1, and 1.000 is a thousand to many
    return str(int(whole) * _SCALE[scale]) if scale and not part else whole + part + scale
