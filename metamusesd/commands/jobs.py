"""Stages 1 and 9 · command line · submit a prompt, follow a job, cancel jobs: a producer like any other."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from metamusesd import cli
from metamusesd.client import Client
from metamusesd.commands import health
from metamusesd.config import EMBEDDED, Config
from metamusesd.errors import InvalidRequest, JobGone, WaitTimeout
from metamusesd.job import (
    MAX_BODY_BYTES,
    TERMINAL,
    InferenceRequest,
    Result,
    decode_result,
    encode_result,
    parse_request,
)
from metamusesd.queues.base import JobEvent


def add_submit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="*", help="the text to answer; `-` or nothing: standard input")
    parser.add_argument("--priority", default="normal", help="low, normal, high, critical, or 0 to 3")
    parser.add_argument("--tier", help="force a tier")
    parser.add_argument("--model", help="force a model")
    parser.add_argument("--muse", metavar="ID", help="who answers; its persona is computed once and reused")
    parser.add_argument("--persona", metavar="TEXT", help="the muse's system prompt; @FILE reads a file")
    parser.add_argument("--max-tokens", type=int, metavar="N")
    parser.add_argument("--temperature", type=float, metavar="T")
    parser.add_argument("--seed", type=int, metavar="N")
    parser.add_argument("--ignore-eos", action="store_true", help="go on until --max-tokens; for measurements")
    parser.add_argument("--json-schema", metavar="FILE", help="the answer must be JSON of this schema")
    parser.add_argument(
        "--deadline", type=_seconds, metavar="S", help="give up unless it is done within so many seconds"
    )
    parser.add_argument("--id", help="the job's id; the same id twice is one job")
    parser.add_argument("--tenant", metavar="NAME", help="whose job it is")
    parser.add_argument("--no-wait", action="store_true", help="print the job's id and leave")
    _add_output(parser)
    parser.epilog = "Ctrl-C cancels the job."


def add_watch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help="the job's id, as `submit --no-wait` printed it")
    _add_output(parser)
    parser.epilog = "Ctrl-C stops watching; the job goes on."


def add_cancel(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", nargs="+", metavar="ID")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON, and nothing else")
    parser.add_argument("--no-stream", action="store_true", help="print the answer when it is complete")
    parser.add_argument(
        "--timeout", type=_seconds, metavar="S", help="stop waiting after so many seconds; the job goes on"
    )


def submit(args: argparse.Namespace) -> int:
    """Validate, submit, and print what comes back."""
    config = cli.configuration(args)
    request = parse_request(_body(args))
    return _run(config, lambda client: _submit(client, request, args))


def watch(args: argparse.Namespace) -> int:
    """Print a job's answer from its beginning."""
    return _run(cli.configuration(args), lambda client: _follow(client, args.id, args))


def cancel(args: argparse.Namespace) -> int:
    """Settle jobs as cancelled; exit 66 when one of them does not exist."""
    return _run(cli.configuration(args), lambda client: _cancel(client, args.ids))


def _run(config: Config, work: Callable[[Client], Awaitable[int]]) -> int:
    """Work as a producer of the configured queue. An embedded Redis lives with its daemon: DaemonAway at once."""
    if config.redis.url == EMBEDDED:
        health.require(config)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a terminated submit cancels its job as well
    return asyncio.run(_with_client(config, work))


async def _with_client(config: Config, work: Callable[[Client], Awaitable[int]]) -> int:
    async with Client.from_config(config) as client:
        return await work(client)


def _seconds(text: str) -> float:
    """For argparse: a time that has an end."""
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds")
    return value


def _body(args: argparse.Namespace) -> dict[str, Any]:
    """The request as a producer would write it; `parse_request` is the judge."""
    params = {
        "max_tokens": args.max_tokens,
        "temperature": args.temperature,
        "seed": args.seed,
        "ignore_eos": args.ignore_eos or None,
        "json_schema": _schema(args.json_schema) if args.json_schema else None,
    }
    body = {
        "id": args.id,
        "user_query": _prompt(args.prompt),
        "priority": args.priority,
        "tier": args.tier,
        "model": args.model,
        "muse_id": int(args.muse) if args.muse and args.muse.isdecimal() else args.muse,
        "persona": _persona(args.persona),
        "deadline_ms": None if args.deadline is None else round(args.deadline * 1000),
        "tenant": args.tenant,
        "params": {name: value for name, value in params.items() if value is not None},
    }
    return {name: value for name, value in body.items() if value is not None}


def _prompt(words: list[str]) -> str:
    if words and words != ["-"]:
        return " ".join(words)
    if not words and sys.stdin.isatty():
        raise InvalidRequest("user_query", "missing", "give a prompt, or `-` and standard input")
    raw = sys.stdin.buffer.read(MAX_BODY_BYTES + 1)
    return _decoded(raw, "user_query", "standard input")


def _persona(text: str | None) -> str | None:
    if not text or not text.startswith("@"):
        return text
    return _decoded(_file(text[1:], "persona"), "persona", text[1:])


def _schema(path: str) -> Any:
    try:
        return json.loads(_file(path, "params.json_schema"))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("params.json_schema", f"{path} is not JSON: {error}", "give a JSON schema") from error


def _file(path: str, field: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(MAX_BODY_BYTES + 1)
    except OSError as error:
        raise InvalidRequest(field, f"{path}: {error.strerror}", "name a readable file") from error


def _decoded(raw: bytes, field: str, source: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(field, f"{source} is not UTF-8: {error.reason}", "send text in UTF-8") from error


async def _submit(client: Client, request: InferenceRequest, args: argparse.Namespace) -> int:
    receipt = await client.submit(request, watch=not args.no_wait)
    if args.no_wait:
        print(json.dumps({"id": receipt.id, "state": receipt.state}) if args.json else receipt.id)
        return 0
    try:
        return await _follow(client, receipt.id, args)
    except (asyncio.CancelledError, BrokenPipeError):  # Ctrl-C, or whoever read the answer has left
        state = await client.cancel(receipt.id)
        cli.complain(f"job {receipt.id}: {state}")
        raise


async def _cancel(client: Client, ids: list[str]) -> int:
    states = [(id, await client.cancel(id)) for id in ids]
    for id, state in states:
        print(f"{id.encode('utf-8', 'backslashreplace').decode()}  {state}")
    return cli.EXIT_CODES["gone"] if any(state == "gone" for _, state in states) else 0


async def _follow(client: Client, id: str, args: argparse.Namespace) -> int:
    """Print the job's answer in the form that was asked for; the exit code says how it ended."""
    if args.json or args.no_stream:
        result = await client.wait(id, args.timeout)
    else:
        result = await _stream(client, id, args.timeout)
    if args.json:
        print(encode_result(result).decode())
    elif args.no_stream and result.state == "done":
        print(result.content)
    if result.state == "done" and not args.json and sys.stderr.isatty():
        print(f"\x1b[2m{summary(result)}\x1b[0m", file=sys.stderr)
    return _exit_code(result, quiet=args.json)


async def _stream(client: Client, id: str, timeout_s: float | None) -> Result:
    """Text as it comes. A restart is said on standard error: the answer begins again from its first word."""
    written = False
    try:
        async with asyncio.timeout(timeout_s):
            async for event in client.stream(id):
                if event.kind == "token":
                    print(event.text, end="", flush=True)
                    written = True
                elif event.kind == "restarted":
                    _say_restarted(event, written)
                    written = False
                elif event.kind in TERMINAL:
                    result = decode_result(event.data)
                    _end_line(written or result.state == "done")
                    return result
    except TimeoutError:
        _end_line(written)
        raise WaitTimeout(
            f"job {id} is not finished after {timeout_s:g} s; follow it with `metamusesd watch {id}`"
        ) from None
    raise JobGone(f"job {id} is not in the queue", id=id)


def _end_line(begun: bool) -> None:
    print(end="\n" if begun else "", flush=True)


def _say_restarted(event: JobEvent, written: bool) -> None:
    _end_line(written)
    reason = event.data.decode("utf-8", "replace").replace("_", " ") or "it was given back"
    line = f"── restarted (attempt {event.attempt}: {reason}); the answer begins again ──"
    print(f"\x1b[33m{line}\x1b[0m" if sys.stderr.isatty() else line, file=sys.stderr, flush=True)


def _exit_code(result: Result, *, quiet: bool) -> int:
    """0 when it is done; else the code of its error, after one line about it."""
    if result.state == "done":
        return 0
    error = result.error or {}
    code = str(error.get("code") or result.state)
    if not quiet:
        text = error.get("message") or f"the job ended as {result.state}"
        cli.complain(f"{code}: {text} (job {result.request_id}, {result.state})")
    return cli.EXIT_CODES.get(code, cli.EXIT_CODES.get(result.state, 1))


def summary(result: Result) -> str:
    """One line about how a job went."""
    rate = result.usage.completion_tokens / (result.timings.decode_ms / 1000) if result.timings.decode_ms else 0.0
    parts = [result.tier, result.worker, f"{result.usage.prompt_tokens} + {result.usage.completion_tokens} tokens"]
    parts += [f"first after {result.timings.ttft_ms:.0f} ms", f"{rate:.0f} tokens/s", result.finish_reason]
    if result.attempt > 1:
        parts.append(f"attempt {result.attempt}")
    return " · ".join(part for part in parts if part)
