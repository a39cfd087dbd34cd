"""Engine benchmark · bench process · a JSON schema's first use and its next, and what the first one does to others."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.engine import Bench, side
from benchmarks.load import Ask, Sample, Server, percentile, streaming, ttft_s, until_tokens
from benchmarks.ours import Layout
from benchmarks.report import compare
from benchmarks.styles import STYLES, Style, schema_style

CONTEXT_TOKENS = 1024
STREAMS = 4
STREAM_TOKENS = 800  # more than a stream gets while the newcomers come
SETTLED_TOKENS = 8
NEWCOMERS = 6
PROMPT_TOKENS = 60
OUTPUT_TOKENS = 24  # llama-server shows nothing of a fence before the JSON, eight tokens or so


@dataclass(frozen=True)
class Latency:
    """Medians of TTFTs, in milliseconds."""

    plain: float
    new: float
    again: float


@dataclass(frozen=True)
class Stall:
    """p99 of the waits between the tokens of streams, in milliseconds, while others come."""

    plain: float  # without a schema
    new: float  # each with a schema that was never seen


async def schema(bench: Bench) -> None:
    """TTFT with a new schema, the same again, and none; the gaps of four streams while such requests come."""
    layout = Layout(workers=1, slots=2 * STREAMS, context_tokens=CONTEXT_TOKENS)

    async def latency(server: Server, turn: int) -> Latency:
        new = [made_schema(f"{server.name} {turn} {number}") for number in range(NEWCOMERS)]
        plain_ms = await _ttft_ms(bench, server, [STYLES["greedy"]] * NEWCOMERS)
        new_ms = await _ttft_ms(bench, server, [schema_style(each) for each in new])
        return Latency(plain_ms, new_ms, await _ttft_ms(bench, server, [schema_style(each) for each in new]))

    async def stall(server: Server, turn: int) -> Stall:
        new = [schema_style(made_schema(f"{server.name} {turn} stall {number}")) for number in range(NEWCOMERS)]
        plain_ms = await _gap_ms(bench, server, [STYLES["greedy"]] * NEWCOMERS)
        return Stall(plain_ms, await _gap_ms(bench, server, new))

    async with bench.ours(layout) as ours, bench.yardstick(2 * STREAMS, CONTEXT_TOKENS) as theirs:
        latencies = await bench.alternate([ours, theirs], latency)
        stalls = await bench.alternate([ours, theirs], stall)
    _latency_rows(bench, latencies)
    _stall_rows(bench, stalls)


def made_schema(name: str) -> dict[str, Any]:
    """A schema of some forty parts that no other name shares: an order with lines, an address, choices."""
    text, number = {"type": "string", "maxLength": 40}, {"type": "integer"}
    line = _closed({"article": text, "count": number, "price": {"type": "number"}, "gift": {"type": "boolean"}})
    address = _closed(dict.fromkeys(("street", "town", "region", "country", "postcode"), text))
    order: dict[str, Any] = {
        f"order of {name}": text,
        "state": {"enum": ["open", "paid", "sent", "back"]},
        "made": {"type": "string", "format": "date"},
        "lines": {"type": "array", "items": line, "minItems": 1, "maxItems": 20},
        "bill_to": address,
        "ship_to": {"anyOf": [address, {"type": "null"}]},
        "tags": {"type": "array", "items": text, "maxItems": 8},
        "notes": {"type": ["string", "null"]},
    }
    return _closed(order)


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


async def _ttft_ms(bench: Bench, server: Server, styles: list[Style]) -> float:
    """One after the other, each with a prompt of its own."""
    asks = [Ask(bench.prompts.text(PROMPT_TOKENS), OUTPUT_TOKENS, style) for style in styles]
    return 1000 * statistics.median([await ttft_s(server, ask) for ask in asks])


async def _gap_ms(bench: Bench, server: Server, styles: list[Style]) -> float:
    """The streams' p99 while requests of these styles come, one after the other."""
    async with streaming(server, bench.prompts.asks(STREAMS, STREAM_TOKENS)) as streams:
        await until_tokens(streams, SETTLED_TOKENS)
        begun_s = time.perf_counter()
        await _ttft_ms(bench, server, styles)
        ended_s = time.perf_counter()
    return 1000 * percentile(_gaps_s(streams, begun_s, ended_s), 0.99)


def _gaps_s(streams: list[Sample], begun_s: float, ended_s: float) -> list[float]:
    return [gap for stream in streams for gap in stream.gaps_s(begun_s, ended_s)]


def _latency_rows(bench: Bench, rounds: list[list[Latency | None]]) -> None:
    for place, name in enumerate(("metamusesd", bench.yardstick_name)):
        found = side(rounds, place)
        if not found:
            continue
        new, again = [(one.new, one.plain) for one in found], [(one.again, one.plain) for one in found]
        against = f"{name}, no schema"
        bench.report.rows.append(compare("TTFT", f"a schema's first use, {name}", "ms", new, against=against))
        bench.report.rows.append(compare("TTFT", f"the same schema again, {name}", "ms", again, against=against))


def _stall_rows(bench: Bench, rounds: list[list[Stall | None]]) -> None:
    for place, name in enumerate(("metamusesd", bench.yardstick_name)):
        pairs = [(one.new, one.plain) for one in side(rounds, place)]
        if pairs:
            case, against = f"{STREAMS} streams while new schemas come, {name}", f"{name}, no schemas"
            bench.report.rows.append(compare("inter-token p99", case, "ms", pairs, against=against))
