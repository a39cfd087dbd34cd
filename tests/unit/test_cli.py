"""metamusesd.cli and metamusesd.commands, in processes of their own where that is the point."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from metamusesd import cli
from metamusesd.client import Client
from metamusesd.commands import dead, jobs, waiting
from metamusesd.commands.waiting import WaitLine
from metamusesd.errors import MetamusesdError, QueueFull
from metamusesd.job import Result
from metamusesd.queues.base import JobEvent, JobView, Position
from metamusesd.queues.memory import MemoryQueue

HEAVY = ("asyncio", "msgspec", "redis", "hiredis", "uvloop", "rich", "llama_cpp", "numpy", "jinja2", "huggingface_hub")


ROOT = Path(__file__).parent.parent.parent


def run(*args: str, given: bytes = b"", **environ: str) -> subprocess.CompletedProcess[str]:
    """`metamusesd ARGS` with nothing of this machine's configuration."""
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith(("METAMUSESD", "REDIS", "MODELS_DIR"))
    }
    done = subprocess.run(
        [sys.executable, "-m", "metamusesd", *args],
        input=given,
        capture_output=True,
        timeout=50,
        env=clean | environ,
        check=False,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def loaded_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after `code`, beyond what it starts with."""
    script = f"import sys\nbefore = set(sys.modules)\n{code}\nprint(*sorted(set(sys.modules) - before))"
    names = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=50
    ).stdout
    return {name.split(".")[0] for name in names.split()}


def test_importing_the_command_line_loads_nothing_of_third_parties() -> None:
    """`import metamusesd.cli` brings the standard library and us, and nothing heavy even of the standard library."""
    third = {name for name in loaded_after("import metamusesd.cli") if name not in sys.stdlib_module_names}
    assert third == {"metamusesd"}
    assert not loaded_after("import metamusesd.cli") & set(HEAVY)


def test_what_becomes_the_supervisor_loads_nothing_of_third_parties() -> None:
    """`run` forks its children from an image without asyncio, threads or vendor libraries."""
    pytest.importorskip("metamusesd.supervisor.supervisor", reason="the supervisor is not there yet")
    loaded = loaded_after("import metamusesd.cli, metamusesd.commands.daemon, metamusesd.supervisor.supervisor")
    assert {name for name in loaded if name not in sys.stdlib_module_names} == {"metamusesd"}
    assert not loaded & {"asyncio", "concurrent"}


def test_help_loads_no_command() -> None:
    """`--help` is quick because it imports no command."""
    code = "import contextlib, metamusesd.cli\nwith contextlib.suppress(SystemExit): metamusesd.cli.main(['--help'])"
    script = f"import sys, io\nsys.stdout = io.StringIO()\n{code}\nsys.stdout = sys.__stdout__\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=50)
    assert not [name for name in done.stdout.split() if name.startswith("metamusesd.commands")]


def test_help_documents_every_command_and_exit_code() -> None:
    """The help names all commands and every code that errors are translated to."""
    text = run("--help").stdout
    assert all(f"\n    {name} " in text for name in cli.COMMANDS)
    assert all(str(code) in text for code in cli.EXIT_CODES.values())


@pytest.mark.parametrize("command", [*cli.COMMANDS])
def test_every_command_has_help(command: str) -> None:
    """`COMMAND --help` works for each, with the options that all share."""
    done = run(command, "--help")
    assert done.returncode == 0 and command in done.stdout


def test_every_error_has_an_exit_code() -> None:
    """No typed error that a producer can see falls through to `internal error`."""

    def tree(kind: type[MetamusesdError]) -> set[str]:
        return {kind.code}.union(*(tree(child) for child in kind.__subclasses__()))

    bases = {
        "cache_error",
        "internal_error",
        "request_error",
        "queue_error",
        "job_error",
        "engine_error",
        "operator_error",
    }
    inner = {"no_capacity", "engine_failed", "wire_error", "canary_failed", "gpu_full"}
    assert tree(MetamusesdError) - bases - inner <= set(cli.EXIT_CODES)


def test_bad_configuration_is_one_line_a_mistake_and_78(tmp_path: Path) -> None:
    """Every mistake of file, environment and flags comes at once, without a traceback."""
    path = tmp_path / "bad.toml"
    path.write_text("[daemon]\ndrain = 1\n[redis]\nappendfsync = 'never'\n")
    for command in (["run"], ["check"], ["status"], ["submit", "x"], ["models", "list"]):
        done = run(*command, "--config", str(path), "--set", "queue.max_jobs=0")
        assert done.returncode == 78, command
        lines = done.stderr.splitlines()
        assert len(lines) == 3 and all(line.startswith("metamusesd: ") for line in lines)
        assert {"daemon.drain:", "redis.appendfsync:", "queue.max_jobs:"} == {line.split()[1] for line in lines}


def test_missing_configuration_file_and_bad_flag() -> None:
    """A --config that is not there and a --set without value are mistakes like others."""
    assert "cannot be read" in run("check", "--config", "/none.toml").stderr
    done = run("check", "--set", "redis.url")
    assert done.returncode == 78 and "--set KEY=VALUE" in done.stderr.replace("redis.url=VALUE", "KEY=VALUE")


def test_global_options_count_before_and_after_the_command(tmp_path: Path) -> None:
    """`--set` before the command, after it, and after an action of it."""
    for args in (["--set", "x.y=1", "check"], ["check", "--set", "x.y=1"], ["models", "list", "--set", "x.y=1"]):
        assert "x: unknown section" in run(*args).stderr


def test_missing_model_stops_run_before_anything_starts(tmp_path: Path) -> None:
    """`run` without the model file: exit 78, the file and the remedy, and no state directory is made."""
    done = run("run", "--set", f"daemon.state_dir={tmp_path}/state", MODELS_DIR=str(tmp_path))
    assert done.returncode == 78
    assert "models.smollm2.file" in done.stderr and "metamusesd models fetch" in done.stderr
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    "command",
    [["status"], ["top", "--once"], ["submit", "hello"], ["watch", "x"], ["cancel", "x"], ["dead", "list"], ["jobs"]],
)
def test_absent_daemon_is_said_with_the_remedy(command: list[str], tmp_path: Path) -> None:
    """Exit 69, one line: which socket was tried and how to start the daemon."""
    done = run(*command, "--set", f"daemon.state_dir={tmp_path}")
    assert done.returncode == 69
    (line,) = done.stderr.splitlines()
    assert f"{tmp_path}/run/health.sock" in line and "metamusesd run" in line


@pytest.mark.parametrize(
    ("args", "given", "field"),
    [
        (["submit"], b"", "user_query"),
        (["submit", "-"], b"  \n", "user_query"),
        (["submit", "-"], b"\xff\xfe", "user_query"),
        (["submit", "-"], b"a\0b", "user_query"),
        (["submit", "-"], b"x" * (4 << 20), "body"),
        (["submit", "x", "--priority", "urgent"], b"", "priority"),
        (["submit", "x", "--tier", "huge"], b"", "tier"),
        (["submit", "x", "--max-tokens", "0"], b"", "params.max_tokens"),
        (["submit", "x", "--temperature", "-1"], b"", "params.temperature"),
        (["submit", "x", "--temperature", "nan"], b"", "params.temperature"),
        (["submit", "x", "--deadline", "0"], b"", "deadline_ms"),
        (["submit", "x", "--json-schema", "/none"], b"", "params.json_schema"),
        (["submit", "x", "--json-schema", "/dev/null"], b"", "params.json_schema"),
        (["submit", "x", "--persona", "@/none"], b"", "persona"),
        (["submit", "x", "--id", "a b"], b"", "id"),
    ],
)
def test_bad_submit_is_refused_before_anything_is_asked(args: list[str], given: bytes, field: str) -> None:
    """Exit 65, one line that names the field; no daemon is needed for that."""
    done = run(*args, given=given)
    assert done.returncode == 65
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"metamusesd: invalid_request: {field}: ")


def test_wrong_command_line_is_2() -> None:
    """An unknown command or option is argparse's 2, with its usage line."""
    assert run("fly").returncode == 2
    assert run("submit", "x", "--fly").returncode == 2
    assert run().returncode == 2


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "soon"])
def test_a_time_without_an_end_is_a_wrong_command_line(text: str) -> None:
    """`--deadline inf` and `--timeout nan` are refused by name, without a traceback."""
    for option in ("--deadline", "--timeout"):
        done = run("submit", "x", f"{option}={text}")
        assert done.returncode == 2 and option in done.stderr and "Traceback" not in done.stderr


def test_closed_output_is_no_traceback() -> None:
    """`metamusesd … | head -0` ends quietly."""
    command = f"{sys.executable} -m metamusesd version --set daemon.drain_s=1 | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=50, check=False)
    assert "Traceback" not in done.stderr


def test_version() -> None:
    """The number of the package, alone when asked."""
    from metamusesd import __version__

    assert run("version", "--short").stdout == f"{__version__}\n"
    assert run("version").stdout.startswith(f"metamusesd {__version__}\n")


def test_full_queue_says_when_to_try_again() -> None:
    """A retry-after travels to the reader, and the exit code means `later`."""
    error = QueueFull("100 jobs wait", retry_after_s=2.5)
    assert cli.describe(error) == "queue_full: 100 jobs wait (try again in 2.5 s)"
    assert cli.EXIT_CODES[error.code] == 75


def test_models_list_and_verify_need_no_daemon(tmp_path: Path) -> None:
    """What is there, what is missing, and what has changed since it was hashed."""
    (tmp_path / "a.gguf").write_bytes(b"weights")
    done = run("models", "list", "--dir", str(tmp_path))
    assert "a.gguf" in done.stdout and "missing  used as: smollm2" in done.stdout
    assert run("models", "verify", "--dir", str(tmp_path)).returncode == 0
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"not that model")
    done = run("models", "verify", "--dir", str(tmp_path))
    assert done.returncode == 1 and "it should be sha256:b179" in done.stderr


def test_a_model_of_ones_own_comes_and_goes(tmp_path: Path) -> None:
    """Added with its digest and what to write; the same again is fine, another file of that name is not; a tier's model
    stays, and what is no GGUF is refused."""
    real = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    mine = tmp_path / "My Model.gguf"
    mine.symlink_to(real)
    there = tmp_path / "models"
    for _ in range(2):
        done = run("models", "add", str(mine), "--dir", str(there))
        assert done.returncode == 0 and "[models.my-model]" in done.stdout and "sha256:b179" in done.stdout
    (tmp_path / "bad.gguf").write_bytes(b"nothing")
    assert run("models", "add", str(tmp_path / "bad.gguf"), "--dir", str(there)).returncode == 65
    used = ("--set", "models.smollm2.file='My Model.gguf'")
    done = run("models", "remove", "My Model.gguf", "--dir", str(there), *used)
    assert done.returncode == 65 and "tiers.fast uses it" in done.stderr and (there / mine.name).is_file()
    assert run("models", "remove", "My Model.gguf", "--dir", str(there)).returncode == 0
    assert not (there / mine.name).exists()
    done = run("models", "remove", "My Model.gguf", "--dir", str(there))
    assert done.returncode == 65 and "is not there" in done.stderr


def test_inspect_says_what_a_model_takes() -> None:
    """Weights once, cells by slots; the template's digest, which is part of the caches' identity."""
    file = str(ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    few, many = (run("models", "inspect", file, "--slots", n) for n in ("1", "32"))
    eight = run("models", "inspect", file, "--kv-cache-type", "q8_0")
    assert "98 MB of weights" in few.stdout and "template      sha256:" in few.stdout
    assert "1 slots" in few.stdout and "32 slots" in many.stdout and few.stdout != many.stdout
    assert "x 22.5 KiB, 1 slots" in few.stdout and "x 12.0 KiB of q8_0, 8 slots" in eight.stdout


def test_unknown_model_name_lists_the_known() -> None:
    """`models fetch nonsense` says what there is."""
    done = run("models", "fetch", "nonsense")
    assert done.returncode == 65 and "smollm2" in done.stderr


def test_check_finds_what_run_would_trip_over(tmp_path: Path) -> None:
    """A file that is no model, and more cores than the host has: one line each, exit 78."""
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"not a model")
    done = run("check", "--set", "tiers.fast.cores=5000", MODELS_DIR=str(tmp_path))
    assert done.returncode == 78
    assert "is no whole GGUF file" in done.stderr and "cores" in done.stderr
    assert "Traceback" not in done.stderr


def test_status_prints_the_socket_of_the_embedded_redis() -> None:
    """Whoever speaks to Redis without our client must find it."""
    from metamusesd.commands.status import frame

    redis = {"embedded": True, "url": "unix:///run/metamusesd/redis.sock"}
    assert "(embedded, /run/metamusesd/redis.sock)" in str(frame({"redis": redis})[0])
    assert "(redis://***@host/0)" in str(frame({"redis": {"url": "redis://***@host/0"}})[0])


def test_status_frame_survives_anything_the_daemon_may_leave_out() -> None:
    """The screen draws what is there; a newer or older daemon's answer is no error."""
    from metamusesd.commands.status import frame

    assert frame({}) and frame({"workers": [{}], "queues": {"by_queue": {"fast": {}}}, "reasons": ["a [b] c"]})


def test_status_shows_the_memory_of_gpus() -> None:
    """In a column of its own, where a worker has a GPU."""
    from rich.table import Table

    from metamusesd.commands.status import frame

    workers = [{"name": "a", "vram_total_bytes": 80 << 30, "vram_used_bytes": 5 << 30}, {"name": "b"}]
    for shown, cells in ((workers, ["5.37 GB of 85.9 GB", "-"]), (workers[1:], None)):
        table = next(part for part in frame({"workers": shown}) if isinstance(part, Table))
        columns = {column.header: list(column.cells) for column in table.columns}
        assert columns.get("VRAM") == cells


class Heard:
    """Standard error of a terminal, or of none."""

    def __init__(self, *, terminal: bool) -> None:
        self.text, self._terminal = "", terminal

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return self._terminal


def queued(ahead: int, p50_ms: int | None = 2000, p90_ms: int | None = 5000) -> JobEvent:
    data = json.dumps({"queue": "fast", "ahead": ahead, "start_p50_ms": p50_ms, "start_p90_ms": p90_ms})
    return JobEvent("1-0", "j", "queued", data=data.encode())


def wait_line(*, quiet: bool = False) -> WaitLine:
    return WaitLine(cast(Client, None), "j", quiet=quiet)


def test_the_place_on_a_terminal_is_one_line_and_gone_before_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is rewritten with every change, and wiped off when the job starts."""
    screen = Heard(terminal=True)
    monkeypatch.setattr(sys, "stderr", screen)
    line = wait_line()
    for event in (queued(3), queued(3), queued(1, None, None), JobEvent("2-0", "j", "started"), queued(0)):
        line.hear(event)
    line.stop()
    assert "\n" not in screen.text
    first, second, wiped, *_ = screen.text.split("\r\x1b[K")[1:]
    assert "waiting for fast, 3 ahead · starts in about 2.0 s, within 5.0 s in 9 cases of 10" in first
    assert second == "\x1b[2mwaiting for fast, 1 ahead\x1b[0m" and wiped == ""


def test_the_place_without_a_terminal_is_a_line_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """And only when it has changed; what is no place is not shown."""
    now_s = [0.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now_s[0])
    plain = Heard(terminal=False)
    monkeypatch.setattr(sys, "stderr", plain)
    line = wait_line()
    for at_s, event in (
        (0.0, queued(9)),
        (0.5, queued(8)),
        (1.0, queued(7)),
        (2.0, queued(7)),
        (3.0, JobEvent("1-0", "j", "queued")),
    ):
        now_s[0] = at_s
        line.hear(event)
    assert [text.split(" ·")[0] for text in plain.text.splitlines()] == [
        "waiting for fast, 9 ahead",
        "waiting for fast, 7 ahead",
    ]
    quiet = wait_line(quiet=True)
    now_s[0] = 9.0
    quiet.hear(queued(1))
    assert len(plain.text.splitlines()) == 2


async def test_a_silent_wait_asks_once_for_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was heard for a while: the queue is asked; an answer that nobody waits in says nothing."""
    monkeypatch.setattr(waiting, "ASK_AFTER_S", 0.0)
    plain = Heard(terminal=False)
    monkeypatch.setattr(sys, "stderr", plain)
    queue = MemoryQueue()
    asked = asyncio.Event()

    async def position(id: str) -> Position:
        asked.set()
        return Position(id, "queued", "ingress", 4)

    monkeypatch.setattr(queue, "position", position)
    async with Client(queue=queue) as client:
        line = WaitLine(client, "j")
        line.start()
        await asked.wait()
        await asyncio.sleep(0)
        line.stop()
    assert plain.text == "waiting to be routed, 4 ahead\n"


EVIDENCE = {
    "how": "signal 11 (SIGSEGV)",
    "worker": "fast-0",
    "pid": 77,
    "phase": "decode",
    "prompt_tokens": 34,
    "rss_mb": 210,
    "alone": True,
    "stacks": "fast-0-1.stacks",
    "at_ms": 1_700_000_008_000,
    "odd\x1b[2J": [1],
}


def quarantined(**fields: Any) -> JobView:
    body = json.dumps({"user_query": "make it\x9b crash " + "!" * 300}).encode()
    evidence = (json.dumps(EVIDENCE).encode(), b"no JSON")
    return JobView(
        "p1",
        "dead",
        2,
        3,
        3,
        "acme",
        1_700_000_000_000,
        b'{"tiers":["fast","heavy"]}',
        "",
        body,
        1,
        "worker_died",
        1_700_000_009_000,
        evidence,
        **fields,
    )


def test_a_dead_job_for_people_and_for_programs() -> None:
    """Every crash with its evidence, in words; nothing of it steers the terminal; --json keeps all."""
    text = "\n".join(dead.describe(quarantined()))
    for part in (
        "p1  dead · class high · tenant acme · tier fast heavy",
        "3 crashes",
        "worker died",
        "crash 1",
        "crash 2",
        "signal 11 (SIGSEGV)",
        "prompt tokens",
        "34",
        "fast-0-1.stacks",
        "no JSON",
        "alone              yes",
    ):
        assert part in text, part
    assert "at_ms" not in text and "\x1b" not in text and "\x9b" not in text and "(315 characters)" in text
    told = json.loads(json.dumps(dead.as_dict(quarantined())))
    assert told["evidence"][0] == EVIDENCE and told["tiers"] == ["fast", "heavy"] and told["class"] == "high"


def test_refusals_after_acceptance_say_when_to_try_again(capsys: pytest.CaptureFixture[str]) -> None:
    """A job that would be too late, or waited too long: exit 75, one line with the time."""
    for code in ("deadline_unmeetable", "queue_timeout"):
        error = {"code": code, "message": "too much work", "retryable": True, "retry_after_s": 3.5}
        assert jobs._exit_code(Result(request_id="j", state="failed", content="", error=error), quiet=False) == 75
        assert f"{code}: too much work (job j, failed) (try again in 3.5 s)" in capsys.readouterr().err


@pytest.mark.parametrize(("terminal", "shown"), [(True, "a\\x1b[2J\n\tü\\x9b"), (False, "a\x1b[2J\n\tü\x9b")])
def test_an_answer_does_not_steer_the_terminal(monkeypatch: pytest.MonkeyPatch, terminal: bool, shown: str) -> None:
    """Control characters of a model's text are spelt out on a terminal, and left alone in a pipe."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    assert jobs._shown("a\x1b[2J\n\tü\x9b") == shown


@pytest.mark.parametrize(
    "order", [("--config", "F", "dead", "list"), ("dead", "--config", "F", "list"), ("dead", "list", "--config", "F")]
)
def test_the_configuration_may_be_named_anywhere(
    order: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the command, between it and its action, or at the end."""
    missing = str(tmp_path / "missing.toml")
    assert cli.main([missing if word == "F" else word for word in order]) == 78
    assert missing in capsys.readouterr().err
