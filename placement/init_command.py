"""Draft the task file of a labelled file: its fields, their ranges and categories, and the classes."""

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from placement.command import Command, command_line
from training.table_file import Reading
from transformer.bundle.signature import DEFAULT_ROW_NAME

if TYPE_CHECKING:
    from training.candidates import Task


class InitError(Exception):
    """A file that cannot be written; the message says why and what to do."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", metavar="FILE", help="table with the label and the fields")
    Reading.add_arguments(parser)
    parser.add_argument("--label", metavar="COLUMN", help="column with the class to predict")
    parser.add_argument("--name", help="name of the model (default: that of the label)")
    parser.add_argument(
        "--row_name", "--row-name", default=DEFAULT_ROW_NAME, metavar="WORD", help="word for one row of data"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE.json", help="task file to write (default: NAME.json)"
    )
    parser.add_argument(
        "--example", action="store_true", help="write a small example of customers to FILE, and stop"
    )
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema of task files, and stop")


def _errors() -> tuple[type[Exception], ...]:
    from training.data import DataError

    return (DataError, InitError)


def _run(options: argparse.Namespace) -> int:
    from training.candidates import Task
    from training.drafting import draft, model_name
    from training.example import LABEL, ROWS, example_csv

    if options.schema:
        print(json.dumps(Task.json_schema(), indent=2))
        return 0
    if not options.file:
        raise InitError("FILE is required")
    if options.example:
        _write_new(Path(options.file), example_csv())
        print(f"data      {options.file}, {ROWS} telephone customers")
        print(f"\n  {command_line('init', shlex.quote(options.file), '--label', LABEL)}")
        return 0
    if not options.label:
        raise InitError("--label is required: the column with the class to predict")
    reading = Reading.of(options)
    drafted = draft(options.file, options.label, options.row_name, reading)
    name = options.name or model_name(options.label)
    output = options.output or Path(f"{name}.json")
    _write_new(output, drafted.text)
    print(f"task      {output}, drafted from {drafted.rows:,} rows: check it")
    print(f"fields    {', '.join(drafted.task.signature.names)}")
    print(f"predicts  {_predicts(drafted.task)}")
    for column, reason in drafted.left_out.items():
        print(f"left out  {column}: {reason}")
    train = ["train", "--task", str(output), "--data", options.file, *reading.arguments, "--name", name]
    print(f"\n  {command_line(*map(shlex.quote, train))}")
    return 0


def _predicts(task: "Task") -> str:
    if task.kind == "regression":
        return f"the number {task.label}"
    if task.kind == "multiclass":
        return f"which of {len(task.classes)} classes {task.label} is"
    return f"the probability of {task.label} = {task.positive_name}"


def _write_new(path: Path, text: str) -> None:
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError as error:
        raise InitError(f"{path}: exists and is not overwritten; remove it, or name another file") from error
    except OSError as error:
        raise InitError(f"{path}: {error.strerror}") from error


COMMAND = Command(
    name="init",
    help="draft a task file from labelled data",
    description=__doc__,
    add_arguments=_add_arguments,
    run=_run,
    errors=_errors,
)
