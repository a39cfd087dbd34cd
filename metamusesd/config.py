"""The configuration: every option once, with its type, default, bounds and help. Standard library only.

One TOML file, overridden by the environment, overridden by flags (`--set redis.url=…`). `load` collects every mistake, each
as one line that names the key and the remedy, and raises them together as a ConfigError; nothing starts on a bad one.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from metamusesd.errors import ConfigError
from metamusesd.tiers import TIERS

EMBEDDED = "embedded"
DEFAULT_FILE = Path("/etc/metamusesd/metamusesd.toml")
DEMO_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
SOCKET_PATH_BYTES = 107


def option(default: Any, help: str, *, least: float | None = None, most: float | None = None,
           choices: tuple[str, ...] = (), env: str = "", secret: bool = False) -> Any:  # fmt: skip
    """A dataclass field that carries its own documentation, bounds and environment variable."""
    metadata = {"help": help, "least": least, "most": most, "choices": choices, "env": env}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata, repr=not secret)
    return field(default=default, metadata=metadata, repr=not secret)


def _state_dir() -> str:
    if given := os.environ.get("STATE_DIRECTORY"):
        return given.split(":")[0]
    if os.geteuid() == 0:
        return "/var/lib/metamusesd"
    return str(Path(os.environ.get("XDG_STATE_HOME", Path.home() / ".local/state")) / "metamusesd")


def _runtime_dir() -> str:
    if given := os.environ.get("RUNTIME_DIRECTORY"):
        return given.split(":")[0]
    if os.geteuid() == 0:
        return "/run/metamusesd"
    if given := os.environ.get("XDG_RUNTIME_DIR"):
        return str(Path(given) / "metamusesd")
    return ""  # beside the state


@dataclass(frozen=True, slots=True)
class Daemon:
    """Where it lives and how long it waits."""

    state_dir: str = option("", "Durable state: instance id, lock, embedded Redis' files. Empty: the system's usual place.")
    runtime_dir: str = option("", "Sockets. Empty: the system's usual place.")
    models_dir: str = option("", "Model files. Empty: ./models if there is one, else <state_dir>/models.", env="MODELS_DIR")
    drain_s: float = option(30.0, "On SIGTERM: how long running jobs may finish before they are requeued.", least=0, most=3600)
    stop_s: float = option(5.0, "How long a child may take to leave before it is killed.", least=0.1, most=300)
    boot_s: float = option(300.0, "How long a worker may take to load its model.", least=1, most=7200)
    hang_s: float = option(30.0, "A worker that owes tokens and makes no step for longer (and 20 of its own steps) is replaced.", least=1, most=3600)
    restart_limit: int = option(5, "Restarts of one child within restart_window_s before it is given up.", least=0, most=1000)
    restart_window_s: float = option(60.0, "See restart_limit.", least=1, most=86400)
    backoff_s: float = option(0.1, "Pause before the first restart; doubles each time, with jitter, up to backoff_most_s.", least=0, most=60)
    backoff_most_s: float = option(15.0, "The longest pause before a restart.", least=0.1, most=3600)


@dataclass(frozen=True, slots=True)
class Redis:
    """The job queue."""

    url: str = option(EMBEDDED, "`embedded`: a private redis-server; or redis://, rediss://, unix://.", env="REDIS_URL", secret=True)
    prefix: str = option("metamuse", "Names the queue; becomes the hash tag of all its keys.", env="REDIS_QUEUE_PREFIX")
    server: str = option("", "The embedded server's program. Empty: redis-server or valkey-server on PATH, else the wheel's.")
    appendfsync: str = option("everysec", "Of the embedded server.", choices=("always", "everysec", "no"))


@dataclass(frozen=True, slots=True)
class Queue:
    """Bounds of the queue, kept by every submit."""

    max_jobs: int = option(100_000, "Jobs that are not finished.", least=1)
    max_bytes: int = option(1 << 30, "Bytes of their bodies.", least=1024)
    max_tenant_jobs: int = option(50_000, "Unfinished jobs of one tenant.", least=1)
    max_crashes: int = option(3, "A job under which so many workers died is quarantined.", least=1, most=100)
    result_ttl_s: int = option(600, "How long a finished job can be read.", least=1, most=604800)
    lease_s: float = option(15.0, "How long a claim lasts without renewal.", least=1, most=600)


@dataclass(frozen=True, slots=True)
class Log:
    """What is written to standard error."""

    level: str = option("info", "", choices=("debug", "info", "warning", "error"))
    format: str = option("auto", "`auto`: colours on a terminal, JSON lines elsewhere.", choices=("auto", "console", "json"))


@dataclass(frozen=True, slots=True)
class Model:
    """A model that tiers may name."""

    file: str = option("", "The GGUF file, absolute or inside models_dir. Not for engine echo.")
    engine: str = option("auto", "", choices=("auto", "llamacpp", "mistralrs", "echo"))
    digest: str = option("", "sha256:… that the file must have. Empty: whatever it has.")
    context: int = option(4096, "Tokens that one sequence may hold, prompt and answer.", least=64, most=1_048_576)
    kv_cells: int = option(0, "Tokens of all sequences and cached prefixes together. 0: from slots and context.", least=0)
    temperature: float = option(0.7, "When the request names none.", least=0, most=5)
    top_p: float = option(0.9, "When the request names none.", least=0, most=1)
    max_tokens: int = option(512, "When the request names none.", least=1, most=131072)
    gpu_layers: int = option(-1, "Layers on the GPU; -1: all, if the tier has GPUs.", least=-1)
    flash_attention: bool = option(True, "")
    prefill_ratio: float = option(1.2, "Time that prompts may add to a step, as a multiple of the step's decode time.", least=0.1, most=100)
    yield_limit_s: float = option(10.0, "A pre-empted sequence runs again after so long.", least=0.1, most=3600)
    options: dict = option({}, "Of one engine alone, handed over as they are.")  # type: ignore[type-arg]


@dataclass(frozen=True, slots=True)
class Tier:
    """One tier: a model and the workers that serve it."""

    model: str = option("", "A name of [models].")
    enabled: bool = option(True, "")
    workers: int | str = option("auto", "Worker processes; `auto`: as many as the free cores or the GPUs carry.", least=1, most=64)
    cores: int | str | list = option("auto", "Cores a worker: a number, a list of core numbers for the tier, or `auto`.", least=1)  # type: ignore[type-arg]
    gpus: list = option([], "GPU indices or UUIDs, one worker each.")  # type: ignore[type-arg]
    slots: int = option(8, "Sequences that one worker generates at a time.", least=1, most=256)
    reserve_slots: int = option(4, "More sequences that a worker holds while higher classes pre-empt them.", least=0, most=256)
    concurrency: int = option(0, "Slots of the whole tier, spread over its workers; 0: slots × workers.", least=0, most=4096)
    floor_tokens_s: float = option(10.0, "`cores = auto` gives as few cores as keep one stream above this rate.", least=0.1)


@dataclass(frozen=True, slots=True)
class Config:
    """Everything. `load` makes it; nobody changes it."""

    daemon: Daemon = field(default_factory=Daemon)
    redis: Redis = field(default_factory=Redis)
    queue: Queue = field(default_factory=Queue)
    log: Log = field(default_factory=Log)
    models: dict[str, Model] = field(default_factory=lambda: {"smollm2": Model(file=DEMO_MODEL)})
    tiers: dict[str, Tier] = field(default_factory=lambda: {"fast": Tier(model="smollm2")})
    source: str = "built-in defaults"

    @property
    def state_dir(self) -> Path:
        """Absolute, not necessarily there yet."""
        return Path(self.daemon.state_dir or _state_dir()).absolute()

    @property
    def runtime_dir(self) -> Path:
        """Absolute, not necessarily there yet. A daemon with a state directory of its own has its sockets there."""
        if self.daemon.runtime_dir:
            return Path(self.daemon.runtime_dir).absolute()
        if self.daemon.state_dir:
            return self.state_dir / "run"
        return Path(_runtime_dir() or self.state_dir / "run").absolute()

    @property
    def models_dir(self) -> Path:
        """Where relative model files are looked up."""
        if self.daemon.models_dir:
            return Path(self.daemon.models_dir).absolute()
        return Path("models").absolute() if Path("models").is_dir() else self.state_dir / "models"

    @property
    def redis_socket(self) -> Path:
        """Of the embedded server."""
        return self.runtime_dir / "redis.sock"

    @property
    def redis_url(self) -> str:
        """Where producers and the dispatcher connect."""
        return f"unix://{self.redis_socket}" if self.redis.url == EMBEDDED else self.redis.url

    @property
    def health_socket(self) -> Path:
        """Answers /livez, /readyz, /status, /metrics."""
        return self.runtime_dir / "health.sock"

    def model_path(self, model: Model) -> Path:
        """The file of a model."""
        return self.models_dir / model.file

    def enabled_tiers(self) -> dict[str, Tier]:
        """The tiers that get workers, from fast to reasoning."""
        return {name: self.tiers[name] for name in TIERS if name in self.tiers and self.tiers[name].enabled}


SECTIONS: dict[str, type[Any]] = {"daemon": Daemon, "redis": Redis, "queue": Queue, "log": Log}
TABLES: dict[str, type[Any]] = {"models": Model, "tiers": Tier}


def load(path: str | Path | None = None, environ: Mapping[str, str] | None = None, overrides: Mapping[str, str] | None = None) -> Config:
    """Read, override, validate. Raises ConfigError with all mistakes. Reads no model file, asks no Redis."""
    environ = os.environ if environ is None else environ
    mistakes: list[str] = []
    data, source = _read(path or environ.get("METAMUSESD_CONFIG"), mistakes)
    _merge_environment(data, environ, mistakes)
    for key, text in (overrides or {}).items():
        _put(data, key, _scalar(text), mistakes)
    config = _build(data, source, mistakes)
    if not mistakes:
        mistakes += _check(config)
    if mistakes:
        raise ConfigError(mistakes)
    return config


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


def _merge_environment(data: dict[str, Any], environ: Mapping[str, str], mistakes: list[str]) -> None:
    """The original service's variables first, then METAMUSESD_SECTION__KEY for everything."""
    for section, kind in SECTIONS.items():
        for spec in fields(kind):
            if (name := spec.metadata["env"]) and (text := environ.get(name)):
                _put(data, f"{section}.{spec.name}", text, mistakes)
    for tier in ("fast", "medium", "heavy"):
        if enabled := environ.get(f"ENABLE_{tier.upper()}_TIER"):
            on = enabled.lower() in ("1", "true", "yes", "on")
            if on and "tiers" in data and tier not in data["tiers"]:
                mistakes.append(f"tiers.{tier}: ENABLE_{tier.upper()}_TIER asks for it; add [tiers.{tier}] with a model")
            elif tier in data.get("tiers", {"fast": {}}):
                _put(data, f"tiers.{tier}.enabled", on, mistakes)
        if slots := environ.get(f"{tier.upper()}_TIER_WORKERS"):
            if tier in data.get("tiers", {"fast": {}}):
                _put(data, f"tiers.{tier}.concurrency", _scalar(slots), mistakes)
    for name, text in environ.items():
        if match := re.fullmatch(r"METAMUSESD_([A-Z]+)__([A-Z0-9_]+)", name):
            key = ".".join(part.lower() for part in (match[1], *match[2].split("__")))
            _put(data, key, _scalar(text), mistakes)


def _scalar(text: str) -> Any:
    """A flag's or variable's text as TOML would read it; else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _put(data: dict[str, Any], key: str, value: Any, mistakes: list[str]) -> None:
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
            values[name] = {key: _section(f"{name}.{key}", TABLES[name], entry, mistakes) for key, entry in content.items()}
    return Config(**values)


def _section(place: str, kind: type[Any], content: Any, mistakes: list[str]) -> Any:
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
    return kind(**values)


def _problem(value: Any, wanted: Any, bounds: Mapping[str, Any]) -> str:
    """What is wrong with a value and what would be right, or nothing."""
    kinds = tuple(get_origin(kind) or kind for kind in get_args(wanted) or (wanted,))
    shown = " or ".join(kind.__name__ for kind in kinds)
    if (isinstance(value, bool) and bool not in kinds) or not isinstance(value, kinds + ((int,) if float in kinds else ())):
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
    mistakes = []
    for name, tier in config.tiers.items():
        if name not in TIERS:
            mistakes.append(f"tiers.{name}: no such tier; use one of {', '.join(TIERS)}")
        if tier.enabled and tier.model not in config.models:
            known = ", ".join(config.models) or "none yet"
            mistakes.append(f"tiers.{name}.model: {tier.model!r} is not in [models] ({known}); add [models.{tier.model or 'NAME'}]")
    for name, model in config.models.items():
        if model.engine != "echo" and not model.file:
            mistakes.append(f"models.{name}.file: missing; name a GGUF file")
    if not config.enabled_tiers():
        mistakes.append("tiers: none is enabled; enable one")
    longest = config.runtime_dir / "control.sock"
    if len(os.fsencode(longest)) > SOCKET_PATH_BYTES:
        mistakes.append(f"daemon.runtime_dir: {longest} is too long for a socket; choose a shorter directory")
    if not re.match(r"^(embedded$|redis://|rediss://|unix://)", config.redis.url):
        mistakes.append("redis.url: not understood; use embedded, redis://host:port/db, rediss://… or unix:///path")
    return mistakes


def missing_models(config: Config) -> list[str]:
    """One line for every enabled tier whose model file is not there."""
    lines = []
    for tier_name, tier in config.enabled_tiers().items():
        model = config.models[tier.model]
        if model.engine != "echo" and not config.model_path(model).is_file():
            lines.append(
                f"models.{tier.model}.file: {config.model_path(model)} does not exist (tier {tier_name}); "
                "run `metamusesd models fetch` or set daemon.models_dir"
            )
    return lines
