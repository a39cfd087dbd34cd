"""Stage 0 · command line · shell completion, from the same parsers as `--help`. The only file that imports shtab."""

from __future__ import annotations

import argparse

from metamusesd import cli

WHERE = {
    "bash": "~/.local/share/bash-completion/completions/metamusesd",
    "zsh": "~/.zfunc/_metamusesd, with ~/.zfunc in $fpath before compinit",
    "fish": "~/.config/fish/completions/metamusesd.fish",
    "tcsh": "~/.metamusesd.tcsh, and source it in ~/.tcshrc",
}
COMPLETES = {"FILE": "FILE", "PRED": "FILE", "DIR": "DIRECTORY"}  # by metavar: what a shell offers there


def add_completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=[*WHERE])
    parser.epilog = "Where it belongs: " + "; ".join(f"{shell}: {place}" for shell, place in WHERE.items()) + "."


def completion(args: argparse.Namespace) -> int:
    """Print the script; source it, or put it where the shell looks for it."""
    import shtab

    parser = cli.whole_parser()
    for each in _parsers(parser):
        for action in each._actions:
            if kind := COMPLETES.get(str(action.metavar)):
                action.complete = getattr(shtab, kind)  # type: ignore[attr-defined]
    print(shtab.complete(parser, shell=args.shell))
    return 0


def _parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """It, those of its commands, and those of their actions."""
    found = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [inner for each in action.choices.values() for inner in _parsers(each)]
    return found
