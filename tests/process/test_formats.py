"""Weights for this host: a daemon loads what was chosen; `bench --formats` leaves nothing behind when it is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from metamusesd import formats
from metamusesd.config import DEMO_MODEL
from metamusesd.job import Result
from metamusesd.models import digest_of
from tests.process.daemon_rig import Daemon
from tests.process.supervisor_rig import until
from tests.process.test_reload import order

pytest.importorskip("llama_cpp")

DEMO = Path(os.environ.get("MODELS_DIR") or Path(__file__).parents[2] / "models") / DEMO_MODEL
CONFIG = """
[daemon]
state_dir = "{folder}/s"
models_dir = "{folder}/m"
[cache]
enabled = false
[models.demo]
file = "{file}"
format = "auto"
context = 256
canary_tokens_s = 0
[tiers.fast]
model = "demo"
workers = 1
cores = 1
slots = 2
"""

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(not DEMO.is_file(), reason="no demo model: run `make models`"),
]


@pytest.fixture(autouse=True)
def own_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's models_dir would come before the configuration's."""
    monkeypatch.delenv("MODELS_DIR", raising=False)


@pytest.fixture(scope="module")
def derived(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo model in two other formats."""
    place = tmp_path_factory.mktemp("derived")
    made = {form: place / f"{form}.gguf" for form in ("Q8_0", "Q4_0")}
    for form, path in made.items():
        command = [sys.executable, "-m", "metamusesd.engines.llamacpp.derive", "quantize", str(DEMO), str(path), form]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    return made


class Host(Daemon):
    """A daemon with the demo model, on a host for which bench has chosen `Q8_0`."""

    awake = ("ready",)

    def __init__(self, derived: dict[str, Path]) -> None:
        self.derived = derived
        super().__init__()

    def text(self) -> str:
        place = self.folder / "m"
        place.mkdir()
        self.source = place / DEMO_MODEL
        self.source.symlink_to(DEMO)
        for form, path in self.derived.items():
            formats.derived_path(self.source, form).symlink_to(path)
        for path in place.glob("*.gguf"):
            digest_of(path)
        self.choose("Q8_0")
        return CONFIG.format(folder=self.folder, file=DEMO_MODEL)

    def choose(self, form: str, here: str | None = None) -> None:
        path = formats.derived_path(self.source, form)
        row = {"source": digest_of(self.source), "format": form, "file": path.name, "digest": digest_of(path),
               "gain": 1.5, "change": 0.001, "at": "2026-11-26T13:05:00+00:00"}  # fmt: skip
        assert formats.keep(self.source, row, here)

    def digest(self, form: str) -> str:
        return digest_of(formats.derived_path(self.source, form))

    async def ask(self) -> Result:
        async with self.client() as client:
            return await client.execute({"user_query": "Say hello.", "params": {"max_tokens": 4, "temperature": 0}}, 60)

    def said(self) -> str:
        return (self.folder / "log").read_text()


@pytest.fixture
def host(derived: dict[str, Path]) -> Iterator[Host]:
    made = Host(derived)
    yield made
    made.close()


async def test_the_chosen_weights_answer_and_a_reload_takes_another_choice(host: Host) -> None:
    """Results carry the digest of the file that is loaded; a reload without a new choice touches nobody."""
    assert (await host.ask()).model_digest == host.digest("Q8_0")
    assert "Q8_0, 1.50 times as fast here" in host.said()
    pid = host.pid("fast-0")
    assert (await order(host, "reload"))[0] == 0 and host.pid("fast-0") == pid
    host.choose("Q4_0")
    code, said = await order(host, "reload")
    assert (code, said.splitlines()[-1]) == (0, "reloaded"), said
    assert (await host.ask()).model_digest == host.digest("Q4_0")
    code, said = await order(host, "models", "list")
    line = next(line for line in said.splitlines() if "as-Q4_0" in line)
    assert code == 0 and line.endswith("used as: demo") and host.digest("Q4_0") in line
    assert host.stop() == 0


async def test_a_choice_that_does_not_hold_any_more_leaves_the_source(host: Host) -> None:
    """Another processor, as after a move: the daemon starts on the file as configured, and log and doctor say so."""
    assert host.stop() == 0
    formats.record_path(host.source).unlink()
    host.choose("Q8_0", "another processor")
    host.start()
    assert (await host.ask()).model_digest == digest_of(host.source)
    assert "weights as configured" in host.said() and "not chosen a format on this processor yet" in host.said()
    code, said = await order(host, "doctor", "--quiet")
    assert code and "bench --formats --write demo" in said
    assert host.stop() == 0


@pytest.mark.parametrize(
    ("stage", "signum"), [("perplexity of source", signal.SIGTERM), ("making Q8_0", signal.SIGINT)]
)
def test_who_stops_the_comparison_finds_nothing_left_behind(tmp_path: Path, stage: str, signum: int) -> None:
    """No file in the models directory, no process that goes on; exit 130."""
    (tmp_path / DEMO_MODEL).symlink_to(DEMO)
    words = ["bench", "--formats", "--write", "--try", "Q8_0", "--set", f"daemon.state_dir={tmp_path}/s"]
    environ = {name: text for name, text in os.environ.items() if not name.startswith("METAMUSESD")}
    with subprocess.Popen(
        [sys.executable, "-m", "metamusesd", *words, "--set", f"daemon.models_dir={tmp_path}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environ, process_group=0,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        assert any(stage in line for line in process.stderr)
        assert list(tmp_path.glob(".fetch-*"))
        process.send_signal(signum)
        rest = process.stderr.read()
    assert process.returncode == 130 and "Traceback" not in rest, rest
    assert sorted(path.name for path in tmp_path.iterdir()) == [".digests.json", ".fetch.lock", DEMO_MODEL]
    until(lambda: not [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path) in _words(path)])


def _words(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""  # it has just ended
