"""A dispatcher of a few lines for vectors: asks over each pipe, notes the answers, breaks pipes on demand."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import time

from metamusesd import control
from metamusesd.control import Birth
from metamusesd.wire import Count, Found, Frame, FrameReader, Look, encode
from tests.process.kid_dispatcher import mischief, note


class Pipe:
    """Our end of the pipe to vectors."""

    def __init__(self, birth: Birth, epoch: int, fd: int) -> None:
        self.birth, self.epoch, self.broken = birth, epoch, False
        self.socket, self.reader = socket.socket(fileno=fd), FrameReader(epoch)
        questions = [Count(1), Look(2, "What is the capital of France?", ["p"], until_ns=time.monotonic_ns() + 10**10)]
        self.socket.sendall(encode(Frame.ASK, epoch, questions))

    def hear(self) -> bool:
        """What vectors says. False: it is gone."""
        data = b""
        with contextlib.suppress(ConnectionResetError):
            data = self.socket.recv(65536)
        for _, answers in self.reader.feed(data):
            for answer in answers:
                told = answer.verdict if isinstance(answer, Found) else json.loads(answer.data)
                note(self.birth, "answer", epoch=self.epoch, told=told)
        return bool(data)

    def misbehave(self) -> None:
        """Once a pipe, when the test says so and names its epoch."""
        what, _, epoch = mischief(self.birth).partition(" ")
        if self.broken or epoch != str(self.epoch):
            return
        self.broken = True
        if what == "garbage":
            self.socket.sendall(b"garbage" * 100)
        elif what == "wish":
            control.send(self.birth.control, {"say": "relink vectors", "epoch": self.epoch})


def main(birth: Birth) -> int:
    note(birth, "born", generation=birth.generation)
    control.send(birth.control, {"say": "ready"})
    pipe: Pipe | None = None
    while True:
        birth.board.dispatcher.write(beat_ns=time.monotonic_ns(), redis_ok=1, pid=os.getpid())
        readable, _, _ = select.select([birth.control, *([pipe.socket] if pipe else [])], [], [], 0.05)
        if pipe is not None and pipe.socket in readable and not pipe.hear():
            note(birth, "eof", epoch=pipe.epoch)
            pipe.socket.close()
            pipe = None
        if birth.control in readable:
            received = control.receive(birth.control)
            if received is None:
                return 1
            message, fd = received
            do = message.pop("do")
            note(birth, do, **message)
            if do == "vectors" and fd is not None:
                pipe = Pipe(birth, message["epoch"], fd)
            elif fd is not None:  # a worker's
                os.write(fd, b"hello from the dispatcher")
            elif do == "drain":
                note(birth, "drained")
                return 0
        if pipe is not None:
            pipe.misbehave()
