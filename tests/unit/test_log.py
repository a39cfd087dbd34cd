"""metamusesd.log: lines and their fields, what is held, what is lost, the journal's protocol on a socket of ours."""

from __future__ import annotations

import ast
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metamusesd import log
from metamusesd.log.events import MESSAGE_IDS
from metamusesd.log.lines import MOST_CHARS
from metamusesd.log.repeats import MOST_KEYS, Repeats

ROOT = Path(__file__).parents[2]
PLENTY = (10**6, 10**6, 10.0)


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    yield
    log.configure("info", "json")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    """A journal of ours; what is logged from here on goes there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        door.bind(str(tmp_path / "j"))
        door.settimeout(5)
        log.configure("info", "journal", repeats=PLENTY, journal_socket=str(tmp_path / "j"))
        yield door


def fields(datagram: bytes) -> list[tuple[str, str]]:
    """As journald reads it: NAME=value, or NAME, a length and that many bytes."""
    found = []
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            length = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + length], rest[8 + length :]
            assert rest.startswith(b"\n")
            rest = rest[1:]
        found.append((name.decode(), value.decode()))
        datagram = rest
    return found


def lines(said: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said.splitlines()]


def python(code: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30, check=True, **more)


# what is loaded


def test_the_log_brings_nothing_into_the_supervisor_but_the_bound_logger() -> None:
    """structlog's __init__ would load asyncio, rich and logging: none of it is there, and no thread is."""
    found = python(
        "import sys, metamusesd.log\n"
        "metamusesd.log.get_logger('x').info('y')\n"
        "print(sorted({'asyncio', 'rich', 'logging', 'threading', 'ssl', 'structlog'} & set(sys.modules)))"
    )
    assert found.stdout.strip() == b"[]"


def test_a_program_that_uses_structlog_itself_has_all_of_it() -> None:
    """Before our log or after it: `import structlog` is what it is without us, and our loggers work."""
    for order in ("import metamusesd.log, structlog", "import structlog, metamusesd.log"):
        found = python(
            f"{order}\nstructlog.get_logger().info('theirs', a=1)\nmetamusesd.log.get_logger('x').info('ours', b=2)"
        )
        assert b"theirs" in found.stdout and json.loads(found.stderr)["event"] == "ours"


# lines


def test_a_line_has_what_was_bound_and_what_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    """One JSON object a line; fields of the event go before bound ones of the same name."""
    log.configure("info", "json")
    log.get_logger("fast-0", pid=7).bind(job="j1", attempt=1).warning("odd", attempt=2, text="a\nb")
    (line,) = lines(capfd.readouterr().err)
    assert abs(line.pop("time") - __import__("time").time()) < 60
    assert line == {
        "level": "warning", "event": "odd", "process": "fast-0", "pid": 7, "job": "j1", "attempt": 2, "text": "a\nb",
    }  # fmt: skip


def test_levels_under_the_threshold_are_not_written(capfd: pytest.CaptureFixture[str]) -> None:
    """`warning` writes warnings and errors; debug writes all."""
    for level, expected in (("warning", ["c", "d"]), ("debug", ["a", "b", "c", "d"])):
        log.configure(level, "json")
        logger = log.get_logger("x")
        logger.debug("a"), logger.info("b"), logger.warning("c"), logger.error("d")
        assert [line["event"] for line in lines(capfd.readouterr().err)] == expected


class Mute:
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


def test_no_value_can_break_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    """Lone surrogates, objects that raise, what JSON does not know: a line comes, and nobody hears an exception."""
    log.configure("info", "json")
    log.get_logger("x").info("odd", a="\udcff", b=Mute(), c=Path("/p"), d=b"\xff", e={1: {2}})
    (line,) = lines(capfd.readouterr().err)
    assert line["a"] == "\udcff" and "cannot be shown" in line["b"] and line["c"] == "/p"


def test_what_cannot_be_shown_at_all_is_a_lost_line(capfd: pytest.CaptureFixture[str]) -> None:
    """A value that contains itself costs its own line, which is counted, and nothing else."""
    log.configure("info", "json")
    endless: list[object] = []
    endless.append(endless)
    logger = log.get_logger("x")
    logger.info("odd", a=endless)
    logger.info("odd", child=[1])
    logger.info("fine")
    assert [(line["event"], line.get("lost")) for line in lines(capfd.readouterr().err)] == [
        ("log lines were lost", 2), ("fine", None),
    ]  # fmt: skip


def test_a_console_line_cannot_be_forged(capfd: pytest.CaptureFixture[str]) -> None:
    """Line ends and escapes in a value are shown, not obeyed."""
    log.configure("info", "console")
    log.get_logger("x").info("odd", problem="a\n12:00:00 info supervisor all is well\x1b[2J")
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "\x1b[2J" not in said and "a\\n12:00:00" in said


def test_a_long_value_is_cut_and_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    """Nobody floods the log with one value."""
    log.configure("info", "json")
    log.get_logger("x").info("odd", problem="é" * (MOST_CHARS + 5))
    assert lines(capfd.readouterr().err)[0]["problem"] == "é" * MOST_CHARS + f"… ({MOST_CHARS + 5} characters)"


# repeats


def test_repeats_are_held_and_told_at_the_end_of_the_window() -> None:
    """Three are written, the rest is counted; the last one comes with the count, once, when the window is over."""
    repeats = Repeats(most=3, window_s=10.0)
    told = [repeats.may("error", {"event": "e", "process": "p", "n": n}, 1.0) for n in range(8)]
    assert told == [True] * 3 + [False] * 5
    assert repeats.due(10.9) == [] and repeats.due_s == 11.0
    assert repeats.due(11.0) == [("error", {"event": "e", "process": "p", "n": 7, "repeated": 5})]
    assert repeats.due(99.0) == [] and repeats.may("error", {"event": "e", "process": "p"}, 99.0)


def test_other_levels_events_processes_and_children_are_no_repeats() -> None:
    """A flood of one kind hides nothing of another."""
    repeats = Repeats(most=1)
    first = {"event": "e", "process": "p", "child": "fast-0"}
    assert repeats.may("info", first, 0.0) and not repeats.may("info", first, 0.0)
    for level, record in (
        ("error", first), ("info", first | {"event": "f"}), ("info", first | {"process": "q"}),
        ("info", first | {"child": "fast-1"}), ("info", {"event": "e", "process": "p", "worker": "fast-2"}),
    ):  # fmt: skip
        assert repeats.may(level, record, 0.0), record


def test_jobs_have_a_bound_of_their_own_and_none_is_lost_uncounted() -> None:
    """Lines that name a job are held later; written and counted ones together are all of them."""
    repeats = Repeats(most=2, most_jobs=100, window_s=1.0)
    written = sum(repeats.may("warning", {"event": "e", "job": f"j{n}"}, 0.5) for n in range(250))
    ((_, last),) = repeats.due(2.0)
    assert (written, last["repeated"], last["job"]) == (100, 150, "j249")


def test_windows_are_bounded() -> None:
    """With more kinds of events than windows nothing is held, and nothing grows."""
    repeats = Repeats(most=1, window_s=10.0)
    assert all(repeats.may("info", {"event": f"e{n}"}, 0.0) for n in range(MOST_KEYS * 2))
    assert len(repeats._windows) == MOST_KEYS
    assert repeats.may("info", {"event": "new"}, 20.0) and len(repeats._windows) == 1


def test_the_next_line_or_a_tick_tells_what_was_held(capfd: pytest.CaptureFixture[str]) -> None:
    """In a window of a tenth of a second: a loop's tick tells it; `flush` does not wait for its end."""
    log.configure("info", "json", repeats=(1, 1, 0.1))
    logger = log.get_logger("x")
    for n in range(3):
        logger.info("again", n=n)
    while not (said := capfd.readouterr().err).count("repeated"):
        log.tick()
    assert json.loads(said.splitlines()[-1])["repeated"] == 2
    for n in range(4):
        logger.info("again", n=n)
    log.flush()
    assert [line.get("repeated") for line in lines(capfd.readouterr().err)] == [None, 3]


# the journal


def test_the_journal_gets_fields_of_its_own(journal: socket.socket) -> None:
    """MESSAGE in words, PRIORITY, the identifier, the kind's MESSAGE_ID, and every field under its promised name."""
    log.get_logger("dispatcher", pid=3).warning("child died", job="j-1", worker="fast-0", attempt=2, how="SIGSEGV")
    found = dict(fields(journal.recv(65536)))
    assert found.pop("MESSAGE") == "dispatcher: child died pid=3 job=j-1 worker=fast-0 attempt=2 how=SIGSEGV"
    assert found == {
        "PRIORITY": "4", "SYSLOG_IDENTIFIER": "metamusesd", "MESSAGE_ID": MESSAGE_IDS["child died"],
        "METAMUSES_EVENT": "child died", "METAMUSES_PROCESS": "dispatcher", "METAMUSES_PID": "3",
        "METAMUSES_JOB_ID": "j-1", "METAMUSES_WORKER": "fast-0", "METAMUSES_ATTEMPT": "2", "METAMUSES_HOW": "SIGSEGV",
    }  # fmt: skip


def test_a_value_with_line_ends_keeps_them_and_forges_no_field(journal: socket.socket) -> None:
    """It travels with its length; MESSAGE stays one line."""
    log.get_logger("x").error("odd", problem="a\nMESSAGE=forged", **{"Straße-1": "ü"})
    found = fields(journal.recv(65536))
    assert ("METAMUSES_PROBLEM", "a\nMESSAGE=forged") in found and ("METAMUSES_STRASSE_1", "ü") in found
    assert [value for name, value in found if name == "MESSAGE"] == ["x: odd problem=a\\nMESSAGE=forged Straße-1=ü"]


def test_a_full_journal_loses_lines_and_says_how_many(journal: socket.socket) -> None:
    """Nobody reads: no call waits. When somebody reads again, the first line says what was lost."""
    logger = log.get_logger("x")
    for n in range(3000):
        logger.info("line", n=n)
    journal.setblocking(False)
    kept = 0
    while True:
        try:
            kept += bool(journal.recv(65536))
        except BlockingIOError:
            break
    assert 0 < kept < 3000
    logger.info("line", n=3000)
    first, second = dict(fields(journal.recv(65536))), dict(fields(journal.recv(65536)))
    assert first["METAMUSES_EVENT"] == "log lines were lost" and int(first["METAMUSES_LOST"]) == 3000 - kept
    assert first["PRIORITY"] == "4" and second["METAMUSES_N"] == "3000"


def test_a_journal_that_comes_back_is_found_again(tmp_path: Path, journal: socket.socket) -> None:
    """Its socket is gone and made anew: lines go on, with the count of those between."""
    logger = log.get_logger("x")
    logger.info("before")
    journal.close()
    (tmp_path / "j").unlink()
    logger.info("between")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(str(tmp_path / "j"))
        again.settimeout(5)
        logger.info("after")
        told = [dict(fields(again.recv(65536))) for _ in range(2)]
    assert [each["METAMUSES_EVENT"] for each in told] == ["log lines were lost", "after"]
    assert told[0]["METAMUSES_LOST"] == "1"


def test_a_tick_tells_what_was_lost(tmp_path: Path, journal: socket.socket) -> None:
    """A process with nothing more to say still says how many lines nobody has, once."""
    journal.close()
    (tmp_path / "j").unlink()
    log.get_logger("x").info("between")
    log.tick()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(str(tmp_path / "j"))
        log.tick()
        log.tick()
        told = dict(fields(again.recv(65536, socket.MSG_DONTWAIT)))
        assert (told["METAMUSES_PROCESS"], told["METAMUSES_LOST"]) == ("x", "1")
        with pytest.raises(BlockingIOError):
            again.recv(65536, socket.MSG_DONTWAIT)


def test_a_forked_child_has_a_socket_of_its_own_and_tells_nothing_of_its_parent(tmp_path: Path) -> None:
    """A child closes every descriptor that it inherits; whatever takes that number then gets no line of the log. What
    the parent holds and has lost stays with the parent."""
    code = """
import os, sys
from metamusesd import log
log.configure("info", "journal", repeats=(1, 1, 0.001), journal_socket=sys.argv[1])
logger = log.get_logger("parent")
for n in range(3): logger.info("again")
pid = os.fork()
if pid == 0:
    os.closerange(3, 100)
    read, write = os.pipe()
    log.tick()
    log.get_logger("child").info("here")
    os.set_blocking(read, False)
    try:
        os.read(read, 1)
    except BlockingIOError:
        os._exit(0)
    os._exit(1)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
log.flush()
sys.exit(code)
"""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        door.bind(str(tmp_path / "j"))
        door.settimeout(5)
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "j")], check=True, timeout=30)
        told = [dict(fields(door.recv(65536))) for _ in range(3)]
    assert [(each["METAMUSES_PROCESS"], each.get("METAMUSES_REPEATED")) for each in told] == [
        ("parent", None), ("child", None), ("parent", "2"),
    ]  # fmt: skip


@pytest.mark.parametrize("named", [True, False])
def test_auto_is_the_journal_only_where_standard_error_is_its_stream(tmp_path: Path, named: bool) -> None:
    """$JOURNAL_STREAM must name the very stream: a shell inside a service redirects, and the variable stays."""
    code = "import sys; from metamusesd import log; log.configure('info', 'auto', journal_socket=sys.argv[1]); "
    code += "log.get_logger('x').info('hello')"
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        door.bind(str(tmp_path / "j"))
        door.settimeout(5)
        status = os.fstat(theirs.fileno())
        environ = os.environ | {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino if named else 1}"}
        command = [sys.executable, "-c", code, str(tmp_path / "j")]
        subprocess.run(command, stderr=theirs, env=environ, check=True, timeout=30)
        theirs.close()
        if named:
            assert dict(fields(door.recv(65536)))["METAMUSES_EVENT"] == "hello" and ours.recv(100) == b""
        else:
            assert json.loads(ours.recv(65536))["event"] == "hello"


# standard error


def test_nobody_waits_for_whoever_reads_standard_error() -> None:
    """A pipe that nobody reads fills up: all calls return, the process ends; what was read before is whole lines, and
    what comes after the reader is back says how many are missing."""
    code = """
import os, sys
from metamusesd import log
log.configure("info", "json", repeats=(10**6, 10**6, 10.0))
logger = log.get_logger("x")
for n in range(4000): logger.info("line", n=n)
os.write(1, b"!")
os.read(0, 1)
logger.info("after")
assert os.get_blocking(2), "it is others' as well"
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin and process.stdout and process.stderr
        assert process.stdout.read(1) == b"!"
        fcntl.fcntl(process.stderr, fcntl.F_SETFL, os.O_NONBLOCK)
        early = process.stderr.read()
        process.stdin.write(b"!")
        process.stdin.close()
        assert process.wait(30) == 0
        late = process.stderr.read()
    whole = [json.loads(line) for line in early.splitlines()[:-1]]
    assert [line["n"] for line in whole] == list(range(len(whole)))
    *_, lost, after = late.splitlines()
    assert json.loads(after)["event"] == "after" and len(whole) < 4000
    assert json.loads(lost)["lost"] in (4000 - len(whole), 3999 - len(whole))  # the last one before may be whole or cut


def test_a_closed_standard_error_costs_nothing_but_lines() -> None:
    """Neither a reader that is gone nor a descriptor that is closed raises anything."""
    for close in ("os.close(2)", "r, w = os.pipe(); os.dup2(w, 2); os.close(w); os.close(r)"):
        found = python(f"import os; from metamusesd import log; {close}; log.get_logger('x').info('y'); print('on')")
        assert found.stdout == b"on\n"


def test_the_docs_name_every_kind_with_its_id() -> None:
    """docs/logs.md is what operators and alerts go by: neither more nor less than the code has."""
    rows = re.findall(r"^\| `([^`]+)` \| [a-z; ]+ \| `([0-9a-f]{32})` \|", (ROOT / "docs/logs.md").read_text(), re.M)
    assert dict(rows) == MESSAGE_IDS and len(rows) == len(MESSAGE_IDS)


def test_every_kind_is_said_somewhere() -> None:
    """An id of an event that nobody logs any more would be waited for in vain."""
    said: set[object] = set()
    for path in (ROOT / "metamusesd").rglob("*.py"):
        if path.name != "events.py":
            said |= {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
    assert set(MESSAGE_IDS) <= said, set(MESSAGE_IDS) - said


def test_ids_are_unique_and_look_like_ids() -> None:
    """The journal takes 32 hexadecimal digits."""
    assert len(set(MESSAGE_IDS.values())) == len(MESSAGE_IDS)
    assert all(len(id) == 32 and int(id, 16) for id in MESSAGE_IDS.values())
