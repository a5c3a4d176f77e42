"""Read labelled rows from files, and check every value against the signature.

The columns can be in any order. A column that is neither a field nor the label is passed over. An empty cell
gets the field's default, if the field has one. `training.table_file` describes the formats.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import orjson

from training.candidates import Candidate, Task
from training.cells import boolean_of, cell_texts, elements, finite_number, got, is_empty
from training.table import NO_ROWS, DataError, MissingColumnsError, Row, Table
from training.table_file import AUTOMATIC, Reading, read_whole
from transformer.bundle.classes import Label, class_name
from transformer.bundle.signature import Boolean, Category, CategoryList, Number, RawField, Signature, Value

__all__ = ["DataError", "Dataset", "MissingColumnsError", "read_dataset"]


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
        Columns of the file that are neither fields nor the label.
    passed_over
        Description of all that was passed over, with counts; empty for nothing.
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
    passed_over: str = ""
    defaulted: tuple[str, ...] = ()
    seed: int | None = None

    @property
    def generated(self) -> bool:
        """True if the candidates are generated."""
        return self.seed is not None

    @cached_property
    def first_rows(self) -> list[int]:
        """Index of the first candidate that is equal to each one: its own, if it is the first."""
        first: dict[bytes, int] = {}
        keys = (orjson.dumps(list(candidate.values())) for candidate in self.candidates)
        return [first.setdefault(key, index) for index, key in enumerate(keys)]

    @property
    def repeated(self) -> int:
        """Number of candidates that are equal to an earlier one."""
        return len(self.candidates) - len(set(self.first_rows))


def read_dataset(path: str | os.PathLike[str], task: Task, reading: Reading = AUTOMATIC) -> Dataset:
    """Read labelled candidates from a file of any format; ``-`` is standard input.

    Parameters
    ----------
    reading
        Properties of the file that are known.

    Raises
    ------
    DataError
        With all problems, for example a missing column, or
        ``row 3 (line 4), column 'ssc_p': must be 0 to 100, got '710'``.
    """
    columns = [*task.signature.names, task.label]
    table, content = read_whole(path, columns, reading)
    label = {task.label: label_parser(task, table.decimal)}
    candidates: list[Candidate] = []
    labels: list[Label] = []
    empty = set(task.signature.names)
    for row, candidate in _rows(table, task.signature, label):
        candidates.append(candidate)
        labels.append(row.values[task.label])
        empty = {name for name in empty if row.is_empty(name)}
    return Dataset(
        task,
        candidates,
        labels,
        source=Path(table.source).name,
        sha256=hashlib.sha256(content).hexdigest(),
        ignored=table.foreign(columns),
        passed_over=table.passed_over(columns),
        defaulted=tuple(name for name in task.signature.names if name in empty),
    )


def label_parser(task: Task, decimal: str = ".") -> Callable[[Any], Label]:
    """Return a function that reads a cell of the label: a class of the task, or a number for regression.

    A class that is a number or a boolean may be written in any way: ``1``, ``1.0``; ``True``, ``true``.
    """
    if task.kind == "regression":
        return partial(finite_number, decimal=decimal)
    by_text: dict[str, Label] = {class_name(label): label for label in task.classes}

    def parse(cell: Any) -> Label:  # noqa: ANN401 (of any type)
        if isinstance(task.classes[0], bool):
            for text in cell_texts(cell):
                if text.casefold() in by_text:
                    return by_text[text.casefold()]
        elif not isinstance(task.classes[0], str):
            with suppress(ValueError):
                return task.classes[task.classes.index(finite_number(cell, decimal))]
        return by_text[_one_of(cell, tuple(by_text))]

    return parse


def _rows(
    table: Table, signature: Signature, more: Mapping[str, Callable[[Any], Any]]
) -> Iterator[tuple[Row, Candidate]]:
    """Yield each row with its candidate; the row has the values of the columns in `more`, too."""
    table.check_names([*signature.names, *more])
    table.require([*signature.required, *more])
    parsers = {
        field.name: partial(_value, field, decimal=table.decimal)
        for field in signature.fields
        if field.name in table.header
    }
    defaults: dict[str, Any] = {field.name: field.default for field in signature.fields}
    number = 0
    for row in table.rows({**parsers, **more}):
        number = row.number
        yield (
            row,
            {name: default if row.is_empty(name) else row.values[name] for name, default in defaults.items()},
        )
    if not number:
        raise DataError(table.source, [NO_ROWS])


def _value(field: RawField, cell: object, decimal: str) -> Value | None:
    if field.default is not None and is_empty(cell):
        return None
    if isinstance(field, Number):
        return _number(cell, field, decimal)
    if isinstance(field, Boolean):
        return _boolean(cell)
    if isinstance(field, CategoryList):
        return tuple(_category(one, field) for one in elements(cell))
    return _category(cell, field)


def _category(cell: object, field: Category | CategoryList) -> str:
    texts = cell_texts(cell)
    if field.open and not any(text in field.categories for text in texts):
        return str(cell).strip()
    return _one_of(cell, field.categories)


def _boolean(cell: object) -> bool:
    value = boolean_of(cell)
    if value is None:
        raise ValueError(f"must be true or false, {got(cell)}")
    return value


def _number(cell: object, field: Number, decimal: str) -> float:
    try:
        value = finite_number(cell, decimal)
    except ValueError:
        value = math.nan
    if not field.accepts(value):
        raise ValueError(f"must be {field.expected}, {got(cell, decimal)}")
    return value


def _one_of(cell: object, allowed: Sequence[str]) -> str:
    for text in cell_texts(cell):
        if text in allowed:
            return text
    raise ValueError(f"must be one of {', '.join(allowed)}, {got(cell)}")
