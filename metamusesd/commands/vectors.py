"""Stage 4 · command line · asks the vectors process of a running daemon, over its socket: one question, one answer."""

from __future__ import annotations

import json
import socket
from typing import Any

from metamusesd.config import Config
from metamusesd.errors import CacheError, DaemonAway, StoreFailed, WireError
from metamusesd.wire import Count, Forget, Frame, FrameReader, Told, Weigh, encode

PATIENCE_S = 30.0  # a purge may take long


def ask(config: Config, question: Count | Forget | Weigh) -> dict[str, Any]:
    """The answer. Raises DaemonAway when there is no vectors process, StoreFailed when it could not do it."""
    path = config.cache_socket
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as talk:
            talk.settimeout(PATIENCE_S)
            talk.connect(str(path))
            talk.sendall(encode(Frame.ASK, 0, [question]))
            told: dict[str, Any] = json.loads(_answer(talk, question.handle).data)
    except (OSError, WireError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DaemonAway(
            f"the vectors process does not answer at {path}: {reason}; `metamusesd status` says whether the daemon "
            "runs, and what keeps its semantic cache from working"
        ) from error
    if (problem := told.get("error")) is not None:
        kind = StoreFailed if problem.get("code") == StoreFailed.code else CacheError
        raise kind(problem.get("message"))
    return told


def _answer(talk: socket.socket, handle: int) -> Told:
    reader = FrameReader(0)
    while data := talk.recv(65_536):
        for frame, answers in reader.feed(data):
            for answer in answers if frame is Frame.ANSWER else ():
                if isinstance(answer, Told) and answer.handle == handle:
                    return answer
    raise ConnectionError("it hung up")
