"""Stage 0 · command line · ask the running daemon: HTTP on its UNIX socket. Standard library only."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from metamusesd.config import Config
from metamusesd.errors import DaemonAway

TIMEOUT_S = 5.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("d", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def require(config: Config) -> None:
    """Raise DaemonAway unless something listens on the health socket."""
    connection = _UnixConnection(config.health_socket)
    try:
        connection.connect()
    except OSError as error:
        raise _away(config, error) from error
    finally:
        connection.close()


def get(config: Config, path: str) -> tuple[int, bytes]:
    """HTTP status and body. Raises DaemonAway."""
    connection = _UnixConnection(config.health_socket)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise _away(config, error) from error
    finally:
        connection.close()


def status(config: Config) -> dict[str, Any]:
    """What the supervisor says of itself and its children: /status."""
    _, body = get(config, "/status")
    try:
        answer = json.loads(body)
    except ValueError as error:
        raise DaemonAway(f"{config.health_socket}: what answers there is no metamusesd: {error}") from error
    if not isinstance(answer, dict):
        raise DaemonAway(f"{config.health_socket}: what answers there is no metamusesd")
    return answer


def _away(config: Config, error: Exception) -> DaemonAway:
    if isinstance(error, PermissionError):
        return DaemonAway(
            f"{config.health_socket}: no permission; run this as the daemon's user or a member of its group"
        )
    if isinstance(error, TimeoutError):
        return DaemonAway(f"{config.health_socket}: the daemon does not answer within {TIMEOUT_S:g} s; look at its log")
    where = f"no daemon answers on {config.health_socket} ({config.source})"
    return DaemonAway(f"{where}; start it with `metamusesd run`, or name its configuration with --config")
