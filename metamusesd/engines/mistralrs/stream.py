"""Stage 8 · worker · one sequence's thread: mistral.rs says a token at a time, and blocks until it has one.

What it says goes into one queue for all sequences, which the step loop empties. A stream that was dropped sends nothing
more; it lets go of mistral.rs' end at the next token, and mistral.rs then ends the sequence.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from metamusesd.errors import EngineFailed, MetamusesdError


@dataclass(frozen=True, slots=True)
class Usage:
    """mistral.rs' own count, with its last word."""

    prompt: int
    completion: int
    cached: int
    prompt_rate: float  # tokens/s


@dataclass(frozen=True, slots=True)
class Said:
    """One token of a sequence, or its end. `text` may be empty: a character is incomplete, or the token is hidden."""

    text: str
    reason: str = ""  # stop | length: this was the last
    ended: bool = False  # by a token of the model's own, which is counted and not said
    logprobs: list[dict[str, Any]] | None = None
    usage: Usage | None = None


Heard = tuple[int, Said | MetamusesdError]  # of which sequence, by order of admission


class Stream:
    """A running sequence. Its thread is a daemon: it may stand in mistral.rs while the process leaves."""

    def __init__(self, order: int, opened: Callable[[], Iterator[Said]], into: queue.SimpleQueue[Heard]) -> None:
        """`opened` sends the request and may block; it runs on the thread, so that the step loop never does."""
        self._order, self._opened, self._into = order, opened, into
        self._dropped = False
        self._thread = threading.Thread(target=self._run, name=f"sequence-{order}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """mistral.rs has not been let go of: dropped or not, it may compute for this sequence."""
        return self._thread.is_alive()

    def drop(self) -> None:
        """Nothing of it is wanted any more. Never blocks."""
        self._dropped = True

    def _run(self) -> None:
        try:
            for said in () if self._dropped else self._opened():
                if self._dropped:
                    return
                self._into.put((self._order, said))
        except MetamusesdError as error:
            self._into.put((self._order, error))
        except BaseException as error:  # a panic of Rust is no Exception, and must not go unsaid
            self._into.put((self._order, EngineFailed(f"mistral.rs: {type(error).__name__}: {error}"[:600])))
