"""Weights for this host: what bench compares and keeps, and when a configuration goes by it."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from metamusesd import formats
from metamusesd.commands import formats as comparing
from metamusesd.commands import measuring, premises
from metamusesd.commands.formats import Candidate, choose
from metamusesd.config import Config, Daemon, Model, Tier
from metamusesd.control import WorkerSpec
from metamusesd.engines.llamacpp.formats import FORMATS, bytes_at_most, candidates
from metamusesd.errors import EngineFailed, FetchFailed, InvalidRequest
from metamusesd.gguf import Header, read_header
from metamusesd.models import digest_of
from metamusesd.supervisor import measured
from tests.unit.test_cli import ROOT, run
from tests.unit.test_models import gguf

HERE = "a processor, model 1"
DERIVED = "m.as-Q8_0.gguf"
WORKER = WorkerSpec("fast-0", "fast", "m", (0,), slots=8)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A model with `format = auto`, its file, a derived one, both hashed before."""
    text = struct.pack("<Q", 5) + b"llama"
    kind = struct.pack("<I", 3)
    tensor = struct.pack("<Q", 1) + b"t" + struct.pack("<IQQIQ", 2, 300, 4, 0, 0)
    width = struct.pack("<I", 576)
    entries = [("general.architecture", 8, text), ("general.file_type", 4, kind), ("llama.embedding_length", 4, width)]
    (tmp_path / "m.gguf").write_bytes(gguf(entries, tensor, 1))
    (tmp_path / DERIVED).write_bytes(b"eight bit")
    for name in ("m.gguf", DERIVED):
        digest_of(tmp_path / name)
    daemon = Daemon(state_dir=str(tmp_path / "state"), models_dir=str(tmp_path))
    return Config(daemon=daemon, models={"m": Model(file="m.gguf", format="auto")}, tiers={"fast": Tier(model="m")})


def row(config: Config, **more: object) -> dict[str, Any]:
    source = config.models_dir / "m.gguf"
    digest = digest_of(config.models_dir / DERIVED)
    return {"source": digest_of(source), "format": "Q8_0", "file": DERIVED, "digest": digest, "gain": 1.5,
            "change": 0.001, "at": "2026-11-26T13:05:00+00:00"} | more  # fmt: skip


def kept(config: Config, **more: object) -> Config:
    """What a choice makes of the configuration."""
    assert formats.keep(config.models_dir / "m.gguf", row(config, **more), HERE)
    return formats.settle(config, HERE)


# settle


def test_the_chosen_file_stands_for_the_model(config: Config) -> None:
    """Path, digest and size are those of the derived file; where it comes from is still known."""
    settled = kept(config)
    assert settled.model_path(settled.models["m"]) == config.models_dir / DERIVED
    assert settled.models["m"].digest == digest_of(config.models_dir / DERIVED)
    assert formats.source_path(settled, "m") == config.models_dir / "m.gguf"
    back = formats.as_configured(settled, "m").models["m"]
    assert (back.file, back.digest) == ("m.gguf", digest_of(config.models_dir / "m.gguf"))
    [finding] = premises.of_weights(settled)
    assert finding.grade == "ok" and "1.50 times as fast" in finding.fact and "+0.1%" in finding.fact


def test_a_model_that_does_not_ask_keeps_its_file(config: Config) -> None:
    """`format = source` is the default: a record changes nothing."""
    plain = replace(config, models={"m": Model(file="m.gguf")})
    kept(config)
    assert formats.settle(plain, HERE) is plain


def test_a_source_that_was_found_best_is_no_complaint(config: Config) -> None:
    """The choice may be the file itself."""
    settled = kept(config, format="source", file="m.gguf", digest=digest_of(config.models_dir / "m.gguf"))
    assert settled.models == config.models and settled.choices["m"].remedy == ""
    assert [finding.grade for finding in premises.of_weights(settled)] == ["ok"]


def spoil(config: Config, how: str) -> Config:
    place = config.models_dir
    if how == "another source":
        (place / "m.gguf").write_bytes(b"other weights")
        digest_of(place / "m.gguf")
    elif how == "source not hashed":
        (place / "m.gguf").write_bytes(b"other weights")
    elif how == "gone":
        (place / DERIVED).unlink()
    elif how == "damaged":
        (place / DERIVED).write_bytes(b"eight")
    elif how == "pinned":
        return replace(config, models={"m": replace(config.models["m"], digest="sha256:" + "0" * 64)})
    elif how == "on a GPU":
        return replace(config, tiers={"fast": Tier(model="m", gpus=[0])})
    return config


@pytest.mark.parametrize(
    ("how", "because", "remedy"),
    [
        ("another source", "another file than the one that was measured", "bench --formats --write m"),
        ("source not hashed", "has changed, or was moved", "models list"),
        ("gone", "is not there any more", "bench --formats --write m"),
        ("damaged", "is not the file that bench made", "models list"),
        ("pinned", "names another file", "models.m.digest"),
        ("on a GPU", "measured on cores", 'format = "source"'),
    ],
)
def test_a_choice_that_does_not_hold_leaves_the_file_and_says_why(
    config: Config, how: str, because: str, remedy: str
) -> None:
    """And `doctor` warns with the remedy."""
    kept(config)
    settled = formats.settle(spoil(config, how), HERE)
    assert settled.model_path(settled.models["m"]) == config.models_dir / "m.gguf"
    [finding] = premises.of_weights(settled)
    assert finding.grade == "warn" and because in finding.fact and remedy in finding.remedy


def test_another_processor_has_a_choice_of_its_own(config: Config) -> None:
    """Hosts that share the directory do not write over each other's."""
    kept(config)
    assert "on this processor yet" in formats.settle(config, "another").choices["m"].why
    formats.keep(config.models_dir / "m.gguf", row(config, format="source", file="m.gguf"), "another")
    assert formats.settle(config, "another").models == config.models
    assert formats.settle(config, HERE).models["m"].file == DERIVED


@pytest.mark.parametrize(
    "spoilt",
    ["", "[]", "{", '{"hosts": 1}', '{"hosts": {"HERE": 1}}', '{"hosts": {"HERE": {"format": "Q8_0"}}}',
     '{"hosts": {"HERE": ROW}}'],
)  # fmt: skip
def test_a_spoilt_record_is_as_if_there_were_none(config: Config, spoilt: str) -> None:
    """The daemon must start on whatever stands there; a file elsewhere is none of ours."""
    astray = json.dumps(row(config, file=f"../{config.models_dir.name}/{DERIVED}"))
    text = spoilt.replace("HERE", HERE).replace("ROW", astray)
    formats.record_path(config.models_dir / "m.gguf").write_text(text)
    settled = formats.settle(config, HERE)
    assert settled.models == config.models and "not chosen a format" in settled.choices["m"].why


def test_a_model_that_is_not_there_is_left_to_others(config: Config) -> None:
    """missing_models names it."""
    (config.models_dir / "m.gguf").unlink()
    assert formats.settle(config, HERE) is config


# which formats


@pytest.mark.parametrize(
    ("kind", "lengths", "expected"),
    [
        (3, (2048, 5632), "Q8_0"),  # Q4_1: its four bits can only be kept
        (17, (2048, 5632), "Q8_0 Q4_K_M Q4_0 IQ4_NL"),
        (17, (576, 1536), "Q8_0 Q4_0 IQ4_NL"),  # no rows for K
        (7, (2048, 5632), "Q6_K Q5_K_M Q4_K_M Q4_0 IQ4_NL"),  # not what it is already
        (1, (2048, 5632), "Q8_0 Q6_K Q5_K_M Q4_K_M Q4_0 IQ4_NL"),
        (32, (896, 4864), "Q8_0 Q4_0 IQ4_NL"),
        (10, (2048, 5632), "Q8_0"),  # Q2_K: requantizing makes no weight better
        (999, (2048, 5632), "Q8_0"),
    ],
)
def test_only_formats_that_may_pay_are_tried(kind: int, lengths: tuple[int, int], expected: str) -> None:
    """By the bits of the source and the length of its rows."""
    entries = {"general.architecture": "llama", "general.file_type": kind, "llama.embedding_length": lengths[0],
               "llama.feed_forward_length": lengths[1]}  # fmt: skip
    assert " ".join(candidates(Header(3, 1, 1000, entries))) == expected


def test_the_room_that_is_asked_for_suffices_for_embeddings_that_stay_large() -> None:
    """llama.cpp keeps them at 8 bit where they are the output as well."""
    entries = {"general.architecture": "llama", "llama.embedding_length": 100, "tokenizer.ggml.tokens": 10_000_000}
    header = Header(3, 1, 1_100_000_000, entries)
    assert bytes_at_most(header, "Q4_0") > (1_000_000_000 * 8.5 + 100_000_000 * 4.5) / 8


# choose


def tried(number: int, perplexity: float, speed: float) -> Candidate:
    figures = {"prefill": {"256": 100 * speed}, "decode": {"1": 20 * speed, "8": 50 * speed}}
    return Candidate(str(number), Path("x"), perplexity=perplexity, rounds=[figures])


@pytest.mark.parametrize(
    ("perplexities", "speeds", "taken"),
    [
        ((10.0, 10.1, 11.0), (1.0, 2.0, 4.0), 1),  # the fastest is worse than the bound
        ((10.0, 10.1, 10.2), (1.0, 2.0, 4.0), 2),  # the fastest holds
        ((10.0, 10.1, 11.0), (1.0, 1.01, 4.0), 0),  # no clear gain
        ((10.0, 11.0, 12.0), (1.0, 2.0, 4.0), 0),  # nothing holds
    ],
)
def test_the_choice_is_the_fastest_of_equal_quality(
    perplexities: tuple[float, ...], speeds: tuple[float, ...], taken: int
) -> None:
    """Perplexity within 2 % of the source's and a clear gain, or the source stays."""
    files = [tried(*each) for each in zip(range(3), perplexities, speeds, strict=True)]
    assert choose(files) is files[taken]


def test_who_is_out_is_not_chosen() -> None:
    """Whatever was measured before it failed."""
    files = [tried(0, 10.0, 1.0), tried(1, 10.0, 4.0), tried(2, 10.0, 2.0)]
    files[1].problem = "it does not load"
    assert choose(files) is files[2]


# compare


class Bench:
    """The processes of a comparison, played: what each file is worth, which of them fail, and what was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.perplexity = {"m.gguf": 10.0, "Q8_0.gguf": 10.01, "Q4_0.gguf": 11.0, "IQ4_NL.gguf": 10.1}
        self.speed = {"m.gguf": 1.0, "Q8_0.gguf": 2.0, "IQ4_NL.gguf": 1.5, DERIVED: 2.0}
        self.fails: dict[tuple[str, str], BaseException] = {}
        self.asked: list[tuple[str, str]] = []
        monkeypatch.setattr(comparing, "_call", self.call)
        monkeypatch.setattr(measuring, "figures", self.figures)

    def note(self, what: str, name: str) -> None:
        self.asked.append((what, name))
        if error := self.fails.get((what, name)):
            raise error

    def call(self, _: object, *arguments: str) -> str:
        if arguments[0] == "quantize":
            Path(arguments[2]).write_bytes(arguments[3].encode())
            self.note("quantize", arguments[3])
            return ""
        name = Path(arguments[1]).name
        self.note("quality", name)
        return json.dumps({"perplexity": self.perplexity.get(name, 10.0)})

    def figures(self, worker: WorkerSpec, spec: Any, prompts: list[int], streams: list[int]) -> dict[str, Any]:
        name = Path(spec.model_path).name
        self.note("speed", name)
        speed = self.speed[name]
        return {"prefill": {str(prompts[0]): 100 * speed}, "cores": worker.threads, "digest": "",
                "decode": {str(streams[0]): 20 * speed, str(streams[-1]): 50 * speed}, "gpus": []}  # fmt: skip


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, config: Config) -> Bench:
    (config.models_dir / DERIVED).unlink()
    return Bench(monkeypatch)


def compare(config: Config, *, write: bool = True) -> comparing.Found:
    return comparing.compare(comparing.trial(config, WORKER, ("Q8_0", "Q4_0", "IQ4_NL")), write=write)


def left_behind(config: Config) -> list[str]:
    """What is in the models directory beside the source and what is remembered."""
    return sorted(path.name for path in config.models_dir.iterdir()
                  if path.name not in ("m.gguf", ".digests.json", ".fetch.lock"))  # fmt: skip


def test_the_best_one_is_kept_and_the_daemon_goes_by_it(config: Config, bench: Bench) -> None:
    """File and record lie beside the source, the others are gone, and the rates are those of the file's digest."""
    found = compare(config)
    assert left_behind(config) == [DERIVED, "m.formats.json"]
    settled = formats.settle(config)
    assert settled.models["m"].file == DERIVED and settled.models["m"].digest == found.row["digest"]
    assert set(found.figures) == {found.row["digest"], digest_of(config.models_dir / "m.gguf")}
    measured.keep(config, found.figures)
    assert measured.core_rates(settled) == {"m": 40.0} and measured.core_rates(config) == {"m": 20.0}


def test_who_is_worse_is_not_even_timed(config: Config, bench: Bench) -> None:
    """The others take turns, the source among them."""
    compare(config)
    assert ("quality", "Q4_0.gguf") in bench.asked and ("speed", "Q4_0.gguf") not in bench.asked
    timed = [name for what, name in bench.asked if what == "speed"]
    assert timed == ["m.gguf", "Q8_0.gguf", "IQ4_NL.gguf"] * comparing.ROUNDS


def test_without_write_nothing_is_left(config: Config, bench: Bench) -> None:
    """The choice is only told."""
    found = compare(config, write=False)
    assert left_behind(config) == [] and "Q8_0 would be chosen" in found.said and found.row["gain"] == 2.0


def test_a_file_that_is_there_is_not_made_again(config: Config, bench: Bench) -> None:
    """The same source, the same file: it is measured where it lies."""
    compare(config)
    bench.asked.clear()
    assert compare(config).row["file"] == DERIVED
    assert ("quantize", "Q8_0") not in bench.asked and ("speed", DERIVED) in bench.asked
    (config.models_dir / DERIVED).write_bytes(b"somebody else's")
    bench.asked.clear()
    compare(config)
    assert ("quantize", "Q8_0") in bench.asked


def test_what_no_choice_names_any_more_is_told(config: Config, bench: Bench) -> None:
    """The file of the choice before stays until somebody removes it: a daemon may still run on it."""
    compare(config)
    bench.speed |= {DERIVED: 0.5, "IQ4_NL.gguf": 1.6}
    assert f"models remove {DERIVED}" in compare(config).said
    assert formats.settle(config).models["m"].file == "m.as-IQ4_NL.gguf"


@pytest.mark.parametrize("step", [("quantize", "Q8_0"), ("quality", "Q8_0.gguf"), ("speed", "Q8_0.gguf")])
def test_a_candidate_that_fails_leaves_the_race(config: Config, bench: Bench, step: tuple[str, str]) -> None:
    """The others are compared all the same, and the record says what was wrong with it."""
    bench.fails[step] = EngineFailed("llama.cpp does not want it")
    found = compare(config)
    assert found.row["format"] == "IQ4_NL" and found.row["measured"]["Q8_0"]["problem"] == "llama.cpp does not want it"
    assert found.row["measured"]["Q8_0"]["tokens_s"] == {}


@pytest.mark.parametrize(
    ("step", "error"),
    [
        (("speed", "m.gguf"), EngineFailed("no")),
        (("quality", "m.gguf"), EngineFailed("no")),
        (("quantize", "Q4_0"), KeyboardInterrupt()),
        (("speed", "Q8_0.gguf"), KeyboardInterrupt()),
    ],
)
def test_nothing_is_left_behind_by_what_ends_early(
    config: Config, bench: Bench, step: tuple[str, str], error: BaseException
) -> None:
    """The source fails, or somebody presses Ctrl-C: no file, no record."""
    bench.fails[step] = error
    with pytest.raises(type(error)):
        compare(config)
    assert left_behind(config) == []


def test_no_room_is_told_before_anything_is_made(config: Config, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the figures; a gigabyte stays free for the queue."""
    few = type("Usage", (), {"free": (1 << 30) + 1000})
    monkeypatch.setattr(comparing.shutil, "disk_usage", lambda _: few)
    with pytest.raises(FetchFailed, match=r"are free, up to .* are needed"):
        compare(config)
    assert bench.asked == [] and left_behind(config) == []


def test_a_format_that_is_wanted_is_taken_whatever_it_is_worth(config: Config, bench: Bench) -> None:
    """`models fetch --derive Q4_0`: somebody has decided."""
    bench.speed["Q4_0.gguf"] = 0.9
    comparing.compare(comparing.trial(config, WORKER, ("Q4_0",), forced=True), write=True)
    assert formats.settle(config).models["m"].file == "m.as-Q4_0.gguf"


def test_the_format_that_a_file_has_is_no_candidate(config: Config) -> None:
    """Whoever asks for it is told."""
    (config.models_dir / "m.gguf").write_bytes(gguf([("general.file_type", 4, struct.pack("<I", 7))]))
    with pytest.raises(InvalidRequest, match="is Q8_0 already"):
        comparing.trial(config, WORKER, ("Q8_0",))


def test_a_split_file_is_refused(config: Config) -> None:
    """Its first part alone says nothing."""
    (config.models_dir / "m.gguf").write_bytes(gguf([("split.count", 2, struct.pack("<H", 3))]))
    with pytest.raises(InvalidRequest, match="several parts"):
        comparing.trial(config, WORKER)


# the commands


@pytest.mark.parametrize(
    ("args", "field"),
    [(["--formats", "--try", "Q9"], "--try"), (["--try", "Q8_0"], "--try"), (["--formats"], "MODEL"),
     (["--formats", "--streams", "1"], "--streams"), (["--formats", "echo"], "MODEL")],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_by_name(tmp_path: Path, args: list[str], field: str) -> None:
    """Exit 65 and one line with the remedy; nothing is loaded."""
    echo = ["--set", "models.echo.engine=echo", "--set", "tiers.fast.model=echo"]
    done = run("bench", *args, *echo, "--set", f"daemon.state_dir={tmp_path}")
    assert done.returncode == 65, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"metamusesd: invalid_request: {field}: ")


def test_the_model_commands_know_source_and_choice(tmp_path: Path) -> None:
    """list names both, verify compares the derived file with the record, and neither can be removed; check and its
    explanation say what is loaded."""
    name, derived = "SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct.Q4_1.as-Q8_0.gguf"
    for each in (name, derived):
        (tmp_path / each).symlink_to(ROOT / "models" / name)  # what is in it does not matter here
    digest = digest_of(tmp_path / name)
    assert digest_of(tmp_path / derived) == digest
    formats.keep(tmp_path / name, {"source": digest, "format": "Q8_0", "file": derived, "digest": digest, "gain": 2.0,
                                   "change": 0.0, "at": "2026-11-26T13:05:00+00:00"})  # fmt: skip
    auto = ("--set", "models.smollm2.format=auto", "--set", f"daemon.state_dir={tmp_path}/s")
    listed = run("models", "list", *auto, MODELS_DIR=str(tmp_path)).stdout.splitlines()
    assert any(derived in line and line.endswith("used as: smollm2") for line in listed)
    assert any(line.startswith(f"{name} ") and line.endswith("used as: source of smollm2") for line in listed)
    verified = run("models", "verify", *auto, MODELS_DIR=str(tmp_path))
    assert verified.returncode == 0 and "not pinned" not in verified.stdout
    for each in (name, derived):
        refused = run("models", "remove", each, *auto, MODELS_DIR=str(tmp_path))
        assert refused.returncode == 65 and "tiers.fast uses it" in refused.stderr
    check = run("check", *auto, MODELS_DIR=str(tmp_path))
    assert f"models.smollm2: {derived}, " in check.stdout and "Q8_0, 2.00 times as fast here" in check.stdout
    explained = json.loads(run("check", "--explain", "--json", *auto, MODELS_DIR=str(tmp_path)).stdout)
    assert explained["weights"]["smollm2"]["file"] == derived


def test_the_estimates_are_above_what_llama_cpp_writes() -> None:
    """For the file that is shipped: it is its own format's estimate."""
    path = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.is_file():
        pytest.skip("no demo model: run `make models`")
    header = read_header(path)
    assert bytes_at_most(header, "Q8_0") > header.parameters * FORMATS["Q8_0"].bits / 8
    assert bytes_at_most(header, "Q4_0") < bytes_at_most(header, "Q8_0") < 2 * path.stat().st_size
