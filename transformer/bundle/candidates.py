"""Raw candidates of a request before validation: one JSON object each, or one column per field."""

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from operator import itemgetter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from transformer.errors import InvalidRequest, shortened

#: One field's values before validation, of any type, one per candidate.
RawColumn = Sequence[Any] | npt.NDArray[Any]
#: One candidate's values of some fields.
Values = tuple[Any, ...]
#: Maximum characters of a field's name in an error; a longer one is cut.
MAX_FIELD_LENGTH = 64


class NeedsFullValidation(Exception):
    """A value that may be invalid. Only validation of each value can say which and why."""


#: Raised by the fast reads where a candidate may be invalid: not an object, a missing field, another type.
NEEDS_FULL_VALIDATION = (NeedsFullValidation, KeyError, TypeError)


@dataclass(slots=True)
class Block:
    """Consecutive candidates, read together.

    Attributes
    ----------
    rows
        Their positions among all candidates.
    numbers : ndarray of float64, shape (candidates, fields)
        Their numeric fields. Every value was a number.
    groups
        For each requested group of other fields, one tuple of values per candidate. The values are not
        checked, and iteration may raise any of `NEEDS_FULL_VALIDATION`.
    """

    rows: slice
    numbers: npt.NDArray[np.float64]
    groups: list[Iterable[Values]]


class Candidates(Protocol):
    """Candidates of one request, in the form that the request has. Fields are read only on demand."""

    @property
    def rows(self) -> int:
        """Number of candidates."""

    def dicts(self) -> Iterable[Mapping[str, Any]]:
        """Return each candidate's fields; an item that is not an object is returned unchanged."""

    def read_blocks(
        self, size: int, numbers: Sequence[str], groups: Sequence[Sequence[str]]
    ) -> Iterator[Block]:
        """Read numeric fields, and groups of other fields, of `size` candidates at a time.

        Raises
        ------
        one of NEEDS_FULL_VALIDATION
            If a value is missing, or a numeric field may have a value that is not a number.
        """

    def with_defaults(self, defaults: Mapping[str, Any]) -> "Candidates":
        """Return the candidates with defaults in place of missing fields.

        Raises
        ------
        one of NEEDS_FULL_VALIDATION
            If a candidate is not an object.
        """

    def check_objects(self) -> None:
        """Check that each candidate is an object.

        Raises
        ------
        InvalidRequest
            If one is not.
        """

    def column(self, field: str) -> RawColumn | None:
        """Return one field of all candidates, None where it is missing; or None if no candidate has it."""

    def locate(self, row: int, field: str) -> str:
        """Return the path of a value in the caller's request: ``instances[3].ssc_p``."""


class Rows:
    """Candidates as JSON objects.

    Parameters
    ----------
    objects
        The parsed items, of any type.
    path
        Path of the list in the request.
    """

    __slots__ = ("_objects", "_path", "rows")

    def __init__(self, objects: list[Any], path: str) -> None:
        self.rows = len(objects)
        self._objects = objects
        self._path = path

    def dicts(self) -> list[Any]:
        """See `Candidates.dicts`."""
        return self._objects

    def read_blocks(
        self, size: int, numbers: Sequence[str], groups: Sequence[Sequence[str]]
    ) -> Iterator[Block]:
        """See `Candidates.read_blocks`."""
        # A dict finds a value fastest by the very key object that it holds, and objects that were parsed
        # together share their keys: a third less time than with equal strings of our own.
        keys = {key: key for key in self._objects[0]}
        read_numbers = tuple_getter([keys[field] for field in numbers])
        read_groups = [tuple_getter([keys[field] for field in fields]) for fields in groups]
        for start in range(0, self.rows, size):
            part = self._objects[start : start + size]
            values = tuple(chain.from_iterable(map(read_numbers, part)))
            yield Block(
                slice(start, start + len(part)),
                _floats(values, (len(part), len(numbers))),
                [map(read, part) for read in read_groups],
            )

    def with_defaults(self, defaults: Mapping[str, Any]) -> "Rows":
        """See `Candidates.with_defaults`."""
        return Rows([{**defaults, **row} for row in self._objects], self._path)

    def check_objects(self) -> None:
        """See `Candidates.check_objects`."""
        for number, row in enumerate(self._objects):
            if not isinstance(row, dict):
                raise InvalidRequest(f"{self._path}[{number}]: must be an object with the candidate's fields")

    def column(self, field: str) -> RawColumn:
        """See `Candidates.column`."""
        return [row.get(field) for row in self._objects]

    def locate(self, row: int, field: str) -> str:
        """Return the path of a value: ``instances[3].ssc_p``."""
        return f"{self._path}[{row}].{shortened(field, MAX_FIELD_LENGTH)}"


class Columns:
    """Candidates as one tensor per field.

    Parameters
    ----------
    rows
        Number of candidates.
    columns
        `rows` values for each field in the request, None where a value is missing.
    """

    __slots__ = ("_columns", "rows")

    def __init__(self, rows: int, columns: Mapping[str, RawColumn]) -> None:
        self.rows = rows
        self._columns = columns

    def dicts(self) -> Iterable[Mapping[str, Any]]:
        """See `Candidates.dicts`."""
        names = tuple(self._columns)
        return [dict(zip(names, values, strict=True)) for values in self._values(names, slice(None))]

    def read_blocks(
        self, size: int, numbers: Sequence[str], groups: Sequence[Sequence[str]]
    ) -> Iterator[Block]:
        """See `Candidates.read_blocks`."""
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

    def with_defaults(self, defaults: Mapping[str, Any]) -> "Columns":
        """See `Candidates.with_defaults`."""
        columns: dict[str, RawColumn] = {name: [default] * self.rows for name, default in defaults.items()}
        return Columns(self.rows, {**columns, **self._columns})

    def check_objects(self) -> None:
        """Do nothing: each row of the tensors is a candidate."""

    def column(self, field: str) -> RawColumn | None:
        """See `Candidates.column`."""
        return self._columns.get(field)

    def locate(self, row: int, field: str) -> str:
        """Return the path of a value: ``inputs.ssc_p[3]``."""
        return f"inputs.{shortened(field, MAX_FIELD_LENGTH)}[{row}]"


def tuple_getter(fields: Sequence[str]) -> Callable[[Mapping[str, Any]], Values]:
    """Return a function that reads fields of a candidate as a tuple, also for one field or none."""
    if len(fields) > 1:
        return itemgetter(*fields)
    return lambda row: tuple([row[field] for field in fields])


def as_list(column: RawColumn) -> list[Any]:
    """Return a column's values as Python objects."""
    values: list[Any] = column.tolist() if isinstance(column, np.ndarray) else list(column)
    return values


def _floats(values: Sequence[Any], shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Return values of JSON's types as floats; raise NeedsFullValidation if one is not a number."""
    try:
        packed = struct.pack(f"{len(values)}d", *values)
    except (struct.error, OverflowError) as error:
        raise NeedsFullValidation from error
    floats: npt.NDArray[np.float64] = np.ndarray(shape, np.float64, packed)
    # `pack` writes a boolean as 0 or 1. Where neither is present, no type needs a check, and usually one
    # comparison shows that.
    if np.count_nonzero(floats <= 1) and np.count_nonzero((floats == 0) | (floats == 1)):
        _reject_booleans(values)
    return floats


def _reject_booleans(values: Sequence[Any]) -> None:
    if bool in set(map(type, values)):
        raise NeedsFullValidation
