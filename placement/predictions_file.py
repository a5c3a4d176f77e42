"""CSV file of predictions: the columns of the input, then prediction, probabilities and version."""

import csv
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from placement.outputs import cells as answer_cells

#: Last column, after those of the input and of `placement.outputs.cells`.
VERSION = "version"


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
        self._path = path
        self._header = header
        self._check_free(("prediction", "probability", VERSION))
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        self._has_header = False
        self._stack = ExitStack()
        try:
            self._file = self._stack.enter_context(self._partial.open("x", newline="", encoding="utf-8"))
            self._stack.callback(self._partial.unlink, missing_ok=True)
            self._writer = csv.writer(self._file)
        except OSError as error:
            raise self._error(error) from error

    def write(self, cells: Sequence[Any], prediction: dict[str, Any], version: str) -> None:
        """Write one row: its cells, and its outputs in the order of the service's response."""
        added = dict(answer_cells(prediction))
        try:
            if not self._has_header:
                self._check_free(added)
                self._writer.writerow([*self._header, *added, VERSION])
                self._has_header = True
            self._writer.writerow([*map(_text, cells), *map(_text, added.values()), version])
        except OSError as error:
            raise self._error(error) from error

    def _check_free(self, added: Iterable[str]) -> None:
        """Check that the input has no column with the name of an added one."""
        for name in added:
            if name in self._header:
                raise OutputError(
                    f"{self._path}: the input has the column {name!r} already; rename it or leave it out"
                )

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
