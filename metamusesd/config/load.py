"""One TOML file, overridden by systemd's credentials, by the environment, by flags (`--set redis.url=…`). Standard
library only.

`load` collects every mistake, each as one line that names the key and the remedy, and raises them together as a
ConfigError; nothing starts on a bad configuration.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from metamusesd.config.loopback import loopback
from metamusesd.config.options import CLASSES, DEMO_MODEL, SECTIONS, TABLES, Config
from metamusesd.errors import ConfigError
from metamusesd.tiers import DOMAINS, TIERS

DEFAULT_FILE = Path("/etc/metamusesd/metamusesd.toml")
SERVICE_CREDENTIALS = Path("/run/credentials/metamusesd.service")  # where systemd puts them; root may read it
SOCKET_PATH_BYTES = 107
CREDENTIALS, ENVIRONMENT, FLAGS = "credentials", "environment", "--set"  # the places besides the file
YES, NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")

Seen = Callable[[str, dict[str, Any]], None]


def load(
    path: str | Path | None = None, environ: Mapping[str, str] | None = None, overrides: Mapping[str, str] | None = None
) -> Config:
    """Read, override, validate. Raises ConfigError with all mistakes. Reads no model file, asks no Redis."""
    mistakes: list[str] = []
    data, source = gather(path, os.environ if environ is None else environ, overrides or {}, mistakes)
    config = _build(data, source, mistakes)
    if not mistakes:
        mistakes += _check(config)
    if mistakes:
        raise ConfigError(mistakes)
    return config


def gather(
    path: str | Path | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, str],
    mistakes: list[str],
    seen: Seen = lambda _place, _data: None,
) -> tuple[dict[str, Any], str]:
    """What all places together say, not yet validated, and the file's name. `seen`: told of each place, and of all data
    up to it."""
    data, source = _read(path or environ.get("METAMUSESD_CONFIG") or None, mistakes)
    seen(source, data)
    if directory := _credentials(environ, source):
        _merge_credentials(data, directory, mistakes)
        seen(CREDENTIALS, data)
    _merge_environment(data, environ, mistakes)
    seen(ENVIRONMENT, data)
    for key, text in overrides.items():
        _put(data, key, _scalar(text), mistakes)
    seen(FLAGS, data)
    return data, source


def _read(path: str | Path | None, mistakes: list[str]) -> tuple[dict[str, Any], str]:
    if path is None:
        if not DEFAULT_FILE.exists():
            return {}, "built-in defaults"
        path = DEFAULT_FILE
    try:
        return tomllib.loads(Path(path).read_text("utf-8")), str(path)
    except (OSError, UnicodeDecodeError) as error:
        mistakes.append(f"{path}: cannot be read: {error}; give a readable TOML file with --config")
    except tomllib.TOMLDecodeError as error:
        mistakes.append(f"{path}: is not TOML: {error}; correct that line")
    return {}, str(path)


def _credentials(environ: Mapping[str, str], source: str) -> Path | None:
    """Where secrets are. systemd tells the service; commands with the service's file use them if they may."""
    if given := environ.get("CREDENTIALS_DIRECTORY"):
        return Path(given)
    shared = source == str(DEFAULT_FILE) and os.access(SERVICE_CREDENTIALS, os.R_OK | os.X_OK)
    return SERVICE_CREDENTIALS if shared else None


def _merge_credentials(data: dict[str, Any], directory: Path, mistakes: list[str]) -> None:
    """A secret option is read from a file with the name of its variable in small letters: redis_url, qdrant_api_key."""
    options = [(f"{section}.{spec.name}", spec.metadata["env"].lower())
               for section, kind in SECTIONS.items() for spec in fields(kind) if not spec.repr]  # fmt: skip
    for key, name in options:
        path = directory / name
        try:
            secret = path.read_text("utf-8").strip()
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            mistakes.append(f"{key}: the credential {path} cannot be read: {reason}; give a readable text file")
            continue
        if secret:
            _put(data, key, secret, mistakes)
        else:
            mistakes.append(f"{key}: the credential {path} is empty; write the secret into it, or remove it")


def _merge_environment(data: dict[str, Any], environ: Mapping[str, str], mistakes: list[str]) -> None:
    """The original service's variables first, then METAMUSESD_SECTION__KEY for everything."""
    for section, kind in SECTIONS.items():
        for spec in fields(kind):
            if (name := spec.metadata["env"]) and (text := environ.get(name)):
                _put(data, f"{section}.{spec.name}", _typed(text, spec.type), mistakes)
    for tier in ("fast", "medium", "heavy"):
        if enabled := environ.get(f"ENABLE_{tier.upper()}_TIER"):
            on = enabled.lower() in YES
            if on and "tiers" in data and tier not in data["tiers"]:
                mistakes.append(
                    f"tiers.{tier}: ENABLE_{tier.upper()}_TIER asks for it; add [tiers.{tier}] with a model"
                )
            elif tier in data.get("tiers", {"fast": {}}):
                _put(data, f"tiers.{tier}.enabled", on, mistakes)
        slots = environ.get(f"{tier.upper()}_TIER_WORKERS")
        if slots and tier in data.get("tiers", {"fast": {}}):
            _put(data, f"tiers.{tier}.concurrency", _scalar(slots), mistakes)
    for name, text in environ.items():
        if match := re.fullmatch(r"METAMUSESD_([A-Z]+)__([A-Z0-9_]+)", name):
            key = ".".join(part.lower() for part in (match[1], *match[2].split("__")))
            _put(data, key, _scalar(text), mistakes)


def _typed(text: str, kind: object) -> Any:
    """A variable of the original service, whose values have no quotes: what its option wants, if it can be read so."""
    if kind == "bool":
        return True if text.lower() in YES else False if text.lower() in NO else text
    return text if kind == "str" else _scalar(text)


def _scalar(text: str) -> Any:
    """A flag's or variable's text as TOML would read it; else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _put(data: Any, key: str, value: Any, mistakes: list[str]) -> None:
    *parents, last = key.split(".")
    if parents[:1] == ["tiers"]:
        data.setdefault("tiers", {"fast": {"model": "smollm2"}})
    if parents[:1] == ["models"]:
        data.setdefault("models", {"smollm2": {"file": DEMO_MODEL}})
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            mistakes.append(f"{key}: {parent} is not a table; remove it or make it one")
            return
    data[last] = value


def _build(data: dict[str, Any], source: str, mistakes: list[str]) -> Config:
    values: dict[str, Any] = {"source": source}
    for name, content in data.items():
        if name not in SECTIONS and name not in TABLES:
            mistakes.append(f"{name}: unknown section; use one of {', '.join([*SECTIONS, *TABLES])}")
        elif not isinstance(content, dict):
            mistakes.append(f"{name}: is not a table; write [{name}]")
        elif name in SECTIONS:
            values[name] = _section(name, SECTIONS[name], content, mistakes)
        else:
            given = {
                key: _section(f"{name}.{key}", TABLES[name], entry, mistakes, CLASSES.get(key))
                for key, entry in content.items()
            }
            values[name] = CLASSES | given if name == "classes" else given
    return Config(**values)


def _section(place: str, kind: type[Any], content: Any, mistakes: list[str], base: Any = None) -> Any:
    """`base`: what holds for the keys that are not given; None: the defaults of `kind`."""
    if not isinstance(content, dict):
        mistakes.append(f"{place}: is not a table; write [{place}]")
        return kind()
    types, known, values = get_type_hints(kind), {spec.name: spec for spec in fields(kind)}, {}
    for key, value in content.items():
        if key not in known:
            mistakes.append(f"{place}.{key}: unknown key; use one of {', '.join(known)}")
            continue
        problem = _problem(value, types[key], known[key].metadata)
        if problem:
            mistakes.append(f"{place}.{key}: {problem}")
        else:
            values[key] = float(value) if types[key] is float else value
    return replace(base, **values) if isinstance(base, kind) else kind(**values)


def _problem(value: Any, wanted: Any, bounds: Mapping[str, Any]) -> str:
    """What is wrong with a value and what would be right, or nothing."""
    kinds = tuple(
        get_origin(kind) or kind for kind in (get_args(wanted) if isinstance(wanted, UnionType) else (wanted,))
    )
    shown = " or ".join(kind.__name__ for kind in kinds)
    if (isinstance(value, bool) and bool not in kinds) or not isinstance(
        value, kinds + ((int,) if float in kinds else ())
    ):
        return f"{value!r} is a {type(value).__name__}; give a {shown}"
    if bounds["choices"] and value not in bounds["choices"]:
        return f"{value!r} is not allowed; use one of {', '.join(bounds['choices'])}"
    if isinstance(value, str) and {int, str} <= set(kinds) and value != "auto":
        return f"{value!r} is not allowed; use `auto` or a number"
    if isinstance(value, int | float) and not isinstance(value, bool):
        if bounds["least"] is not None and value < bounds["least"]:
            return f"{value} is too small; at least {bounds['least']}"
        if bounds["most"] is not None and value > bounds["most"]:
            return f"{value} is too large; at most {bounds['most']}"
    return ""


def _check(config: Config) -> list[str]:
    """What only the whole can tell: names that do not exist, paths that are too long."""
    mistakes = _check_tiers(config) + _check_models(config)
    for name in config.classes:
        if name not in CLASSES:
            mistakes.append(f"classes.{name}: no such class; use one of {', '.join(CLASSES)}")
    if not config.enabled_tiers():
        mistakes.append("tiers: none is enabled; enable one")
    mistakes += _check_routing(config) + _check_addresses(config)
    longest = config.control_socket
    if len(os.fsencode(longest)) > SOCKET_PATH_BYTES:
        mistakes.append(f"daemon.runtime_dir: {longest} is too long for a socket; choose a shorter directory")
    if config.cache.candidate_threshold > config.cache.similarity_threshold:
        mistakes.append("cache.candidate_threshold: above cache.similarity_threshold; lower it")
    for domain in config.cache.exact_domains:
        if domain not in DOMAINS:
            mistakes.append(f"cache.exact_domains: {domain!r} is no domain; use {', '.join(DOMAINS)}")
    if not re.match(r"^[A-Za-z0-9_-]{1,100}$", config.cache.collection):
        mistakes.append("cache.collection: not a name; use 1 to 100 of A-Z a-z 0-9 _ -")
    return mistakes


def _check_tiers(config: Config) -> list[str]:
    mistakes = []
    for name, tier in config.tiers.items():
        if name not in TIERS:
            mistakes.append(f"tiers.{name}: no such tier; use one of {', '.join(TIERS)}")
        for named in tier.models if tier.enabled else ():
            if named not in config.models:
                key, known = "model" if named == tier.model else "more_models", ", ".join(config.models) or "none yet"
                mistakes.append(
                    f"tiers.{name}.{key}: {named!r} is not in [models] ({known}); add [models.{named or 'NAME'}]"
                )
        mistakes += [
            f"tiers.{name}.gpus: {gpu!r} is no GPU; use an index, a UUID (GPU-…), or several as 0+1"
            for gpu in tier.gpus if not _are_gpus(str(gpu).split("+"))
        ]  # fmt: skip
    return mistakes + _check_gpu_names(config)


def _check_gpu_names(config: Config) -> list[str]:
    """One GPU has one name: who shares it must be seen."""
    asked = {str(gpu) for tier in config.enabled_tiers().values() for gpu in tier.gpus}
    names = {part for gpu in asked for part in gpu.split("+")}
    if len({name.isdecimal() for name in names}) < 2:
        return []
    return [f"tiers.*.gpus: {', '.join(sorted(names))}: name all of them by index, or all by UUID"]


def _are_gpus(parts: list[str]) -> bool:
    known = all(re.fullmatch(r"\d+|(GPU|MIG)-[0-9A-Za-z/-]+", part) for part in parts)
    return known and len(set(parts)) == len(parts)


def _check_models(config: Config) -> list[str]:
    mistakes = []
    for name, model in config.models.items():
        if model.engine != "echo" and not model.file:
            mistakes.append(f"models.{name}.file: missing; name a GGUF file")
        if model.kv_cache_type != "f16" and not model.flash_attention:
            mistakes.append(
                f"models.{name}.kv_cache_type: {model.kv_cache_type} wants flash attention; "
                f'set models.{name}.flash_attention = true, or "f16"'
            )
        if model.format == "auto" and model.engine not in ("auto", "llamacpp"):
            mistakes.append(f"models.{name}.format: auto is for GGUF files on llamacpp; remove it, or the engine")
        mistakes += [
            f'models.{name}.canary."{prompt}": {text!r} is no text; give what the answer must contain, or ""'
            for prompt, text in model.canary.items() if not isinstance(text, str)
        ]  # fmt: skip
    return mistakes


def _check_addresses(config: Config) -> list[str]:
    mistakes = []
    if not re.match(r"^(embedded$|https?://[^/])", config.cache.qdrant_url):
        mistakes.append("cache.qdrant_url: not understood; use embedded, http://host:6333 or https://host:6333")
    if not re.match(r"^($|https?://[^/])", config.telemetry.otlp_endpoint):
        mistakes.append("telemetry.otlp_endpoint: not understood; use http://host:4318, https://…, or nothing")
    if config.health.tcp:
        try:
            loopback(config.health.tcp)
        except ValueError as error:
            mistakes.append(f"health.tcp: {error}")
    if not re.match(r"^(embedded$|rediss?://|unix://|cluster://[^/]|sentinel://[^/]+/[^/]+)", config.redis.url):
        mistakes.append(
            "redis.url: not understood; use embedded, redis://host:port/db, rediss://…, unix:///path, "
            "sentinel://host:port,…/NAME or cluster://host:port,…"
        )
    return mistakes


def _check_routing(config: Config) -> list[str]:
    """Tiers that [routing] and [tenants] name, and that do not exist."""
    named = [(f"routing.fallback.{tier}", [tier, *others] if isinstance(others, list) else others)
             for tier, others in config.routing.fallback.items()]  # fmt: skip
    named += [(f"tenants.{name}.tiers", tenant.tiers) for name, tenant in config.tenants.items()]
    mistakes = []
    for place, tiers in named:
        if not isinstance(tiers, list):
            mistakes.append(f'{place}: {tiers!r} is no list; give a list of tiers, such as ["heavy"]')
            continue
        mistakes += [f"{place}: {tier!r} is no tier; use {', '.join(TIERS)}" for tier in tiers if tier not in TIERS]
    return mistakes
