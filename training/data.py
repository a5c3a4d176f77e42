"""Read candidates from CSV files and check every value against the signature.

The first line names the columns, in any order. A column that is neither a field nor the label is ignored and
listed in `Dataset.ignored`. An empty cell gets the field's default, if the field has one. `Table` reads any
CSV file row by row with the same rules; `placement predict` uses it, too.
"""

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

from training.candidates import Candidate, Task
from transformer.bundle.classes import Label, class_name
from transformer.bundle.signature import (
    Boolean,
    Category,
    CategoryList,
    Number,
    RawField,
    Signature,
    Value,
    same_spelling,
)

#: Maximum number of problems that an error lists; it counts the rest.
MAX_PROBLEMS = 20
#: Maximum length of a cell's text in an error.
MAX_ECHO = 40

_NO_ROWS = "must have a line of column names and at least one row"
#: Texts of booleans, in lower case.
_BOOLEANS = {
    **dict.fromkeys(("true", "yes", "1", "1.0"), True),
    **dict.fromkeys(("false", "no", "0", "0.0"), False),
}
#: Separators other than a comma that files with the name CSV often have.
_OTHER_SEPARATORS = (";", "\t", "|")


class DataError(Exception):
    """Invalid data.

    Parameters
    ----------
    source
        Name of the data.
    problems
        One sentence for each problem, in the order of the file.
    count
        Number of all problems, if `problems` is not complete.
    """

    def __init__(self, source: str, problems: Sequence[str], count: int = 0) -> None:
        shown = [f"{source}: {problem}" for problem in islice(problems, MAX_PROBLEMS)]
        self.count = max(count, len(problems))
        if self.count > len(shown):
            shown.append(f"and {self.count - len(shown)} more problems")
        super().__init__("\n".join(shown))


class MissingColumnsError(DataError):
    """A table without some of the columns that it must have.

    Attributes
    ----------
    share
        Share of these columns that are missing, 0 to 1.
    """

    def __init__(self, source: str, problems: Sequence[str], share: float) -> None:
        super().__init__(source, problems)
        self.share = share


@dataclass(frozen=True)
class Dataset:
    """Labelled candidates.

    Attributes
    ----------
    candidates, labels
        Raw candidates with all fields of the task's signature, and the class or the number of each.
    source
        Description of the data's origin.
    sha256
        Digest of the file, or of the canonical JSON of generated candidates.
    ignored
        Columns of the file that were ignored.
    defaulted
        Fields that have their default in every row.
    seed
        Seed of generated candidates; None for a file.
    """

    task: Task
    candidates: list[Candidate]
    labels: Sequence[Label]
    source: str
    sha256: str
    ignored: tuple[str, ...] = ()
    defaulted: tuple[str, ...] = ()
    seed: int | None = None

    @property
    def generated(self) -> bool:
        """True if the candidates are generated."""
        return self.seed is not None


def read_csv(path: str | os.PathLike[str], task: Task) -> Dataset:
    """Read labelled candidates.

    Raises
    ------
    DataError
        With all problems, for example a missing column, or
        ``row 3 (line 4), column 'ssc_p': must be 0 to 100, got '710'``.
    """
    content = _content(path)
    table = Table(os.fspath(path), table_text(io.BytesIO(content)))
    label = {task.label: label_parser(task)}
    candidates: list[Candidate] = []
    labels: list[Label] = []
    empty = set(task.signature.names)
    for row, candidate in _rows(table, task.signature, label):
        candidates.append(candidate)
        labels.append(row.values[task.label])
        empty = {name for name in empty if row.is_empty(name)}
    ignored = tuple(name for name in table.header if name not in {*task.signature.names, task.label})
    digest = hashlib.sha256(content).hexdigest()
    defaulted = tuple(name for name in task.signature.names if name in empty)
    return Dataset(task, candidates, labels, Path(path).name, digest, ignored, defaulted)


def read_candidates(path: str | os.PathLike[str], signature: Signature) -> list[Candidate]:
    """Read candidates without labels; the columns can be in any order.

    Raises
    ------
    DataError
        See `read_csv`.
    """
    table = Table(os.fspath(path), table_text(io.BytesIO(_content(path))))
    return [candidate for _, candidate in _rows(table, signature, {})]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table.

    Attributes
    ----------
    number
        Row number from 1, without the header and without empty lines.
    line
        Number of the row's last line in the file, as in an editor.
    cells
        Texts of all cells.
    values
        Parsed values by column; None for an empty cell of a field with a default.
    """

    number: int
    line: int
    cells: list[str]
    values: dict[str, Any]

    @property
    def place(self) -> str:
        """Position of the row, for error messages."""
        return f"row {self.number} (line {self.line})"

    def is_empty(self, column: str) -> bool:
        """Return True if the row has no value in a column."""
        return self.values.get(column) is None


class Table:
    """A CSV file, read row by row in constant memory.

    Parameters
    ----------
    source
        Name of the file in messages.
    text
        Lines of the file, see `table_text`.

    Attributes
    ----------
    header
        Names of the columns, without blanks around them.

    Raises
    ------
    DataError
        If the first line is missing or names a column twice.
    """

    def __init__(self, source: str, text: Iterable[str]) -> None:
        self.source = source
        self._reader = csv.reader(self._lines(text), strict=True)
        self.header = tuple(name.strip() for name in next(self._cells(), ()))
        if not self.header:
            raise DataError(source, [_NO_ROWS])
        duplicates = sorted({name for name in self.header if self.header.count(name) > 1})
        if duplicates:
            raise DataError(source, [f"duplicate column {name!r}" for name in duplicates])

    def check_spelling(self, columns: Sequence[str]) -> None:
        """Raise DataError if the name of a column differs from one of these only in spelling.

        A column whose exact name is there, too, is not misspelled.
        """
        wrong = same_spelling(self.header, columns)
        problems = [
            f"column {name!r} must be spelled {meant!r}"
            for name, meant in wrong.items()
            if meant not in self.header
        ]
        if problems:
            raise DataError(self.source, problems)

    def require(self, columns: Sequence[str]) -> None:
        """Raise DataError if a column is missing."""
        missing = [name for name in columns if name not in self.header]
        for separator in _OTHER_SEPARATORS:
            found = {name.strip() for cell in self.header for name in cell.split(separator)}
            if not found.isdisjoint(missing):
                raise DataError(self.source, [f"must be separated by commas, got {separator!r}"])
        if missing:
            raise MissingColumnsError(self.source, [self.missing(*missing)], len(missing) / len(columns))

    def missing(self, *columns: str) -> str:
        """Error message for missing columns."""
        names = _short(", ".join(map(repr, columns)), 10 * MAX_ECHO)
        are = "column {} is" if len(columns) == 1 else "columns {} are"
        return f"{are.format(names)} missing, found: {_short(', '.join(self.header), 10 * MAX_ECHO)}"

    def rows(self, parsers: Mapping[str, Callable[[str], Any]]) -> Iterator[Row]:
        """Yield rows with the parsed values of these columns, up to the first row with a problem.

        Parameters
        ----------
        parsers
            Parser of each column's cells; a ValueError that it raises becomes a problem.

        Raises
        ------
        DataError
            At the end of the file, with the problems of all rows.
        """
        columns = [(name, self.header.index(name), parse) for name, parse in parsers.items()]
        problems: list[str] = []
        count = 0
        for number, cells in enumerate(filter(None, self._cells()), start=1):
            row = Row(number, self._reader.line_num, cells, {})
            found = self._read(row, columns)
            count += len(found)
            problems += found[: MAX_PROBLEMS - len(problems)]
            if not count:
                yield row
        if count:
            raise DataError(self.source, problems, count)

    def _read(self, row: Row, columns: Sequence[tuple[str, int, Callable[[str], Any]]]) -> list[str]:
        """Parse a row's cells into its values; return the problems from left to right."""
        if len(row.cells) != len(self.header):
            return [f"{row.place}: must have {len(self.header)} cells, got {len(row.cells)}"]
        problems = []
        for name, index, parse in columns:
            try:
                row.values[name] = parse(row.cells[index])
            except ValueError as error:
                problems.append((index, f"{row.place}, column {name!r}: {error}"))
        return [text for _, text in sorted(problems)]

    def _cells(self) -> Iterator[list[str]]:
        """Yield the cells of each row; an empty line has no cells."""
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
    """Decode a CSV file as UTF-8, with or without a byte order mark; line ends stay as they are.

    A byte that is not UTF-8 is kept as a surrogate, so that `Table` can report its line.
    """
    return io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")


def label_parser(task: Task) -> Callable[[str], Label]:
    """Return a function that reads a cell of the label: a class of the task, or a number for regression.

    A class that is a number or a boolean may be written in any way: ``1``, ``1.0``; ``True``, ``true``.
    """
    if task.kind == "regression":
        return finite_number
    by_text: dict[str, Label] = {class_name(label): label for label in task.classes}

    def parse(text: str) -> Label:
        spelled = text.strip().casefold() if isinstance(task.classes[0], bool) else text
        with suppress(ValueError):
            if (
                not isinstance(task.classes[0], bool | str)
                and (number := finite_number(text)) in task.classes
            ):
                return task.classes[task.classes.index(number)]
        return by_text[_one_of(spelled, tuple(by_text))]

    return parse


def finite_number(text: str) -> float:
    """Read a cell's number.

    Raises
    ------
    ValueError
        If the text is not a finite number.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    # float() accepts 1_000, nan and inf, too; in a table of numbers they are mistakes.
    if "_" in text or not math.isfinite(value):
        raise ValueError(f"must be a finite number, got {_short(repr(text))}")
    return value


def _content(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(os.fspath(path), [str(error.strerror)]) from error


def _rows(
    table: Table, signature: Signature, more: Mapping[str, Callable[[str], Any]]
) -> Iterator[tuple[Row, Candidate]]:
    """Yield each row with its candidate; the row has the values of the columns in `more`, too."""
    table.check_spelling([*signature.names, *more])
    table.require([*(field.name for field in signature.fields if field.default is None), *more])
    parsers = {field.name: partial(_value, field) for field in signature.fields if field.name in table.header}
    defaults: dict[str, Any] = {field.name: field.default for field in signature.fields}
    number = 0
    for row in table.rows({**parsers, **more}):
        number = row.number
        yield (
            row,
            {name: default if row.is_empty(name) else row.values[name] for name, default in defaults.items()},
        )
    if not number:
        raise DataError(table.source, [_NO_ROWS])


def _value(field: RawField, text: str) -> Value | None:
    if field.default is not None and not text.strip():
        return None
    if isinstance(field, Number):
        return _number(text, field)
    if isinstance(field, Boolean):
        return _boolean(text)
    if isinstance(field, CategoryList):
        return tuple(_category(one, field) for one in _list(text))
    return _category(text, field)


def _category(text: str, field: Category | CategoryList) -> str:
    return text if field.open and text not in field.categories else _one_of(text, field.categories)


def _list(text: str) -> list[str]:
    """Return the texts of a cell with several categories: a JSON array, or separated by ``|``."""
    if text.lstrip().startswith("["):
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, list):
            raise ValueError(f"must be a JSON array, or texts separated by |, got {_short(repr(text))}")
        return [one if isinstance(one, str) else json.dumps(one) for one in found]
    return [one.strip() for one in text.split("|")] if text.strip() else []


def _boolean(text: str) -> bool:
    found = _BOOLEANS.get(text.strip().casefold())
    if found is None:
        raise ValueError(f"must be true or false, got {_short(repr(text))}")
    return found


def _number(text: str, field: Number) -> float:
    try:
        value = finite_number(text)
    except ValueError:
        value = math.nan
    least, most = field.range
    if not least <= value <= most or (field.is_whole and not value.is_integer()):
        raise ValueError(f"must be {field.expected}, got {_short(repr(text))}")
    return value


def _one_of(text: str, allowed: Sequence[str]) -> str:
    if text not in allowed and text.strip() in allowed:
        return text.strip()
    if text not in allowed:
        raise ValueError(f"must be one of {', '.join(allowed)}, got {_short(repr(text))}")
    return text


def _short(text: str, length: int = MAX_ECHO) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
