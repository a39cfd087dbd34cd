"""The door to all benchmarks · bench process · dispatches a name to its module, imported only when asked for.

python -m benchmarks engine|queue|cache|routing|schedule|scrape|correctness|tune|faults|operate|agreement
    [--json OUT] [--quick] [--case NAME]
python -m benchmarks build-llama-server [--dir DIR] [--jobs N]
python -m benchmarks make-model --shape NAME --like FILE --out FILE [--format NAME] [--vocabulary N]
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

NAMES = ("engine", "queue", "cache", "routing", "schedule", "scrape", "correctness", "tune", "faults", "operate",
         "agreement")  # fmt: skip


def main(arguments: list[str]) -> int:
    """Run one benchmark, show its rows, and write them when asked.

    1: a promise was broken, 2: no such benchmark yet, 3: a bar was missed.
    """
    if arguments[:1] == ["build-llama-server"]:
        from benchmarks import llama_server

        return llama_server.main(arguments[1:])
    if arguments[:1] == ["make-model"]:
        from benchmarks import made_model

        return made_model.main(arguments[1:])
    options = _parser().parse_args(arguments)
    options.command = "python -m benchmarks " + " ".join(arguments)
    try:
        module = importlib.import_module(f"benchmarks.{options.name}")
    except ModuleNotFoundError as error:
        if error.name != f"benchmarks.{options.name}":
            raise
        print(f"benchmark {options.name!r} is not written yet", file=sys.stderr)
        return 2
    report = module.run(options)
    report.show()
    if options.json:
        report.write(options.json)
    if (broken := getattr(module, "broken", None)) is not None and broken(report):
        return 1
    return 3 if options.strict and report.missed() else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the report here as well")
    parser.add_argument("--quick", action="store_true", help="one short round: proves that it runs, measures little")
    parser.add_argument("--case", action="append", metavar="NAME", help="only this case (may be repeated)")
    parser.add_argument("--rounds", type=int, help="alternating rounds (default 3; 1 with --quick)")
    parser.add_argument("--only", choices=("ours", "yardstick"), help="run one side; ratios stay empty")
    parser.add_argument("--model", type=Path, help="GGUF file (default: the demo model)")
    parser.add_argument("--cores", help="cores of both sides, such as 0,1 (default: all that this process may use)")
    parser.add_argument("--gpus", help="engine, correctness: both sides on these, such as 0 (the build must have CUDA)")
    parser.add_argument(
        "--minutes", type=float, help="faults, operate: how long chaos (default 5) or the soak (60) lasts"
    )
    parser.add_argument("--seed", type=int, help="faults: of the jobs and of the faults (default: random, printed)")
    parser.add_argument(
        "--appendfsync", choices=("always", "everysec"), default="always", help="faults: of the embedded Redis"
    )
    parser.add_argument("--data", type=Path, help="cache, routing: where the labelled questions lie")
    parser.add_argument("--strict", action="store_true", help="exit 3 when a bar is missed")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
