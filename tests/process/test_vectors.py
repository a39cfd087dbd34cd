"""The vectors process in its family: pipes, deaths, hangs, refusals, operators; and with real embedder and store."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
import signal
import stat
import subprocess
import sys

import pytest

from metamusesd import config
from metamusesd.control import EXIT_BAD_CONFIG
from metamusesd.wire import Frame, Look, encode
from tests.process.supervisor_rig import ROOT, kill, until, watched
from tests.process.vectors_rig import ASKED, LIKE, Real, WithVectors

pytestmark = pytest.mark.timeout(90)

MODELS = config.load(environ=dict(os.environ)).models_dir
HAS_PARTS = (
    not config.missing_embedder(config.load(environ=dict(os.environ)))
    and importlib.util.find_spec("metamusesd.cache.qdrant_embedded") is not None
    and all(importlib.util.find_spec(name) for name in ("fastembed", "qdrant_edge"))
)
needs_parts = pytest.mark.skipif(
    not HAS_PARTS, reason="the embedder is not there: run `metamusesd models fetch minilm`"
)


@pytest.fixture
def daemon(tmp_path):
    with WithVectors(tmp_path / "d") as daemon:
        yield daemon.served()


def test_vectors_comes_up_and_answers_on_its_pipe_and_on_its_socket(daemon):
    """The dispatcher's pipe has an epoch, the operators' socket is ours alone, /status and /metrics know it."""
    (epoch,) = daemon.linked(1)
    until(lambda: len(daemon.notes("dispatcher", "answer")) == 2)
    answers = [note["told"] for note in daemon.notes("dispatcher", "answer")]
    assert "miss" in answers
    assert [told["embedder"]["identity"] for told in answers if told != "miss"] == ["toy"]
    assert daemon.notes("dispatcher", "vectors")[0] == daemon.notes("dispatcher", "vectors")[0] | {"epoch": epoch}
    with daemon.operator() as operator:
        operator.keep(ASKED)
        assert operator.look(LIKE).verdict == "hit"
    path = daemon.directory / "run/cache.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    until(lambda: daemon.vectors()["hits"] == 1)
    until(lambda: daemon.vectors()["entries"] == 1)
    assert daemon.status()["degraded"] == []
    assert "metamusesd_vectors_up 1" in daemon.get("/metrics")[1]


def test_a_killed_vectors_process_is_back_and_costs_nothing_else(daemon):
    """kill -9: EOF at the dispatcher, a new process, a new pipe; /readyz never minds."""
    before = daemon.children() | {"vectors": daemon.vectors()["pid"]}
    first = daemon.linked(1)[0]
    kill(before["vectors"])
    assert daemon.get("/readyz")[0] == 200
    assert daemon.linked(2)[1] > first
    assert [note["epoch"] for note in daemon.notes("dispatcher", "eof")] == [first]
    vectors = daemon.vectors()
    assert (vectors["restarts"], vectors["last_exit"]) == (1, "killed by SIGKILL")
    assert daemon.children() == {name: pid for name, pid in before.items() if name != "vectors"}
    assert daemon.status()["degraded"] == []


def test_a_killed_dispatcher_gets_a_new_pipe_to_the_same_vectors_process(daemon):
    """What is in the cache stays there."""
    daemon.linked(1)
    pid = daemon.vectors()["pid"]
    with daemon.operator() as operator:
        operator.keep(ASKED)
        kill(daemon.children()["dispatcher"])
        daemon.linked(2)
        assert daemon.vectors()["pid"] == pid
        assert operator.look(ASKED).verdict == "hit"


@pytest.mark.parametrize("how", ["garbage", "wish"])
def test_a_pipe_that_broke_is_replaced_once(daemon, how):
    """Garbage ends the pipe, and the dispatcher may ask for another one: both live, and talk on a new epoch."""
    pid, first = daemon.vectors()["pid"], daemon.linked(1)[0]
    daemon.mischief("dispatcher", f"{how} {first}")
    assert daemon.linked(2)[1] > first
    assert len(daemon.notes("dispatcher", "vectors")) == 2
    assert daemon.vectors()["pid"] == pid


@pytest.mark.parametrize("how", ["SIGSTOP", "embeds for ever"])
def test_a_hung_vectors_process_is_replaced(tmp_path, how):
    """Stopped, or with an embedder that never returns while the loop goes on: no progress, so a new one."""
    with WithVectors(tmp_path / "d", daemon__hang_s=1) as daemon:
        daemon.served().linked(1)
        if how == "SIGSTOP":
            kill(daemon.vectors()["pid"], signal.SIGSTOP)
        else:
            daemon.mischief("vectors", how)
            with daemon.operator() as operator:
                operator.plug.sendall(encode(Frame.ASK, 0, [Look(9, LIKE, ["p"])]))
                until(lambda: daemon.notes("vectors", "stuck"))
        hung = until(lambda: [event for event in daemon.events() if event["event"] == "child is hung"])
        daemon.mischief("vectors", "")
        assert [event["child"] for event in hung] == ["vectors"]
        assert "answering" in hung[0]["because"] or how == "SIGSTOP"
        daemon.linked(2)
        assert daemon.vectors()["generation"] == 2


def test_maintenance_is_no_hang(tmp_path):
    """The store holds the interpreter for longer than hang_s: the process is left alone."""
    with WithVectors(tmp_path / "d", daemon__hang_s=1, daemon__hang_least_s=0.5) as daemon:
        daemon.served().mischief("vectors", "tends for long")
        until(lambda: daemon.notes("vectors", "tended"))
        assert daemon.vectors()["generation"] == 1


def test_a_store_that_is_away_is_waited_for(tmp_path):
    """Ready all the same; lookups fail with the reason, /status says it, /readyz does not mind; then it heals."""
    daemon = WithVectors(tmp_path / "d")
    daemon.mischief("vectors", "away")
    with daemon:
        daemon.served()
        until(lambda: daemon.status()["degraded"] == ["semantic cache off: the server is away"])
        assert daemon.get("/readyz")[0] == 200
        with daemon.operator() as operator:
            found = operator.look(ASKED)
            assert (found.verdict, found.reason) == ("failed", "the server is away")
            daemon.mischief("vectors", "")
            until(lambda: daemon.status()["degraded"] == [])
            until(lambda: operator.look(ASKED).verdict == "miss")


def test_a_store_that_is_refused_keeps_the_daemon_from_starting(tmp_path):
    """Exit 78, and the log has the reason."""
    daemon = WithVectors(tmp_path / "d")
    daemon.mischief("vectors", "refused")
    with daemon:
        assert daemon.wait() == EXIT_BAD_CONFIG
        assert any("8 numbers" in str(event.get("said")) for event in daemon.events())


def test_a_store_that_is_refused_later_only_switches_the_cache_off(daemon):
    """The daemon runs on without it and says why."""
    daemon.linked(1)
    daemon.mischief("vectors", "refused")
    kill(daemon.vectors()["pid"])
    until(lambda: daemon.vectors()["status"] == "failed")
    assert "8 numbers" in str(daemon.status()["degraded"])
    assert daemon.get("/readyz")[0] == 200
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0


@pytest.mark.parametrize(("mischief", "births"), [("no embedder", 1), ("exit 71", 3)])
def test_without_vectors_the_daemon_serves(tmp_path, mischief, births):
    """A broken embedder is given up at once, a crash after some tries; /status says so, and nobody else minds."""
    daemon = WithVectors(tmp_path / "d")
    daemon.mischief("vectors", mischief)
    with daemon:
        daemon.ready()
        until(lambda: daemon.vectors()["status"] == "failed")
        (limitation,) = daemon.status()["degraded"]
        assert limitation.startswith("semantic cache off: vectors is failed")
        assert ("weights" in limitation) == (mischief == "no embedder")
        assert len(daemon.notes("vectors", "born")) == births
        assert daemon.get("/readyz")[0] == 200


def test_a_missing_embedder_is_said_and_nothing_is_started(tmp_path):
    """The remedy is in the log and on /status; no process, no restart, no complaint of /readyz."""
    with Real(tmp_path / "d", cache__embedder=tmp_path / "nothing") as daemon:
        status = daemon.ready().status()
        (limitation,) = status["degraded"]
        assert limitation.startswith("semantic cache off: ")
        assert "metamusesd models fetch minilm" in limitation
        assert status["vectors"] is None
        assert (status["state"], daemon.get("/readyz")[0]) == ("ready", 200)
        assert [event["event"] for event in daemon.events()].count(limitation) == 1
        shown = subprocess.run(
            [sys.executable, "-m", "metamusesd", "status", "--set", f"daemon.state_dir={daemon.directory}"],
            capture_output=True, text=True, timeout=50, cwd=ROOT, check=False,
        )  # fmt: skip
        assert shown.returncode == 1 and "semantic cache off" in shown.stdout


def test_garbage_and_crowds_at_the_cache_socket_harm_nobody(daemon):
    """Garbage is hung up on; of many silent clients the oldest make room; others are served meanwhile."""
    with daemon.operator() as rude, daemon.operator() as wrong, daemon.operator() as good:
        rude.plug.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
        wrong.plug.sendall(encode(Frame.CANCEL, 0, [1]))
        assert rude.hung_up()
        assert wrong.hung_up()
        assert good.count()["trouble"] == ""
        crowd = [daemon.operator() for _ in range(40)]
        plugs = [each.__enter__() for each in crowd]
        assert plugs[-1].count()["trouble"] == ""
        assert good.hung_up()
        for each in crowd:
            each.__exit__(None, None, None)
    assert daemon.vectors()["generation"] == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: becomes somebody else")
def test_somebody_else_is_not_served(daemon):
    """Another user who gets at the socket all the same is hung up on by his uid."""
    run = daemon.directory / "run"
    run.chmod(0o711)
    (run / "cache.sock").chmod(0o666)
    script = (
        "import os, socket; os.setuid(65534); plug = socket.socket(socket.AF_UNIX); plug.settimeout(20)\n"
        "plug.connect('cache.sock')\n"
        "try: print(plug.recv(1))\n"
        "except ConnectionResetError: print(b'')"
    )
    command = [sys.executable, "-c", script]
    said = subprocess.run(command, cwd=run, capture_output=True, text=True, timeout=50, check=True)
    assert said.stdout == "b''\n"
    with daemon.operator() as operator:
        assert operator.count()["trouble"] == ""


def test_vectors_leaves_after_the_dispatcher_and_nothing_stays(daemon):
    """SIGTERM: the dispatcher drains, then vectors and the workers go; exit 0; no process, no socket."""
    pids = [*daemon.children().values(), daemon.vectors()["pid"]]
    with watched(pids) as gone:
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert gone()
    ends = [event["child"] for event in daemon.events() if event["event"] == "gone"]
    assert ends[0] == "dispatcher"
    assert set(ends[1:]) == {"fast-0", "vectors"}
    assert not (daemon.directory / "run/cache.sock").exists()


def test_no_vectors_process_survives_a_killed_supervisor(daemon):
    """kill -9 of the supervisor: it is gone within a second."""
    with watched([daemon.vectors()["pid"]]) as gone:
        daemon.signal(signal.SIGKILL)
        assert gone()


@needs_parts
def test_the_real_cache_keeps_its_answers_through_a_kill(tmp_path):
    """Real embedder, real store: an answer hits its paraphrase, and does so again after kill -9 and after a restart."""
    with Real(tmp_path / "d", daemon__models_dir=MODELS) as daemon:
        daemon.served()
        with daemon.operator() as operator:
            operator.keep(ASKED)
            assert operator.look(LIKE).verdict == "hit"
        kill(daemon.vectors()["pid"])
        until(lambda: daemon.vectors()["generation"] == 2 and daemon.vectors()["status"] == "ready")
        with daemon.operator() as operator:
            assert operator.look(LIKE).verdict == "hit"
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        daemon.start().served()
        with daemon.operator() as operator:
            assert operator.look(LIKE).verdict == "hit"
            assert operator.count()["store"]["entries"] == 1


@needs_parts
@pytest.mark.parametrize("how", ["another dimension", "another process"])
def test_a_store_that_can_never_be_used_keeps_the_daemon_from_starting(tmp_path, how):
    """What is there has vectors of another length, or somebody else holds it: exit 78, with reason and remedy."""
    daemon = Real(tmp_path / "d", daemon__models_dir=MODELS)
    with daemon:
        daemon.served().signal(signal.SIGTERM)
        assert daemon.wait() == 0
    (store,) = (tmp_path / "d/vectors").iterdir()
    with (store / "lock").open() as lock:
        if how == "another process":
            fcntl.flock(lock, fcntl.LOCK_EX)
        else:
            notes = json.loads((store / "store.json").read_text())
            (store / "store.json").write_text(json.dumps(notes | {"dimension": 8}))
        with Real(tmp_path / "d", daemon__models_dir=MODELS) as daemon:
            assert daemon.wait() == EXIT_BAD_CONFIG
            said = [str(event.get("said", "")) for event in daemon.events()]
            assert any(str(store) in each and "choose another" in each for each in said)


@needs_parts
def test_a_server_that_is_away_is_waited_for(tmp_path):
    """Nobody listens at qdrant_url: the daemon is ready, lookups fail with the reason, and so does operators' Count."""
    with Real(tmp_path / "d", daemon__models_dir=MODELS, cache__qdrant_url="http://127.0.0.1:1") as daemon:
        daemon.served()
        until(lambda: daemon.status()["degraded"])
        assert "127.0.0.1:1" in daemon.status()["degraded"][0]
        assert daemon.get("/readyz")[0] == 200
        with daemon.operator() as operator:
            assert operator.look(ASKED).verdict == "failed"
            assert operator.count()["error"]["code"] == "store_failed"


@needs_parts
def test_broken_weights_switch_the_cache_off(tmp_path):
    """The files are there and cannot be loaded: the daemon serves, and says which directory is to blame."""
    broken = tmp_path / "broken"
    shutil.copytree(MODELS / "all-MiniLM-L6-v2", broken)
    (broken / "model.onnx").write_bytes(b"no weights at all")
    with Real(tmp_path / "d", cache__embedder=broken) as daemon:
        daemon.ready()
        until(lambda: daemon.vectors()["status"] == "failed")
        assert str(broken) in json.dumps(daemon.status()["degraded"])
        assert daemon.vectors()["generation"] == 1
