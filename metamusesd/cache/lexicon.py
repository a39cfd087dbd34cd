"""Stage 4 · vectors process · what the second look knows about words: plain forms, synonyms, opposites, kinds.

The tables lie beside this file as text, so that a person can read and mend them; each says at its top what a line is.
They are read once, at import. All of them hold plain forms (`plain_form`), and a phrase is joined by `_`.
"""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from pathlib import Path

HERE = Path(__file__).parent


def table(name: str) -> list[str]:
    """The lines of a table, without remarks."""
    lines = (HERE / name).read_text(encoding="utf8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


WORDS = {name: frozenset(words.split()) for name, words in (line.split(":") for line in table("wordsets.txt"))}

SPELLINGS = {
    "grey": "gray", "defence": "defense", "offence": "offense", "licence": "license", "catalogue": "catalog",
    "cheque": "check", "tyre": "tire", "programme": "program", "aluminium": "aluminum", "theatre": "theater",
    "centre": "center", "metre": "meter", "litre": "liter", "fibre": "fiber", "kilometre": "kilometer",
    "centimetre": "centimeter", "millimetre": "millimeter", "jewellery": "jewelry", "aeroplane": "airplane",
    "mum": "mom", "pyjamas": "pajamas", "plough": "plow", "sceptic": "skeptic", "practise": "practice",
    "dialogue": "dialog", "enrol": "enroll", "fulfil": "fulfill", "skilful": "skillful", "ageing": "aging",
    "storey": "story", "whisky": "whiskey", "yoghurt": "yogurt", "moustache": "mustache", "doughnut": "donut",
}  # fmt: skip
STIFF = WORDS["stiff"]
LONERS = WORDS["loners"]  # musical is no music
ENDINGS = WORDS["endings"] | {""}
NEGATIVE = ("un", "in", "im", "il", "ir", "non", "dis", "mis", "anti", "de")


KNOWN = frozenset(table("known.txt")).union(
    word
    for name in ("synonyms", "antonyms", "kinds", "irregular")
    for line in table(f"{name}.txt")
    for word in line.split()
)
PARTICIPLES = frozenset(
    form for line in table("irregular.txt") for form in line.split()[1:] if not form.endswith(("ing", "s"))
)
_BENT = {form: line.split()[0] for line in table("irregular.txt") for form in line.split()}


@lru_cache(maxsize=16384)
def plain_form(word: str) -> str:
    """The dictionary form of an English word, in American spelling; any other string as it is."""
    if word in SPELLINGS or word in _BENT or word in STIFF or len(word) < 4 or not word.isalpha():
        return SPELLINGS.get(_BENT.get(word, word), _BENT.get(word, word))
    return _respelled(_unbent(word))


def _unbent(word: str) -> str:
    if word.endswith("ing") and len(word) > 5:
        return _stem(word[:-3], word)
    if word.endswith("ied"):
        return word[:-3] + "y"
    if word.endswith("ed") and len(word) > 4:
        return _stem(word[:-2], word)
    return _singular(word)


def _singular(word: str) -> str:
    if not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-1] if word[:-1] in KNOWN and word[:-3] + "y" not in KNOWN else word[:-3] + "y"
    if word.endswith(("sses", "xes", "ches", "shes", "zzes")):
        return word[:-2]
    return word[:-1] if word[:-1] in KNOWN or word not in KNOWN else word


def _stem(stem: str, word: str) -> str:
    """What is left without -ing or -ed: hop+e, plan(n), visit."""
    if not set(stem) & set("aeiouy"):
        return word
    if len(stem) > 3 and stem[-1] == stem[-2] and stem[-1] not in "sl":
        return stem[:-1]
    if stem.endswith("ll") and stem[:-1] in KNOWN and stem not in KNOWN:
        return stem[:-1]
    clipped = stem[-1] not in "aeiouwxy" and stem[-2] in "aeiou" and (len(stem) < 3 or stem[-3] not in "aeiou")
    choices = (stem + "e", stem) if clipped or stem[-1] in "uvcgz" else (stem, stem + "e")
    return next((choice for choice in choices if choice in KNOWN), choices[0])


def _respelled(word: str) -> str:
    for british, american in (
        ("our", "or"),
        ("ise", "ize"),
        ("isation", "ization"),
        ("yse", "yze"),
        ("ourite", "orite"),
    ):
        if word.endswith(british) and len(word) > len(british) + 1:
            other = word.removesuffix(british) + american
            return other if other in KNOWN or word not in KNOWN else word
    return SPELLINGS.get(word, word)


def entry(written: str) -> str:
    """A table's word or phrase in plain forms."""
    return "_".join(plain_form(part) for part in written.lower().replace("-", "_").split("_"))


def _groups(lines: list[list[str]]) -> dict[str, frozenset[int]]:
    found: dict[str, set[int]] = defaultdict(set)
    for number, words in enumerate(lines):
        for word in words:
            found[entry(word)].add(number)
    return {word: frozenset(numbers) for word, numbers in found.items()}


def _opposites() -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for line in table("antonyms.txt"):
        left, right = ([entry(word) for word in side.split()] for side in line.split("|"))
        for one in left:
            found[one].update(right)
        for one in right:
            found[one].update(left)
    return {word: frozenset(words) for word, words in found.items()}


SYNONYMS = _groups([line.split() for line in table("synonyms.txt")])
KINDS = _groups([line.split(":")[1].split() for line in table("kinds.txt")])
KIND_NAMES = [line.split(":")[0] for line in table("kinds.txt")]
OPPOSITES = _opposites()
PHRASES = frozenset(tuple(word.split("_")) for word in (*SYNONYMS, *OPPOSITES) if "_" in word)
NATIONALITIES = frozenset(word for word, kinds in KINDS.items() if KIND_NAMES.index("nationality") in kinds)

_NOTHING: frozenset[int] = frozenset()


def synonyms(one: str, other: str) -> bool:
    """Some group holds both."""
    return bool(SYNONYMS.get(one, _NOTHING) & SYNONYMS.get(other, _NOTHING))


@lru_cache(maxsize=65536)
def opposites(one: str, other: str) -> bool:
    """From the table, or by prefix (unsafe) and suffix (useless/useful)."""
    if other in OPPOSITES.get(one, ()):
        return True
    short, long = sorted((one, other), key=len)
    if len(short) < 3:
        return False
    if any(long == prefix + short or long == f"{prefix}_{short}" for prefix in NEGATIVE):
        return True
    if one.endswith("less") != other.endswith("less"):
        bare, rest = (one, other) if one.endswith("less") else (other, one)
        return rest in (bare[:-4], bare[:-4] + "ful")
    return False


def kind_shared(one: str, other: str) -> str:
    """The name of a kind that both belong to, or nothing."""
    shared = KINDS.get(one, _NOTHING) & KINDS.get(other, _NOTHING)
    return KIND_NAMES[min(shared)] if shared else ""


def kindred(one: str, other: str) -> bool:
    """Of one family: possible, possibility. Not -er, -ist, -ism: those change who or what is meant."""
    if {one, other} & LONERS:
        return False
    short, long = sorted((one, other), key=len)
    alike = next((i for i, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    if alike < 4 or alike < len(short) - 3:
        return False
    return one[alike:] in ENDINGS and other[alike:] in ENDINGS


def slip(one: str, other: str) -> bool:
    """Whether one may be the other with a finger gone astray. Two known words never are."""
    if (one in KNOWN and other in KNOWN) or not (one.isalpha() and other.isalpha()):
        return False
    return _near(one, other) and not _of_a_system(one, other)


def _near(one: str, other: str) -> bool:
    short = min(len(one), len(other))
    if one not in KNOWN and other not in KNOWN:  # sulfite, sulfate: two words, for all that we know
        return short >= 5 and (transposed(one, other) or doubled(one, other))
    if transposed(one, other):
        return short >= 3
    return short >= 4 and (one_edit(one, other) or (short >= 8 and two_edits(one, other)))


def _of_a_system(one: str, other: str) -> bool:
    """Sulfite and sulfate, butane and butene: endings of which each is another substance."""
    return any(
        one[: -len(a)] == other[: -len(b)] and one.endswith(a) and other.endswith(b)
        for endings in _SYSTEMS
        for a in endings
        for b in endings
    )


_SYSTEMS = (
    ("ite", "ate", "ide"),
    ("ane", "ene", "yne", "one"),
    ("nol", "nal", "nyl"),
    ("osis", "itis"),
    ("ism", "ist"),
)


def doubled(one: str, other: str) -> bool:
    """Equal but for a letter that is written twice."""
    short, long = sorted((one, other), key=len)
    return len(long) == len(short) + 1 and any(
        long[at] == long[at - 1] and long[:at] + long[at + 1 :] == short for at in range(1, len(long))
    )


def transposed(one: str, other: str) -> bool:
    """Two neighbouring letters have changed places."""
    if len(one) != len(other):
        return False
    off = [i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
    return len(off) == 2 and off[1] == off[0] + 1 and one[off[0]] == other[off[1]] and one[off[1]] == other[off[0]]


def one_edit(one: str, other: str) -> bool:
    """A letter more, less, or another one."""
    short, long = sorted((one, other), key=len)
    at = next((i for i, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    if len(short) == len(long):
        return short[at + 1 :] == long[at + 1 :]
    return len(long) == len(short) + 1 and short[at:] == long[at + 1 :]


def two_edits(one: str, other: str) -> bool:
    """After the first difference is mended in any one way, one edit is left."""
    if abs(len(one) - len(other)) > 2:
        return False
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    a, b = one[at:], other[at:]
    return one_edit(a[1:], b[1:]) or one_edit(a[1:], b) or one_edit(a, b[1:]) or transposed(a[1:], b[1:])
