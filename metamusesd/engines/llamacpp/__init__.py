"""Stage 8 · worker · the engine on llama.cpp: continuous batching of many sequences in one context.

engine.py     admit, step, cancel: the story; read it first
prepare.py    request → tokens, limits, grammar: everything that may be refused
batch.py      pure: which sequences take part in a step, and with how many tokens
rates.py      pure: what a step costs, from what steps did cost
footprint.py  pure: how much memory a model will take
states.py     pure: what recurrent and hybrid layers keep of each sequence
kv.py         pure: who holds which KV cells, prefix look-up, what to evict
prefixes.py   when a prompt takes over what others have computed of it
sequence.py   one job inside the engine
sampling.py   logits → token
prompt.py     rendered pieces → tokens that a user cannot forge
grammar.py    JSON schema and GBNF: trial compilation in a disposable process, cache
gbnf.py       JSON schema → GBNF
pattern.py    regular expression → GBNF
native.py     the only importer of llama_cpp: every C call with its checks
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metamusesd.engines.base import Engine, EngineSpec, Progress


def load(spec: EngineSpec, progress: Progress = lambda _: None) -> Engine:
    """Load the model that `spec` names. Raises ModelNotFound or ModelLoadFailed. Heavy imports happen here."""
    from metamusesd.engines.llamacpp.engine import LlamaEngine

    return LlamaEngine(spec, progress)
