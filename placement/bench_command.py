"""Measure this service beside others that do the same, on this machine: throughput, latency, memory.

The systems are started here and measured in turn, for several rounds. The first run installs the peers'
environment and trains the models, once.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from placement.progress import Steps

if TYPE_CHECKING:
    from benchmarks.results import Results

HELP = "measure this service beside others"

#: Rounds and seconds of a full run, and of one that ends within two minutes.
_FULL = (3, 2.0)
_QUICK = (3, 1.0)
_QUICK_LIMIT_S = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's options."""
    parser.add_argument("--quick", action="store_true", help="only the comparisons, within two minutes")
    parser.add_argument("--rounds", type=_positive, help=f"rounds (default: up to {_FULL[0]})")
    parser.add_argument(
        "--seconds", type=float, help=f"seconds of each load (default: {_FULL[1]:g}, quick {_QUICK[1]:g})"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="measure only what has a name that begins so; may be repeated",
    )
    parser.add_argument("--list", action="store_true", help="print the names of what can be measured")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--report", type=Path, metavar="FILE.md", help="write a page, and its plot beside it")
    parser.add_argument(
        "--forest",
        type=Path,
        metavar="DIR",
        help="bundle that all systems serve (default: the tutorial's forest)",
    )
    parser.add_argument(
        "--chosen", type=Path, metavar="DIR", help="bundle of our chosen model (default: trained)"
    )
    parser.add_argument(
        "--run", type=Path, default=Path(".run/bench"), metavar="DIR", help="directory for models and logs"
    )


def errors() -> tuple[type[Exception], ...]:
    """What this command tells in one line."""
    from benchmarks.load import LoadError
    from benchmarks.run import SelectionError
    from predictor.environment import InstallError
    from storage.bundles import StorageError
    from transformer.bundle.format import BundleError

    return (BundleError, InstallError, LoadError, SelectionError, StorageError)


def run(options: argparse.Namespace) -> int:
    """Measure, and print what came of it; the status is 1 if a system could not be measured."""
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
        Steps(),
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
