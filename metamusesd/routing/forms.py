"""Stage 3 · dispatcher, command line · the marks of form that a prompt may have: patterns, and what makes them cheap.

Looking for a piece of text is a hundred times as quick as looking for a pattern: where `pieces` are given, a text
without any of them is not searched.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Form:
    """One mark: log(1 + how often the pattern is found) · weight, at most 3."""

    pattern: re.Pattern[str]
    weight: float
    pieces: tuple[str, ...] = ()

    def value(self, text: str) -> float:
        """Of one text."""
        for piece in self.pieces:
            if piece in text:
                break
        else:
            if self.pieces:
                return 0.0
        found = self.pattern.findall(text)
        return min(3.0, math.log1p(len(found)) * self.weight) if found else 0.0


def _form(pattern: str, weight: float, *pieces: str) -> Form:
    return Form(re.compile(pattern), weight, pieces)


FORMS: dict[str, Form] = {
    # code
    "fence": _form(r"```", 0.7, "```"),
    "code_line": _form(
        r"(?m)^ *(?:def |class |import |from \w+ import|return\b|for ?\(|if ?\(|while ?\(|var |let |"
        r"const |public |private |static |void |int |#include|func |fn |use |SELECT |INSERT |CREATE |"
        r"FROM |echo |\$ |>>> |assert |[}\])]+;?$)|[;{]$",
        0.8,
    ),
    "call": _form(r"\w\([^()\n]{0,60}\)", 0.6, "("),
    "operator": _form(r"==|!=|<=|>=|&&|\|\||->|=>|::|\+=|\+\+|:=", 0.6, "=", "&", "|", ">", ":", "+"),
    "identifier": _form(r"[a-z]_[a-z]|[a-z][A-Z][a-z]", 0.5),
    "index": _form(r"\w\[\w[^\]\n]{0,12}\]", 0.7, "["),
    "list_literal": _form(r"\[ ?-?(?:\d+|\"[^\"]*\"|'[^']*')(?: ?, ?-?(?:\d+|\"[^\"]*\"|'[^']*'))+ ?\]", 0.8, "["),
    "file_name": _form(
        r"\.(?:py|js|ts|rs|go|java|cpp|rb|php|sh|sql|csv|json|ya?ml|xml|html|css|txt|log|toml|exe|"
        r"ipynb)\b",
        1.0,
        ".",
    ),
    "error_name": _form(
        r"Error\b|Exception\b|Traceback|[Ss]egmentation fault|exit code|undefined reference",
        0.8,
        "Error",
        "xception",
        "raceback",
        "fault",
        "exit code",
        "undefined",
    ),
    "example_io": _form(r"Example ?\d*:|[Ii]nput:|[Oo]utput:|Explanation:|Constraints?:", 0.8, ":"),
    "power_bound": _form(r"10\^?[4-9]\b|10\*\*\d|<= ?\w[\w.\[\]]*(?:\.length)? ?<=", 0.8, "10", "<="),
    "big_o": _form(r"\bO\([^)]{1,24}\)", 0.8, "O("),
    # mathematics
    "latex": _form(r"\$[^$\n]{1,200}\$|\\\(|\\\[|\\begin", 0.8, "$", "\\"),
    "latex_command": _form(r"\\[a-zA-Z]+", 0.55, "\\"),
    "latex_hard": _form(
        r"\\(?:int|sum|prod|lim|infty|binom|equiv|pmod|mathbb|zeta|omega|overline|cos|sin|tan|log|"
        r"partial|mathbf|vec|cdots|[lc]?dots)",
        0.8,
        "\\",
    ),
    "asy": _form(r"\[asy\]", 1.0, "[asy]"),
    "arithmetic": _form(r"\d ?[+*/×÷^=%] ?[(\d$]|\d ?[-−–] ?[(\d$](?!\d?:)", 0.8),
    "unknown": _form(
        r"\b[xyznab] ?[=+*^<>)]|\d[xyzn]\b|\b[fgh]\([xyznt]\)",
        0.7,
        "=",
        "+",
        "*",
        "^",
        "<",
        ">",
        ")",
        "x",
        "n ",
    ),
    "money": _form(
        r"[$€£₹¥] ?\d|\\\$ ?\d|\d ?(?:dollars|cents|euros|元|円|원)",
        0.7,
        "$",
        "€",
        "£",
        "₹",
        "¥",
        "dollar",
        "cents",
        "euro",
        "元",
        "円",
        "원",
    ),
    "percent": _form(r"\d ?\\?%", 0.7, "%"),
    "choices_of_numbers": _form(r"(?m)(?:^|[\s(])[A-Ea-e][).:] ?\$?-?\d", 0.7, ")", ".", ":"),
    # reasoning
    "options": _form(r"(?m)(?:^|\s)\(?[A-F][).] ?[A-Za-z\"“]", 0.8, ")", "."),
    "bracket_options": _form(r"\([A-F]\)", 0.7, "(A)", "(B)"),
    "quantified": _form(
        r"(?m)(?:^|[.;:]\s)(?:All|No|Some|Every|Each|Any|Most|Either|If|Only|None|Not all|Everyone|"
        r"Unless)\b",
        0.8,
    ),
    "then": _form(r"\bIf [^.?\n]{3,120}, (?:then )?", 0.7, "If "),
    "boolean_words": _form(
        r"\b(?:not|and|or) \(|\b(?:not|and|or) (?:True|False|not)\b|\((?: |True|False|not)",
        0.7,
        "(",
        "True",
        "False",
        " not",
    ),
    "clock_ranges": _form(r"\d:\d\d ?(?:am|pm)? ?(?:-|–|to|and) ?\d{1,2}:\d\d", 0.8, ":"),
    "table_text": _form(r"first line is|header|\|[^|\n]{1,60}\|[^|\n]{1,60}\|", 0.7),
    "letters": _form(r"\b[A-Z](?:, [A-Z])+,? (?:and|or) [A-Z]\b|\b[A-Z] (?:is|sits|must|cannot) ", 0.8),
    "speaker": _form(r"(?m)^[A-Z][\w' -]{2,30}: ", 0.6, ":"),
    "brackets": _form(r"(?:[\[\]<>{}()] ){4,}", 1.0, " ) ", " ] ", " } ", " > ", "( (", "[ [", "{ {", "< <"),
    # general
    "quoted": _form(r"[\"“][^\"“”\n]{20,}[\"”]", 0.6, '"', "“"),
    "names": _form(r"(?<=[a-z,] )[A-Z][a-z]{2,}", 0.7),
    "heading": _form(r"(?m)^[A-Z][\w ]{2,24}:(?: |$)", 0.6, ":"),
}
