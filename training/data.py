"""Candidates from CSV files, every value checked against the signature.

The first line names the columns, in any order. A column that is neither a field nor the label is passed over
and named in `Dataset.ignored`. An empty cell takes the field's default where it has one. `Table` reads any
CSV file by the same rules and row by row; `placement predict` reads with it too.
"""

import csv
import hashlib
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

from training.candidates import Candidate, Task
from transformer.bundle.signature import Number, RawField, Signature

#: Problems of one file that its error spells out; the rest is counted.
MAX_PROBLEMS = 20
#: Longest part of a cell that an error repeats.
MAX_ECHO = 40

_NO_ROWS = "must have a line of column names and at least one row"
#: What tables are separated by that are called CSV all the same.
_OTHER_SEPARATORS = (";", "\t", "|")


class DataError(Exception):
    """Data that cannot be used.

    Parameters
    ----------
    source
        Which data.
    problems
        One sentence for each problem, in the order of the file.
    count
        Number of problems, where they are more than are given.
    """

    def __init__(self, source: str, problems: Sequence[str], count: int = 0) -> None:
        shown = [f"{source}: {problem}" for problem in islice(problems, MAX_PROBLEMS)]
        self.count = max(count, len(problems))
        if self.count > len(shown):
            shown.append(f"and {self.count - len(shown)} more problems")
        super().__init__("\n".join(shown))


@dataclass(frozen=True)
class Dataset:
    """Labelled candidates.

    Attributes
    ----------
    candidates, labels
        Raw candidates with all fields of the task's signature, and the class of each.
    source
        Where they came from, in words.
    sha256
        Digest of the file, or of the canonical JSON of generated candidates.
    ignored
        Columns of the file that were passed over.
    generated
        Whether the candidates are made up.
    """

    task: Task
    candidates: list[Candidate]
    labels: list[str]
    source: str
    sha256: str
    ignored: tuple[str, ...] = ()
    generated: bool = False


def read_csv(path: str | os.PathLike[str], task: Task) -> Dataset:
    """Read labelled candidates.

    Raises
    ------
    DataError
        With every problem: a missing column, or
        ``row 3 (line 4), column 'ssc_p': must be 0 to 100, got '710'``.
    """
    content = _content(path)
    table = Table(os.fspath(path), table_text(io.BytesIO(content)))
    label = {task.label: partial(_one_of, allowed=task.classes)}
    candidates, rows = _candidates(table, task.signature, label)
    labels = [row.values[task.label] for row in rows]
    ignored = tuple(name for name in table.header if name not in {*task.signature.names, task.label})
    digest = hashlib.sha256(content).hexdigest()
    return Dataset(task, candidates, labels, Path(path).name, digest, ignored)


def read_candidates(path: str | os.PathLike[str], signature: Signature) -> list[Candidate]:
    """Read candidates without labels; the header decides where each field stands.

    Raises
    ------
    DataError
        See `read_csv`.
    """
    table = Table(os.fspath(path), table_text(io.BytesIO(_content(path))))
    return _candidates(table, signature, {})[0]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table.

    Attributes
    ----------
    number
        Counts from 1, without the header and without empty lines.
    line
        Line of the file that the row ends in, as an editor counts them.
    values
        What was read from its cells, by column.
    """

    number: int
    line: int
    values: dict[str, Any]

    @property
    def place(self) -> str:
        """Where it stands, in the words of an error message."""
        return f"row {self.number} (line {self.line})"


class Table:
    """A CSV file, read row by row in constant memory.

    Parameters
    ----------
    source
        Name of the file in messages.
    text
        Its text, see `table_text`.

    Attributes
    ----------
    header
        Names of the columns.

    Raises
    ------
    DataError
        If the first line does not name columns, each once.
    """

    def __init__(self, source: str, text: Iterable[str]) -> None:
        self.source = source
        self._reader = csv.reader(self._lines(text), strict=True)
        self.header = tuple(next(self._cells(), ()))
        if not self.header:
            raise DataError(source, [_NO_ROWS])
        twice = sorted({name for name in self.header if self.header.count(name) > 1})
        if twice:
            raise DataError(source, [f"column {name!r} stands twice" for name in twice])

    def require(self, columns: Sequence[str]) -> None:
        """Refuse a file without one of these columns."""
        missing = [name for name in columns if name not in self.header]
        for separator in _OTHER_SEPARATORS:
            found = {name.strip() for cell in self.header for name in cell.split(separator)}
            if not found.isdisjoint(missing):
                raise DataError(self.source, [f"must be separated by commas, got {separator!r}"])
        if missing:
            raise DataError(self.source, [self.missing(name) for name in missing])

    def missing(self, column: str) -> str:
        """The problem of a column that is not there."""
        return f"column {column!r} is missing, found: {_short(', '.join(self.header), 10 * MAX_ECHO)}"

    def rows(self, parsers: Mapping[str, Callable[[str], Any]]) -> Iterator[Row]:
        """Rows with the values of these columns, up to the first row with a problem.

        Parameters
        ----------
        parsers
            Reads a column's cells; what it refuses with ValueError becomes a problem.

        Raises
        ------
        DataError
            At the end of the file, with the problems of all rows.
        """
        columns = [(name, self.header.index(name), parse) for name, parse in parsers.items()]
        problems: list[str] = []
        count = 0
        for number, cells in enumerate(filter(None, self._cells()), start=1):
            row = Row(number, self._reader.line_num, {})
            found = self._read(row, cells, columns)
            count += len(found)
            problems += found[: MAX_PROBLEMS - len(problems)]
            if not count:
                yield row
        if count:
            raise DataError(self.source, problems, count)

    def _read(
        self, row: Row, cells: list[str], columns: Sequence[tuple[str, int, Callable[[str], Any]]]
    ) -> list[str]:
        """Fill in a row's values; returns its problems, from left to right."""
        if len(cells) != len(self.header):
            return [f"{row.place}: must have {len(self.header)} cells, got {len(cells)}"]
        problems = []
        for name, index, parse in columns:
            try:
                row.values[name] = parse(cells[index])
            except ValueError as error:
                problems.append((index, f"{row.place}, column {name!r}: {error}"))
        return [text for _, text in sorted(problems)]

    def _cells(self) -> Iterator[list[str]]:
        """Cells of each row; an empty line has none."""
        try:
            yield from self._reader
        except csv.Error as error:
            raise DataError(self.source, [f"line {self._reader.line_num}: {error}"]) from error
        except OSError as error:
            raise DataError(self.source, [str(error.strerror)]) from error

    def _lines(self, text: Iterable[str]) -> Iterator[str]:
        for number, line in enumerate(text, start=1):
            try:
                line.encode()
            except UnicodeEncodeError as error:
                raise DataError(self.source, [f"line {number}: must be UTF-8"]) from error
            yield line


def table_text(file: IO[bytes]) -> io.TextIOWrapper:
    """Text of a table's bytes: UTF-8, with or without a byte order mark, its lines as they end.

    Text is decoded in blocks; a byte that is not UTF-8 is kept, for `Table` to find it in its own line.
    """
    return io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")


def finite_number(text: str) -> float:
    """Read a cell's number.

    Raises
    ------
    ValueError
        If it is none, or not finite.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    # float() also reads 1_000, nan and inf; none of them is what a table of numbers means.
    if "_" in text or not math.isfinite(value):
        raise ValueError(f"must be a finite number, got {_short(repr(text))}")
    return value


def _content(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(os.fspath(path), [str(error.strerror)]) from error


def _candidates(
    table: Table, signature: Signature, more: Mapping[str, Callable[[str], Any]]
) -> tuple[list[Candidate], list[Row]]:
    """Candidates of all rows, and the rows with the values of `more` columns."""
    table.require([*(field.name for field in signature.fields if field.default is None), *more])
    parsers = {field.name: partial(_value, field) for field in signature.fields if field.name in table.header}
    rows = list(table.rows({**parsers, **more}))
    if not rows:
        raise DataError(table.source, [_NO_ROWS])
    defaults: dict[str, Any] = {field.name: field.default for field in signature.fields}
    candidates: list[Candidate] = [
        {name: row.values.get(name, default) for name, default in defaults.items()} for row in rows
    ]
    return candidates, rows


def _value(field: RawField, text: str) -> str | float:
    if text == "" and field.default is not None:
        return field.default
    if isinstance(field, Number):
        return _number(text, field)
    return _one_of(text, field.categories)


def _number(text: str, field: Number) -> float:
    try:
        value = finite_number(text)
    except ValueError:
        value = math.nan
    if not field.minimum <= value <= field.maximum:
        raise ValueError(f"must be {field.expected}, got {_short(repr(text))}")
    return value


def _one_of(text: str, allowed: Sequence[str]) -> str:
    if text not in allowed:
        raise ValueError(f"must be one of {', '.join(allowed)}, got {_short(repr(text))}")
    return text


def _short(text: str, length: int = MAX_ECHO) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
