"""Stage 8 · worker · from an EngineSpec to the engine that it names; imports only that one."""

from __future__ import annotations

from metamusesd.engines.base import Engine, EngineSpec, Progress
from metamusesd.errors import ModelLoadFailed


def make_engine(spec: EngineSpec, progress: Progress = lambda _: None) -> Engine:
    """Load. Blocks for as long as the model takes; raises ModelNotFound or ModelLoadFailed."""
    if spec.engine == "echo":
        from metamusesd.engines.echo import EchoEngine

        return EchoEngine(spec)
    if spec.engine == "llamacpp":
        from metamusesd.engines.llamacpp import load

        try:
            return load(spec, progress)
        except ImportError as error:
            raise ModelLoadFailed(f"engine llamacpp is not installed: {error}; install metamusesd[llamacpp]") from error
    raise ModelLoadFailed(f"there is no engine {spec.engine!r}; use llamacpp or echo")
