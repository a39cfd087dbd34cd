"""The engine benchmark's pure parts: styles in both sides' words, rates and shares."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import machine, page_cache
from benchmarks.engine import pair
from benchmarks.engine_features import Cost, shares
from benchmarks.engine_long import Rates, rates
from benchmarks.engine_schema import made_schema
from benchmarks.engine_slots import slope
from benchmarks.load import Ask, Load, Prompts, Sample
from benchmarks.ours import request_of
from benchmarks.styles import STYLES
from benchmarks.yardstick import body_of
from metamusesd.engines.bounds import check_bounds
from metamusesd.engines.llamacpp.gbnf import schema_to_gbnf
from metamusesd.engines.schema import check_schema
from metamusesd.job import encode_request, parse_request


@pytest.mark.parametrize("name", STYLES)
def test_a_style_is_a_request_that_we_accept(name: str) -> None:
    """Each style passes the door; greedy on one side is greedy on the other, and a stream is one on both."""
    style = STYLES[name]
    request = parse_request(encode_request(request_of(Ask("Hello", 8, style))))
    body = body_of(Ask("Hello", 8, style))
    assert request.stream == body["stream"] == style.stream
    assert request.params.max_tokens == body["max_tokens"] == 8
    assert request.params.temperature == body["temperature"]
    assert request.params.ignore_eos == body.get("ignore_eos", False)
    assert request.params.stop == body.get("stop", [])


def test_constrained_styles_can_be_compiled() -> None:
    """The schema has a grammar of ours, and the grammar is within the bounds."""
    schema = STYLES["JSON schema"].ours["json_schema"]
    check_bounds(schema_to_gbnf(check_schema(schema)))
    check_bounds(STYLES["GBNF grammar"].ours["grammar"])


def test_the_same_bias_on_both_sides() -> None:
    """Token by token; ours has texts for keys, as JSON wants."""
    style = STYLES["logit bias"]
    assert {int(token): value for token, value in style.ours["logit_bias"].items()} == dict(style.theirs["logit_bias"])


def test_a_share_is_of_the_same_side_and_round() -> None:
    """By rate and by processor time; a side that did not run has none."""
    plain, half = (Cost(Load([Sample(tokens=tokens)], 2.0), cpu_s=1.0) for tokens in (100, 50))
    assert pair([plain, None], lambda cost: cost.rate) == (50.0, None)
    assert shares([half, plain], [plain, half], lambda cost: cost.rate) == (0.5, 2.0)
    assert shares([half, None], [plain, None], lambda cost: cost.token_ms) == (2.0, None)


def test_prompts_of_one_seed_are_the_same_and_begin_differently() -> None:
    """Both sides of a round get equal texts, and no two of them share a first word."""
    first, again = Prompts(3).asks(50, 8), Prompts(3).asks(50, 8)
    assert first == again
    assert len({ask.text.split()[0] for ask in first}) == 50


def test_a_file_leaves_the_page_cache_and_comes_back(tmp_path: Path) -> None:
    """What mincore says after it was read, and after the kernel was asked to forget it."""
    path = tmp_path / "weights"
    path.write_bytes(bytes(8 << 20))
    page_cache.bring(path)
    assert page_cache.resident(path) == 1.0
    stayed = page_cache.drop(path)
    assert stayed == page_cache.resident(path) < 1.0 or in_memory(tmp_path)
    page_cache.bring(path)
    assert page_cache.resident(path) == 1.0


def test_a_mapped_file_stays_in_the_page_cache(tmp_path: Path) -> None:
    """A cold start cannot be had while somebody else has the model mapped, and `drop` says so."""
    path = tmp_path / "weights"
    path.write_bytes(bytes(1 << 20))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) == 0  # touches each page
        assert page_cache.drop(path) == 1.0


def in_memory(path: Path) -> bool:
    """Whether the directory is a tmpfs, whose files are nowhere but in the page cache."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    places = {place: kind for _, place, kind, *_ in mounts if path.is_relative_to(place)}
    return places[max(places, key=len)] == "tmpfs"


def test_every_schema_of_the_benchmark_is_new() -> None:
    """Another name, another grammar; the same name, the same one. All of them can be compiled."""
    first, other = (schema_to_gbnf(check_schema(made_schema(name))) for name in ("a", "b"))
    assert first != other
    assert first == schema_to_gbnf(check_schema(made_schema("a")))
    check_bounds(first)


def test_rates_of_a_long_prompt() -> None:
    """What was cached was not computed; the first token is the prompt's."""
    sample = Sample(sent_s=10.0, arrivals_s=[12.0, 12.5, 13.0], tokens=3, prompt_tokens=400, cached_tokens=100)
    assert rates(sample) == Rates(prompt=150.0, output=2.0)


def test_growth_a_slot() -> None:
    """The difference over the slots that came in between; none for a side that did not run."""
    assert slope((100.0, None), (250.0, None), 15) == (10.0, None)


def test_memory_of_a_process() -> None:
    """A block that is touched is its own; the interpreter is a file's."""
    program = "import sys; block = bytearray(b'x' * (64 << 20)); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        seen = machine.memory(child.pid)
        assert machine.maps(child.pid, "python")
    assert 64 << 20 < seen.own < 128 << 20
    assert seen.mapped > 1 << 20
    assert not machine.maps(2**22 + 1, "python")  # no such process
