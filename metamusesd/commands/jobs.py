"""Stages 1 and 9 · command line · submit a prompt, follow a job, cancel jobs: a producer like any other."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

from metamusesd import cli
from metamusesd.client import Client
from metamusesd.commands.producer import produce
from metamusesd.commands.waiting import WaitLine
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

STEERING = {code: ascii(chr(code))[1:-1] for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


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
    return produce(config, lambda client: _submit(client, request, args))


def watch(args: argparse.Namespace) -> int:
    """Print a job's answer from its beginning."""
    return produce(cli.configuration(args), lambda client: _follow(client, args.id, args))


def cancel(args: argparse.Namespace) -> int:
    """Settle jobs as cancelled; exit 66 when one of them does not exist."""
    return produce(cli.configuration(args), lambda client: _cancel(client, args.ids))


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
    if args.json:
        result = await client.wait(id, args.timeout)
    else:
        result = await _stream(client, id, args)
    if args.json:
        print(encode_result(result).decode())
    elif args.no_stream and result.state == "done":
        print(_shown(result.content))
    if result.state == "done" and not args.json and sys.stderr.isatty():
        print(f"\x1b[2m{summary(result)}\x1b[0m", file=sys.stderr)
    return _exit_code(result, quiet=args.json)


async def _stream(client: Client, id: str, args: argparse.Namespace) -> Result:
    """Text as it comes, and its place before that. `--no-stream`: the place only."""
    printer = Printer(WaitLine(client, id), quiet=args.no_stream)
    try:
        async with asyncio.timeout(args.timeout), aclosing(client.stream(id)) as events:
            printer.start()
            async for event in events:
                if (result := printer.hear(event)) is not None:
                    return result
    except TimeoutError:
        raise WaitTimeout(
            f"job {id} is not finished after {args.timeout:g} s; follow it with `metamusesd watch {id}`"
        ) from None
    finally:
        printer.stop()
    raise JobGone(f"job {id} is not in the queue", id=id)


class Printer:
    """Writes one job's events: text on standard output; its place, and restarts, on standard error."""

    def __init__(self, line: WaitLine, *, quiet: bool) -> None:
        self._line, self._quiet = line, quiet
        self._written = False

    def start(self) -> None:
        """The job waits."""
        self._line.start()

    def hear(self, event: JobEvent) -> Result | None:
        """The result, when this was the last event."""
        self._line.hear(event)
        if event.kind == "token" and not self._quiet:
            print(_shown(event.text), end="", flush=True)
            self._written = True
        elif event.kind == "restarted":
            self._restart(event)
        elif event.kind in TERMINAL:
            result = decode_result(event.data)
            self._written = self._written or (result.state == "done" and not self._quiet)
            return result
        return None

    def stop(self) -> None:
        """End the line that was begun. After the last event, or instead of it."""
        self._line.stop()
        print(end="\n" if self._written else "", flush=True)
        self._written = False

    def _restart(self, event: JobEvent) -> None:
        """It is said on standard error: the answer begins again from its first word."""
        self.stop()
        reason = event.data.decode("utf-8", "replace").replace("_", " ") or "it was given back"
        line = f"── restarted (attempt {event.attempt}: {reason}); the answer begins again ──"
        print(f"\x1b[33m{line}\x1b[0m" if sys.stderr.isatty() else line, file=sys.stderr, flush=True)
        self._line.start()


def _shown(text: str) -> str:
    """A model's text as it is, but on a terminal nothing in it steers that."""
    return text.translate(STEERING) if sys.stdout.isatty() else text


def _exit_code(result: Result, *, quiet: bool) -> int:
    """0 when it is done; else the code of its error, after one line about it."""
    if result.state == "done":
        return 0
    error = result.error or {}
    code = str(error.get("code") or result.state)
    if not quiet:
        text = error.get("message") or f"the job ended as {result.state}"
        cli.complain(f"{code}: {text} (job {result.request_id}, {result.state}){cli.later(error)}")
    return cli.EXIT_CODES.get(code, cli.EXIT_CODES.get(result.state, 1))


def summary(result: Result) -> str:
    """One line about how a job went."""
    rate = result.usage.completion_tokens / (result.timings.decode_ms / 1000) if result.timings.decode_ms else 0.0
    parts = [result.tier, result.worker, f"{result.usage.prompt_tokens} + {result.usage.completion_tokens} tokens"]
    parts += [f"first after {result.timings.ttft_ms:.0f} ms", f"{rate:.0f} tokens/s", result.finish_reason]
    if result.attempt > 1:
        parts.append(f"attempt {result.attempt}")
    return " · ".join(part for part in parts if part)
