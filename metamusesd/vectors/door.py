"""Stage 4 · vectors process · the socket for operators' commands: our own user and root come in, nobody else.

The same frames as on the dispatcher's pipe, in epoch 0. At most MOST at a time: the oldest makes room for the newest.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from metamusesd.log import Logger
from metamusesd.sockets import bind, is_welcome, peer_of
from metamusesd.vectors.talk import Hooks, Talk

MOST = 16


class Door:
    """Open it, and close it."""

    def __init__(self, path: Path, hooks: Hooks, log: Logger) -> None:
        self._path, self._log = path, log
        self._asked, self._over = hooks.asked, hooks.over
        self._talks: list[Talk] = []  # the oldest first
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen. OSError: something is in the way."""
        hooks = Hooks(self._enter, self._asked, self._leave)
        listener = bind(self._path, 0o600)
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: Talk(0, hooks, self._log), sock=listener
        )

    def close(self) -> None:
        """Hang up on everybody and remove the socket. Legal twice, and before `open`."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        for talk in list(self._talks):
            talk.close()
        with contextlib.suppress(OSError):
            self._path.unlink()

    def _enter(self, talk: Talk) -> bool:
        assert talk.transport is not None
        pid, uid, _ = peer_of(talk.transport.get_extra_info("socket"))
        if not is_welcome(uid):
            self._log.warning("somebody else at the cache socket", pid=pid, uid=uid)
            return False
        self._talks.append(talk)
        for oldest in self._talks[:-MOST]:
            oldest.close()
        return True

    def _leave(self, talk: Talk) -> None:
        if talk in self._talks:
            self._talks.remove(talk)
        self._over(talk)
