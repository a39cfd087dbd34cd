"""Stage 8 · worker · the bytes of tokens become text: no split characters, no part of a stop string.

A token may end inside a character, and a stop string may begin in one token and end in another. So text is held back
while it is an incomplete character or may still become a stop string, and not a moment longer.
"""

from __future__ import annotations

import codecs


class TextStream:
    """The text of one sequence. `stopped` turns true once a stop string was found; nothing follows it."""

    __slots__ = ("_decode", "_held", "_stops", "stopped")

    def __init__(self, stops: list[str]) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def feed(self, piece: bytes) -> str:
        """Add the bytes of one token; what can be shown now comes back."""
        return self._release(self._decode(piece))

    def finish(self) -> str:
        """The text that was held back, at the end of a sequence that no stop string ended."""
        if self.stopped:
            return ""
        text = self._release(self._decode(b"", True)) + self._held
        self._held = ""
        return text

    def _release(self, new: str) -> str:
        if not self._stops or self.stopped:
            return "" if self.stopped else new
        text = self._held + new
        found = first_stop(text, self._stops)
        if found >= 0:
            self.stopped, self._held = True, ""
            return text[:found]
        keep = len(text) - pending_length(text, self._stops)
        self._held = text[keep:]
        return text[:keep]


def first_stop(text: str, stops: tuple[str, ...]) -> int:
    """Where the first stop string in `text` begins, or -1."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return min(places, default=-1)


def pending_length(text: str, stops: tuple[str, ...]) -> int:
    """The length of the longest end of `text` that begins one of the stop strings."""
    longest = max(len(stop) for stop in stops) - 1
    for length in range(min(longest, len(text)), 0, -1):
        end = text[-length:]
        if any(stop.startswith(end) for stop in stops):
            return length
    return 0
