"""Stage 4 · vectors process · one text, read for the second look: its frame, and the words that count, in order.

    How do I cook 2 eggs without oil?   →   @howto  cook 2 egg without oil

A `Unit` is a word that counts; `lead` is what stood before it and does not count by itself (articles, most
prepositions, helping verbs), which `order.py` needs to tell "X of Y" from "X and Y".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from metamusesd.cache import lexicon
from metamusesd.cache.frames import framed
from metamusesd.cache.quantities import number

VERBATIM = frozenset(("code", "formula", "word problem"))  # such texts are the same when they are equal, and only then
LONG_WORDS = 40  # from here on a small edit hides in the crowd: such texts must agree word for word

ARTICLES = frozenset(("a", "an", "the"))
FILLERS = lexicon.WORDS["fillers"]
PREPOSITIONS = lexicon.WORDS["prepositions"]
HELPERS = lexicon.WORDS["helpers"]
SELF = lexicon.WORDS["self"]
YOU = lexicon.WORDS["you"]
ANYONE = lexicon.WORDS["anyone"]
OTHERS = {
    "he": "he", "him": "he", "his": "he", "himself": "he", "she": "she", "her": "she", "hers": "she", "herself": "she",
    "they": "they", "them": "they", "their": "they", "theirs": "they", "themselves": "they",
}  # fmt: skip
NEGATIONS = lexicon.WORDS["negations"]
NEGATING = {"stop": "stop", "avoid": "stop", "quit": "stop", "fail": "fail", "refuse": "fail", "lack": "lack"}
JOINTS = frozenset(("and", "or", "vs", "versus", "&", "both", "either"))
LIGHT = frozenset().union(ARTICLES, FILLERS, PREPOSITIONS, HELPERS, SELF, YOU, JOINTS, ANYONE)

_TOKEN = re.compile(
    r"[a-z](?:\.[a-z])+\b\.?|(?<!\w)-\d[\d,]*(?:\.\d+)?\w*|[a-z]+(?:\+\+|#)|\.net\b|_+|"
    r"\w*\d[\w,]*(?:[.:/]\d+)*\w*|[^\W\d_]+(?:_\w+)*|[^\w\s]",
    re.A | re.I,
)
_DOTTED = re.compile(r"[a-z](?:\.[a-z])+\.?")
_CODE = re.compile(
    r"```|`[^`]{1,200}`|[{}]|\b\w+\([^)]{0,80}\)\s?[;{:.]|=>|->|==|!=|<=|>=|&&|\|\||;\s?$|</?\w{1,20}>|\b\w+_\w+\b|"
    r"\b[a-z]+[A-Z]\w*\(|https?://|\\\w+|\b\w+\.\w+\(|"
    r"(?:^|\s)(?:def|class|import|SELECT|INSERT|UPDATE|#include)\s\w+.{0,200}[:;(*]"
)
_MATH = re.compile(
    r"\w\s?[=^×÷√∑∫≤≥≠]\s?-?\w|\d\s?[+*]\s?[\dx(]|\d\s+[-/]\s+[\dx(]|\b[a-z]\s?[+*]\s?[a-z\d]\b|"
    r"\$[^$\d][^$]{0,200}\$|\d\s?[%!]\s?\d"
)
_SMALL = re.compile(
    r"[\u00b2\u00b3\u00b9\u2070-\u209c\u00bc-\u00be\u2150-\u215f]"
)  # raised and lowered figures, fractions
_LOGIC = re.compile(r"\b(?:True|False)\b.*\b(?:True|False|not|and|or)\b")
_LETTER_A = re.compile(r"[a-z]\s+A\b|-A\b|\b[Vv]itamin a\b|\b[Hh]epatitis a\b")
_MONEY = re.compile(r"(?<!\w)([$€£₹¥]|rs\.?|inr|usd|eur|gbp)\s?(\d[\d,]*(?:\.\d+)?[a-z]*)")
_FILLING = re.compile(
    r"\b(?:in fact|as a matter of fact|in reality|by any chance|for real|at all|all about|step by step|of all times?|"
    r"at the moment|at present|as of now)\b"
)
_WORLDWIDE = re.compile(
    r"\b(?:to |in )?(?:all over|all around|around|throughout|across|all) the (?:whole |entire )?world\b|\bworldwide\b"
)
_IS = re.compile(r"\b(what|who|where|when|how|why|that|it|there|here|he|she|which)'s\b")
_FOREIGN = lexicon.WORDS["foreign"]
_ENGLISH = lexicon.WORDS["english"]
_SHORT = {
    "won't": "will not", "can't": "can not", "shan't": "shall not", "let's": "let us", "cannot": "can not",
    "dont": "do not", "doesnt": "does not", "didnt": "did not", "cant": "can not", "wont": "will not",
    "isnt": "is not", "arent": "are not", "wasnt": "was not", "werent": "were not", "shouldnt": "should not",
    "wouldnt": "would not", "couldnt": "could not", "hasnt": "has not", "havent": "have not", "hadnt": "had not",
    "ain't": "is not", "whats": "what is", "hows": "how is", "wheres": "where is", "whos": "who is",
    "thats": "that is", "im": "i am", "ive": "i have", "youre": "you are", "theyre": "they are", "gonna": "going to",
    "wanna": "want to", "gotta": "have to", "u": "you", "ur": "your", "r": "are", "pls": "please", "plz": "please",
    "wat": "what", "hw": "how", "thx": "thanks", "cuz": "because", "n": "and", "teh": "the", "hte": "the",
    "adn": "and", "nad": "and", "ot": "to", "fo": "of", "ni": "in", "taht": "that", "waht": "what", "hwo": "how",
    "wiht": "with", "vs": "versus", "w/": "with",
    "$": "dollar", "€": "euro", "£": "pound", "₹": "rupee", "¥": "yen", "%": "percent", "&": "and",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Unit:
    """A word that counts."""

    word: str  # plain form
    raw: str  # as written, lower case
    lead: tuple[str, ...] = ()
    number: bool = False
    name: bool = False  # capital letter inside a sentence, or letters with digits


@dataclass(frozen=True, slots=True)
class Reading:
    """What `verify` compares."""

    exact: str  # single spaces
    plain: str  # lower case, single spaces, no closing marks
    squeezed: str  # letters and digits alone
    frame: str
    units: tuple[Unit, ...]
    people: tuple[str, ...]  # I (or we) and you, in order
    lights: frozenset[str]  # words that were left out of the units
    ends: tuple[str, ...]  # what followed the last unit
    signs: str  # + > → and the like, sorted
    cased: frozenset[str]  # words as written whose capitals decide: polish and Polish, mW and MW
    strict: str = ""  # why the texts must agree word for word: code, formula, …
    foreign: bool = False


@lru_cache(maxsize=4096)
def read(text: str) -> Reading:
    """Never raises. The time is linear in the text: `verify` bounds its length."""
    clean = _clean(text)
    words = _opened(clean.lower())
    strict = "formula" if _SMALL.search(text) else _strict(clean, words)
    frame, rest, whole = ("", "", "") if strict in VERBATIM else framed(" ".join(words).rstrip(" ."))
    units, ends = _units(_active(rest.split()), _names(clean) if rest else frozenset())
    return Reading(
        exact=" ".join(text.split()),
        plain=" ".join(word for word in words if word not in ".,"),
        squeezed="".join(ch for ch in clean.lower() if ch.isalnum()),
        frame=frame,
        units=units,
        people=tuple("I" if word in SELF else "you" for word in whole.split() if word in SELF or word in YOU),
        lights=frozenset(rest.split()) - {unit.raw for unit in units},
        ends=ends,
        signs=_signs(text),
        cased=_cased(text),
        strict=strict,
        foreign=_foreign(words),
    )


def _clean(text: str) -> str:
    """Compatibility forms, straight quotes, no accents on Latin letters, no invisible signs."""
    kept = text if text.isascii() else "".join(_folded(ch) for ch in text)
    straight = kept.translate(_STRAIGHT)
    return straight if straight.isupper() else _CAPITALS.sub(lambda found: _UNMISTAKABLE[found[0]], straight)


@lru_cache(maxsize=4096)
def _folded(ch: str) -> str:
    """é becomes e; letters of other scripts keep their marks, which are letters there (が is not か)."""
    if unicodedata.category(ch) == "Cf":
        return ""
    plain = unicodedata.normalize("NFKD", ch)
    bare = "".join(part for part in plain if not unicodedata.combining(part))
    return bare if bare.isascii() else ch


_UNMISTAKABLE = {"US": "USA", "IT": "Infotech"}  # in lower case they are pronouns
_CAPITALS = re.compile(r"\b(?:US|IT)\b")
_STRAIGHT = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "−": "-", "′": "'", "`": "`"})


def _signs(text: str) -> str:
    """The signs that say something and are not read as words: of reckoning, arrows, suits; and the minus of O-."""
    said = [ch for ch in text if ch in "#@*" or (unicodedata.category(ch) in _SAYING and ch not in _WORDY)]
    return "".join(sorted([*said, *_PRIMES.findall(text), *("-" for _ in _GRADE.findall(text))]))


_SAYING, _WORDY = frozenset(("Sm", "Sc", "So")), frozenset("$€£₹¥®™©°−")
_PRIMES = re.compile(r"(?<=\d)\s?([′″])")
_GRADE = re.compile(r"\b[A-Za-z]{1,2}[-−](?![\w-])")
_BIG_AND_SMALL, _UNITS_CASED = lexicon.WORDS["cased"], lexicon.WORDS["cased_units"]
_UNIT = re.compile(r"(?<![\w.])\d[\d.,]*\s?([A-Za-z]{1,4})\b")
_GREEK = re.compile(r"(?<!\w)[\u0391-\u03c9](?!\w)")
_INNER = re.compile(r"(?<=[\w,;] )[A-Za-z]+\b")


def _cased(text: str) -> frozenset[str]:
    """Words whose capitals decide; none where all is small, or most is not."""
    exact = " ".join(text.split())
    words, greek = re.findall(r"[A-Za-z]+", exact), frozenset(_GREEK.findall(exact))
    if not any(ch.isupper() for ch in exact) or sum(word[0].isupper() for word in words) > 0.7 * len(words) > 2:
        return greek
    units = (word for word in _UNIT.findall(exact) if word.lower() in _UNITS_CASED)
    return frozenset(word for word in _INNER.findall(exact) if word.lower() in _BIG_AND_SMALL).union(units, greek)


def _opened(lower: str) -> list[str]:
    """Words with their contractions opened; marks are words, those that say nothing are gone."""
    lower = _WORLDWIDE.sub("in the world", _FILLING.sub(" ", lower))
    lower = lower.replace("b/w", "between")
    lower = _MONEY.sub(r" \2 \1 ", lower)
    text = _uncontracted(lower) if "'" in lower else lower
    words = [word for token in _TOKEN.findall(text) for word in _spelled(token)]
    return [word for i, word in enumerate(words) if not i or word != words[i - 1] or word not in LIGHT]


def _uncontracted(lower: str) -> str:
    text = _CONTRACTED.sub(lambda found: _CONTRACTIONS[found[0]], _IS.sub(r"\1 is", lower))
    text = _WONT.sub(lambda found: _SHORT.get(found[0], found[0]), text)
    return _POSSESSIVE.sub("", text.replace("n't", " not"))


_CONTRACTIONS = {"'re": " are", "'ve": " have", "'ll": " will", "'m": " am", "'d": " would"}
_CONTRACTED = re.compile(r"'(?:re|ve|ll|m|d)\b")
_WONT = re.compile(r"\b(?:won|can|shan|ain|let)'(?:t|s)\b")
_POSSESSIVE = re.compile(r"'s\b|(?<=s)'(?=\s)")


def _spelled(token: str) -> list[str]:
    return _MARKS[token] if token in _MARKS else _abbreviated(token)


_MARKS = {mark: ["."] for mark in "?!;"} | {mark: [] for mark in (*":-'\"()[]…`¿¡", "...")} | {"/": ["or"]}


def _abbreviated(word: str) -> list[str]:
    """Dots out of U.S.A., slang and signs into words."""
    if _DOTTED.fullmatch(word):
        whole = word.replace(".", "")
        return ["usa" if whole == "us" else whole]
    return _SHORT.get(word, word).split()


def _names(clean: str) -> frozenset[str]:
    """Words with a capital letter where no sentence starts. A text in capitals or in title case names nothing."""
    words = re.findall(r"(?:^|[.?!:]\s+|\"\s*)?[A-Za-z][\w'.+#-]*", clean)
    inner = [word.removesuffix("'s") for word in words if word[0].isalpha()][1:]
    capital = [word for word in inner if word[0].isupper()]
    if len(capital) > 0.7 * len(inner) and len(inner) > 3:
        return frozenset()
    parts = {part.lower() for word in capital for part in re.split(r"[-'.]", word) if part}
    return frozenset(parts - _ENGLISH - NEGATIONS | ({"a"} if _LETTER_A.search(clean) else set()))


def _active(words: list[str]) -> list[str]:
    """`is S seen by A` becomes `A saw S`, so that who does it stands first."""
    if "by" not in words:
        return words
    at = words.index("by")
    start = next((i for i in range(at - 1, -1, -1) if words[i] in ("is", "are", "was", "were", "been", "being")), -1)
    if start < 0 or at < 2 or not _participle(words[at - 1]) or words[at + 1 : at + 2] == []:
        return words
    begin = start if start > 0 else 0
    subject = words[begin + 1 : at - 1] if begin == 0 else words[:begin] + words[begin + 1 : at - 1]
    stop = next((i for i in range(at + 1, len(words)) if words[i] in _BREAKS), len(words))
    agent = words[at + 1 : stop]
    if not subject or not agent or len(agent) > 5 or agent[0].isdigit() or agent[0].endswith("ing"):
        return words
    return [*agent, words[at - 1], *subject, *words[stop:]]


_BREAKS = frozenset((".", ",", "in", "on", "at", "for", "when", "if", "because", "during", "before", "after", "with"))


def _participle(word: str) -> bool:
    return word.endswith("ed") or word in lexicon.PARTICIPLES


def _units(words: list[str], names: frozenset[str]) -> tuple[tuple[Unit, ...], tuple[str, ...]]:
    """The words that count, each with the lighter ones before it, and the light ones after the last."""
    found: list[Unit] = []
    lead: list[str] = []
    pairs = [("", ""), *_phrased(words), ("", "")]
    for at in range(1, len(pairs) - 1):
        (word, raw), before, after = pairs[at], pairs[at - 1][1], pairs[at + 1][1]
        value = _value(raw, before, after)
        if not value and raw not in names and (raw in LIGHT or word in HELPERS) and not _is_using(raw, before):
            perfect = at == 1 and word == "have" and _perfect(words)
            if perfect or not _main_verb(word, raw, after):
                lead.append(raw)
                continue
        named = raw in names or (not value and not raw.isalpha() and any(ch.isdigit() for ch in raw))
        found.append(Unit(value or OTHERS.get(raw, word), raw, tuple(lead), bool(value), named))
        lead = []
    return tuple(found), tuple(lead)


def _is_using(raw: str, before: str) -> bool:
    """`using` is a verb after is, and else a preposition like with."""
    return raw == "using" and before in ("is", "are", "was", "were", "be", "am")


def _value(raw: str, before: str, after: str) -> str:
    """The number that a word is here: one apple, the second man; not one of them, nor a second."""
    if raw == "one":
        return "1" if _counts(before, after) else ""
    if raw == "second":
        return "2th" if _ranks(before, after) else ""
    return number(raw)


def _ranks(before: str, after: str) -> bool:
    """Whether `second` is a place in a row here, and not a time."""
    if after in ("", ".", ",", "of", "and", "or", "per") or after in HELPERS:
        return False
    return before in lexicon.WORDS["ranking"] or after in lexicon.WORDS["superlatives"] or after == "most"


def _counts(before: str, after: str) -> bool:
    """Whether `one` is a number here, and not somebody or "one of"."""
    return not (
        before in lexicon.WORDS["this_one"] or after in HELPERS or after in ("of", "who", "that", "another", "")
    )


def _main_verb(word: str, raw: str, after: str) -> bool:
    """Whether have, do, get and need say something themselves here: "what do cats need"."""
    if word == "have":
        return not (_participle(after) or after in lexicon.WORDS["auxiliary"] or after in SELF | YOU)
    if word == "do":
        return raw in ("do", "doing", "done") and (after in ("", ".", ",", "about", "for") or after in ARTICLES)
    return word in ("get", "need") and after != "to"


def _perfect(words: list[str]) -> bool:
    """`has the plan failed`: a participle follows the subject."""
    return any(_participle(word) for word in words[2:6])


def _phrased(words: list[str]) -> Iterator[tuple[str, str]]:
    """Plain forms; words that a table knows as one phrase come as one."""
    forms = [lexicon.plain_form(word) for word in words]
    at = 0
    while at < len(forms):
        size = 1
        if forms[at] in _PHRASE_STARTS:
            size = next((n for n in (5, 4, 3, 2) if tuple(forms[at : at + n]) in lexicon.PHRASES), 1)
        yield "_".join(forms[at : at + size]), "_".join(words[at : at + size])
        at += size


_PHRASE_STARTS = frozenset(phrase[0] for phrase in lexicon.PHRASES)


def _strict(clean: str, words: list[str]) -> str:
    if _CODE.search(clean):
        return "code"
    if _MATH.search(clean) or _LOGIC.search(clean):
        return "formula"
    numbers = sum(word[0].isdigit() for word in words)
    if numbers >= 3 and words.count(".") >= 2:
        return "word problem"
    return "long text" if len(words) > LONG_WORDS or words[:-1].count(".") >= 3 else ""


def _foreign(words: list[str]) -> bool:
    """Another script, or more small words of another language than of English."""
    letters = [word for word in words if word[0].isalpha()]
    if any(not word.isascii() for word in words if word.isalpha()):
        return True
    other, english = (sum(word in small for word in letters) for small in (_FOREIGN, _ENGLISH))
    strange = sum(word not in lexicon.KNOWN and lexicon.plain_form(word) not in lexicon.KNOWN for word in letters)
    return other > english or (len(letters) >= 3 and english == 0 and strange * 2 > len(letters))
