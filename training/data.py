"""Candidates from CSV files, every value checked against the signature.

The first line names the columns, in any order. A column that is neither a field nor the label is passed over
and named in `Dataset.ignored`. An empty cell takes the field's default where it has one.
"""

import csv
import hashlib
import io
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from typing import TypeVar

from training.candidates import Candidate, Task
from transformer.signature import Number, RawField, Signature

#: Problems of one file that its error spells out; the rest is counted.
MAX_PROBLEMS = 20

_Value = TypeVar("_Value")


class DataError(Exception):
    """Data that cannot be used.

    Parameters
    ----------
    source
        Which data.
    problems
        One sentence for each problem, in the order of the file.
    """

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        shown = [f"{source}: {problem}" for problem in islice(problems, MAX_PROBLEMS)]
        if len(problems) > len(shown):
            shown.append(f"and {len(problems) - len(shown)} more problems")
        super().__init__("\n".join(shown))
        self.problems = tuple(problems)


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
    table = _Table(path)
    table.require([*_required(task.signature), task.label])
    labels = table.column(task.label, lambda text: _one_of(text, task.classes))
    candidates = table.candidates(task.signature)
    table.refuse_problems()
    ignored = tuple(name for name in table.header if name not in {*task.signature.names, task.label})
    return Dataset(task, candidates, labels, Path(path).name, table.sha256, ignored)


def read_candidates(path: str | os.PathLike[str], signature: Signature) -> list[Candidate]:
    """Read candidates without labels; the header decides where each field stands.

    Raises
    ------
    DataError
        See `read_csv`.
    """
    table = _Table(path)
    table.require(_required(signature))
    candidates = table.candidates(signature)
    table.refuse_problems()
    return candidates


class _Table:
    """A CSV file's cells as text, and the problems found in them."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.source = os.fspath(path)
        self._problems: list[tuple[int, int, str]] = []
        try:
            content = Path(path).read_bytes()
            reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
            self.header = tuple(next(reader, ()))
            # A row of no cells is an empty line.
            self._rows = [(reader.line_num, cells) for cells in reader if cells]
        except OSError as error:
            raise DataError(self.source, [str(error.strerror)]) from error
        except UnicodeDecodeError as error:
            raise DataError(self.source, [f"must be UTF-8, byte {error.start} is not"]) from error
        except csv.Error as error:
            raise DataError(self.source, [f"line {reader.line_num}: {error}"]) from error
        self.sha256 = hashlib.sha256(content).hexdigest()
        self._check_shape()

    def require(self, columns: Sequence[str]) -> None:
        """Refuse a file without one of these columns."""
        missing = [name for name in columns if name not in self.header]
        if missing:
            raise DataError(
                self.source,
                [f"column {name!r} is missing, found: {', '.join(self.header)}" for name in missing],
            )

    def column(self, name: str, parse: Callable[[str], _Value]) -> list[_Value]:
        """Values of one column; what `parse` refuses with ValueError becomes a problem."""
        index = self.header.index(name)
        values = []
        for number, (line, cells) in enumerate(self._rows, start=1):
            try:
                values.append(parse(cells[index]))
            except ValueError as error:
                text = f"row {number} (line {line}), column {name!r}: {error}"
                self._problems.append((number, index, text))
        return values

    def candidates(self, signature: Signature) -> list[Candidate]:
        """Candidates of all rows, as good as they are: the problems are yet to be refused."""
        columns: list[Iterable[str | float]] = []
        for field in signature.fields:
            if field.name in self.header:
                columns.append(self.column(field.name, partial(_value, field)))
            else:
                columns.append(repeat(_value(field, ""), len(self._rows)))
        names = signature.names
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=False)]

    def refuse_problems(self) -> None:
        """Raise DataError if there were any, in the order of the file."""
        if self._problems:
            raise DataError(self.source, [text for _, _, text in sorted(self._problems)])

    def _check_shape(self) -> None:
        if not self._rows:
            raise DataError(self.source, ["must have a line of column names and at least one row"])
        twice = sorted({name for name in self.header if self.header.count(name) > 1})
        if twice:
            raise DataError(self.source, [f"column {name!r} stands twice" for name in twice])
        width = len(self.header)
        problems = [
            f"row {number} (line {line}): must have {width} cells, got {len(cells)}"
            for number, (line, cells) in enumerate(self._rows, start=1)
            if len(cells) != width
        ]
        if problems:
            raise DataError(self.source, problems)


def _required(signature: Signature) -> list[str]:
    return [field.name for field in signature.fields if field.default is None]


def _value(field: RawField, text: str) -> str | float:
    if text == "" and field.default is not None:
        return field.default
    if isinstance(field, Number):
        return _number(text, field)
    return _one_of(text, field.categories)


def _number(text: str, field: Number) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    # float() also reads 1_000 and nan; neither is what a percentage looks like.
    if "_" in text or not field.minimum <= value <= field.maximum:
        raise ValueError(f"must be {field.expected}, got {text!r}")
    return value


def _one_of(text: str, allowed: Sequence[str]) -> str:
    if text not in allowed:
        raise ValueError(f"must be one of {', '.join(allowed)}, got {text!r}")
    return text
