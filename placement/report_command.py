"""Write the report of a version again, from the data that it was trained on."""

import argparse

from placement.command import Command
from placement.progress import StepPrinter
from training.table_file import Reading


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("uri", metavar="URI", help="version, as `placement train` prints it")
    parser.add_argument(
        "--data", metavar="FILE", help="its training data (default: the file of that name, here)"
    )
    Reading.add_arguments(parser)
    parser.add_argument(
        "--tune-storage",
        metavar="FILE",
        help="the file of trials that --tune wrote (default: repeat the search, if there was one)",
    )


def _errors() -> tuple[type[Exception], ...]:
    from storage.errors import StorageError
    from training.data import DataError
    from training.reports.writing import ReportError
    from training.tuning import TuningError
    from transformer.bundle.format import BundleError

    return (BundleError, DataError, ReportError, StorageError, TuningError)


def _run(options: argparse.Namespace) -> int:
    print_step = StepPrinter()
    print_step("loading scikit-learn")
    from training.reports.writing import write_again

    reading = Reading.of(options)
    report = write_again(options.uri, options.data, print_step, reading, options.tune_storage)
    print(f"report    {report}")
    return 0


COMMAND = Command(
    name="report",
    help="write the report of a version again",
    description=__doc__,
    add_arguments=_add_arguments,
    run=_run,
    errors=_errors,
)
