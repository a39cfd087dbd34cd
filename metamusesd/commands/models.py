"""Stage 0 · command line · the model files: fetch, list, verify, inspect."""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
from dataclasses import replace
from pathlib import Path

from metamusesd import cli, hub
from metamusesd.config import Config
from metamusesd.engines.base import EngineSpec
from metamusesd.engines.llamacpp.footprint import KV_TYPES, PROCESS_BYTES, need_of
from metamusesd.engines.llamacpp.formats import FORMATS
from metamusesd.errors import EmbedderFailed, InvalidRequest
from metamusesd.formats import source_path
from metamusesd.gguf import Header, read_header
from metamusesd.models import CATALOGUE, DEFAULTS, Piece, digest_of, hash_file, remember

DERIVED = ("auto", *FORMATS, "none")


def add_models(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, action, text in (
        ("fetch", fetch_models, "bring the demo models, or any GGUF from the Hugging Face hub"),
        ("add", add_model, "put a GGUF file of yours into the models directory"),
        ("remove", remove_model, "delete a model file that no tier uses"),
        ("list", list_models, "what is there"),
        ("verify", verify_models, "hash the files again and compare with what is pinned or remembered"),
        ("inspect", inspect_model, "what a GGUF file says of itself"),
    ):
        command = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.set_defaults(action=action)
        command.add_argument("--dir", help="the models directory; default: the configured one")
    fetch, add, inspect = actions.choices["fetch"], actions.choices["add"], actions.choices["inspect"]
    add.add_argument("file", help="the GGUF file")
    add.add_argument("--replace", action="store_true", help="also if another file of that name is there")
    actions.choices["remove"].add_argument("file", help="its name inside the models directory")
    inspect.add_argument("--slots", type=int, default=8, help="for the memory that it needs (default: 8)")
    inspect.add_argument("--kv-cache-type", default="f16", choices=tuple(KV_TYPES), help="and this (default: f16)")
    known = ", ".join(CATALOGUE)
    fetch.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"{known} (default: {', '.join(DEFAULTS)}), or hf:OWNER/REPO/FILE.gguf[@REVISION]",
    )
    fetch.add_argument(
        "--derive", default="none", choices=DERIVED,
        help="also requantize the demo model; auto: the fastest format with perplexity within 2 %% (default: none)",
    )  # fmt: skip
    inspect.add_argument("file", help="a path, or a name inside the models directory")


def models(args: argparse.Namespace) -> int:
    """Run the action in the models directory."""
    config = cli.configuration(args)
    if args.dir:
        config = replace(config, daemon=replace(config.daemon, models_dir=str(Path(args.dir).absolute())))
    return int(args.action(args, config, config.models_dir))


def fetch_models(args: argparse.Namespace, config: Config, directory: Path) -> int:
    """Bring what is missing; quick when nothing is."""
    from metamusesd import fetch
    from metamusesd.commands import screen

    pieces, from_hub = _pick(args.names or list(DEFAULTS))
    if fetch.wanted(pieces, directory):
        with screen.byte_progress() as report:
            fetch.fetch(pieces, directory, report)
    for wanted in from_hub:
        print("\n".join(_line(path) for path in hub.fetch(wanted, directory)))
    for piece in pieces:
        if piece.size_bytes > 1 << 20:
            print(_line(directory / piece.target))
    if any(piece in CATALOGUE["minilm"] for piece in pieces):
        _quicken(config.embedder_dir)
    if args.derive != "none":
        from metamusesd.commands import formats

        formats.derive(config, directory, args.derive)
    return 0


def _quicken(embedder: Path) -> None:
    """A file that computes in 8 bit beside the embedder's. Without it all works, and takes twice as long."""
    from metamusesd.cache.quantize import derive

    try:
        print(derive(embedder))
    except EmbedderFailed as error:
        cli.complain(f"{error.message}; the embedder works as it is, only slower")


def _pick(names: list[str]) -> tuple[list[Piece], list[hub.HubFile]]:
    pieces: list[Piece] = []
    from_hub = []
    for name in names:
        if name.startswith(hub.SCHEME):
            from_hub.append(hub.parse(name))
        elif name in CATALOGUE:
            pieces += CATALOGUE[name]
        else:
            raise InvalidRequest("NAME", f"no model {name}", f"use {', '.join(CATALOGUE)} or hf:OWNER/REPO/FILE.gguf")
    return pieces, from_hub


def _line(path: Path) -> str:
    return f"{path}  {path.stat().st_size / 1e6:.1f} MB  {digest_of(path)}"


def _files(directory: Path) -> list[Path]:
    found = [path for pattern in ("*.gguf", "*.onnx") for path in directory.rglob(pattern)]
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(directory).parts))


def add_model(args: argparse.Namespace, config: Config, directory: Path) -> int:
    """Copy it, hash it, and say what to write into the configuration."""
    source, target = Path(args.file), directory / Path(args.file).name
    header = read_header(source)
    digest = hash_file(source)
    there = hash_file(target) if target.is_file() else ""
    if there not in ("", digest) and not args.replace:
        raise InvalidRequest("file", f"{target} is another file", "rename yours, or say --replace")
    if there != digest:
        directory.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        shutil.copyfile(source, part)
        part.replace(target)  # whoever has the old one mapped keeps it
    remember(target, digest)
    context = need_of(EngineSpec("llamacpp", ""), header).context
    print(f"{_line(target)}\n\nto use it, write into the configuration, then run `metamusesd reload`:\n")
    print(f'[models.{_key(target)}]\nfile = "{target.name}"\ndigest = "{digest}"\ncontext = {context}')
    return 0


def _key(path: Path) -> str:
    """A name for [models] out of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-") or "model"


def remove_model(args: argparse.Namespace, config: Config, directory: Path) -> int:
    """Refused while the configuration of a tier names it."""
    path = directory / args.file
    if not path.is_file():
        raise InvalidRequest("file", f"{path} is not there", "see `metamusesd models list`")
    names = {
        name for name, model in config.models.items()
        if model.file and path in (config.model_path(model), source_path(config, name))
    }  # fmt: skip
    tiers = [tier for tier, each in config.enabled_tiers().items() if names.intersection(each.models)]
    if tiers:
        raise InvalidRequest(
            "file", f"tiers.{tiers[0]} uses it", "give that tier another model, reload, then remove it"
        )
    path.unlink()
    print(f"removed {path}" + (f"; [models.{min(names)}] still names it" if names else ""))
    return 0


def _template_digest(header: Header) -> str:
    template = header.entries.get("tokenizer.chat_template")
    if not isinstance(template, str):
        return "none in the file: ChatML is used"
    return f"sha256:{hashlib.sha256(template.encode()).hexdigest()}"


def _memory(header: Header, path: Path, slots: int, kind: str) -> str:
    """`98 MB of weights, shared by its workers + 251 MB a worker (11136 KV cells x 22.5 KiB, 8 slots)`."""
    need = need_of(EngineSpec("llamacpp", "", slots=slots, kv_cache_type=kind), header)
    weights = f"{path.stat().st_size / 1e6:.0f} MB of weights, shared by its workers"
    worker = f"{(need.bytes_ + PROCESS_BYTES) / 1e6:.0f} MB a worker"
    return f"{weights} + {worker} ({need}, {slots} slots, context {need.context})"


def list_models(args: argparse.Namespace, config: Config, directory: Path) -> int:
    """Every model file, its digest, and which configured models use it."""
    used: dict[Path, list[str]] = {}
    for name, model in config.models.items():
        used.setdefault(config.model_path(model), []).append(name)
        if (source := source_path(config, name)) != config.model_path(model):
            used.setdefault(source, []).append(f"source of {name}")
    for path in _files(directory):
        names = ", ".join(used.pop(path, [])) or "-"
        print(f"{path.relative_to(directory)}  {path.stat().st_size / 1e6:.1f} MB  {digest_of(path)}  used as: {names}")
    missing = [path for path in used if not path.is_file() and path != config.models_dir]
    for path in missing:
        print(f"{path}  missing  used as: {', '.join(used[path])}")
    if not _files(directory) and not missing:
        print(f"{directory} holds no model; run `metamusesd models fetch`")
    return 0


def verify_models(args: argparse.Namespace, config: Config, directory: Path) -> int:
    """Exit 1 when a file is not what it was, or not what is pinned."""
    pinned = {directory / piece.target: piece.digest for pieces in CATALOGUE.values() for piece in pieces}
    pinned |= {config.model_path(model): model.digest for model in config.models.values() if model.digest}
    pinned |= {
        source_path(config, name): each.source_digest for name, each in config.choices.items() if each.source_digest
    }
    present = dict.fromkeys([*_files(directory), *(path for path in pinned if path.is_file())])
    wrong = 0
    for path in present:
        found = hash_file(path)
        wanted = pinned.get(path) or digest_of(path)
        if found == wanted:
            print(f"ok  {path}  {found}{'' if path in pinned else '  (not pinned)'}")
            remember(path, found)
        else:
            wrong += 1
            cli.complain(f"{path}: its digest is {found}, it should be {wanted}; fetch it again")
    return 1 if wrong else 0


def inspect_model(args: argparse.Namespace, config: Config, directory: Path) -> int:
    """The figures that the configuration needs, then every entry of the header."""
    path = Path(args.file) if Path(args.file).exists() else directory / args.file
    header = read_header(path)
    print(f"file          {path}\ndigest        {digest_of(path)}\nsize          {path.stat().st_size / 1e6:.1f} MB")
    print(f"architecture  {header.architecture}\nquantization  {header.quantization}")
    print(f"parameters    {header.parameters / 1e6:.1f} M in {header.tensors} tensors")
    print(f"context       {header.of_architecture('context_length')} tokens")
    memory = _memory(header, path, args.slots, args.kv_cache_type)
    print(f"template      {_template_digest(header)}\nmemory        {memory}\n")
    for key, value in header.entries.items():
        text = " ".join(str(value).split())
        print(f"{key} = {text if len(text) <= 100 else text[:97] + '…'}")
    return 0
