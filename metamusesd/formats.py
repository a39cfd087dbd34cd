"""Stage 0 · any process · the weights that stand for a model with `format = "auto"` on this host. Stdlib only.

`metamusesd bench --formats --write` (commands/formats.py) requantizes a model's file, measures, and writes its choice
down beside the file; hosts that share the directory have a line each:

    <models>/SmolLM2-135M-Instruct.Q4_1.formats.json
    {"hosts": {"AMD EPYC, family 25 model 17 stepping 1":
        {"source": "sha256:b179…", "format": "Q8_0", "file": "SmolLM2-135M-Instruct.Q4_1.as-Q8_0.gguf",
         "digest": "sha256:…", "gain": 1.3, "change": 0.001, "at": "2026-11-26T13:05:00+00:00",   gain in speed, change
         "cores": 1, "slots": 8,                                                                  of perplexity
         "measured": {"source": {"bytes", "perplexity", "tokens_s": {"prefill", "decode", "batch"}}, "Q8_0": …}}}}

`settle` puts what was chosen into the configuration, once, before anything else looks at it: then every process, and
whatever names a model by its file or digest, follows without knowing. A choice that does not hold (another processor,
another source, a file that is gone or is not the one that was measured) leaves the file as configured, and says why.
Nothing is hashed for it: remembered digests count (models.py).
"""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from metamusesd.config import Choice, Config, is_there
from metamusesd.models import digest_of, is_directory, known_digest, write_json
from metamusesd.processor import processor

SOURCE = "source"  # the format of a file that stays as it is
TEXTS = ("source", "format", "file", "digest", "at")  # what a record must have, as text

Row = dict[str, Any]


def settle(config: Config, here: str | None = None) -> Config:
    """The same configuration, with the chosen file for every model whose format is `auto`. `here`: the processor."""
    models, choices = dict(config.models), dict(config.choices)
    for name, model in config.models.items():
        if model.format != "auto" or not _exists(config.model_path(model)):
            continue
        kept = kept_for(config.model_path(model), here)
        if problem := unfit(config, name) or _stale(config, name, kept):
            choices[name] = Choice(model.file, model.file, why=problem[0], remedy=problem[1])
        elif kept is None or kept["format"] == SOURCE:
            choices[name] = Choice(model.file, model.file, why="no format is clearly faster at equal quality here")
        else:
            file = str(Path(model.file).with_name(kept["file"]))
            choices[name] = Choice(model.file, file, why=_why(kept), source_digest=kept["source"])
            models[name] = replace(model, file=file, digest=kept["digest"])
    return replace(config, models=models, choices=choices) if choices else config


def source_path(config: Config, name: str) -> Path:
    """The file that the configuration names, whatever is loaded."""
    choice = config.choices.get(name)
    return config.models_dir / choice.source if choice else config.model_path(config.models[name])


def as_configured(config: Config, name: str) -> Config:
    """The same configuration without this model's choice."""
    choice = config.choices.get(name)
    if choice is None or choice.source == choice.file:
        return config
    source = replace(config.models[name], file=choice.source, digest=choice.source_digest)
    return replace(config, models=config.models | {name: source})


def unfit(config: Config, name: str) -> tuple[str, str] | None:
    """Why no other format can stand for this model, and what to do; None: it can."""
    model, tiers = config.models[name], config.enabled_tiers()
    if model.engine not in ("auto", "llamacpp") or is_directory(config.model_path(model)):
        return "formats are for GGUF files on llamacpp", f'models.{name}.format = "source"'
    for tier in (tier for tier in tiers if name in tiers[tier].models and tiers[tier].gpus and model.gpu_layers):
        return f"tiers.{tier} computes it on a GPU; formats are measured on cores", f'models.{name}.format = "source"'
    return None


def _exists(path: Path) -> bool:
    return is_there(path) or is_directory(path)


def _stale(config: Config, name: str, kept: Row | None) -> tuple[str, str] | None:
    """Why the record does not hold, and what to run; None: it does."""
    model = config.models[name]
    source, again = config.model_path(model), f"metamusesd bench --formats --write {name}"
    if kept is None:
        return "bench has not chosen a format on this processor yet", again
    if (digest := known_digest(source)) != kept["source"]:
        problem = "is another file than the one that was measured" if digest else "has changed, or was moved here"
        return f"{source.name} {problem}", again if digest else "metamusesd models list, which hashes what is there"
    if model.digest not in ("", digest):
        return f"models.{name}.digest names another file", f"correct models.{name}.digest"
    derived = source.with_name(kept["file"])
    if kept["format"] == SOURCE:
        return None
    if not is_there(derived):
        return f"{derived.name}, which bench chose, is not there any more", again
    if known_digest(derived) != kept["digest"]:
        return (
            f"{derived.name} is not the file that bench made",
            f"metamusesd models list; if that does not help: {again}",
        )
    return None


def _why(kept: Row) -> str:
    day = kept["at"].partition("T")[0]
    return f"{kept['format']}, {kept['gain']:.2f} times as fast here, perplexity {kept['change']:+.1%} (bench, {day})"


def record_path(source: Path) -> Path:
    """Where the choices for this file are written down."""
    return source.with_name(f"{_stem(source)}.formats.json")


def derived_path(source: Path, form: str) -> Path:
    """Where this file in another format lies; a name that nobody else gives."""
    return source.with_name(f"{_stem(source)}.as-{form}.gguf")


def _stem(source: Path) -> str:
    return source.name.removesuffix(".gguf")


def kept_for(source: Path, here: str | None = None) -> Row | None:
    """What was chosen on this processor; None: nothing, or nothing that can be read."""
    return _rows(source).get(here or processor())


def whole_file(source: Path, form: str, source_digest: str) -> str:
    """The digest of the derived file that is there already, made of this very source, also by another host; else
    nothing. May hash it."""
    path = derived_path(source, form)
    digests = {
        row["digest"] for row in _rows(source).values() if (row["source"], row["file"]) == (source_digest, path.name)
    }
    return digest if is_there(path) and (digest := digest_of(path)) in digests else ""


def idle_files(source: Path) -> list[Path]:
    """Derived files that no host's choice names any more."""
    named = {row["file"] for row in _rows(source).values()}
    return sorted(
        path for path in source.parent.glob(f"{glob.escape(_stem(source))}.as-*.gguf") if path.name not in named
    )


def keep(source: Path, row: Mapping[str, Any], here: str | None = None) -> bool:
    """Write down what was chosen on this processor, beside what others have. Call it in the directory's workshop."""
    return write_json(record_path(source), {"hosts": {**_rows(source), (here or processor()): dict(row)}})


def _rows(source: Path) -> dict[str, Row]:
    try:
        content = json.loads(record_path(source).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    hosts = content.get("hosts") if isinstance(content, dict) else None
    return {here: row for here, row in hosts.items() if _is_whole(row)} if isinstance(hosts, dict) else {}


def _is_whole(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and all(isinstance(row.get(key), str) and row[key] for key in TEXTS)
        and Path(row["file"]).name == row["file"]
        and all(isinstance(row.get(key), int | float) for key in ("gain", "change"))
    )
