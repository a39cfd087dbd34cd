"""Stage 8 · worker · pieces of a rendered prompt become tokens, and no user can forge one.

Only control tokens spelled out in *template* text become control tokens. The stretches between them, template and user
text joined, are tokenized with special parsing off: `<|im_end|>` typed by a user stays seven harmless tokens, and
honest text gets exactly the tokens that the model was trained on, without seams where template and user text meet.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from metamusesd.engines.template import Piece

Tokenize = Callable[[str], list[int]]  # special parsing off, no BOS added


class PromptTokenizer:
    """Turns pieces into token ids. Thread-safe as far as `tokenize` is."""

    def __init__(self, tokenize: Tokenize, control: dict[str, int], bos: int | None) -> None:
        """`control`: the control tokens by their text; `bos`: the token to begin with, None for models without one."""
        self._tokenize = tokenize
        self._control = control
        self._bos = bos
        longest_first = sorted(control, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def tokens(self, pieces: list[Piece]) -> list[int]:
        """The prompt's token ids, with exactly one BOS at the start if the model wants one."""
        result: list[int] = []
        for part in self.segments(pieces):
            if isinstance(part, int):
                result.append(part)
            else:
                result += self._tokenize(part)
        if self._bos is not None and result[:1] != [self._bos]:
            result.insert(0, self._bos)
        while self._bos is not None and result[1:2] == [self._bos]:
            del result[1]
        return result

    def segments(self, pieces: list[Piece]) -> list[int | str]:
        """Control tokens of the template as ids, and the text between them as long stretches."""
        parts: list[int | str] = []
        text = ""
        for piece in pieces:
            if not piece.trusted:
                text += piece.text
                continue
            place = 0
            for found in self._pattern.finditer(piece.text):
                text += piece.text[place : found.start()]
                parts += [text, self._control[found.group()]] if text else [self._control[found.group()]]
                text, place = "", found.end()
            text += piece.text[place:]
        return [*parts, text] if text else parts
