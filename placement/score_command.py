"""Score all candidates of Parquet, CSV or JSON lines files, on one machine or on an existing cluster.

OUTPUT gets a file for each part of the input, with the columns of the input and prediction, probability and
version; OUTPUT/_invalid gets the rows with invalid candidates, with the service's error. Run the same command
again after an interruption: finished parts are kept.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from placement.client import DEFAULT_REST_URL
from placement.command import Command
from placement.progress import StepPrinter, progress_bar

if TYPE_CHECKING:
    from scoring.part import PartResult
    from scoring.predictor import Source

#: Seconds between two lines of progress where standard error is no terminal.
_PROGRESS_S = 10.0
#: Name of the engine that sends requests.
_SERVICE = "service"
#: Packages that this command needs, and where they are installed.
_OPTIONAL = {"pyarrow": "parquet", "ray": "ray", "pyspark": "spark", "distributed": "dask"}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", type=Path, metavar="INPUT", help="file, or directory of files of one format")
    parser.add_argument(
        "output", type=Path, metavar="OUTPUT", help="directory: new, empty, or of the same job"
    )
    parser.add_argument(
        "--model", metavar="URI", help="version to score with; with --engine service the name of the model"
    )
    parser.add_argument(
        "--engine",
        choices=("local", "ray", "spark", "dask", _SERVICE),
        default="local",
        help="what runs workers",
    )
    parser.add_argument("--workers", type=int, help="worker processes (default: one per core; service: 4)")
    parser.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="existing cluster of Ray, Spark or Dask (default: a new one on this machine)",
    )
    parser.add_argument("--url", help=f"REST address, for --engine service (default: {DEFAULT_REST_URL})")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")


class MissingPackageError(Exception):
    """An optional package is not installed."""


def _errors() -> tuple[type[Exception], ...]:
    from scoring.errors import ScoringError
    from storage.errors import StorageError
    from transformer.bundle.format import BundleError

    return (BundleError, MissingPackageError, ScoringError, StorageError)


def _run(options: argparse.Namespace) -> int:
    try:
        counts = _score(options)
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in _OPTIONAL:
            raise
        raise MissingPackageError(
            f"--engine {options.engine} needs the package {name}: in a checkout run `make engines`, then "
            f".runtimes/engines/bin/placement score …; elsewhere install placement[{_OPTIONAL[name]}]"
        ) from error
    if options.json:
        print(json.dumps({"output": str(options.output), **counts.as_dict()}))
    else:
        print(f"output    {options.output}")
        for name, value in counts.as_dict().items():
            print(f"{name:<10}{value:,}")
    return 0


@dataclass
class _Counts:
    """Counts of parts and rows."""

    parts: int
    done: int = 0
    found: int = 0
    valid: int = 0
    invalid: int = 0
    scored_now: int = 0
    start: float = field(default_factory=time.monotonic)

    def add(self, result: "PartResult") -> None:
        """Count a part."""
        self.done += 1
        self.found += result.found
        self.valid += result.valid
        self.invalid += result.invalid
        self.scored_now += 0 if result.found else result.valid + result.invalid

    def as_dict(self) -> dict[str, int]:
        """Return the final counts; `found` parts were scored by an earlier run."""
        return {"parts": self.parts, "found": self.found, "scored": self.valid, "invalid": self.invalid}

    def __str__(self) -> str:
        rate = self.scored_now / (time.monotonic() - self.start)
        rows = self.valid + self.invalid
        return f"{self.done} of {self.parts} parts, {rows:,} rows, {rate:,.0f} rows/s"


def _score(options: argparse.Namespace) -> _Counts:
    from scoring.engines import ENGINES, run_local
    from scoring.job import finish, plan
    from scoring.part import found_part

    _check_options(options)
    source, fields, required = _source(options)
    job, parts = plan(source, fields, options.input, options.output, required)
    counts = _Counts(len(parts))
    run = ENGINES.get(options.engine, run_local)
    workers = options.workers or _default_workers(options.engine)
    found = {part: result for part in parts if (result := found_part(job, part)) is not None}
    waiting = [part for part in parts if part not in found]
    with _progress(counts) as show:
        for result in chain(found.values(), run(job, waiting, workers, options.cluster) if waiting else ()):
            counts.add(result)
            show()
    finish(options.output)
    return counts


def _check_options(options: argparse.Namespace) -> None:
    """Refuse options that the engine would ignore."""
    from scoring.engines import existing_cluster
    from scoring.errors import ScoringError

    if options.cluster is not None and options.engine in ("local", _SERVICE):
        raise ScoringError(f"--cluster needs --engine ray, spark or dask, got --engine {options.engine}")
    if options.url is not None and options.engine != _SERVICE:
        raise ScoringError(f"--url needs --engine {_SERVICE}, got --engine {options.engine}")
    if options.workers is None:
        return
    if options.workers < 1:
        raise ScoringError(f"--workers: must be at least 1, got {options.workers}")
    if cluster := existing_cluster(options.engine, options.cluster):
        raise ScoringError(f"--workers: the cluster at {cluster} has its own number; leave the option out")


def _source(options: argparse.Namespace) -> "tuple[Source, dict[str, str], list[str]]":
    """Return what scores, the V2 datatype of each raw field, and the fields without a default if known."""
    from scoring.errors import ScoringError
    from scoring.predictor import BundleSource
    from storage.bundles import read_bundle

    if options.engine == _SERVICE:
        from placement.service_predictor import ServiceSource

        service = ServiceSource(options.url or DEFAULT_REST_URL, options.model)
        with closing(service.open()) as predictor:
            return service, dict(predictor.fields), []
    if options.model is None:
        raise ScoringError(
            "--model: is required, expected the URI of a version that `placement train` printed"
        )
    bundle = read_bundle(options.model)
    signature = bundle.signature
    return BundleSource.of(options.model, bundle), signature.datatypes, list(signature.required)


def _default_workers(engine: str) -> int:
    import joblib

    workers: int = 4 if engine == _SERVICE else joblib.cpu_count()
    return workers


@contextmanager
def _progress(counts: _Counts) -> Iterator[Callable[[], None]]:
    """Show a bar on a terminal, else a line every `_PROGRESS_S` and at the end."""
    print_step = StepPrinter()
    last = time.monotonic()
    with progress_bar("scoring", counts.parts) as advance:

        def show() -> None:
            nonlocal last
            advance(1)
            if not sys.stderr.isatty() and (
                time.monotonic() - last > _PROGRESS_S or counts.done == counts.parts
            ):
                last = time.monotonic()
                print_step(str(counts))

        yield show


COMMAND = Command(
    name="score",
    help="score all candidates of files, on this machine or on a cluster",
    description=__doc__,
    add_arguments=_add_arguments,
    run=_run,
    errors=_errors,
)
