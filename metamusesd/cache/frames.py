"""Stage 4 · vectors process · how a question is put: "how can I", "what is the best way to" and "how does one" are one.

`framed` takes words (lower case, contractions opened, `,` and `.` as words of their own, single spaces) and gives the
frame and what is left. A frame starts with `@`; frames that may stand for one another are listed in `akin`.
"""

from __future__ import annotations

import re

from metamusesd.cache.rewrites import PERSON as _PERSON
from metamusesd.cache.rewrites import rewritten

_WH = r"(?=(?:how|what|why|when|where|who|which|whether|if|whose|whom)\b)"
_NICE = (
    r"(?:best|good|effective|possible|proper|correct|right|different|various|ideal|great|common|other|better|main|"
    r"easiest|simplest|easy|simple|quick)"
)
_WAY = r"(?:ways?|methods?|steps?|techniques?|approach|approaches|procedures?|process|tricks?|tips?)"

POLITE = [
    (re.compile(pattern), "")
    for pattern in (
        r"^(?:(?:hi|hello|hey|please|ok|okay|so|well|also|and|but|dear \w+|guys|excuse me)(?: [,.])? )+(?=\w)",
        r"^(?:can|could|would|will) (?:you|anyone|someone|somebody|anybody)(?: all)? (?:please |kindly )?"
        r"(?:tell|explain|show|help|teach|describe|say|let)(?: to)?(?: me| us)?(?: understand| know)? "
        rf"(?:about )?{_WH}",
        r"^(?:i|we) (?:just )?(?:want|would like|need|am trying|wish)(?: to)? "
        rf"(?:know|understand|learn|find out) {_WH}",
        rf"^(?:please )?(?:tell|explain|show|teach|describe)(?: to)?(?: me| us)? {_WH}",
        rf"^(?:do|does|can|could) (?:you|anyone|anybody|someone) (?:know|tell me|happen to know) {_WH}",
        rf"^(?:i am|i was) (?:wondering|curious) (?:about )?{_WH}",
        r"^(?:can|could|would|will) you (?:please |kindly )?(?=(?:write|give|list|summari[sz]e|translate|create|draw|"
        r"compose|generate|tell|show|name|explain|describe)\b)",
        r"^(?:in your opinion|according to you|as per you|for you)(?: ,)? ",
        r" (?:[.,] )?(?:please |kindly )?(?:please|thanks|thank you|thanks in advance|kindly|asap|hurry|"
        r"urgent|urgently|help|help me|any help|any ideas|any suggestions)(?= ?[.?]*$)",
        r" (?:, )?(?:in your opinion|according to you|in your view)\b(?: ,)?",
    )
]
TO_BUY = re.compile(
    r"^((?:what|which) [^.]*\b(?:best|good|top)\b[^.]*?) to (?:buy|use|read|watch|see|play)(?: right)?(?: now| today)?"
    r"(?= ?[.?]*$)"
)
FRONTED = re.compile(
    r"^((?:in|on|at|for|as|with|using|if|when|according to|during|after|before|since|from|between) [^,]{2,80}) "
    r", (?:then )?((?:how|what|why|when|where|who|which|is|are|do|does|did|can|should|will|would|was|were|has|have) "
    r"[^,.]*)"
)
LIKES = (
    (re.compile(r"^what (?:does|do|did) (?:a |an |the )?([^,.]{1,40}?) (look|feel|taste|smell|sound) like"), r"\1 \2"),
    (re.compile(r"^what (?:is|are|was|were) ((?!it )[^,.]{2,40}?) like(?= |$)"), r"\1"),
)
FEEL = re.compile(
    r"^(?:what (?:is|was) (?:it )?(?:feel )?like|how (?:does|is|do|was) it(?: feel)?(?: like)?|"
    r"what (?:does|do|did) it feel like) (?:to be|to|being|for) "
)

AIMS = re.compile(
    rf"^(?:(?:if )?{_PERSON} (?:want|wants|would like|need|needs|wish) to|in order to|to) ([^.]+?) [,.] "
    rf"(?:what|how|what steps) (?:should|can|do|must|would|could) {_PERSON}"
    r"(?: (?:have|need) to)?(?: (?:do|go about|take))?(?: (?:it|that|so|this))?$"
)
_MEASURES = (
    "long old far often big tall large deep high fast heavy hard difficult easy good bad important likely safe soon "
    "well wide hot cold accurate effective dangerous rich strong common expensive close"
)
_HOW_TO = (
    rf"^how (?:do|can|could|should|would|shall|might|does|must|may|will) {_PERSON}"
    r"(?: best| possibly| be able to| go about)? ",
    r"^how (?:can|should|could) be ",
    r"^how to (?:best )?",
    r"^(?:what|which) (?:is|are|can be|could be|would be|might be|will be)(?: (?:the|some|a|an|any|your|of|all|one))*"
    rf"(?: {_NICE})* {_WAY}(?: for {_PERSON})?(?: (?:that )?{_PERSON} (?:can|could|should))?"
    r"(?: involved| needed| required| in order)?"
    r"(?: (?:to|of|for|in which|by which|i|you|we|one|can))* ",
    rf"^(?:is|are) there (?:a|any|some|an)?(?: {_NICE})* ?{_WAY}(?: for {_PERSON})?"
    rf"(?: (?:that )?{_PERSON} (?:can|could))?(?: (?:to|of|for))* ",
    rf"^what (?:can|should|must|could|do|shall|would|might|does) (?:(?:{_PERSON}|be) )?(?:(?:have|need) to )?"
    r"(?:do|done)(?: in order)? (?:to |for (?=\w+ing\b))",
    rf"^what (?:steps|measures|actions) (?:can|should|could|must|do) {_PERSON} (?:need to )?take (?:to|for) ",
    rf"^(?:the |some |any )?(?:{_NICE} )*{_WAY} (?:to|for|of) ",
    r"^any (?:idea|tips|advice|ideas)(?: on| about)? how to ",
)
_PATTERNS = (
    (FEEL.pattern, "@feel"),
    *((pattern, "@howto") for pattern in _HOW_TO),
    (
        r"^(?:what (?:is|are|was|were) (?:the )?(?:(?:main|real|actual|exact|primary|logical) )?reasons?|"
        r"for what reason|how come)"
        r"(?: (?:for|behind|why|that|of))* ",
        "@why",
    ),
    (r"^(?:what (?:is|was|are) the (?:total )?number of|how many) ", "@howmany"),
    (r"^(?:what (?:is|was|are) the (?:amount|quantity) of|how much) ", "@howmuch"),
    (rf"^how (?:{_MEASURES.replace(' ', '|')}) ", "@howmuch+"),
    (r"^(?:at )?what time ", "@when"),
    (r"^why ", "@why"),
    (r"^how ", "@how"),
    (r"^when ", "@when"),
    (r"^where ", "@where"),
    (r"^(?:who|whom|whose) ", "@who"),
    (r"^what (?:(?:would|will|does|can|could|might) happen|happens) ", "@happen"),
    (r"^(?:what|which) ", "@what"),
    (rf"^(?:is|was) (?:it )?(?:ever )?possible (?:for {_PERSON} )?(?:to|that) ", "@can"),
    (r"^is there (?:any|a) (?:possibility|chance) (?:to|of|that) ", "@can"),
    (r"^(?:can|could|may|might) ", "@can"),
    (r"^(?:should|must|shall|ought) ", "@should"),
    (r"^(?:will|would) ", "@will"),
    (r"^(?:did|was|were|had) ", "@was"),
    (r"^(?:is|are|am|do|does|has|have) ", "@is"),
)
RULES = [(re.compile(pattern), frame) for pattern, frame in _PATTERNS]
YES_NO = frozenset(("@can", "@should", "@will", "@was", "@is"))
_AKIN = {
    frozenset(pair)
    for pair in (
        ("@how", "@howto"), ("@how", "@what"), ("@howto", "@what"),
        ("@what", "@who"), ("@how", "@feel"), ("@what", "@feel"), ("@what", "@where"), ("@what", "@howmuch"),
        ("@can", "@is"), ("@what", "@happen"),
        ("@how", "@howmuch+"),
    )
}  # fmt: skip


def framed(words: str) -> tuple[str, str, str]:
    """The frame, the words without it, and the words with it but without politeness."""
    bare = _bare(words)
    aim = AIMS.match(bare)
    if aim:
        return "@howto", aim[1], bare
    words = _moved(bare)
    return *_split(words), words


def _split(words: str) -> tuple[str, str]:
    for pattern, kept in () if FEEL.match(words) else LIKES:
        found = pattern.match(words)
        if found:
            return "@how", found.expand(kept) + words[found.end() :]
    for pattern, frame in RULES:
        found = pattern.match(words)
        if found:
            rest = words[found.end() :]
            return _kept(frame, found[0], rest)
    return "@none", words


def _kept(frame: str, matched: str, rest: str) -> tuple[str, str]:
    """A measure ("how long") and the helping verb of a yes-or-no question stay with the words."""
    if frame == "@howmuch+":
        return "@howmuch", f"{matched.split()[1]} {rest}"
    if frame in ("@is", "@was"):
        return frame, f"{matched.split()[0]} {rest}"
    return frame, rest


def _bare(words: str) -> str:
    for pattern, instead in POLITE:
        words = pattern.sub(instead, words)
    return TO_BUY.sub(r"\1", words)


def _moved(words: str) -> str:
    """What stands before the question goes after it; who thinks so goes to the end."""
    return rewritten(FRONTED.sub(r"\2 \1", words))


def near(one: str, other: str) -> float:
    """The score from which two akin ways of asking count as one; 0: they are one, above 1: they never do."""
    return 0.0 if one == other else _NEAR.get(frozenset((one, other)), 2.0)


_NEAR = {
    frozenset(("@none", "@what")): 0.90, frozenset(("@none", "@howto")): 0.90, frozenset(("@how", "@feel")): 0.90,
    frozenset(("@what", "@feel")): 0.90, frozenset(("@how", "@howto")): 0.92, frozenset(("@none", "@where")): 0.90,
}  # fmt: skip


def akin(one: str, other: str) -> bool:
    """Whether the two ways of asking may get one answer, the rest being the same."""
    return "@none" in (one, other) or one == other or frozenset((one, other)) in _AKIN
