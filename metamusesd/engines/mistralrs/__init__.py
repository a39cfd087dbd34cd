"""Stage 8 · worker · the engine on mistral.rs: its own scheduler batches, we bridge, bound and refuse.

engine.py    admit, step, cancel: the story; read it first
prepare.py   request → prompt and sampling, or a refusal by name
schema.py    pure: a plain JSON schema → what mistral.rs' grammar compiler takes
source.py    what a GGUF file or a directory of safetensors says of itself: template, control tokens, vocabulary
stream.py    one sequence's thread, from mistral.rs to the step loop
native.py    the only importer of mistralrs

What differs from llamacpp: mistral.rs runs first come, first served, and pre-empts nobody: a higher class that gets in
over full slots runs beside the others. It computes a prompt in one go, so a cancel takes effect at the next token. Its
draws come from one stream for all, so a seed is refused. It takes no GBNF.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metamusesd.engines.base import Engine, EngineSpec, Progress


def load(spec: EngineSpec, progress: Progress = lambda _: None) -> Engine:
    """Load the model that `spec` names. Raises ModelNotFound or ModelLoadFailed. Heavy imports happen here."""
    from metamusesd.engines.mistralrs.engine import MistralEngine

    return MistralEngine(spec, progress)
