"""A dispatcher of a few lines for real workers: gives the orders that a file names, notes what becomes of them."""

from __future__ import annotations

import json
import os
import select
import socket
import time

from metamusesd import control
from metamusesd.control import Birth
from metamusesd.wire import Finished, Frame, FrameReader, Generate, Token, encode
from tests.process.kid_dispatcher import mischief, note


class End:
    """Our end of the pipe to one worker."""

    def __init__(self, birth: Birth, row: int, epoch: int, fd: int) -> None:
        self.birth, self.row, self.epoch, self.held, self.retiring = birth, row, epoch, 0, False
        self.socket = socket.socket(fileno=fd)
        self.reader = FrameReader(epoch)
        self.handles = 0
        birth.board.reset_frames_sent(row)

    def feed(self) -> None:
        """Everything that the file of this worker orders now."""
        path = self.birth.config.state_dir / f"orders-{self.row}"
        if self.retiring or not path.exists():
            return
        for query in path.read_text().splitlines():
            self.handles += 1
            self.held += 1
            body = json.dumps({"user_query": query}).encode()
            order = Generate(self.handles, 1, body, id=f"{self.row}-{self.handles}")
            self.birth.board.add_frame_sent(self.row)
            self.socket.sendall(encode(Frame.GENERATE, self.epoch, [order]))
        path.unlink()

    def hear(self) -> bool:
        """What the worker says. False: it is gone."""
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            data = b""
        for frame, payload in self.reader.feed(data):
            if frame is Frame.HELLO:
                note(self.birth, "hello", row=self.row)
                continue
            for event in payload:
                if isinstance(event, Token):
                    note(self.birth, "token", row=self.row)
                if isinstance(event, Finished):
                    self.held -= 1
                    note(self.birth, "finished", row=self.row, reason=event.reason)
        return bool(data)

    def rest(self) -> None:
        """Tell the supervisor when a worker that retires holds nothing."""
        if self.retiring and not self.held:
            self.retiring = False
            note(self.birth, "retired", row=self.row)
            control.send(self.birth.control, {"say": "retired", "row": self.row, "epoch": self.epoch})


def main(birth: Birth) -> int:
    note(birth, "born", generation=birth.generation)
    control.send(birth.control, {"say": "ready"})
    ends: dict[int, End] = {}  # row → end
    while True:
        trouble = mischief(birth).removeprefix("trouble ") if mischief(birth).startswith("trouble") else "0"
        birth.board.dispatcher.write(
            beat_ns=time.monotonic_ns(), redis_ok=int(trouble == "0"), redis_trouble=int(trouble), pid=os.getpid()
        )
        by_fd = {end.socket.fileno(): end for end in ends.values()}
        readable, _, _ = select.select([birth.control, *by_fd], [], [], 0.05)
        for fd in set(readable) & set(by_fd):
            end = by_fd[fd]
            if not end.hear():
                end.socket.close()
                del ends[end.row]
        if birth.control in readable:
            received = control.receive(birth.control)
            if received is None:
                return 1
            message, passed = received
            note(birth, message.pop("do"), **message)
            if passed is not None:
                ends[message["row"]] = End(birth, message["row"], message["epoch"], passed)
            elif "within_s" in message:
                return 0
            elif message["row"] in ends and "exit" not in message:
                ends[message["row"]].retiring = True
        for end in ends.values():
            end.feed()
            end.rest()
