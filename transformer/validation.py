"""Raw candidates, as columns, held against the signature: every problem is found and named."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from transformer.errors import InvalidCandidates
from transformer.signature import Category, Number, RawField, Signature

#: Stands for a field that a candidate does not have. JSON's null means the same.
MISSING = None
#: Longest part of a caller's own value that an error repeats.
MAX_ECHO = 40

UnknownCategory = Literal["refuse", "ignore"]
#: A column before validation: whatever the request held, one value for each candidate.
RawColumn = Sequence[Any] | npt.NDArray[Any]
#: A column after validation: float64 for a number, str (None: unknown and ignored) for a category.
Column = npt.NDArray[np.float64] | list[str | None]
#: Says where a value stands in the caller's own request: ``locate(3, "ssc_p")`` is ``instances[3].ssc_p``.
Locate = Callable[[int, str], str]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Candidates of one request as it came in, column by column.

    Attributes
    ----------
    rows
        Number of candidates.
    columns
        One column of `rows` values for each field that the request has; other fields are missing.
    locate
        Names a value's place in the request.
    """

    rows: int
    columns: Mapping[str, RawColumn]
    locate: Locate


@dataclass(frozen=True, slots=True)
class ValidCandidates:
    """Candidates that the signature allows: one typed column for each of its fields."""

    rows: int
    columns: Mapping[str, Column]


def validate(
    candidates: Candidates, signature: Signature, unknown_category: UnknownCategory = "refuse"
) -> ValidCandidates:
    """Check every value of every candidate.

    Fields that the signature does not know are passed over, as DictVectorizer does.

    Raises
    ------
    InvalidCandidates
        With every problem, in the order of the candidates and of the signature's fields.
    """
    columns: dict[str, Column] = {}
    problems: list[tuple[int, int, str]] = []
    for order, field in enumerate(signature.fields):
        raw = candidates.columns.get(field.name)
        if raw is None:
            raw = [MISSING] * candidates.rows
        column = _valid_column(raw, field, unknown_category)
        if column is None:
            problems += ((row, order, text) for row, text in _problems(raw, field, unknown_category))
        else:
            columns[field.name] = column
    if problems:
        problems.sort()
        names = signature.names
        raise InvalidCandidates(
            [f"{candidates.locate(row, names[order])}: {text}" for row, order, text in problems]
        )
    return ValidCandidates(candidates.rows, columns)


def _valid_column(raw: RawColumn, field: RawField, unknown_category: UnknownCategory) -> Column | None:
    """The typed column, or None if any value of it is not valid."""
    if isinstance(field, Number):
        return _numbers(raw, field)
    return _categories(raw, field, unknown_category)


def _numbers(raw: RawColumn, field: Number) -> npt.NDArray[np.float64] | None:
    if isinstance(raw, np.ndarray):
        if raw.dtype.kind not in "iuf":
            return None
        column = raw.astype(np.float64)
    else:
        if field.default is not None:
            raw = [field.default if value is MISSING else value for value in raw]
        if not set(map(type, raw)) <= {float, int}:
            return None
        try:
            column = np.array(raw, dtype=np.float64)
        except OverflowError:
            return None
    # NaN fails both comparisons.
    in_range = bool(np.all((column >= field.minimum) & (column <= field.maximum)))
    return column if in_range else None


def _categories(
    raw: RawColumn, field: Category, unknown_category: UnknownCategory
) -> list[str | None] | None:
    values: list[Any] = raw.tolist() if isinstance(raw, np.ndarray) else list(raw)
    if field.default is not None:
        values = [field.default if value is MISSING else value for value in values]
    if not set(map(type, values)) <= {str}:
        return None
    unknown = set(values).difference(field.categories)
    if not unknown:
        return values
    if unknown_category == "refuse":
        return None
    return [None if value in unknown else value for value in values]


def _problems(
    raw: RawColumn, field: RawField, unknown_category: UnknownCategory
) -> Iterator[tuple[int, str]]:
    """Row and sentence of each value that is not valid."""
    for row, value in enumerate(raw.tolist() if isinstance(raw, np.ndarray) else raw):
        if value is MISSING:
            problem = None if field.default is not None else f"is required, expected {field.expected}"
        elif isinstance(field, Number):
            problem = _number_problem(value, field)
        else:
            problem = _category_problem(value, field, unknown_category)
        if problem:
            yield row, problem


def _number_problem(value: object, field: Number) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"must be a number, {field.expected}, got {typed(value)}"
    if not field.minimum <= value <= field.maximum:
        return f"must be {field.expected}, got {_echo(value)}"
    return None


def _category_problem(value: object, field: Category, unknown_category: UnknownCategory) -> str | None:
    if not isinstance(value, str):
        return f"must be a string, {field.expected}, got {typed(value)}"
    if value not in field.categories and unknown_category == "refuse":
        return f"must be {field.expected}, got {_echo(value)}"
    return None


_JSON_TYPES = {bool: "a boolean", str: "a string", dict: "an object", list: "an array", bytes: "bytes"}


def typed(value: object) -> str:
    """A value of the wrong type: its JSON type, with the value where it is short by nature."""
    if isinstance(value, (dict, list)):
        return _JSON_TYPES[type(value)]
    return f"{_JSON_TYPES.get(type(value), 'the number')} {_echo(value)}"


def _echo(value: object) -> str:
    """A short, escaped form of the caller's own value."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 64:
        return "a number of more than 64 bits"
    text = ascii(value) if isinstance(value, (str, bytes)) else f"{value}".lower()
    return text if len(text) <= MAX_ECHO else text[: MAX_ECHO - 1] + "…"
