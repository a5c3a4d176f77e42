"""Compare this service with others that serve the same model: throughput, latency, memory.

The command starts each system on this machine and measures them in turn, for several rounds. The first run
also installs the environment of the other systems and trains the models.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from placement.command import Command
from placement.progress import StepPrinter

if TYPE_CHECKING:
    from benchmarks.results import Results

#: Rounds, and seconds of each load, of a full run (40 minutes) and of a quick one (5 minutes).
_FULL = (3, 2.0)
_QUICK = (3, 1.0)
_QUICK_LIMIT_S = 270


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quick", action="store_true", help="measure only what the ratios need, in five minutes"
    )
    parser.add_argument("--rounds", type=_positive, help=f"number of rounds (default: up to {_FULL[0]})")
    parser.add_argument(
        "--seconds", type=float, help=f"seconds of each load (default: {_FULL[1]:g}, quick {_QUICK[1]:g})"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="measure only systems whose name starts with NAME; may be repeated",
    )
    parser.add_argument("--list", action="store_true", help="print the names for --only")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument(
        "--report", type=Path, metavar="FILE.md", help="write a page, with its plot in FILE.svg"
    )
    parser.add_argument(
        "--forest",
        type=Path,
        metavar="DIR",
        help="bundle that all systems serve (default: the forest of the tutorial)",
    )
    parser.add_argument(
        "--chosen",
        type=Path,
        metavar="DIR",
        help="bundle of the model that training chooses (default: train one)",
    )
    parser.add_argument(
        "--run", type=Path, default=Path(".run/bench"), metavar="DIR", help="directory for models and logs"
    )


def _errors() -> tuple[type[Exception], ...]:
    from benchmarks.load import LoadError
    from benchmarks.run import SelectionError
    from predictor.environment import InstallError
    from storage.errors import StorageError
    from transformer.bundle.format import BundleError

    return (BundleError, InstallError, LoadError, SelectionError, StorageError)


def _run(options: argparse.Namespace) -> int:
    """Print the results, and return 1 if a system could not be measured."""
    from benchmarks import report
    from benchmarks.run import MEASUREMENTS, Settings, bench

    if options.list:
        print("\n".join(MEASUREMENTS))
        return 0
    rounds, seconds = _QUICK if options.quick else _FULL
    results = bench(
        Settings(
            rounds=options.rounds or rounds,
            seconds=options.seconds or seconds,
            limit_s=_QUICK_LIMIT_S if options.quick else None,
            quick=options.quick,
            only=tuple(options.only),
            forest=options.forest,
            chosen=options.chosen,
            work=options.run,
        ),
        StepPrinter(),
    )
    if options.report:
        _write(results, options.report)
    print(json.dumps(report.content(results)) if options.json else report.text(results), flush=True)
    return 1 if results.problems else 0


def _write(results: "Results", page: Path) -> None:
    from benchmarks import plot, report

    picture = page.with_suffix(".svg")
    page.parent.mkdir(parents=True, exist_ok=True)
    plot.write(results, picture)
    page.write_text(report.markdown(results, picture.name, "make bench"))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text}")
    return int(text)


COMMAND = Command(
    name="bench",
    help="compare this service with others",
    description=__doc__,
    add_arguments=_add_arguments,
    run=_run,
    errors=_errors,
)
