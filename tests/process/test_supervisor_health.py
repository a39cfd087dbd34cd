"""Health on the UNIX socket: right answers, honest figures, and clients that cannot harm it."""

from __future__ import annotations

import json
import signal
import socket

import pytest

from metamusesd.board import RedisTrouble
from metamusesd.supervisor.report import TROUBLES
from tests.process.supervisor_rig import Daemon, Feeder, kill, until
from tests.unit.test_metrics import samples

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    with Daemon(tmp_path_factory.mktemp("health")) as daemon:
        yield daemon.ready()


def test_alive_and_ready(daemon):
    """/livez and /readyz say 200 with JSON."""
    assert daemon.get("/livez") == (200, '{"alive": true}\n')
    code, body = daemon.get("/readyz?verbose=1")
    assert (code, json.loads(body)) == (200, {"ready": True, "reasons": []})


def test_status_has_everything(daemon):
    """/status: the daemon, Redis, the dispatcher, every worker, every queue."""
    status = daemon.status()
    assert status["pid"] == daemon.process.pid
    assert status["state"] == "ready"
    assert status["redis"]["url"] == "redis://127.0.0.1:1/0"
    assert status["dispatcher"]["status"] == "ready"
    assert status["dispatcher"]["beat_age_s"] < 5
    assert status["dispatcher"]["redis_ok"] is True
    (first, second) = status["workers"]
    assert (first["name"], second["name"]) == ("fast-0", "fast-1")
    assert (first["tier"], first["slots"], first["state"], first["gpus"]) == ("fast", 8, "idle", [])
    assert first["last_step_age_ms"] is None
    assert set(status["queues"]["by_queue"]["ingress"]) == {"low", "normal", "high", "critical", "oldest_ms"}
    assert status["queues"]["stale"] is True


def test_metrics_parse(daemon):
    """/metrics is Prometheus text with gauges by worker and queue."""
    code, body = daemon.get("/metrics")
    found = samples(body)
    assert code == 200
    assert found["metamusesd_num_slots", 'worker="fast-0",tier="fast",model="smollm2"'] == 8
    assert found["metamusesd_ready", ""] == 1
    assert found["metamusesd_child_status", 'child="dispatcher",status="ready"'] == 1


@pytest.mark.parametrize(
    ("request_bytes", "code"),
    [
        (b"GET /nothing HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /status HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", b"405"),
        (b"DELETE /livez HTTP/1.1\r\n\r\n", b"405"),
        (b"GET /livez HTTP/1.0\n\n", b"200"),
        (b"HEAD /livez HTTP/1.1\r\n\r\n", b"200"),
        (b"garbage\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\xff\xfe\r\n\r\n", b"400"),
        (b"GET http://d/livez HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /livez HTTP/1.1\r\n" + b"X: " + b"y" * 20_000, b"431"),
    ],
)
def test_requests_of_all_kinds_get_the_right_code(daemon, request_bytes, code):
    """Wrong paths, wrong methods, garbage and oversized requests are answered and hung up on."""
    answer = daemon.ask(request_bytes)
    assert answer.split(b" ", 2)[1] == code
    if request_bytes.startswith(b"HEAD"):
        assert answer.endswith(b"\r\n\r\n")


def test_clients_that_say_nothing_are_hung_up_on(daemon):
    """A client that never asks, or asks half, is gone after its patience; others are served meanwhile."""
    with daemon.connect() as silent, daemon.connect() as half:
        half.sendall(b"GET /li")
        assert daemon.get("/livez")[0] == 200
        assert silent.recv(1) == b""
        assert half.recv(1) == b""


def test_hundreds_of_idle_connections_do_not_keep_a_new_one_out(daemon):
    """The oldest make room: with 300 connections open, a question is still answered."""
    crowd = [daemon.connect() for _ in range(300)]
    try:
        assert daemon.get("/livez")[0] == 200
    finally:
        for client in crowd:
            client.close()


def test_hundreds_that_ask_at_once_are_all_answered(daemon):
    """200 connections with a request each: 200 answers."""
    crowd = [daemon.connect() for _ in range(200)]
    try:
        for client in crowd:
            try:
                client.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
            except OSError:
                pass  # this one had to make room before it asked
        served = [client for client in crowd if _answer(client).startswith(b"HTTP/1.1 200")]
        assert len(served) >= 64
    finally:
        for client in crowd:
            client.close()
    burst = []
    for _ in range(60):
        client = daemon.connect()
        client.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
        burst.append(client)
    assert all(_answer(client).startswith(b"HTTP/1.1 200") for client in burst)
    for client in burst:
        client.close()


def _answer(client: socket.socket) -> bytes:
    try:
        return client.recv(4096)
    except OSError:
        return b""


def test_a_client_that_never_reads_costs_only_itself(daemon):
    """A large answer to a reader that stands still is dropped after its patience."""
    with daemon.connect() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        lazy.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert daemon.get("/livez")[0] == 200


def test_a_deleted_socket_comes_back(daemon):
    """Whoever deletes the socket of a running daemon makes it deaf for a moment, and not until a restart."""
    path = daemon.directory / "run/health.sock"
    path.unlink()
    until(path.exists)
    assert daemon.get("/livez")[0] == 200


def test_without_workers_it_is_not_ready_and_says_why(tmp_path):
    """503 with the reason in words while no worker is ready; alive all the same."""
    daemon = Daemon(tmp_path / "d", tiers__fast__workers=1)
    daemon.mischief("fast-0", "never ready")
    with daemon:
        until(lambda: daemon.notes("fast-0", "born"))
        code, body = daemon.get("/readyz")
        assert code == 503
        assert "no worker is ready" in json.loads(body)["reasons"]
        assert daemon.get("/livez")[0] == 200
        assert daemon.status()["state"] == "degraded"


def test_health_stays_true_while_the_dispatcher_hangs(tmp_path):
    """With a stopped dispatcher every path still answers, and its figures are marked stale."""
    with Daemon(tmp_path / "d", daemon__hang_least_s=30) as daemon:
        kill(daemon.ready().children()["dispatcher"], signal.SIGSTOP)
        until(lambda: daemon.status()["dispatcher"]["stale"])
        code, body = daemon.get("/readyz")
        assert code == 503
        assert "heartbeat" in json.loads(body)["reasons"][0]
        assert samples(daemon.get("/metrics")[1])["metamusesd_dispatcher_stale", ""] == 1


def test_what_is_wrong_with_redis_is_said_in_words_and_costs_no_process(tmp_path):
    """Every trouble that the dispatcher names is a reason of /readyz and stands in /status; models stay loaded."""
    with Feeder(tmp_path / "d") as daemon:
        before = daemon.ready().children()
        for trouble, words in TROUBLES.items():
            if trouble is RedisTrouble.NONE:
                continue
            daemon.mischief("dispatcher", f"trouble {trouble.value}")
            until(lambda words=words: json.loads(daemon.get("/readyz")[1])["reasons"] == [words])
            assert daemon.get("/readyz")[0] == 503
            assert daemon.status()["dispatcher"]["redis_trouble"] == trouble.name.lower()
            assert samples(daemon.get("/metrics")[1])["metamusesd_redis_up", ""] == 0
        daemon.mischief("dispatcher", "trouble 99")
        until(lambda: daemon.status()["dispatcher"]["redis_trouble"] == "unreachable")
        daemon.mischief("dispatcher", "")
        assert daemon.ready().children() == before


def test_a_stale_socket_is_replaced_and_another_file_is_not(tmp_path):
    """A socket that a killed daemon left is taken over; a file that is not a socket stops the start."""
    (tmp_path / "d/run").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "d/run/health.sock"))
    with Daemon(tmp_path / "d") as daemon:
        daemon.ready()
    (tmp_path / "e/run").mkdir(parents=True)
    (tmp_path / "e/run/health.sock").write_text("precious")
    with Daemon(tmp_path / "e") as daemon:
        assert daemon.wait() == 70
    assert (tmp_path / "e/run/health.sock").read_text() == "precious"
