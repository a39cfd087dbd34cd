"""Stages 7, 9 · worker · its end of one pipe: frames in, a bounded buffer of frames out, never blocking.

One Pipe is one epoch. A reader that is slow fills the buffer; `full` then tells the step loop to pause.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator
from typing import Any

from metamusesd.errors import WireError
from metamusesd.wire import Frame, FrameReader, Generate, encode

READ_BYTES = 256 * 1024
FULL_BYTES = 4 * 1024 * 1024


class Pipe:
    """The worker's end of one socketpair."""

    def __init__(self, fd: int, epoch: int) -> None:
        self.epoch = epoch
        self.frames = 0  # handed out by `receive`
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._reader = FrameReader(epoch)
        self._out = bytearray()
        self._heard: deque[tuple[Frame, Any]] = deque()  # read by `listen`, and not handed out yet
        self._over: EOFError | WireError | None = None  # what comes after them

    def __repr__(self) -> str:
        return f"<Pipe epoch={self.epoch} frames={self.frames} waiting={len(self._out)}B>"

    def fileno(self) -> int:
        """For the selector."""
        return self._socket.fileno()

    @property
    def waiting(self) -> bool:
        """Bytes wait for the reader: watch for writability."""
        return bool(self._out)

    @property
    def full(self) -> bool:
        """The reader is far behind: make nothing more for it now."""
        return len(self._out) > FULL_BYTES

    def receive(self) -> Iterator[tuple[Frame, Any]]:
        """All frames that are there. Raises EOFError when the other end is gone, WireError on garbage."""
        while self._heard:
            self.frames += 1
            yield self._heard.popleft()
        if self._over is not None:
            raise self._over
        for frame in self._read():
            self.frames += 1
            yield frame

    def listen(self) -> tuple[bool, list[int]]:
        """In the middle of a step: whether this epoch is over, and the handles that are cancelled by what `receive` has
        not handed out yet. Takes the socket's frames in, keeps them in order for `receive`, and raises nothing."""
        if self._over is None:
            try:
                self._heard.extend(self._read())
            except (EOFError, WireError) as error:
                self._over = error
        return self._over is not None, [handle for handles in self._heard_of(Frame.CANCEL) for handle in handles]

    def orders(self) -> list[Generate]:
        """The jobs that `listen` has heard of, and `receive` has not handed out yet."""
        return [order for orders in self._heard_of(Frame.GENERATE) for order in orders]

    def raises(self) -> list[tuple[int, int]]:
        """Likewise: handles, and the classes that they shall have."""
        return [pair for pairs in self._heard_of(Frame.RAISE) for pair in pairs]

    def _heard_of(self, kind: Frame) -> list[Any]:
        return [payload for frame, payload in self._heard if frame is kind]

    @property
    def heard(self) -> bool:
        """`receive` has something that the selector cannot see."""
        return bool(self._heard) or self._over is not None

    def _read(self) -> Iterator[tuple[Frame, Any]]:
        while True:
            try:
                data = self._socket.recv(READ_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                raise EOFError(str(error)) from error
            if not data:
                raise EOFError
            yield from self._reader.feed(data)
            if len(data) < READ_BYTES:
                return

    def send(self, frame: Frame, payload: Any) -> None:
        """Queue one frame and write what the socket takes."""
        self._out += encode(frame, self.epoch, payload)
        self.flush()

    def flush(self) -> None:
        """Write on. A reader that is gone shows itself as EOF in `receive`."""
        out = self._out
        try:
            while out:
                sent = self._socket.send(out)
                del out[:sent]
        except BlockingIOError:
            pass
        except OSError:
            out.clear()

    def close(self) -> None:
        """The other side sees EOF. Legal twice."""
        self._socket.close()
