"""Import a fitted DictVectorizer and scikit-learn model from a pickle, and write its bundle to storage."""

import argparse
import json
import shlex
from pathlib import Path

from placement.command import Command
from placement.new_version import print_version
from placement.progress import StepPrinter
from training.table_file import Reading
from transformer.bundle.signature import DEFAULT_ROW_NAME


class ImportOutputError(Exception):
    """A task file that cannot be written; the message says why and what to do."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="file of pickle, joblib or skops, compressed or not")
    parser.add_argument(
        "--vectorizer", metavar="FILE", help="file of the DictVectorizer, if it is another one"
    )
    parser.add_argument(
        "--sample",
        metavar="FILE",
        help="file of rows, for ranges, metrics, explanations and drift; see docs/files.md",
    )
    Reading.add_arguments(parser)
    parser.add_argument("--label", metavar="COLUMN", help="column of the sample with the true answer")
    parser.add_argument(
        "--task", metavar="FILE.json", help="fields and classes, as an earlier import inferred them"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE.json", help="task file to write (default: NAME.json)"
    )
    parser.add_argument(
        "--trust", action="store_true", help="open the file even if that can run code: you trust its author"
    )
    parser.add_argument(
        "--storage", metavar="URI", default="models", help="directory or s3://bucket/prefix to write to"
    )
    parser.add_argument("--name", help="name of the model and of its output (default: that of the file)")
    parser.add_argument("--version", metavar="vN", help="name of the version (default: the next number)")
    parser.add_argument(
        "--previous",
        metavar="URI",
        help="bundle that serves now, so that the new version recognises it in a rollout",
    )
    parser.add_argument(
        "--row_name",
        "--row-name",
        metavar="WORD",
        help=f"word for one row of data (default: {DEFAULT_ROW_NAME})",
    )
    parser.add_argument(
        "--threshold", type=_probability, help="lowest probability of a positive prediction (default: 0.5)"
    )
    parser.add_argument("--json", action="store_true", help="print URI, version, metrics and notes as JSON")


def _probability(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be 0 to 1, got {text}")
    return value


def _errors() -> tuple[type[Exception], ...]:
    from storage.errors import StorageError
    from training.candidates import TaskError
    from training.data import DataError
    from training.imports.equality import UnequalPredictionsError
    from training.imports.inference import InferenceError
    from training.imports.model_file import ModelFileError
    from training.imports.servable import NotServableError
    from training.publishing import TrainingError
    from transformer.bundle.format import BundleError

    return (
        BundleError,
        DataError,
        ImportOutputError,
        InferenceError,
        ModelFileError,
        NotServableError,
        StorageError,
        TaskError,
        TrainingError,
        UnequalPredictionsError,
    )


def _run(options: argparse.Namespace) -> int:
    print_step = StepPrinter()
    print_step("loading scikit-learn")
    from training.candidates import Task
    from training.imports.imported_task import Source, answer_of, default_name
    from training.imports.importing import import_model

    name = options.name or default_name(options.model)
    output = options.output or Path(f"{name}.json")
    task = Task.read(options.task) if options.task else None
    if task is not None and options.row_name is not None:
        task = task.with_row_name(options.row_name)
    if task is None and output.exists():
        raise ImportOutputError(
            f"{output}: exists and is not overwritten; use it with --task {shlex.quote(str(output))}, or "
            "name another file with --output"
        )
    imported = import_model(
        Source(
            options.model,
            options.vectorizer,
            options.sample,
            task,
            options.label,
            trust=options.trust,
            reading=Reading.of(options),
        ),
        storage=options.storage,
        name=name,
        version=options.version,
        previous=options.previous,
        row_name=options.row_name or DEFAULT_ROW_NAME,
        threshold=options.threshold,
        progress=print_step,
    )
    if imported.task.text is not None:
        _write(output, imported.task.text)
    bundle = imported.bundle
    if options.json:
        content = {"uri": imported.uri, "version": bundle.version, "metrics": bundle.metrics}
        task_file = str(output) if imported.task.text is not None else options.task
        print(json.dumps({**content, "task": task_file, "notes": imported.notes}))
        return 0
    details = {
        "fields": ", ".join(bundle.signature.names),
        "predicts": answer_of(bundle.target, imported.task.task.label),
    }
    if imported.task.text is not None:
        details["task"] = f"{output}: check the fields; with changes, import again with --task"
    print_version(imported.uri, bundle, details, imported.notes)
    return 0


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise ImportOutputError(f"{path}: {error.strerror}; name another file with --output") from error


COMMAND = Command(
    name="import",
    help="import a fitted model from a pickle, and write its bundle to storage",
    description=__doc__,
    add_arguments=_add_arguments,
    run=_run,
    errors=_errors,
)
