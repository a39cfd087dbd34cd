"""Stage 0 · command line · what `check` looks at beyond the configuration's own rules: files, engines, cores, Redis."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from metamusesd import config as configuration
from metamusesd.config import EMBEDDED, Config, Model
from metamusesd.engines.choice import choose, kv_problem
from metamusesd.engines.mistralrs.source import read_source
from metamusesd.errors import ConfigError, MetamusesdError, QueueRefused, QueueUnavailable
from metamusesd.gguf import read_header
from metamusesd.models import digest_of
from metamusesd.tracing import address

ENGINE_MODULES = {"llamacpp": "llama_cpp", "mistralrs": "mistralrs"}
REDIS_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: something that is right, or a mistake with its remedy."""

    text: str
    wrong: bool = False


def all_checks(config: Config) -> Iterator[Finding]:
    """Changes nothing but the remembered digests of model files, which it may have to hash."""
    yield Finding(f"configuration: {config.source}")
    yield from _models(config)
    yield from _placement(config)
    yield from _redis(config)
    yield from _telemetry(config)


def explain(config: Config, file: str | None, overrides: Mapping[str, str], *, as_json: bool) -> None:
    """Print what would run, and why. For a configuration without mistakes."""
    from metamusesd.commands import explanation
    from metamusesd.config.origins import origins
    from metamusesd.supervisor.cpus import usable_cores
    from metamusesd.supervisor.measured import core_rates
    from metamusesd.supervisor.placement import model_sizes, place
    from metamusesd.supervisor.proc import available_bytes

    cores, places = usable_cores(), origins(file, overrides)
    placement = place(config, cores, model_sizes(config), core_rates(config))
    if as_json:
        print(json.dumps(explanation.facts(config, places, placement), ensure_ascii=False))
    else:
        explanation.show(config, places, cores, placement, available_bytes())


def _models(config: Config) -> Iterator[Finding]:
    for line in configuration.missing_models(config):
        yield Finding(line, wrong=True)
    for name in dict.fromkeys(model for tier in config.enabled_tiers().values() for model in tier.models):
        model = config.models[name]
        engine = _engine(config, model)
        if (module := ENGINE_MODULES.get(engine)) and importlib.util.find_spec(module) is None:
            yield Finding(
                f"models.{name}.engine: {engine} is not installed; run `pip install 'metamusesd[{engine}]'`", wrong=True
            )
        if problem := kv_problem(engine, model.kv_cache_type):
            yield Finding(f"models.{name}.kv_cache_type: {problem}", wrong=True)
        if engine != "echo" and configuration.is_model(config.model_path(model)):
            yield _file(config, name, model)
        if choice := config.choices.get(name):
            yield Finding(f"models.{name}.format: auto: {choice.why}{f'; {choice.remedy}' if choice.remedy else ''}")


def _engine(config: Config, model: Model) -> str:
    """Whether a worker has a GPU makes no difference to which module it needs."""
    return choose(model.engine, config.model_path(model), False)[0] if model.engine == "auto" else model.engine


def _telemetry(config: Config) -> Iterator[Finding]:
    """Whether traces that are wanted can be made: the daemon goes on without."""
    if not config.telemetry.otlp_endpoint:
        return
    try:
        there = importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:  # not even its parents
        there = False
    if not there:
        problem = "OpenTelemetry is not installed; run `pip install 'metamusesd[otel]'`"
        yield Finding(f"telemetry.otlp_endpoint: {problem}", wrong=True)
    else:
        yield Finding(f"traces go to {address(config.telemetry.otlp_endpoint)}")


def _file(config: Config, name: str, model: Model) -> Finding:
    path = config.model_path(model)
    try:
        (described, trained), digest = _described(path), digest_of(path)
    except MetamusesdError as error:
        return Finding(f"models.{name}.file: {error.message}; fetch it again or name another file", wrong=True)
    if model.digest and model.digest != digest:
        return Finding(
            f"models.{name}.digest: {path} has {digest}, the configuration says {model.digest}; "
            "correct the digest or bring the right file",
            wrong=True,
        )
    if trained and model.context > trained:
        return Finding(
            f"models.{name}.context: {model.context} is too large; the model was made for {trained}", wrong=True
        )
    return Finding(f"models.{name}: {path.name}, {described}, context {model.context}, {digest[:19]}…")


def _described(path: Path) -> tuple[str, int]:
    """What the model is, and the context that it was made for; 0: nobody says."""
    if path.is_dir():
        source = read_source(str(path))
        return f"{source.architecture}, safetensors", source.trained_context
    header = read_header(path)
    text = f"{header.architecture} {header.parameters / 1e6:.0f} M {header.quantization}"
    return text, header.trained_context


def _placement(config: Config) -> Iterator[Finding]:
    from metamusesd.supervisor.cpus import usable_cores
    from metamusesd.supervisor.measured import core_rates
    from metamusesd.supervisor.placement import model_sizes, place

    try:
        placement = place(config, usable_cores(), model_sizes(config), core_rates(config))
    except ConfigError as error:
        yield from (Finding(mistake, wrong=True) for mistake in error.mistakes)
        return
    yield from (Finding(reason) for reason in placement.lines)


def _redis(config: Config) -> Iterator[Finding]:
    """The server that is configured; one that is not reachable now is no mistake, the daemon waits for it."""
    if config.redis.url == EMBEDDED:
        from metamusesd.supervisor.redis_server import describe, find_program

        try:
            yield Finding(f"redis: embedded, {describe(find_program(config))}")
        except ConfigError as error:
            yield Finding(error.message, wrong=True)
        return
    try:
        asyncio.run(_ask_redis(config))
        yield Finding("redis: reachable, and it keeps what it is given")
    except (QueueRefused, ConfigError) as error:
        yield Finding(f"redis.url: {error.message}", wrong=True)
    except QueueUnavailable as error:
        yield Finding(f"redis: not reachable now ({error.message}); the daemon will wait for it")


async def _ask_redis(config: Config) -> None:
    from metamusesd.queues.limits import limits_of
    from metamusesd.queues.redis_queue import RedisQueue

    queue = RedisQueue(config.redis_url, config.redis.prefix, limits_of(config))
    try:
        async with asyncio.timeout(REDIS_TIMEOUT_S):
            await queue.open()
    except TimeoutError:
        raise QueueUnavailable(f"no answer within {REDIS_TIMEOUT_S:g} s") from None
    finally:
        await queue.close()
