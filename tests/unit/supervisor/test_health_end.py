"""metamusesd.supervisor.health: how it ends."""

from __future__ import annotations

import selectors
import socket
import threading
from pathlib import Path

import pytest

from metamusesd.supervisor import health
from metamusesd.supervisor.health import Answer, HealthServer
from metamusesd.supervisor.listeners import Listener, listen

REQUEST = b"GET /livez HTTP/1.1\r\n\r\n"


@pytest.mark.parametrize("asks", ["before", "meanwhile", "never"])
def test_who_was_let_in_is_answered_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asks: str) -> None:
    """A probe whose connection was accepted gets its answer although the daemon ends; a silent one holds up nobody."""
    monkeypatch.setattr(health, "LAST_S", 0.05 if asks == "never" else 20.0)
    path = tmp_path / "health.sock"
    with selectors.DefaultSelector() as selector, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        server = HealthServer([Listener(listen(path), path)], selector, lambda path: Answer(200, f"{path}\n"))
        client.settimeout(20)
        client.connect(str(path))
        for key, events in selector.select(20):
            key.data(events)  # accepts
        if asks == "before":
            client.sendall(REQUEST)
        closing = threading.Thread(target=server.close)
        closing.start()
        if asks == "meanwhile":
            client.sendall(REQUEST)
        answer = client.recv(4096)
        assert answer == b"" if asks == "never" else answer.endswith(b"/livez\n")
        closing.join(20)
        assert not closing.is_alive() and not path.exists()
