"""Every option once, with its type, default, bounds, help and environment variable. Standard library only."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metamusesd.config.choice import Choice
from metamusesd.config.observing import Health, Log, Telemetry
from metamusesd.config.option import option
from metamusesd.config.routes import Routing, Tenant
from metamusesd.tiers import TIERS

EMBEDDED = "embedded"
DEMO_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDER_FILES = ("model.onnx", "tokenizer.json", "tokenizer_config.json", "config.json", "special_tokens_map.json")


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

    state_dir: str = option(
        "", "Durable state: instance id, lock, embedded Redis' files. Empty: the system's usual place."
    )
    runtime_dir: str = option("", "Sockets. Empty: the system's usual place.")
    models_dir: str = option(
        "", "Model files. Empty: ./models if there is one, else <state_dir>/models.", env="MODELS_DIR"
    )
    drain_s: float = option(
        30.0, "On SIGTERM: how long running jobs may finish before they are requeued.", least=0, most=3600
    )
    stop_s: float = option(5.0, "How long a child may take to leave before it is killed.", least=0.1, most=300)
    boot_s: float = option(300.0, "How long a worker may take to load its model.", least=1, most=7200)
    hang_s: float = option(
        30.0,
        "A child that owes progress and makes none for so long is replaced, while its own pace is not known yet. Once "
        "it is: after 20 of its usual steps, hang_least_s or more. One that uses the CPU all the while has four times "
        "as long, and never less than hang_s.",
        least=1,
        most=3600,
    )
    hang_least_s: float = option(
        5.0, "The shortest of those patiences, however quick its steps are. At most hang_s.", least=0.5, most=3600
    )
    restart_limit: int = option(
        5,
        "Deaths of one child within restart_window_s that nothing explains before it is given up: no job was in it, "
        "it had done nothing since its start, and nobody killed it. Other deaths are not counted. 0: the first death "
        "is the last.",
        least=0,
        most=1000,
    )
    restart_window_s: float = option(60.0, "See restart_limit.", least=1, most=86400)
    backoff_s: float = option(
        0.1, "Pause before the first restart; doubles each time, with jitter, up to backoff_most_s.", least=0, most=60
    )
    backoff_most_s: float = option(15.0, "The longest pause before a restart.", least=0.1, most=3600)


@dataclass(frozen=True, slots=True)
class Redis:
    """The job queue."""

    url: str = option(
        EMBEDDED,
        "`embedded`: a private redis-server; or redis://, rediss://, unix://, sentinel://, cluster://.",
        env="REDIS_URL",
        secret=True,
    )
    prefix: str = option("metamuse", "Names the queue; becomes the hash tag of all its keys.", env="REDIS_QUEUE_PREFIX")
    server: str = option(
        "", "The embedded server's program. Empty: redis-server or valkey-server on PATH, else the wheel's."
    )
    appendfsync: str = option("everysec", "Of the embedded server.", choices=("always", "everysec", "no"))


@dataclass(frozen=True, slots=True)
class Queue:
    """Bounds of the queue, kept by every submit."""

    max_jobs: int = option(100_000, "Jobs that are not finished.", least=1)
    max_bytes: int = option(1 << 30, "Bytes of their bodies.", least=1024)
    max_tenant_jobs: int = option(50_000, "Unfinished jobs of one tenant.", least=1)
    max_crashes: int = option(
        3, "A job under which so many workers died, the last one with no other job in it, is quarantined.",
        least=1, most=100,
    )  # fmt: skip
    max_retries: int = option(3, "Retries of a job after retryable errors of the engine.", least=0, most=100)
    retry_s: float = option(
        0.5, "Pause before the first retry; doubles each time, with jitter, up to retry_most_s.", least=0, most=3600
    )
    retry_most_s: float = option(30.0, "The longest pause before a retry.", least=0, most=86400)
    strand_s: float = option(
        60.0, "A job whose tiers have had no worker on any live host for so long is routed again.", least=1, most=86400
    )
    result_ttl_s: int = option(600, "How long a finished job can be read.", least=1, most=604800)
    lease_s: float = option(15.0, "How long a claim lasts without renewal.", least=1, most=600)


@dataclass(frozen=True, slots=True)
class JobClass:
    """What holds for one class of jobs: low, normal, high, critical."""

    max_queue_size: int = option(0, "Unfinished jobs of this class; 0: only queue.max_jobs counts.", least=0)
    max_wait_s: float = option(
        0.0,
        "A job that has waited longer is aged: it gets its share, one claim in eight. 0: never.",
        least=0,
        most=864000,
    )
    timeout_s: float = option(0.0, "How long a job may wait for its start; 0: for ever.", least=0, most=864000)
    timeout_action: str = option(
        "reject", "Then it fails with queue_timeout, or goes on as class low.", choices=("reject", "delay")
    )


CLASSES = {  # by priority: low is 0
    "low": JobClass(max_wait_s=300.0),
    "normal": JobClass(max_wait_s=120.0),
    "high": JobClass(max_wait_s=30.0),
    "critical": JobClass(),
}


@dataclass(frozen=True, slots=True)
class Cache:
    """Answers that were given before."""

    enabled: bool = option(
        True, "False: no cache at all, neither the exact nor the semantic one.", env="ENABLE_SEMANTIC_CACHE"
    )
    semantic: bool = option(True, "False: only equal questions are answered from the cache.")
    coalesce: bool = option(True, "Equal jobs that are under way at the same time are computed once.")
    similarity_threshold: float = option(
        0.95, "Cosine from which a neighbour hits unless the verifier refuses it.", least=0.5, most=1,
        env="CACHE_SIMILARITY_THRESHOLD",
    )  # fmt: skip
    candidate_threshold: float = option(
        0.85, "Cosine from which a neighbour may hit, if the verifier finds both to ask the same.", least=0.5, most=1
    )
    exact_domains: list[str] = option(
        ["code", "math", "reasoning"], "Domains in which only equal questions hit: a small change changes everything."
    )
    ttl_hours: float = option(24.0, "How long an answer may be given again.", least=0.001, most=8760,
                              env="CACHE_TTL_HOURS")  # fmt: skip
    max_entries: int = option(
        100_000, "Answers in each of the two caches; the least recently used go first.", least=1, most=10_000_000
    )
    max_bytes: int = option(256 << 20, "Bytes of the exact cache's answers in Redis.", least=1024)
    max_answer_bytes: int = option(65_536, "Longer answers are not kept.", least=64)
    repeat_s: float = option(
        300.0, "A user who asks the same again within so long wants a new answer, and is not served from the cache.",
        least=0, most=86400,
    )  # fmt: skip
    budget_ms: float = option(
        50.0, "How long a job waits for the semantic cache; then it counts as a miss.", least=1, most=10_000
    )
    qdrant_url: str = option(
        EMBEDDED,
        "`embedded`: Qdrant Edge in the state directory; or http(s)://… of a Qdrant server, for several hosts.",
        env="QDRANT_URL",
    )
    qdrant_api_key: str = option("", "Of that server.", env="QDRANT_API_KEY", secret=True)
    collection: str = option(
        "metamuse_cache",
        "The collection's name; the embedder's identity is added: another embedder, another one.",
    )
    embedder: str = option("all-MiniLM-L6-v2", "Directory of the embedder inside models_dir, or absolute.")
    embedder_threads: int = option(1, "Its threads.", least=1, most=64)


@dataclass(frozen=True, slots=True)
class Model:
    """A model that tiers may name."""

    file: str = option("", "The GGUF file or directory of safetensors, absolute or in models_dir. Not for engine echo.")
    engine: str = option("auto", "", choices=("auto", "llamacpp", "mistralrs", "echo"))
    digest: str = option("", "sha256:… that the file must have. Empty: whatever it has.")
    format: str = option(
        "source", "The weights as the file has them (source), or in the format that `metamusesd bench --formats "
        "--write` found to be the fastest of equal quality on this host (auto).", choices=("source", "auto"),
    )  # fmt: skip
    context: int = option(4096, "Tokens that one sequence may hold, prompt and answer.", least=64, most=1_048_576)
    kv_cells: int = option(
        0, "Tokens of all sequences and cached prefixes together. 0: from slots and context.", least=0
    )
    temperature: float = option(0.7, "When the request names none.", least=0, most=5)
    top_p: float = option(0.9, "When the request names none.", least=0, most=1)
    max_tokens: int = option(512, "When the request names none.", least=1, most=131072)
    gpu_layers: int = option(-1, "Layers on the GPU; -1: all, if the tier has GPUs.", least=-1)
    flash_attention: bool = option(True, "")
    kv_cache_type: str = option(
        "f16", "How K and V are kept: q8_0 takes half the memory, and wants flash_attention.", choices=("f16", "q8_0")
    )
    mlock: bool = option(
        False, "Keep the weights in memory: they are never read from the disk again, nor swapped. Not the KV cache."
    )
    hugepages: str = option(
        "system",
        "Huge pages for KV cache and buffers: asked for (thp), refused (off), or as the kernel is set.",
        choices=("system", "thp", "off"),
    )
    prefill_ratio: float = option(
        1.2, "Time that prompts may add to a step, as a multiple of the step's decode time.", least=0.1, most=100
    )
    yield_limit_s: float = option(0.5, "A pre-empted sequence runs again after so long.", least=0.1, most=3600)
    canary: dict[str, Any] = option(
        {}, 'Golden prompts of a reload, and what each answer must contain: { "What is 2+2?" = "4" }; "": anything '
        "sensible. Empty: two prompts of ours.",
    )  # fmt: skip
    canary_tokens_s: float = option(
        1.0, "A model that decodes slower than this on a reload is refused; 0: however slow.", least=0, most=1e6
    )
    options: dict[str, Any] = option({}, "Of one engine alone, handed over as they are.")


@dataclass(frozen=True, slots=True)
class Tier:
    """One tier: a model and the workers that serve it."""

    model: str = option("", "A name of [models].")
    more_models: list[str] = option([], "Further ones; the workers are dealt out in turn, at least one a model.")
    enabled: bool = option(True, "")
    workers: int | str = option(
        "auto", "Worker processes; `auto`: as many as the free cores or the GPUs carry.", least=1, most=64
    )
    cores: int | str | list[int] = option(
        "auto", "Cores a worker: a number, a list of core numbers for the tier, or `auto`.", least=1
    )
    gpus: list[int | str] = option(
        [], 'GPU indices or UUIDs (all tiers alike), one worker each; "0+1" is one worker, its layers split over both.'
    )
    slots: int = option(8, "Sequences that one worker generates at a time.", least=1, most=256)
    reserve_slots: int = option(
        4, "More sequences that a worker holds while higher classes pre-empt them.", least=0, most=256
    )
    concurrency: int = option(
        0, "Slots of the whole tier, spread over its workers; 0: slots × workers.", least=0, most=4096
    )
    floor_tokens_s: float = option(
        10.0, "`cores = auto` gives as few cores as keep one stream above this rate.", least=0.1
    )
    idle_unload_s: float = option(
        0.0, "Without a job for so long the tier's workers leave, and come back when a job waits for it. 0: never.",
        least=0, most=864000,
    )  # fmt: skip
    recycle_mb: int = option(
        0, "A worker with more private memory (MiB) than this is drained and replaced; 0: never.", least=0
    )

    @property
    def models(self) -> list[str]:
        """All its models, the first one first."""
        return list(dict.fromkeys([self.model, *self.more_models]))


@dataclass(frozen=True, slots=True)
class Config:
    """Everything. `load` makes it; nobody changes it."""

    daemon: Daemon = field(default_factory=Daemon)
    redis: Redis = field(default_factory=Redis)
    queue: Queue = field(default_factory=Queue)
    cache: Cache = field(default_factory=Cache)
    routing: Routing = field(default_factory=Routing)
    log: Log = field(default_factory=Log)
    health: Health = field(default_factory=Health)
    telemetry: Telemetry = field(default_factory=Telemetry)
    models: dict[str, Model] = field(default_factory=lambda: {"smollm2": Model(file=DEMO_MODEL)})
    tiers: dict[str, Tier] = field(default_factory=lambda: {"fast": Tier(model="smollm2")})
    classes: dict[str, JobClass] = field(default_factory=lambda: dict(CLASSES))
    tenants: dict[str, Tenant] = field(default_factory=dict)
    source: str = "built-in defaults"
    choices: dict[str, Choice] = field(default_factory=dict)  # by model; no option: metamusesd/formats.py makes them

    @property
    def state_dir(self) -> Path:
        """Absolute, not necessarily there yet."""
        return Path(self.daemon.state_dir or _state_dir()).absolute()

    @property
    def evidence_dir(self) -> Path:
        """The stacks of children that crashed or hung."""
        return self.state_dir / "evidence"

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
    def cache_socket(self) -> Path:
        """Where `metamusesd cache` asks the vectors process."""
        return self.runtime_dir / "cache.sock"

    @property
    def embedder_dir(self) -> Path:
        """The embedder's files."""
        return self.models_dir / self.cache.embedder

    @property
    def vectors_dir(self) -> Path:
        """Where the embedded vector store lives; each embedder has a directory of its own inside."""
        return self.state_dir / "vectors"

    @property
    def health_socket(self) -> Path:
        """Answers /livez, /readyz, /status, /metrics."""
        return self.runtime_dir / "health.sock"

    @property
    def control_socket(self) -> Path:
        """Takes orders: reload, drain, undrain."""
        return self.runtime_dir / "control.sock"

    def model_path(self, model: Model) -> Path:
        """The file of a model."""
        return self.models_dir / model.file

    def enabled_tiers(self) -> dict[str, Tier]:
        """The tiers that get workers, from fast to reasoning."""
        return {name: self.tiers[name] for name in TIERS if name in self.tiers and self.tiers[name].enabled}


SECTIONS: dict[str, type[Any]] = {"daemon": Daemon, "redis": Redis, "queue": Queue, "cache": Cache, "routing": Routing,
                              "log": Log, "health": Health, "telemetry": Telemetry}  # fmt: skip
TABLES: dict[str, type[Any]] = {"models": Model, "tiers": Tier, "classes": JobClass, "tenants": Tenant}
