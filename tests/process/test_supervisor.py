"""The supervisor with real children: births, deaths, restarts, links, the end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from metamusesd.control import EXIT_BAD_CONFIG, EXIT_BOOT, EXIT_DIED
from tests.process.supervisor_rig import ROOT, Daemon, kill, until, watched

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def daemon(tmp_path):
    with Daemon(tmp_path / "d") as daemon:
        yield daemon.ready()


def test_the_supervisor_imports_nothing_heavy():
    """A fresh import of the supervisor loads no event loop, no threads and nothing third-party."""
    code = (
        "import sys; import metamusesd.supervisor.supervisor; "
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'asyncio','redis','msgspec','numpy','uvloop',"
        "'rich','threading','concurrent','subprocess','llama_cpp','jinja2','hiredis'}))"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_child_is_born_clean(tmp_path):
    """Only its control end and the file for its stacks are open; default signals, its own group, its cores."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(tmp_path / "notify"))
    core = min(os.sched_getaffinity(0))
    tier = {"tiers__fast__cores": f"[{core}]", "tiers__fast__workers": 1}
    with listener, Daemon(tmp_path / "d", {"NOTIFY_SOCKET": str(tmp_path / "notify")}, **tier) as daemon:
        daemon.ready()
        born = daemon.notes("fast-0", "born")[0]
        assert born["fds"] == [str(tmp_path / "d/evidence/fast-0-1.stacks"), "socket"]
        assert born["stdin"] == "/dev/null"
        assert born["group"] == born["pid"]
        assert born["cores"] == [core]
        assert born["blocked"] == []
        assert born["term"]
        assert born["threads"] == 1
        assert born["notify"] is None
        assert born["title"] == "fast-0"
        assert born["heavy"] == []
        assert daemon.worker("fast-0")["cores"] == [core]


def test_every_pair_gets_one_pipe_with_an_epoch_of_its_own(daemon):
    """Worker and dispatcher hear of the same epoch and talk to each other through it."""
    until(lambda: len(daemon.notes(event="read")) == 4)
    told = {note["row"]: note["epoch"] for note in daemon.notes("dispatcher", "link")}
    assert len(set(told.values())) == 2
    for row, name in enumerate(("fast-0", "fast-1")):
        (link,) = daemon.notes(name, "link")
        assert (link["row"], link["epoch"], link["worker"], link["tier"]) == (row, told[row], name, "fast")
        assert daemon.notes(name, "read")[0]["said"] == "hello from the dispatcher"
    assert [note["said"] for note in daemon.notes("dispatcher", "read")] == ["hello from the worker"] * 2


def test_a_killed_worker_comes_back_on_a_new_pipe_and_the_dispatcher_is_told_how_it_died(daemon):
    """kill -9 of a worker: evidence to the dispatcher, a new process, a new epoch; its sibling notices nothing."""
    before = daemon.children()
    kill(before["fast-0"])
    until(lambda: len(daemon.notes("fast-0", "link")) == 2)
    (unlink,) = daemon.notes("dispatcher", "unlink")
    first, second = daemon.notes("fast-0", "link")
    assert (unlink["row"], unlink["epoch"], unlink["exit"], unlink["hung"]) == (0, first["epoch"], -9, False)
    assert second["epoch"] > first["epoch"]
    daemon.ready()
    after = daemon.worker("fast-0")
    assert (after["restarts"], after["generation"], after["last_exit"]) == (1, 2, "killed by SIGKILL")
    assert daemon.children()["fast-1"] == before["fast-1"]
    assert len(daemon.notes("fast-1", "link")) == 1


def test_a_worker_whose_pipe_broke_gets_a_new_one(daemon):
    """`relink` makes one new pipe for that pair; a wish that names an older epoch makes none."""
    until(lambda: daemon.notes("fast-0", "link") and daemon.notes("fast-1", "link"))
    first = daemon.notes("fast-0", "link")[0]["epoch"]
    daemon.mischief("fast-0", f"relink {first}")
    until(lambda: len(daemon.notes("fast-0", "link")) >= 2)  # it goes on asking in the name of the first epoch
    until(lambda: len(daemon.notes("dispatcher", "link")) >= 3)
    daemon.mischief("fast-0", "")
    assert len(daemon.notes("fast-0", "link")) == 2
    assert len(daemon.notes("fast-1", "link")) == 1


def test_a_killed_dispatcher_comes_back_and_the_same_workers_get_new_pipes(daemon):
    """kill -9 of the dispatcher: no worker is restarted; each gets a link with a larger epoch."""
    before = daemon.children()
    kill(before["dispatcher"])
    until(lambda: len(daemon.notes("fast-0", "link")) == 2 and len(daemon.notes("fast-1", "link")) == 2)
    daemon.ready()
    after = daemon.children()
    assert after["dispatcher"] != before["dispatcher"]
    assert {name: after[name] for name in ("fast-0", "fast-1")} == {name: before[name] for name in ("fast-0", "fast-1")}
    epochs = [note["epoch"] for note in daemon.notes("fast-0", "link")]
    assert epochs[1] > epochs[0]
    births = daemon.notes("dispatcher", "born")
    assert [birth["generation"] for birth in births] == [1, 2]
    assert births[0]["instance"] == births[1]["instance"]


def test_a_crash_loop_is_given_up_and_the_others_go_on(tmp_path):
    """A worker that dies again and again is FAILED after its budget; the daemon stays up on the other one."""
    with Daemon(tmp_path / "d", daemon__restart_limit=3) as daemon:
        daemon.ready()
        daemon.mischief("fast-0", "later exit 5")
        until(lambda: daemon.worker("fast-0")["status"] == "failed")
        assert daemon.worker("fast-0")["restarts"] == 3
        assert daemon.worker("fast-0")["last_exit"] == "exit 5"
        assert daemon.get("/readyz")[0] == 200
        pauses = [event["restart_in_s"] for event in daemon.events() if event["event"] == "child died"]
        assert len(pauses) == 3
        assert pauses[2] > pauses[0]


@pytest.mark.parametrize(
    ("mischief", "code", "births"),
    [
        ("later exit 5", EXIT_DIED, 3),
        ("exit 70", EXIT_BOOT, 3),
        ("exit 78", EXIT_BAD_CONFIG, 1),
        ("says failed", EXIT_BAD_CONFIG, 1),
    ],
)
def test_when_no_worker_is_left_the_daemon_ends_with_a_code_that_says_why(tmp_path, mischief, code, births):
    """Deaths: 71. Never started: 70. A permanent mistake: 78 and no second try. Never 0."""
    daemon = Daemon(tmp_path / "d", daemon__restart_limit=2, tiers__fast__workers=1)
    daemon.mischief("fast-0", mischief)
    with daemon:
        assert daemon.wait() == code
        assert len(daemon.notes("fast-0", "born")) == births
        assert daemon.notes("dispatcher", "drain")[0]["within_s"] == 0


@pytest.mark.parametrize(("mischief", "code"), [("exit 78", EXIT_BAD_CONFIG), ("exit 3", EXIT_BOOT)])
def test_without_a_dispatcher_the_daemon_ends(tmp_path, mischief, code):
    """A dispatcher that cannot start takes the daemon with it."""
    daemon = Daemon(tmp_path / "d")
    daemon.mischief("dispatcher", mischief)
    with daemon:
        assert daemon.wait() == code


def test_no_orphan_survives_a_killed_supervisor(tmp_path):
    """kill -9 of the supervisor: every child, Redis too, is gone within a second."""
    with Daemon(tmp_path / "d", redis__url="embedded") as daemon:
        pids = list(daemon.ready().children().values())
        assert len(pids) == 4
        with watched(pids) as gone:
            daemon.signal(signal.SIGKILL)
            assert gone()


def test_a_second_daemon_on_one_state_directory_refuses_and_names_the_first(daemon):
    """One line with the pid of the one that runs, exit 78, and the first is not disturbed."""
    before = daemon.children()
    second = subprocess.run(
        daemon.process.args, env=daemon.environ, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert second.returncode == EXIT_BAD_CONFIG
    (line,) = second.stderr.splitlines()
    assert f"(pid {daemon.process.pid})" in json.loads(line)["event"]
    assert daemon.children() == before
    assert daemon.get("/readyz")[0] == 200


def test_sigterm_drains_the_dispatcher_first_and_the_workers_after_it(tmp_path):
    """The dispatcher drains, then the workers go, Redis last; exit 0; no socket stays."""
    with Daemon(tmp_path / "d", redis__url="embedded") as daemon:
        daemon.ready().signal(signal.SIGTERM)
        assert daemon.wait() == 0
        order = [
            (note["who"], note["event"]) for note in daemon.notes() if note["event"] in ("drain", "drained", "term")
        ]
        assert order[:2] == [("dispatcher", "drain"), ("dispatcher", "drained")]
        assert sorted(order[2:]) == [("fast-0", "term"), ("fast-1", "term")]
        assert daemon.notes("dispatcher", "drain")[0]["within_s"] == 5.0
        gone = [event["child"] for event in daemon.events() if event["event"] == "gone"]
        assert (gone[0], gone[-1]) == ("dispatcher", "redis")
        assert not (tmp_path / "d/run/health.sock").exists()


def test_a_second_sigterm_goes_at_once(tmp_path):
    """A dispatcher that takes its time to drain is not waited for any more."""
    with Daemon(tmp_path / "d", daemon__drain_s=300) as daemon:
        daemon.ready().mischief("dispatcher", "never drains")
        daemon.signal(signal.SIGTERM)
        until(lambda: daemon.notes("dispatcher", "drain"))
        assert daemon.get("/readyz")[0] == 503
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == EXIT_DIED


def test_a_drain_has_a_deadline(tmp_path):
    """A dispatcher that does not leave in time is killed, and the exit code says that the drain failed."""
    with Daemon(tmp_path / "d", daemon__drain_s=0.2, daemon__stop_s=0.2) as daemon:
        daemon.ready().mischief("dispatcher", "never drains")
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == EXIT_DIED


def test_a_worker_that_ignores_sigterm_is_killed(tmp_path):
    """Ask, wait, insist: the stop does not depend on anybody's good will."""
    daemon = Daemon(tmp_path / "d", daemon__stop_s=0.3)
    daemon.mischief("fast-1", "ignores term")
    with daemon:
        daemon.ready().signal(signal.SIGTERM)
        assert daemon.wait() == 0


def test_sigterm_before_anything_is_ready_ends_it_as_well(tmp_path):
    """Stop during the boot is legal."""
    daemon = Daemon(tmp_path / "d")
    daemon.mischief("fast-0", "never ready")
    with daemon:
        until(lambda: daemon.notes("fast-0", "born"))
        daemon.signal(signal.SIGINT)
        assert daemon.wait() == 0


def test_a_storm_of_signals_is_survived(daemon):
    """Thousands of SIGHUP and SIGCHLD change nothing, and SIGTERM in their midst is heard."""
    before = daemon.children()
    for _ in range(2000):
        daemon.signal(signal.SIGCHLD)
        daemon.signal(signal.SIGHUP)
    assert daemon.children() == before
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0


@pytest.mark.parametrize("how", ["hangs with work", "SIGSTOP"])
def test_a_hung_worker_is_replaced_and_said_to_have_hung(tmp_path, how):
    """No progress with work, or no heartbeat without: killed, with the evidence; the slow sibling is not."""
    with Daemon(tmp_path / "d", daemon__hang_s=1) as daemon:
        daemon.ready().mischief("fast-1", "slow with work")
        pid = daemon.children()["fast-0"]
        if how == "SIGSTOP":
            kill(pid, signal.SIGSTOP)
        else:
            daemon.mischief("fast-0", how)
        (unlink,) = until(lambda: daemon.notes("dispatcher", "unlink"))
        daemon.mischief("fast-0", "")
        assert (unlink["row"], unlink["hung"]) == (0, True)
        until(lambda: daemon.worker("fast-0")["generation"] == 2)
        assert daemon.worker("fast-1")["restarts"] == 0


def test_a_dispatcher_without_a_heartbeat_is_replaced(tmp_path):
    """SIGSTOP of the dispatcher: health says so at once, then it is killed and a new one serves the same workers."""
    with Daemon(tmp_path / "d", daemon__hang_s=1) as daemon:
        before = daemon.ready().children()
        kill(before["dispatcher"], signal.SIGSTOP)
        until(lambda: len(daemon.notes("dispatcher", "born")) == 2)
        daemon.ready()
        assert {name: pid for name, pid in daemon.children().items() if name != "dispatcher"} == {
            name: pid for name, pid in before.items() if name != "dispatcher"
        }


def test_a_dispatcher_that_stands_still_leaves_its_stacks(tmp_path):
    """Alive, and without a heartbeat: its stacks are kept, and the log names the file."""
    with Daemon(tmp_path / "d", daemon__hang_s=1) as daemon:
        daemon.ready().mischief("dispatcher", "no heartbeat")
        died = until(lambda: [event for event in daemon.events() if event["event"] == "child died"])[0]
        assert died["child"] == "dispatcher"
        assert "kid_dispatcher.py" in (tmp_path / "d/evidence" / died["stacks"]).read_text()


def test_a_worker_that_stands_still_while_it_loads_is_replaced_long_before_boot_s(tmp_path):
    """Its heartbeat began and stopped: hang_s is the patience."""
    daemon = Daemon(tmp_path / "d", daemon__hang_s=1, tiers__fast__workers=1)
    daemon.mischief("fast-0", "stands still while loading")
    with daemon:
        until(lambda: daemon.notes("fast-0", "loading"))
        until(lambda: len(daemon.notes("fast-0", "born")) == 2)
        daemon.mischief("fast-0", "")
        died = next(event for event in daemon.events() if event["event"] == "child died")
        assert (died["phase"], died["how"][:17]) == ("loading", "killed by SIGABRT")
        assert "in loading" in died["hung"]


def test_a_worker_that_loads_slowly_is_left_alone(tmp_path):
    """Longer than hang_s, with a heartbeat."""
    daemon = Daemon(tmp_path / "d", daemon__hang_s=1, tiers__fast__workers=1)
    daemon.mischief("fast-0", "loads slowly")
    with daemon:
        until(lambda: daemon.notes("fast-0", "loading"))
        until(lambda: daemon.worker("fast-0")["since_s"] > 2.5)
        daemon.mischief("fast-0", "")
        assert daemon.ready().worker("fast-0")["generation"] == 1


def test_a_worker_that_never_becomes_ready_is_replaced_and_then_given_up(tmp_path):
    """boot_s is a limit, and boot failures have a limit of their own."""
    daemon = Daemon(tmp_path / "d", daemon__boot_s=1, tiers__fast__workers=1)
    daemon.mischief("fast-0", "never ready")
    with daemon:
        assert daemon.wait() == EXIT_BOOT
        assert len(daemon.notes("fast-0", "born")) == 3
