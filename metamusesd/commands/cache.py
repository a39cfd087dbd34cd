"""Stages 3, 4 · command line · the answer caches of a running daemon: facts, purge, explain, reports of wrong hits."""

from __future__ import annotations

import argparse
import json
from typing import Any

from metamusesd import cli
from metamusesd.cache.eligible import Eligibility, eligibility
from metamusesd.cache.partition import Question, question_of
from metamusesd.client import Client
from metamusesd.commands import screen, vectors
from metamusesd.commands.evaluate import PROTOCOLS, evaluate
from metamusesd.commands.producer import produce
from metamusesd.config import Config
from metamusesd.dispatcher.router import TierView, route, routing_rules_of
from metamusesd.errors import DaemonAway, InvalidRequest, MetamusesdError
from metamusesd.job import decode_answer, parse_request
from metamusesd.models import digest_of
from metamusesd.route import Route
from metamusesd.wire import Count, Forget, Weigh

SHOWN_CHARS = 60
LABELS = ("tenant", "muse", "model", "tag")


def add_cache(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, action, text in (
        ("stats", _stats, "how many answers there are, and how the lookups went"),
        ("purge", _purge, "forget answers by tenant, muse, model or tag, in both caches"),
        ("explain", _explain, "what the caches would say to a question, and why; changes nothing"),
        ("wrong", _wrong, "report that the answer which a job got from a cache was wrong"),
        ("evaluate", evaluate, "try the semantic cache on your own questions; needs no daemon"),
    ):
        command = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.set_defaults(action=action)
    for name in ("stats", "explain"):
        actions.choices[name].add_argument("--json", action="store_true", help="one line of JSON")
    for label in LABELS:
        actions.choices["purge"].add_argument(f"--{label}", default="", help=f"only answers of this {label}")
    actions.choices["purge"].add_argument("--all", action="store_true", help="all answers")
    actions.choices["purge"].epilog = "--model takes a name of the configuration or a digest (sha256:…)."
    _add_request(actions.choices["explain"])
    actions.choices["wrong"].add_argument("ids", nargs="+", metavar="ID", help="of a job")
    _add_evaluate(actions.choices["evaluate"])


def _add_request(explain: argparse.ArgumentParser) -> None:
    explain.add_argument("query", metavar="QUERY", help="the question; with --request, a whole request as JSON")
    explain.add_argument("--request", action="store_true", help="QUERY is a request body, as `submit` sends it")
    explain.add_argument("--tenant", help="whose question it is (default: default)")
    explain.add_argument("--muse", help="the muse that is asked")
    explain.add_argument("--user", help="the user's address")


def _add_evaluate(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", metavar="FILE", help="JSON lines")
    command.add_argument("--protocol", choices=PROTOCOLS, required=True, help="what a line is; see below")
    command.add_argument("--out", metavar="FILE", help="write a prediction for every line")
    command.add_argument(
        "--policy", choices=("daemon", "semantic"), default="daemon",
        help="daemon (default): domains that hit only when equal do so; semantic: all may hit by meaning",
    )  # fmt: skip
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.epilog = (
        "paraphrase        {id?, a, b, same?, kind?}   `a` was answered, `b` is asked: {id, hit, score, reason}\n"
        "distinct, stream  {id, q, answer?}            in order, each is kept after it was asked: {id, hit_id, …}\n"
        "With `same` or `answer` the rates are printed, by kind; of `distinct` lines every hit is false."
    )


def cache(args: argparse.Namespace) -> int:
    """Run the action."""
    config = cli.configuration(args)
    action = args.action
    _check(args)
    if action in (_stats, _explain, _purge):
        return produce(config, lambda client: action(client, config, args))
    if action is _wrong:
        return produce(config, lambda client: _wrong(client, args))
    code: int = action(config, args)
    return code


def _check(args: argparse.Namespace) -> None:
    """Raises InvalidRequest for arguments that contradict each other."""
    if args.action is _purge:
        labels = [label for label in LABELS if getattr(args, label)]
        if not args.all and not labels:
            raise InvalidRequest("purge", "nothing says which", "give --tenant, --muse, --model or --tag, or --all")
        if args.all and labels:
            raise InvalidRequest("purge", f"--all and --{labels[0]} are given", "give one or the other")
    if args.action is _explain and args.request and any((args.tenant, args.muse, args.user)):
        raise InvalidRequest("explain", "a whole request names tenant, muse and user itself", "give no more than that")


async def _stats(client: Client, config: Config, args: argparse.Namespace) -> int:
    count, size = await client.kept()
    facts: dict[str, Any] = {"exact": {"answers": count, "bytes": size}, "semantic": None, "problem": ""}
    try:
        facts["semantic"] = vectors.ask(config, Count(1))
    except MetamusesdError as error:
        facts["problem"] = error.message
    if args.json:
        print(json.dumps(facts))
        return 0
    print(f"exact cache      {count} answers, {screen.size(size)}")
    if facts["semantic"] is None:
        print(f"semantic cache   {facts['problem']}")
        return 0
    semantic = facts["semantic"]
    store, embedder = semantic["store"], semantic["embedder"]
    print(f"semantic cache   {store['entries']} answers, {semantic['promises']} promised by jobs under way")
    print(f"  store          {', '.join(f'{name} {value}' for name, value in store.items() if name != 'entries')}")
    print(f"  embedder       {', '.join(f'{name} {value}' for name, value in embedder.items())}")
    print(f"  so far         {', '.join(f'{name} {value}' for name, value in semantic['counted'].items() if value)}")
    if semantic["trouble"]:
        print(f"  trouble        {semantic['trouble']}")
    return 0


async def _purge(client: Client, config: Config, args: argparse.Namespace) -> int:
    labels = {label: getattr(args, label) for label in LABELS}
    if labels["model"] in config.models and config.models[labels["model"]].file:
        labels["model"] = digest_of(config.model_path(config.models[labels["model"]]))
    exact = await client.forget(**labels)
    print(f"exact cache      {exact} answers forgotten")
    try:
        semantic = vectors.ask(config, Forget(1, **labels))["removed"]
    except DaemonAway as error:
        if not (config.cache.enabled and config.cache.semantic):
            return 0
        cli.complain(error.message)
        return cli.EXIT_CODES[error.code]
    print(f"semantic cache   {semantic} answers forgotten")
    return 0


async def _wrong(client: Client, args: argparse.Namespace) -> int:
    worst = 0
    for id in args.ids:
        said = await client.complain(id)
        print(f"{id}  {said.replace('_', ' ')}")
        worst = max(worst, {"noted": 0, "not_cached": cli.EXIT_CODES["invalid_request"]}.get(said, 66))
    return worst


async def _explain(client: Client, config: Config, args: argparse.Namespace) -> int:
    request = parse_request(args.query if args.request else _body(args))
    hosts = await client.hosts()
    views = [TierView(tier, service.model) for host in hosts for tier, service in host.tiers.items()]
    routing = route(request, views, routing_rules_of(config))
    services = [host.tiers[tier] for tier in routing.tiers for host in hosts if tier in host.tiers]
    identities = list(dict.fromkeys(service.identity for service in services if service.identity))
    may = eligibility(request, routing.domain, config.cache.exact_domains, routing.confidence)
    question = question_of(request)
    told = await _told(client, config, question, may, identities)
    facts = {"domain": routing.domain, "tiers": list(routing.tiers), "may": _wishes(may), "reason": may.reason,
             "personal": bool(question.shared), "models": len(identities), **told}  # fmt: skip
    print(json.dumps(facts, ensure_ascii=False)) if args.json else _print(routing, may, identities, told)
    return 0


def _body(args: argparse.Namespace) -> dict[str, Any]:
    body = {"user_query": args.query, "tenant": args.tenant or "default", "user_address": args.user or ""}
    return body | ({"muse_id": int(args.muse) if args.muse.isdecimal() else args.muse} if args.muse else {})


def _wishes(may: Eligibility) -> list[str]:
    return [name for name in ("read", "write", "semantic", "share") if getattr(may, name)]


async def _told(
    client: Client, config: Config, question: Question, may: Eligibility, identities: list[str]
) -> dict[str, Any]:
    """What the caches have: exact, neighbours, and why there are none."""
    told: dict[str, Any] = {"exact": None, "neighbours": [], "problem": ""}
    if not may.read or not identities:
        return told
    recalled = await client.recall([question.key(identity) for identity in identities])
    if recalled.key:
        answer = decode_answer(recalled.value)
        told["exact"] = {"entry": recalled.key, "model": answer.model_name, "job": answer.job}
    if not (may.semantic and config.cache.semantic):
        return told
    try:
        weighed = vectors.ask(config, Weigh(1, question.text, question.partitions(identities)))
    except MetamusesdError as error:
        return told | {"problem": error.message}
    problem = "" if weighed["fits"] else "longer than the embedder's window: only an equal question hits"
    return told | {"neighbours": weighed["neighbours"], "problem": problem}


def _print(routing: Route, may: Eligibility, identities: list[str], told: dict[str, Any]) -> None:
    print(f"domain      {routing.domain}; tiers {', '.join(routing.tiers)}; {len(identities)} models may answer")
    print(f"eligible    {', '.join(_wishes(may)) or 'for nothing'}{': ' + may.reason if may.reason else ''}")
    exact = told["exact"]
    print(f"exact       {'hit: job ' + exact['job'] if exact else 'no equal question behind the same walls'}")
    if told["problem"]:
        print(f"semantic    {told['problem']}")
    elif not told["neighbours"]:
        print("semantic    no question is near enough")
    else:
        rows = [
            ("hit" if near["admitted"] else "no", f"{near['score']:.4f}", near["verdict"], near["reason"],
             f"{near['age_s']:.0f} s", near["query"][:SHOWN_CHARS])
            for near in told["neighbours"]
        ]  # fmt: skip
        screen.show(screen.table(("semantic", ">score", "verifier", "because", ">age", "question"), rows))
