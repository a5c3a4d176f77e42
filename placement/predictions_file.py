"""CSV file of predictions: the columns of the input, and prediction, probability and version beside them."""

import csv
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from scoring.columns import ADDED


class OutputError(Exception):
    """A file that cannot be written; the message says why and what to do."""


class PredictionsFile:
    """Writes predictions to a CSV file, which appears when all are written.

    Parameters
    ----------
    path
        The file; an existing one is replaced, also the input itself.
    header
        Columns of the input.

    Raises
    ------
    OutputError
        If the file cannot be written, or the input has a column with the name of an added one.
    """

    def __init__(self, path: Path, header: Sequence[str]) -> None:
        taken = [name for name in ADDED if name in header]
        if taken:
            raise OutputError(
                f"{path}: the input has the column {taken[0]!r} already; rename it or leave it out"
            )
        self._path = path
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        self._header = header
        self._stack = ExitStack()
        try:
            self._file = self._stack.enter_context(self._partial.open("x", newline="", encoding="utf-8"))
            self._stack.callback(self._partial.unlink, missing_ok=True)
            self._writer = csv.writer(self._file)
            self._writer.writerow([*header, *ADDED])
        except OSError as error:
            raise self._error(error) from error

    def write(self, cells: Sequence[Any], prediction: dict[str, Any], version: str) -> None:
        """Write one row: its cells, and its outputs in the order of the service's response."""
        positive, probability = prediction.values()
        try:
            self._writer.writerow([*map(_text, cells), _text(positive), repr(probability), version])
        except OSError as error:
            raise self._error(error) from error

    def end(self) -> None:
        """Move the complete file to its place."""
        try:
            self._file.close()
            self._partial.replace(self._path)
        except OSError as error:
            raise self._error(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Closing writes what is buffered, which fails again on a full disk.
        try:
            self._stack.close()
        except OSError:
            if error is None:
                raise

    def _error(self, error: OSError) -> OutputError:
        return OutputError(f"{self._path}: {error.strerror}")


def _text(value: object) -> str:
    """Return a value as the text of a cell; a text as it is, anything else as in JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
