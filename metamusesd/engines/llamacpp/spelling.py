"""Stage 8 · worker · what is shown for a token: its bytes, and its log-probability beside the likeliest ones."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from metamusesd.engines.llamacpp.native import Model
from metamusesd.engines.llamacpp.sampling import describe, log_probabilities


class Spelling:
    """Of one model. `ends` are its end tokens, `template` the source of its chat template."""

    def __init__(self, model: Model, ends: Collection[int], template: str) -> None:
        self._model = model
        self._pieces: dict[int, bytes] = {}
        structural = (token for text, token in model.control_tokens().items() if text in template)
        self._hidden = {*ends, *structural}  # also those that the template is made of, should the model utter one

    def piece(self, token: int) -> bytes:
        """Nothing for those that the template is made of, their spelling for all others."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = b"" if token in self._hidden else self._model.piece(token)
        return piece

    def logprobs(self, row: Any, token: int, most: int | None) -> list[Any] | None:
        """What a client is told that asked for `most` of them. `row`: the logits, f32 (vocabulary,), as computed."""
        if most is None or token < 0:
            return None
        own, best = log_probabilities(row, token, most)
        names = [(self._model.piece(other).decode("utf-8", "replace"), value) for other, value in best]
        return [describe(self._model.piece(token).decode("utf-8", "replace"), own, names)]
