"""The engine benchmark's pure parts: styles in both sides' words, rates and shares."""

from __future__ import annotations

import pytest

from benchmarks.engine_loops import pair, shares
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
    """A side that did not run has none."""
    plain, half = (Load([Sample(tokens=tokens)], 2.0) for tokens in (100, 50))
    assert pair([plain, None], lambda load: load.tokens_per_s) == (50.0, None)
    assert shares([half, plain], [plain, half]) == (0.5, 2.0)
    assert shares([half, None], [plain, None]) == (0.5, None)


def test_prompts_of_one_seed_are_the_same_and_begin_differently() -> None:
    """Both sides of a round get equal texts, and no two of them share a first word."""
    first, again = Prompts(3).asks(50, 8), Prompts(3).asks(50, 8)
    assert first == again
    assert len({ask.text.split()[0] for ask in first}) == 50
