"""Stage 4 · vectors process · other ways to ask the same, brought to one wording before the frame is read.

    which mountain is the tallest in peru   →   what is tallest mountain in peru
    the radio was invented by whom          →   who invented the radio

Each rule is a pattern, what stands instead and, to save time, words that it cannot do without. All are tried once, in
order, on words as `frames.framed` gets them. A rule may drop function words and turn words round, and never drops a
number, a name or a negation.
"""

from __future__ import annotations

import re

from metamusesd.cache import lexicon

PERSON = r"(?:i|you|we|one|someone|somebody|anyone|people|a person|a man|a woman|they)"
_PART = rf"\w+ed|{'|'.join(sorted(lexicon.PARTICIPLES))}"
_TOP = "|".join(sorted(lexicon.WORDS["superlatives"])) + r"|(?:most|least) \w+"
_NOT_HELPING = r"(?!(?:is|are|was|were|do|does|did|can|could|should|would|will|has|have|if|it|that|happens?)\b)"
_X = r"([^,.]{1,60}?)"
_CHIEF = r"(?:(?:main|primary|principal|chief|major|real|actual|exact) )?"
_ALONE = r"(?!.* and (?:how|what|why|when|where|who)\b)"
_PICK = r"(?:buy|use|read|choose|watch|pick|prefer|try)"
_VERDICT = (
    r"safe|unsafe|bad|good|ok|okay|fine|dangerous|harmful|healthy|unhealthy|legal|illegal|possible|hard|difficult|easy|"
    r"worth it|necessary|normal|wrong|allowed|common|useful"
)
_MADE_BY = {
    "inventor": "invented", "author": "wrote", "writer": "wrote", "founder": "founded", "discoverer": "discovered",
    "composer": "composed", "painter": "painted", "creator": "created", "owner": "owns", "winner": "won",
}  # fmt: skip
_WAYS = {"fastest|quickest": "quickly", "cheapest": "cheaply", "safest": "safely"}
_MEASURED = {
    "height": "tall", "length": "long", "depth": "deep", "width": "wide", "weight": "heavy", "age": "old",
    "size": "big", "speed": "fast",
}  # fmt: skip

OPINIONS = (
    (r"^(who|what|which) do you (?:think|believe|feel) (?=(?:is|are|was|were|will|would|should|has|can)\b)", r"\1 "),
    (
        r"^do you (?:think|believe|feel) (?:that )?([^,.]{1,40}?) (will|is|are|was|were|should|can|would) (?=\w)",
        r"\2 \1 ",
    ),
    (
        r"^(who|what|which) (?:do|does|did) (.{2,40}?) (?:think|believe|say|consider)s? (is|are|was|were) (.*?)"
        r"( [.?])?$",
        r"\1 \3 \4 according to \2",
    ),
    (
        r"^what (?:do you think|are your (?:thoughts|views|opinions)|is your (?:opinion|view|take)) (?:of|on|about) ",
        "opinion ",
    ),
    (rf"^how (do|does|did) {_X} (?:view|see|feel about|perceive|regard) (?=\w)", r"what \1 \2 think of "),
)
CHOICES = (
    (r"^(what|which) one (?=is|are|was|were)", r"\1 "),
    (
        rf"^(?:what|which) {_NOT_HELPING}([a-z][^,.]{{1,40}}?) (is|are|was|were) (?:the )?({_TOP}|best|better|good)"
        r"( .*)?$",
        r"what \2 \3 \1\4",
    ),
    (
        rf"^(?:what|which) {_NOT_HELPING}([a-z][^,.]{{1,30}}?) (?:is|are) (your|my|his|her|their) (?:most )?"
        r"favou?rite$",
        r"what is \2 favorite \1",
    ),
    (rf"^what ([a-z][a-z ]{{1,25}}?) (?:does|do) (?!(?:i|you|we|it|they|he|she)\b){_X} have$", r"what is \1 of \2"),
    (
        r"^(?:is|are) ([^,.]{1,40}? or [^,.]{1,40}?) (better|safer|healthier|faster|cheaper|bigger|stronger)"
        r"( for .*)?$",
        r"which is \2 \3 , \1",
    ),
    (rf"^(?:what|which) ([a-z][^,.]{{2,40}}?) (?:should|can|could) {PERSON} {_PICK}(?= |$)", r"what best \1"),
    (
        r"^(?:(?:can|could|would) (?:you|anyone|someone|anybody|somebody) )?(?:please )?(?:suggest|recommend)"
        r"(?: me| us)?(?: a| an| some| any| few)*(?: good| best| nice| great)? (?!how|what|why|me\b)",
        "what best ",
    ),
)
DIFFERENCES = (
    (rf"^how (?:is|are) {_X} different (?:from|than|to) (?!each)([^,.]+)", r"what is difference between \1 and \2"),
    (rf"^how (?:does|do) {_X} differ from (?!each)([^,.]+)", r"what is difference between \1 and \2"),
    (
        r"^how (?:do|does|are|is) ([^,.]{1,60}? and [^,.]{1,60}?) (?:differ|different)(?: from each other)?$",
        r"what is difference between \1",
    ),
    (rf"^what (?:distinguishes|differentiates|separates) {_X} from ([^,.]+)$", r"what is difference between \1 and \2"),
    (
        r"^([^,.]{1,40}?) versus ([^,.]{1,40}?) (?:[,.] )?what (?:is|are) (?:the )?(?:main )?differences?$",
        r"what is difference between \1 and \2",
        " versus ",
    ),
    (r"^(?:a |an |the )?([^,.]{1,40}?) versus ([^,.]{1,40})$", r"what is difference between \1 and \2", " versus "),
)
MEANINGS = (
    (rf"^what (?:does|do) {_X} mean(?= |$)", r"what is meaning of \1"),
    (r"^what (?:is meant|do you mean|do they mean) by ", "what is meaning of "),
    (r"^define ", "what is meaning of "),
    (r"^what is (?:the )?(?:meaning|definition) of (?:the )?(?:word|term|phrase|expression) ", "what is meaning of "),
    (rf"^what (?:is|are) {_X} (?:used|good) for$", r"what is purpose of \1"),
    (rf"^what (?:does|do) {_X} do$", r"what is function of \1"),
    (r"^explain (?!how|what|why|when|where|who|which)(?:to me )?", ""),
)
AUTHORS = (
    (rf"^(?:the )?([^,.]{{2,60}}?) (?:was|were|is|are) ({_PART}) by (?:whom|who)$", r"who \2 \1", " by who"),
    (rf"^by (?:whom|who) (?:was|were|is|are) {_X} ({_PART})$", r"who \2 \1"),
    (rf"^(?:who|whom) (?:was|were|is|are) {_X} ({_PART}) by$", r"who \2 \1"),
    *((rf"^who (?:is|was|are|were) (?:the )?{agent}s? of ", f"who {verb} ") for agent, verb in _MADE_BY.items()),
)
TIMES_AND_PLACES = (
    (rf"^what (?:is|was) (?:the )?(?:birth ?date|date of birth|birthday) of {_X}$", r"when was \1 born"),
    (rf"^what (?:is|was) {_X} (?:birth ?date|date of birth|birthday)$", r"when was \1 born"),
    (rf"^(?:what|where) is (?:the )?(?:birthplace|place of birth) of {_X}$", r"where was \1 born"),
    (r"^(?:in )?(?:what|which) year (?=(?:did|was|were|does|do|will)\b)", "when "),
    (rf"^where (is|are|was|were) {_X} (?:located|situated)(?= |$)", r"where \1 \2"),
    (r"^what (?:is|are) (?:the )?location of ", "where is "),
    (r"^where (?:do|does|can) (?:shops|stores) sell ", "where can i buy "),
    (
        r"^what (?:is|are) (?:the |a |some )?(?:best |good )?places? (?:to|where i can) (?=buy|get|find)",
        "where can i ",
    ),
)
MEASURES = (
    (rf"^how much (?:does|do|did|would|will) {_X} cost(?= |$)", r"what is cost of \1"),
    (r"^how expensive (?:is|are) ", "what is cost of "),
    (r"^how much (?:is|are) ((?:a|an|the) (?!.*\b(?:worth|left|of|in)\b)[^,.]{1,40})$", r"what is cost of \1"),
    (rf"^how much (?:does|do|did) {_X} weigh$", r"how heavy is \1"),
    *((rf"^what (is|was|are|were) (?:the )?{noun} of ", rf"how {measure} \1 ") for noun, measure in _MEASURED.items()),
    (rf"^how far (?:away )?(?:is it|is) (?:from )?{_X} (?:to|from) ([^,.]+)$", r"how far is \1 from \2"),
    (rf"^what (?:is|was) (?:the )?distance (?:between|from) {_X} (?:and|to) ([^,.]+)$", r"how far is \1 from \2"),
    (r"^how far away ", "how far "),
    (r"^how many (?:people|inhabitants) (?:live|are living|are there) in ([^,.]+)$", r"what is population of \1"),
    (r"^how (?:big|large) is (?:the )?population of ", "what is population of "),
    (rf"^how long (?:do|does|can|will) {_X} (?:live|survive)$", r"how long do \1 live"),
    (r"^what is (?:the )?(?:lifespan|life span|life expectancy) of ([^,.]+)$", r"how long do \1 live"),
    (
        rf"^how long (?:do|does|will|would) (?!it )(?:a |an |the )?{_X} take to (\w+)$",
        r"how long does it take to \2 \1",
    ),
    (rf"^how (many|much) {_X} (?:does|do) {_X} (?:have|contain)$", r"how \1 \2 are in \3"),
)
CAUSES = (
    (rf"^what (?:causes|can cause) {_ALONE}{_X} to ([^,.]+)$", r"why \1 \2"),
    (rf"^what caused {_X} to ([^,.]+)$", r"why did \1 \2"),
    (
        rf"^what (?:is|are) (?:the )?{_CHIEF}(?:causes? of|reasons? for) {_ALONE}(?!\w+ing\b)(?!.* being )([^,.]+)$",
        r"why does \1 happen",
    ),
    (
        rf"^what (?:was|were) (?:the )?{_CHIEF}(?:causes? of|reasons? for) {_ALONE}(?!\w+ing\b)(?!.* being )([^,.]+)$",
        r"why did \1 happen",
    ),
    (rf"^what (?:causes|can cause) {_ALONE}([^,.]+)$", r"why does \1 happen"),
    (rf"^what caused {_ALONE}([^,.]+)$", r"why did \1 happen"),
    (rf"^why (do|does|did) {_X} (?:occur|exist|take place)$", r"why \1 \2 happen"),
    (r"^why (?:is|are) there ([^,.]+)$", r"why does \1 happen"),
    (r"^what makes (?!(?:you|people|a|an|i|me|him|her|them|women|men|someone|somebody|one)\b)", "why does "),
)
STATES = (
    (r"^is (?:it )?(?:ever )?possible for ([^,.]{1,60}?) to ", r"can \1 "),
    (r"^(what (?:happens|(?:will|would|can|could|might) happen)) when ", r"\1 if "),
    (rf"^what (does it mean|(?:should|can|could|must|do) {PERSON} do) when ", r"what \1 if "),
    *(
        (rf"^what (?:is|are) (?:the )?(?:{most}) ways? (?:to|of) ([^.]+)$", rf"how do i \1 {adverb}")
        for most, adverb in _WAYS.items()
    ),
    (r"^(?:is|are|am) ([^,.]{1,60}?) (?:able to|capable of) ", r"can \1 "),
    (
        rf"^is (?!(?:it|king|anything|something|everything|nothing)\b)(\w+ing(?: [^,.]{{1,50}}?)?) ({_VERDICT})"
        r"(?: (.*))?$",
        r"is it \2 to \1 \3",
    ),
    (r"^(?:is|are) there (?:any |a |an |some )?([^,.]{1,40}?) (?:in|on) ([^,.]{1,40})$", r"does \2 have \1"),
    (r"^(?:do|does) (?:any |some )?([^,.]{1,40}?) exist (?:in|on) ([^,.]{1,40})$", r"does \2 have \1"),
    (rf"^(?:is|are) {_X} (?:required|needed|necessary) (?=to |for )", r"do people need \1 "),
    (rf"^(?:what|which) {_X} (?:is|are) (?:required|needed|necessary) (?=to |for )", r"what \1 do people need "),
    (
        rf"^(how (?:can|could|should)|can|could|should|may|must) (?!(?:i|you|we|it|he|she|they|this|that|there)\b)"
        rf"(?!.* by ){_X} be ({_PART})(?= |$)",
        r"\1 people \3 \2",
        " be ",
    ),
    (rf"^how (?:is|are) (?!(?:you|it)\b)([^,.]{{1,40}}?) ({_PART})$", r"how people \2 \1"),
    (r"^((?:what|which|where|how|when|why)(?: \w+){0,3} (?:do|does|did)) they (?=[^.]*$)", r"\1 people ", " they "),
)
ANYWHERE = (
    (r"\b(?:make|get|have) ([^,.]{1,30}?) (?:to )?stop (?=\w+ing\b)", r"stop \1 from ", " stop "),
    (r"\bkeep ([^,.]{1,30}?) from (?=\w+ing\b)", r"stop \1 from ", "keep "),
    (r"\blearn how to\b", "learn to", "learn how"),
)
ORDERS = (
    (r"^(?:give|list|show|tell|name)(?: me| us)? (?:some |a few |any )?(?=examples?\b)", "what are "),
    (r"^tell (?:me|us) (?:something |more |a bit |a little )?about ", ""),
    (r"^(?:give|show) (?:me|us) ", ""),
)

_OPENER = re.compile(r"\^(?:([a-z]+)|\((?:\?:)?([a-z|]+)\)) ")


def _openers(pattern: str) -> frozenset[str]:
    """The words that a text must begin with to match; none for a rule that may match anywhere."""
    found = _OPENER.match(pattern)
    return frozenset((found[1] or found[2]).split("|")) if found else frozenset()


Rule = tuple[str, ...]
RULES: tuple[Rule, ...] = (
    *OPINIONS, *CHOICES, *DIFFERENCES, *AUTHORS, *TIMES_AND_PLACES, *MEASURES, *MEANINGS, *CAUSES, *STATES, *ANYWHERE,
    *ORDERS,
)  # fmt: skip
REWRITES = [(_openers(rule[0]), rule[2] if len(rule) == 3 else "", re.compile(rule[0]), rule[1]) for rule in RULES]


def rewritten(words: str) -> str:
    """The same question in the wording that all its kin get."""
    first = words.partition(" ")[0]
    for openers, needle, pattern, instead in REWRITES:
        if (not openers or first in openers) and needle in words:
            words, changed = pattern.subn(instead, words)
            if changed:
                first = words.partition(" ")[0]
    return words
