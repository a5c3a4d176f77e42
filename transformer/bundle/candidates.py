"""Raw candidates as they came in, not yet checked: one JSON object each, or one column for each field."""

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from operator import itemgetter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from transformer.errors import InvalidRequest, shortened

#: One field's values before validation: whatever the request held, one for each candidate.
RawColumn = Sequence[Any] | npt.NDArray[Any]
#: Maximum characters of a field's name in an error; a longer one is cut.
MAX_FIELD_LENGTH = 64
#: Some fields' values of one candidate.
Values = tuple[Any, ...]


class NeedsFullValidation(Exception):
    """Some value may not be what was asked for; to say which and why, each has to be looked at."""


#: What reading in bulk raises where a candidate lacks a field, is no object, or has values of other types.
NEEDS_FULL_VALIDATION = (NeedsFullValidation, KeyError, TypeError)


@dataclass(slots=True)
class Block:
    """Some candidates that follow each other, read in bulk.

    Attributes
    ----------
    rows
        Where they stand among all.
    numbers
        Their numeric fields, shape (candidates, fields); all surely numbers.
    groups
        For each group of other fields that was asked for: their values, whatever these are. To go through
        them may raise any of `NEEDS_FULL_VALIDATION`.
    """

    rows: slice
    numbers: npt.NDArray[np.float64]
    groups: list[Iterable[Values]]


class Candidates(Protocol):
    """Candidates of one request, in the form in which the request holds them: no field is read unasked."""

    @property
    def rows(self) -> int:
        """Number of candidates."""

    def dicts(self) -> Iterable[Mapping[str, Any]]:
        """Each candidate's fields; what is no candidate is passed on as it is."""

    def blocks(self, size: int, numbers: Sequence[str], groups: Sequence[Sequence[str]]) -> Iterator[Block]:
        """Numeric fields, and others in groups, of `size` candidates at a time.

        Raises
        ------
        one of NEEDS_FULL_VALIDATION
            If a value is missing, or a numeric field may hold something else than numbers.
        """

    def filled(self, defaults: Mapping[str, Any]) -> "Candidates":
        """The candidates with what they lack; one of NEEDS_FULL_VALIDATION if that cannot be had."""

    def check(self) -> None:
        """See that each candidate is one.

        Raises
        ------
        InvalidRequest
            If one is no object.
        """

    def column(self, field: str) -> RawColumn | None:
        """One field of all candidates, each None where it is missing; None if it is missing from all."""

    def locate(self, row: int, field: str) -> str:
        """Where a value stands in the caller's own request: ``instances[3].ssc_p``."""


class Rows:
    """Candidates as JSON objects.

    Parameters
    ----------
    objects
        What stands in the candidates' place, as parsed.
    path
        Name of that place in the request.
    """

    __slots__ = ("_objects", "_path", "rows")

    def __init__(self, objects: list[Any], path: str) -> None:
        self.rows = len(objects)
        self._objects = objects
        self._path = path

    def dicts(self) -> list[Any]:
        """Each candidate's fields; see `Candidates.dicts`."""
        return self._objects

    def blocks(self, size: int, numbers: Sequence[str], groups: Sequence[Sequence[str]]) -> Iterator[Block]:
        """Fields in bulk; see `Candidates.blocks`."""
        # A dict finds a value quickest by the very key that it holds, and objects that were parsed together
        # hold the same ones: a third less time than with our own, equal names.
        keys = {key: key for key in self._objects[0]}
        read_numbers = reader([keys[field] for field in numbers])
        read_groups = [reader([keys[field] for field in fields]) for fields in groups]
        for start in range(0, self.rows, size):
            part = self._objects[start : start + size]
            values = tuple(chain.from_iterable(map(read_numbers, part)))
            yield Block(
                slice(start, start + len(part)),
                _floats(values, (len(part), len(numbers))),
                [map(read, part) for read in read_groups],
            )

    def filled(self, defaults: Mapping[str, Any]) -> "Rows":
        """The candidates with what they lack; see `Candidates.filled`."""
        return Rows([{**defaults, **row} for row in self._objects], self._path)

    def check(self) -> None:
        """See that each candidate is one; see `Candidates.check`."""
        for number, row in enumerate(self._objects):
            if not isinstance(row, dict):
                raise InvalidRequest(f"{self._path}[{number}]: must be an object with the candidate's fields")

    def column(self, field: str) -> RawColumn:
        """One field of all candidates; see `Candidates.column`."""
        return [row.get(field) for row in self._objects]

    def locate(self, row: int, field: str) -> str:
        """Where a value stands: ``instances[3].ssc_p``."""
        return f"{self._path}[{row}].{shortened(field, MAX_FIELD_LENGTH)}"


class Columns:
    """Candidates as one tensor for each field.

    Parameters
    ----------
    rows
        Number of candidates.
    columns
        `rows` values for each field that the request has, None where one is missing.
    """

    __slots__ = ("_columns", "rows")

    def __init__(self, rows: int, columns: Mapping[str, RawColumn]) -> None:
        self.rows = rows
        self._columns = columns

    def dicts(self) -> Iterable[Mapping[str, Any]]:
        """Each candidate's fields; see `Candidates.dicts`."""
        names = tuple(self._columns)
        return [dict(zip(names, values, strict=True)) for values in self._values(names, slice(None))]

    def blocks(self, size: int, numbers: Sequence[str], groups: Sequence[Sequence[str]]) -> Iterator[Block]:
        """Fields in bulk; see `Candidates.blocks`."""
        for start in range(0, self.rows, size):
            rows = slice(start, min(start + size, self.rows))
            block = np.empty((rows.stop - start, len(numbers)))
            for number, field in enumerate(numbers):
                column = self._columns[field][rows]
                if not isinstance(column, np.ndarray):
                    block[:, number] = _floats(column, (len(column),))
                elif column.dtype.kind in "iuf":
                    block[:, number] = column
                else:
                    raise NeedsFullValidation
            yield Block(rows, block, [self._values(fields, rows) for fields in groups])

    def _values(self, fields: Sequence[str], rows: slice) -> Iterable[Values]:
        if not fields:
            return repeat((), self.rows)
        return zip(*(as_list(self._columns[field][rows]) for field in fields), strict=True)

    def filled(self, defaults: Mapping[str, Any]) -> "Columns":
        """The candidates with what they lack; see `Candidates.filled`."""
        columns: dict[str, RawColumn] = {name: [default] * self.rows for name, default in defaults.items()}
        return Columns(self.rows, {**columns, **self._columns})

    def check(self) -> None:
        """Nothing: each row of the tensors is a candidate."""

    def column(self, field: str) -> RawColumn | None:
        """One field of all candidates; see `Candidates.column`."""
        return self._columns.get(field)

    def locate(self, row: int, field: str) -> str:
        """Where a value stands: ``inputs.ssc_p[3]``."""
        return f"inputs.{shortened(field, MAX_FIELD_LENGTH)}[{row}]"


def reader(fields: Sequence[str]) -> Callable[[Mapping[str, Any]], Values]:
    """What takes some fields of a candidate, as a tuple however many they are."""
    if len(fields) > 1:
        return itemgetter(*fields)
    return lambda row: tuple([row[field] for field in fields])


def as_list(column: RawColumn) -> list[Any]:
    """A column's values, as Python's own types."""
    values: list[Any] = column.tolist() if isinstance(column, np.ndarray) else list(column)
    return values


def _floats(values: Sequence[Any], shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Values of JSON's types as floats, if all are numbers."""
    try:
        packed = struct.pack(f"{len(values)}d", *values)
    except (struct.error, OverflowError) as error:
        raise NeedsFullValidation from error
    floats: npt.NDArray[np.float64] = np.ndarray(shape, np.float64, packed)
    # A boolean was packed as the 0 or 1 that it is. Where there is none of these, no type needs a look; and
    # most often one comparison tells.
    if np.count_nonzero(floats <= 1) and np.count_nonzero((floats == 0) | (floats == 1)):
        _no_booleans(values)
    return floats


def _no_booleans(values: Sequence[Any]) -> None:
    if bool in set(map(type, values)):
        raise NeedsFullValidation
