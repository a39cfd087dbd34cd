"""Stages 3, 10 · dispatcher · what a text says about the moment, its writer and itself, by its words alone. Pure.

    passing(text)      why its answer will not do later: it depends on the time, the writer's state, on chance; or it
                       is an order; or it asks nothing. A miss too many costs a generation, a hit too many is a lie
    is_personal(text)  it speaks of whoever writes it

English, and the commonest such words of some other languages. Whoever adds a phrase adds a row to its test.
"""

from __future__ import annotations

import re

END_CHARS = 500


def _any_of(*phrases: str) -> re.Pattern[str]:
    return re.compile(r"\b(?:" + "|".join(phrases).replace("'", "['’]") + r")", re.IGNORECASE)


_POLITE = r"^\W*(?:please |so |ok,? |hey,? |well,? )?(?:(?:can|could|would|will) you (?:please )?)?"
_DAYS = "monday|tuesday|wednesday|thursday|friday|saturday|sunday"
_MONTHS = "january|february|march|april|may|june|july|august|september|october|november|december"
_SPANS = "morning|afternoon|evening|night|week|weekend|month|quarter|year|season|hour|spring|summer|autumn|fall|winter"
_FEASTS = "easter|christmas|thanksgiving|ramadan|diwali|passover|hanukkah|lent|carnival|new year|eid"
_OFFICES = (
    "president|prime minister|ceo|king|queen|chancellor|pope|mayor|governor|champion|leader|secretary|speaker"
    "|coach|manager|captain|minister|head|chairman|director"
)
_GOODS = (
    "bitcoin|btc|ethereum|dogecoin|crypto|gold|silver|oil|gas|petrol|diesel|dollar|euro|pound|yen|rupee|stocks?|shares?"
)
_FIGURES = (
    "time|date|day|week|month|year|weather|temperature|prices?|rates?|version|status|scores?|exchange|value|events?"
    "|affairs|news|population|traffic"
)
_NOW = _any_of(
    "(?:today|tonight|tomorrow|yesterday)(?:'s)?\\b", "(?:right|just) now\\b", "at the moment\\b", "currently\\b",
    "nowadays\\b", "these days\\b", "so far\\b", "as of\\b", "up[ -]to[ -]date\\b", "latest\\b", "newest\\b",
    "most recent(?!ly)(?! common)\\b", "breaking news\\b", "upcoming\\b", "live scores?\\b", "headlines?\\b",
    rf"(?:current|present) (?:\w+ )?(?:{_FIGURES}|{_OFFICES})\b", "(?:what is|what's|any) (?:in )?(?:the )?news\\b",
    r"what (?:time|day|date|year|month)(?: of the \w+)? (?:is|do we)\b", r"(?:tell|give) me the (?:time|date|day)\b",
    r"(?:what is|what's) the (?:time|date|day)(?: now)?\W*$", rf"is it (?:a )?(?:{_DAYS}|weekend|holiday|{_FEASTS})\b",
    r"how old (?:is|am|are)\b", "how long ago\\b",
    "(?:how (?:long|many \\w+)|days|weeks|hours|minutes) (?:is it |are there |is there )?(?:un)?till?\\b",
    r"how (?:long|many \w+) (?:to|before) (?:go|\w+day)\b", r"(?:days|weeks|hours) (?:left|to go)\b",
    rf"when is (?:the next |this |my |{_FEASTS})",
    r"next (?:bus|train|flight|ferry|game|match|episode|election|eclipse)\b",
    "weather (?:in|like|at|for|forecast)\\b", "(?:what is|what's|how is|how's) the (?:weather|traffic|temperature)\\b",
    r"temperature (?:in|outside|at)\b", "forecast for\\b",
    "(?:will it|going to|gonna) (?:rain|snow|be (?:sunny|hot|cold))",
    "is it (?:raining|snowing|sunny|windy)\\b", "need an umbrella\\b",
    "(?:what is|what's) (?:happening|going on|on tv)\\b",
    rf"(?:price|worth|cost|value|rate)s? of (?:a |an |one |the )?(?:\w+ )?(?:{_GOODS})\b",
    rf"(?:{_GOODS}) (?:price|rate)s?\b",
    rf"how much is (?:a |an |one |the )?(?:{_GOODS})\b", r"\w+ to \w+ (?:exchange )?rate\b", "exchange rates?\\b",
    r"scores? (?:of|in|for) (?:the )?(?:\w+ ){0,3}(?:game|match|final|series)", "who is winning\\b",
    rf"who(?: is|'s| are) (?:the )?(?:current |new |vice |deputy )?(?:{_OFFICES}) (?:of|in|at)\b",
    "still (?:available|alive|open|married|valid|working)\\b",
    r"open now\b", r"near me\b", r"nearby\W*$", r"in stock\W*$", "out yet\\b",
)  # fmt: skip
_STANDS = re.compile(  # how something stands: is the pharmacy open?
    r"^\W*(?:is|are) (?:\w+ ){1,5}(?:down|open|closed|delayed|cancell?ed|alive|online|offline|live|late)\W*$", re.I
)
_SPAN = _any_of(rf"(?:this|next|last|past|coming) (?:{_SPANS}|{_DAYS}|{_MONTHS}|game|match|election)\b", "who won\\b",
                "recently\\b")  # fmt: skip
_YEAR = re.compile(r"\b(?:1\d{3}|20\d\d)\b")
_ELSEWHERE = re.compile(  # the same of other languages, where the words are not used for much else
    r"\b(?:heute|gestern|morgen früh|jetzt gerade|derzeit|aktuell\w*|wetter|wie spät|wieviel uhr|hoy|ayer|ahora mismo"
    r"|qué hora|que hora|qué tiempo|el tiempo en|actualmente|aujourd['’]hui|hier soir|en ce moment|quelle heure"
    r"|météo|actuellement|oggi|ieri|adesso|che ore|che tempo|hoje|ontem|agora mesmo|que horas|vandaag|gisteren|hoe laat"
    r"|het weer)\b|今天|明天|昨天|现在|天气|几点|今日|明日|昨日|天気|何時"
    r"|сегодня|завтра|вчера|сейчас|погод|который час",
    re.IGNORECASE,
)

_STATE = (
    "balances?|accounts?|orders?|bills?|invoices?|payments?|subscription|booking|flights?|appointments?|schedule"
    "|calendar|meetings?|e?mails?|inbox|messages?|location|address|name|age|birthday|passwords?|pin|cards?"
    "|transactions?|paycheck|salary|credit|limit|points|miles|reservations?|tickets?|package|parcel|delivery|status"
    "|progress|grades?|results?|files?|documents?|lists?|notes?|reminders?|alarms?|timers?|playlist|cart|profile"
    "|settings|history|phone|devices?|refund|claim|application|loan|plan|usage|data|score|rank|shift|turn"
)
_OF_MINE = _any_of(rf"(?:my|our) (?:\w+ ){{0,2}}(?:{_STATE})\b")
_ABOUT_ME = _any_of(
    "when (?:is|are|was|were) (?:my|our)\\b", "where am i\\b", "who am i\\b",
    "what (?:did|do|have) i (?:say|ask|tell|write|owe|need to pay|already)\\b",
    "what have i\\b",
    "(?:did|have|has|was|were|am) i (?:just |already )?(?:pass|paid|pay|win|won|charged?|late|eligible|"
    "logged|registered|blocked|approved|accepted)", "do i (?:still )?(?:owe|have (?:any|enough|an?))\\b",
    "do you (?:remember|know) (?:me|my|what i)\\b", "remember (?:me|what i)\\b", "what do you know about me\\b",
    "how many \\w+ (?:do|have) i (?:have|got|left)\\b",
    "(?:my|our|your|the) (?:previous|last|earlier|first) (?:question|message|answer|reply)\\b",
    r"(?:you|i) (?:just )?(?:said|told|mentioned|asked)(?: \w+)? (?:before|earlier|above)\b",
)  # fmt: skip
HOW_TO = re.compile(  # how something is done, by anybody
    r"^\W*(?:please |so )?(?:how to|how (?:do|can|could|should|would|might) (?:i|you|we|one|people|someone|somebody)"
    r"|how much \w+ (?:do|should) (?:i|you|we|one) (?:need|drink|eat|use)"
    r"|(?:what|which) (?:is|are) (?:the |some )?(?:best |good |easiest |right |safest )*(?:ways?|methods?|steps|tips|"
    r"techniques?|tricks|time)\b|what should (?:i|you|we|one) do|is there (?:a|any) way|is it possible to|ways? to"
    r"|steps? to|tips? (?:to|for|on)|should (?:i|we|one)|(?:can|could|may|must) (?:you|we|one|people))\b",
    re.IGNORECASE,
)

_MAKES = "generate|create|make(?: up)?|give me|pick|choose|draw|select|think of|suggest|invent"
_CHANCE = re.compile(
    rf"{_POLITE}(?:(?:{_MAKES})\b[^.?!]{{0,40}}\b(?:passwords?|passphrases?|uuids?|guids?|usernames?|pin|otp|nonce"
    rf"|secret"
    r"|random\w*|numbers? (?:between|from)|winner|coin|dice)\b|(?:roll|flip|toss) (?:a |the |two "
    r"|some )?(?:di(?:c)?e|coin)"
    r"|roll \d*d\d+|tell me (?:a|another|some|one) (?:\w+ )?(?:jokes?|riddles?|fun facts?)|surprise me"
    r"|(?:a )?random \w+"
    r"|(?:tell|give) me (?:something|anything) (?:else|new|different|interesting|random))",
    re.IGNORECASE,
)
_ANOTHER = _any_of(r"another (?:one|joke|story|fact|idea|example|riddle|name)\b", "try again\\b", "once more\\b")
_ORDER = re.compile(
    rf"{_POLITE}(?:set (?:an?|my|the) (?:timer|alarm|reminder)|remind me|wake me|notify me|alert me|call (?:me|my"
    rf"|mom|dad)"
    r"|send (?:\w+ ){1,3}(?:message|mail|e-?mail|text|money|reminder)|(?:text|e-?mail|message|tell) \w+ that i"
    r"|turn (?:on|off|up|down)|book (?:a|an|me|us)|order (?:a|an|me|us|some)|play (?:some|my|the song|music)"
    r"|(?:pay|cancel|renew|update|delete|change) my|transfer \W?\d|add .{1,60} to my)\b",
    re.IGNORECASE,
)
_BY_ITSELF = re.compile(
    r"^\W*(?:(?:please )?(?:again|more|continue|go on|go ahead|next|repeat|shorter|longer|simpler|why|how|what|who|when"
    r"|where|and|really|yes|no|ok(?:ay)?|sure|thanks?|thank you|hello there|tell me more|do (?:it|that) again"
    r"|(?:translate|explain|summari[sz]e|rewrite|repeat|shorten|fix|improve|correct) (?:it|that|this|them)"
    r"|say (?:it|that) again|and you|what about \w+|make it \w+|in (?:english|german|french|spanish))"
    r"(?: (?:please|again|simpler|shorter|better|more|now|it|that|for me))*)\W*$",
    re.IGNORECASE,
)

_STATES = "am|was|have|had|feel|felt|think|need|want|wish|live|work|like|love|hate|told|said|asked|take|weigh|got|went"
_OF_THE_USER = re.compile(
    rf"\bi\s*['’]\s*(?:m|ve|d)\b"
    rf"|(?<!do )(?<!did )(?<!should )(?<!can )(?<!could )(?<!must )(?<!would )\bi (?:{_STATES})\b"
    r"|\b(?:am|was|have|did|were) (?:i|we)\b|\bdo i (?:owe|look|have)\b|\bwe\s*['’]\s*re\b"
    r"|(?<!do )(?<!should )\bwe (?:are|have|need|want)\b|\b(?:about|for|with|call) me\b",
    re.IGNORECASE,
)
_BELONGS = re.compile(
    r"\b(?:my|mine|myself|ours?|ourselves|mein\w*|mijn|mon|mes|mio|mia|meu|minha)\b|我的|私の|\bмо[йяеи]\b",
    re.IGNORECASE,
)


def passing(text: str, *, alone: bool) -> str:
    """Why its answer must not be given again; empty: it may. `alone`: no turn of a conversation stands before it.

    Of a long text both ends are read, where requests stand: all of a megabyte would hold up the dispatcher.
    """
    if len(text) > 2 * END_CHARS:
        text = f"{text[:END_CHARS]}\n{text[-END_CHARS:]}"
    if sum(letter.isalnum() for letter in text) < 2 or (alone and _BY_ITSELF.match(text)):
        return "its text asks nothing by itself"
    if _NOW.search(text) or _STANDS.match(text) or _ELSEWHERE.search(text):
        return "the answer depends on the time"
    if _SPAN.search(text) and not _YEAR.search(text):
        return "the answer depends on the time"
    if _ABOUT_ME.search(text) or (_OF_MINE.search(text) and not HOW_TO.match(text)):
        return "the answer depends on the user's own state"
    if _CHANCE.match(text) or _ANOTHER.search(text):
        return "it asks for something new"
    return "it is an order, and not a question" if _ORDER.match(text) else ""


def is_personal(text: str) -> bool:
    """It speaks of whoever writes it. `how do I` and `do I need` do not, and `my` does not in a question of how
    something is done: `how do I clean my shoes` is everybody's question. A long text is taken for one that does."""
    if len(text) > 2 * END_CHARS:
        return True
    return bool(_OF_THE_USER.search(text)) or (bool(_BELONGS.search(text)) and not HOW_TO.match(text))
