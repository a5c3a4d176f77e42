"""Train a version: choose a model by cross-validation, evaluate it, and write its bundle to storage."""

import argparse
import dataclasses
import json
import shlex
from typing import TYPE_CHECKING

from placement.command import Command, command_line
from placement.new_version import print_version
from placement.progress import StepPrinter
from training.table_file import Reading

if TYPE_CHECKING:
    from training.data import Dataset
    from training.tuning import Tuning

#: Share of the default task's columns that other data lack.
_OTHER_DATA = 0.5


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--data",
        metavar="FILE",
        help="labelled rows: CSV, JSON, JSON lines or Parquet, each also with gzip; - is standard input "
        "(default: generated candidates)",
    )
    source.add_argument("--rows", type=int, default=2000, help="number of candidates to generate")
    Reading.add_arguments(parser)
    parser.add_argument(
        "--task",
        metavar="FILE.json",
        help="fields and classes of --data, as `placement init` drafts them (default: those of placement)",
    )
    parser.add_argument(
        "--row_name", "--row-name", metavar="WORD", help="word for one row of data (default: the task's)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the generated candidates, and of --tune")
    parser.add_argument(
        "--storage", metavar="URI", default="models", help="directory or s3://bucket/prefix to write to"
    )
    parser.add_argument("--name", default="placement", help="name of the model and of its output")
    parser.add_argument("--version", metavar="vN", help="name of the version (default: the next number)")
    parser.add_argument(
        "--previous",
        metavar="URI",
        help="bundle that serves now, so that the new version recognises it in a rollout",
    )
    estimator = parser.add_argument(
        "--estimator", metavar="NAME", default="auto", help="auto, or one of %(names)s"
    )
    vars(estimator)["names"] = _EstimatorNames()
    parser.add_argument(
        "--serving-form",
        choices=("auto", "original"),
        default="auto",
        help="auto: serve a forest as an equal, faster estimator; original: as it was fitted",
    )
    parser.add_argument(
        "--threshold",
        default="0.5",
        metavar="RULE",
        help="lowest probability of a positive prediction: a number, or a rule that chooses it: f1, "
        "recall=0.9, or cost=1:5 (of a false positive and of a false negative)",
    )
    parameters = parser.add_mutually_exclusive_group()
    parameters.add_argument(
        "--parameter",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="parameter of the one --estimator by scikit-learn's name, as --tune prints it",
    )
    parameters.add_argument(
        "--tune",
        type=int,
        metavar="N",
        help="also try N sets of parameters of the estimators, which Optuna searches",
    )
    parser.add_argument(
        "--tune-storage",
        metavar="FILE",
        help="keep the trials of --tune in this SQLite file; after an interruption, the same command goes on "
        "(default: keep none)",
    )
    parser.add_argument(
        "--backend",
        choices=("dask", "ray"),
        help="cross-validate and tune on a cluster (default: in this process)",
    )
    parser.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="existing cluster for --backend: Dask's scheduler, or Ray (default: a new one on this machine)",
    )
    parser.add_argument("--json", action="store_true", help="print URI, version, metrics and notes as JSON")


class _EstimatorNames:
    """Names of the estimators, for the help: only printing it imports scikit-learn."""

    def __str__(self) -> str:
        from training.estimators import ESTIMATORS

        return ", ".join(ESTIMATORS)


def _errors() -> tuple[type[Exception], ...]:
    from training.train import ERRORS

    return ERRORS


def _run(options: argparse.Namespace) -> int:
    print_step = StepPrinter()
    print_step("loading scikit-learn")
    from training.backends import connect
    from training.train import train

    tuning = _tuning(options)
    dataset = _dataset(options)
    with connect(options.backend, options.cluster) as run:
        trained = train(
            dataset,
            storage=options.storage,
            name=options.name,
            version=options.version,
            previous=options.previous,
            estimator=options.estimator,
            rewrite=options.serving_form == "auto",
            threshold=options.threshold,
            parameters=_parameters(options),
            tuning=tuning,
            run=run,
            progress=print_step,
        )
    bundle = trained.bundle
    if options.json:
        content = {
            "uri": trained.uri,
            "version": bundle.version,
            "metrics": bundle.metrics,
            "threshold": bundle.threshold,
            "report": trained.report,
            "notes": trained.notes,
        }
        print(json.dumps(content))
    else:
        report = {"report": trained.report or "not written"}
        print_version(trained.uri, bundle, report, trained.notes)
    return 0


def _parameters(options: argparse.Namespace) -> dict[str, float]:
    """Return the parameters that were set.

    Raises
    ------
    ParameterError
        If one is no name and number, or is set twice.
    """
    from training.selection import ParameterError

    parameters: dict[str, float] = {}
    for text in options.parameter:
        name, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            raise ParameterError(f"--parameter: must be NAME=NUMBER, got {text!r}") from None
        if name in parameters:
            raise ParameterError(f"--parameter {name}: is set twice")
        parameters[name] = number
    return parameters


def _tuning(options: argparse.Namespace) -> "Tuning | None":
    """Return the search that was asked for.

    Raises
    ------
    TuningError
        If an argument is invalid, or Optuna is not installed.
    """
    from training.tuning import Tuning, TuningError

    if options.tune is None:
        if options.tune_storage is not None:
            raise TuningError("--tune-storage needs --tune N, the number of trials")
        return None
    return Tuning(options.tune, options.seed, options.tune_storage)


def _dataset(options: argparse.Namespace) -> "Dataset":
    """Return the candidates to train on.

    Raises
    ------
    DataError, TaskError
        If the data or the task is invalid, or the data are of another task.
    """
    from training.candidates import PLACEMENT, Task, TaskError
    from training.data import DataError, MissingColumnsError, read_dataset
    from training.generator import generate

    if options.task and not options.data:
        raise TaskError("--task needs --data: candidates can be generated only for the placement task")
    task = Task.read(options.task) if options.task else PLACEMENT
    if options.row_name is not None:
        task = task.with_row_name(options.row_name)
    if not options.data:
        return dataclasses.replace(generate(options.rows, options.seed), task=task)
    try:
        return read_dataset(options.data, task, Reading.of(options))
    except MissingColumnsError as error:
        if options.task or error.share <= _OTHER_DATA:
            raise
        draft = command_line("init", shlex.quote(options.data), "--label", "COLUMN")
        problem = f"looks like other data than placement's; draft its task first: {draft}"
        raise DataError(options.data, [problem]) from error


COMMAND = Command(
    name="train",
    help="train a version and write it to storage",
    description=__doc__,
    add_arguments=_add_arguments,
    run=_run,
    errors=_errors,
)
