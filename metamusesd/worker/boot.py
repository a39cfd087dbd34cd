"""Stage 8 · worker · from the fork to the step loop: load the model, say so, run.

Exit codes: 0 asked to leave; 78 (control.EXIT_BAD_CONFIG) the model can never be loaded; 70 it could not be loaded this
time; 71 the loop itself failed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import asdict

from metamusesd import control
from metamusesd.config import Config
from metamusesd.control import EXIT_BAD_CONFIG, EXIT_BOOT, EXIT_DIED, Birth, WorkerSpec
from metamusesd.engines.base import Engine, EngineSpec, Progress
from metamusesd.engines.choice import choose, make_engine
from metamusesd.engines.llamacpp.footprint import gpu_bytes
from metamusesd.errors import EngineError, MetamusesdError, ModelLoadFailed
from metamusesd.log import Logger, get_logger
from metamusesd.models import digest_of
from metamusesd.wire import Hello
from metamusesd.worker import canary
from metamusesd.worker.row import Row
from metamusesd.worker.vram import Gpus
from metamusesd.worker.worker import Worker

LOADING_BEAT_S = 0.2


def main(birth: Birth) -> int:
    """A worker's whole life; returns its exit code. Call it in the forked child, on its main thread."""
    log = get_logger(birth.name, pid=os.getpid(), worker=birth.name)
    gpus = Gpus(birth.worker.gpus if birth.worker else (), log)
    row = Row(birth.board.workers[birth.row], gpus)
    try:
        spec = engine_spec(birth)
        log.info("loading", model=spec.model_name, engine=spec.engine, reason=spec.chosen)
        with _beating(row) as progress:
            engine = _load(gpus, spec, row, birth, log, progress)
            _try_out(engine, birth, log)
    except MetamusesdError as error:
        permanent = isinstance(error, EngineError) and not error.retryable
        log.error("model not loaded", code=error.code, problem=error.message)
        control.send(birth.control, {"say": "failed", "error": error.to_dict(), "permanent": permanent})
        return EXIT_BAD_CONFIG if permanent else EXIT_BOOT
    info = engine.info
    row.loaded(info.slots, info.reserve_slots)
    control.send(birth.control, {"say": "ready", "engine": spec.engine, **asdict(info)})
    log.info("ready", model=info.name, engine=spec.engine, slots=info.slots, context=info.context)
    worker = Worker(engine, birth.control, lambda: _hello(birth, spec, engine), row, log)
    signal.signal(signal.SIGTERM, worker.leave)
    try:
        worker.run()
    except Exception as error:
        log.error("step loop failed", problem=f"{type(error).__name__}: {error}")
        faulthandler.dump_traceback()
        return EXIT_DIED
    engine.close()
    return 0


def _load(gpus: Gpus, spec: EngineSpec, row: Row, birth: Birth, log: Logger, progress: Progress) -> Engine:
    """The engine, where it is to compute. Before it is imported, it is settled which GPUs it sees, whatever their order
    is, and that they have room."""
    if not gpus:
        return make_engine(spec, progress)
    if uuids := gpus.uuids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(uuids)
        log.info("on its GPUs", uuids=" ".join(uuids))
    patience_s = birth.config.daemon.boot_s / 3
    with gpus.turn(birth.config.runtime_dir, patience_s):
        if spec.gpu_layers:
            row.vram_wanted_bytes = gpu_bytes(spec)
            gpus.wait_for_room(row.vram_wanted_bytes, patience_s, log)
        return make_engine(spec, progress)


def engine_spec(birth: Birth) -> EngineSpec:
    """What this child is to load."""
    assert birth.worker is not None
    return spec_of(birth.config, birth.worker)


def spec_of(config: Config, worker: WorkerSpec) -> EngineSpec:
    """What to load, out of the configuration and the placement. Raises ModelNotFound or ModelLoadFailed."""
    model = config.models[worker.model]
    path, digest, engine, reason = "", model.digest, model.engine, ""
    if engine != "echo":
        path = str(config.model_path(model))
        engine, reason = choose(engine, path, bool(worker.gpus))
        digest = digest_of(path)
        if model.digest and model.digest != digest:
            raise ModelLoadFailed(f"{path} has digest {digest}; models.{worker.model}.digest says {model.digest}")
    return EngineSpec(
        engine=engine, chosen=reason, model_name=worker.model, model_path=path, model_digest=digest, slots=worker.slots,
        reserve_slots=worker.reserve_slots, context=model.context, kv_cells=model.kv_cells, threads=worker.threads,
        gpu_layers=_gpu_layers(model.gpu_layers, bool(worker.gpus)), flash_attention=model.flash_attention,
        kv_cache_type=model.kv_cache_type, mlock=model.mlock, hugepages=model.hugepages,
        prefill_ratio=model.prefill_ratio, yield_limit_s=model.yield_limit_s, default_max_tokens=model.max_tokens,
        default_temperature=model.temperature, default_top_p=model.top_p, options=dict(model.options),
    )  # fmt: skip


def _gpu_layers(asked: int, has_gpu: bool) -> int:
    """-1 in the configuration: all layers if there is a GPU. More layers than a model has means all."""
    if asked >= 0:
        return asked
    return 9999 if has_gpu else 0


def _try_out(engine: Engine, birth: Birth, log: Logger) -> None:
    """On a reload. Raises CanaryFailed."""
    if birth.trial and birth.worker is not None:
        model = birth.config.models[birth.worker.model]
        rate = canary.check(engine, model.canary, model.canary_tokens_s)
        log.info("canary passed", model=engine.info.name, tokens_s=round(rate, 1))


@contextlib.contextmanager
def _beating(row: Row) -> Iterator[Progress]:
    """A thread beats meanwhile, so that a long load is not taken for a hang."""
    loaded = threading.Event()
    share = 0.0

    def progress(now: float) -> None:
        nonlocal share
        share = now

    def beat() -> None:
        row.loading(share)
        while not loaded.wait(LOADING_BEAT_S):
            row.loading(share)

    beating = threading.Thread(target=beat, name="loading-beat", daemon=True)
    beating.start()
    try:
        yield progress
    finally:
        loaded.set()
        beating.join()


def _hello(birth: Birth, spec: EngineSpec, engine: Engine) -> Hello:
    info = engine.info
    tier = birth.worker.tier if birth.worker else ""
    return Hello(
        worker=birth.name, tier=tier, model=info.name, digest=info.digest, architecture=info.architecture,
        context=info.context, slots=info.slots, reserve_slots=info.reserve_slots, template_digest=info.template_digest,
        pid=os.getpid(), generation=birth.generation, engine=spec.engine,
    )  # fmt: skip
