"""Raw candidates of a request before validation: one JSON object each, or one column per field."""

import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain, groupby, repeat
from operator import itemgetter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import orjson

from transformer.errors import MAX_PROBLEMS, InvalidCandidates, shortened

#: One field's values before validation, of any type, one per candidate.
RawColumn = Sequence[Any] | npt.NDArray[Any]
#: One candidate's values of some fields.
Values = tuple[Any, ...]
#: Maximum characters of a field's name in an error; a longer one is cut.
MAX_FIELD_LENGTH = 64
#: Minimum rows that are read by their own key objects, which takes 1 µs to prepare. From there on it saves
#: time if the parser no longer uses the key objects of `FieldGroup`.
MIN_ROWS_FOR_OWN_KEYS = 32
#: Maximum functions that `NumericFields` keeps, one per number of candidates. For 512 candidates with 5
#: numbers, one takes 80 kB, and about 50 µs to make.
MAX_PACKERS = 16
_FLOAT64 = np.dtype(np.float64)
#: The slice of all candidates.
ALL_ROWS = slice(None)


class NeedsFullValidation(Exception):
    """A value that may be invalid. Only validation of each value can say which and why."""


#: Raised by the fast reads where a candidate may be invalid: not an object, a missing field, another type, an
#: integer that is too large for a float.
NEEDS_FULL_VALIDATION = (NeedsFullValidation, KeyError, TypeError, struct.error, OverflowError)


class FieldGroup:
    """Fields that are read together.

    Attributes
    ----------
    names
        The fields, in order.
    read
        Returns one candidate's values as a tuple, in the same order.
    """

    __slots__ = ("names", "read")

    def __init__(self, names: Sequence[str]) -> None:
        self.names = _parsed_keys(names)
        self.read = _tuple_getter(self.names)

    def read_with_keys_of(self, candidate: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Values]:
        """Return a function like `read` that looks up a candidate's own key objects."""
        return _tuple_getter(self.read({key: key for key in candidate}))


class NumericFields(FieldGroup):
    """The numeric fields, and the column of each in the feature matrix.

    Parameters
    ----------
    columns
        Column of each field. The fields are read in the order of their columns.
    width
        Number of columns of the feature matrix.

    Attributes
    ----------
    packer
        Returns a function for a number of candidates. Called with all their numbers, it returns the bytes of
        their feature matrix, with 0 in the other columns.
    """

    __slots__ = ("_row_format", "columns", "packer", "width")

    def __init__(self, columns: Mapping[str, int], width: int) -> None:
        super().__init__(sorted(columns, key=columns.__getitem__))
        self.columns = [columns[name] for name in self.names]
        self.width = width
        runs = groupby(range(width), set(self.columns).__contains__)
        self._row_format = "".join(
            "d" * len([*run]) if number else f"{8 * len([*run])}x" for number, run in runs
        )
        self.packer = lru_cache(MAX_PACKERS)(self._make_packer)

    def __reduce__(self) -> tuple[Any, ...]:
        # For worker processes: the packers cannot be pickled.
        return NumericFields, (dict(zip(self.names, self.columns, strict=True)), self.width)

    def _make_packer(self, rows: int) -> Callable[..., bytes]:
        return struct.Struct(self._row_format * rows).pack


class CodedColumn(Sequence[Any]):
    """One field's values as codes of distinct values, which the encoder reads without a loop.

    Parameters
    ----------
    values
        The distinct values, and perhaps others.
    codes : ndarray of integers, shape (candidates,)
        Place of each candidate's value in `values`.
    """

    __slots__ = ("codes", "values")

    def __init__(self, values: Sequence[Any], codes: npt.NDArray[np.integer[Any]]) -> None:
        self.values = values
        self.codes = codes

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, place: Any) -> Any:  # noqa: ANN401 (an index or a slice)
        if isinstance(place, slice):
            return CodedColumn(self.values, self.codes[place])
        return self.values[self.codes[place]]

    def __iter__(self) -> Iterator[Any]:
        return map(self.values.__getitem__, self.codes.tolist())


class Candidates(Protocol):
    """Candidates of one request, in the form that the request has. Fields are read only on demand."""

    @property
    def rows(self) -> int:
        """Number of candidates."""

    def dicts(self) -> Iterable[Mapping[str, Any]]:
        """Return each candidate's fields; an item that is not an object is returned unchanged."""

    def blocks(self, size: int) -> Iterator["Candidates"]:
        """Yield the candidates in blocks of `size`."""

    def numbers(self, fields: NumericFields) -> npt.NDArray[np.float64]:
        """Return the feature matrix with the numeric fields, and 0 in the other columns.

        Raises
        ------
        one of NEEDS_FULL_VALIDATION
            If a value is missing, or is neither a number nor a boolean.
        """

    def has_booleans(self, fields: FieldGroup) -> bool:
        """Return True if a value in the fields is a boolean."""

    def tuples(self, fields: FieldGroup) -> Iterable[Values]:
        """Return one tuple of unchecked values per candidate.

        Raises
        ------
        one of NEEDS_FULL_VALIDATION
            If a value is missing; also during iteration.
        """

    def coded(self, fields: FieldGroup) -> list[CodedColumn] | None:
        """Return one column per field; None if not all have codes, or there are no fields.

        Raises
        ------
        one of NEEDS_FULL_VALIDATION
            If a field is missing.
        """

    def with_defaults(self, defaults: Mapping[str, Any]) -> "Candidates":
        """Return the candidates with defaults in place of missing fields.

        Raises
        ------
        one of NEEDS_FULL_VALIDATION
            If a candidate is not an object.
        """

    def names(self, rows: slice = ALL_ROWS) -> set[str]:
        """Return the names of all values of some candidates, also of those that belong to no field.

        Raises
        ------
        one of NEEDS_FULL_VALIDATION
            If a candidate is not an object.
        """

    def check_objects(self) -> None:
        """Check that each candidate is an object.

        Raises
        ------
        InvalidCandidates
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

    def blocks(self, size: int) -> Iterator["Rows"]:
        """See `Candidates.blocks`."""
        for start in range(0, self.rows, size):
            yield Rows(self._objects[start : start + size], self._path)

    def numbers(self, fields: NumericFields) -> npt.NDArray[np.float64]:
        """See `Candidates.numbers`."""
        values = tuple(chain.from_iterable(self.tuples(fields)))
        return np.ndarray((self.rows, fields.width), _FLOAT64, fields.packer(self.rows)(*values))

    def has_booleans(self, fields: FieldGroup) -> bool:
        """See `Candidates.has_booleans`."""
        return bool in set(map(type, chain.from_iterable(self.tuples(fields))))

    def tuples(self, fields: FieldGroup) -> Iterable[Values]:
        """See `Candidates.tuples`."""
        few = self.rows < MIN_ROWS_FOR_OWN_KEYS
        return map(fields.read if few else fields.read_with_keys_of(self._objects[0]), self._objects)

    def coded(self, fields: FieldGroup) -> None:
        """See `Candidates.coded`."""

    def with_defaults(self, defaults: Mapping[str, Any]) -> "Rows":
        """See `Candidates.with_defaults`."""
        return Rows([{**defaults, **row} for row in self._objects], self._path)

    def names(self, rows: slice = ALL_ROWS) -> set[str]:
        """See `Candidates.names`."""
        return set[str]().union(*self._objects[rows])

    def check_objects(self) -> None:
        """See `Candidates.check_objects`."""
        refused = [row for row, candidate in enumerate(self._objects) if not isinstance(candidate, dict)]
        if refused:
            problems = [
                f"{self._path}[{row}]: must be an object of fields and values"
                for row in refused[:MAX_PROBLEMS]
            ]
            raise InvalidCandidates(problems, len(refused), refused)

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
    others
        Names of tensors in the request that belong to no field.
    """

    __slots__ = ("_columns", "_others", "rows")

    def __init__(self, rows: int, columns: Mapping[str, RawColumn], others: Collection[str] = ()) -> None:
        self.rows = rows
        self._columns = columns
        self._others = others

    def dicts(self) -> Iterable[Mapping[str, Any]]:
        """See `Candidates.dicts`."""
        columns = [as_list(column) for column in self._columns.values()]
        return [dict(zip(self._columns, values, strict=True)) for values in zip(*columns, strict=True)]

    def blocks(self, size: int) -> Iterator["Columns"]:
        """See `Candidates.blocks`."""
        for start in range(0, self.rows, size):
            rows = slice(start, min(start + size, self.rows))
            columns = {name: values[rows] for name, values in self._columns.items()}
            yield Columns(rows.stop - start, columns, self._others)

    def numbers(self, fields: NumericFields) -> npt.NDArray[np.float64]:
        """See `Candidates.numbers`."""
        matrix = np.zeros((self.rows, fields.width))
        for name, number in zip(fields.names, fields.columns, strict=True):
            column = self._columns[name]
            if not isinstance(column, np.ndarray):
                matrix[:, number] = np.frombuffer(struct.pack(f"{self.rows}d", *column))
            elif column.dtype.kind in "iuf":
                matrix[:, number] = column
            else:
                raise NeedsFullValidation
        return matrix

    def has_booleans(self, fields: FieldGroup) -> bool:
        """See `Candidates.has_booleans`."""
        columns = [self._columns[name] for name in fields.names]
        return any(bool in set(map(type, column)) for column in columns if not isinstance(column, np.ndarray))

    def tuples(self, fields: FieldGroup) -> Iterable[Values]:
        """See `Candidates.tuples`."""
        if not fields.names:
            return repeat((), self.rows)
        return zip(*(as_list(self._columns[name]) for name in fields.names), strict=True)

    def coded(self, fields: FieldGroup) -> list[CodedColumn] | None:
        """See `Candidates.coded`."""
        columns = [self._columns[name] for name in fields.names]
        found = [column for column in columns if isinstance(column, CodedColumn)]
        return found if found and len(found) == len(columns) else None

    def with_defaults(self, defaults: Mapping[str, Any]) -> "Columns":
        """See `Candidates.with_defaults`."""
        columns: dict[str, RawColumn] = {name: [default] * self.rows for name, default in defaults.items()}
        return Columns(self.rows, {**columns, **self._columns}, self._others)

    def names(self, rows: slice = ALL_ROWS) -> set[str]:
        """See `Candidates.names`."""
        return {*self._columns, *self._others}

    def check_objects(self) -> None:
        """Do nothing: each row of the tensors is a candidate."""

    def column(self, field: str) -> RawColumn | None:
        """See `Candidates.column`."""
        return self._columns.get(field)

    def locate(self, row: int, field: str) -> str:
        """Return the path of a value: ``inputs.ssc_p[3]``."""
        return f"inputs.{shortened(field, MAX_FIELD_LENGTH)}[{row}]"


def _tuple_getter(names: Sequence[str]) -> Callable[[Mapping[str, Any]], Values]:
    """Return a function that reads fields of a candidate as a tuple, also for one field or none."""
    if len(names) > 1:
        return itemgetter(*names)
    # Not a lambda: it is pickled for each worker.
    return partial(_read_tuple, names)


def _read_tuple(names: Sequence[str], row: Mapping[str, Any]) -> Values:
    return tuple([row[name] for name in names])


def _parsed_keys(names: Sequence[str]) -> tuple[str, ...]:
    """Return names as the key objects that the JSON parser puts into its dicts.

    The parser keeps the keys of earlier documents and uses them again, until other keys displace them. A dict
    finds a value fastest by the very key object that it holds.
    """
    return tuple(orjson.loads(orjson.dumps(dict.fromkeys(names))))


def as_list(column: RawColumn) -> list[Any]:
    """Return a column's values as Python objects."""
    values: list[Any] = column.tolist() if isinstance(column, np.ndarray) else list(column)
    return values
