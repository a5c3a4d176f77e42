"""Raw candidates, field by field, held against the signature: every problem is found and named."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from transformer.bundle.candidates import Candidates, RawColumn, as_list
from transformer.bundle.signature import Category, Number, RawField, Signature
from transformer.errors import MAX_PROBLEMS, InvalidCandidates

#: Stands for a field that a candidate does not have. JSON's null means the same.
MISSING = None
#: Longest part of a caller's own value that an error repeats.
MAX_ECHO = 40

UnknownCategory = Literal["refuse", "ignore"]
#: Whether an unknown category is encoded as none.
Ignores = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class ValidCandidates:
    """Candidates that the signature allows: one typed column for each of its fields.

    Attributes
    ----------
    numbers
        One float64 array for each numeric field.
    categories
        One list of strings for each other field, None where an unknown one is ignored.
    """

    rows: int
    numbers: Mapping[str, npt.NDArray[np.float64]]
    categories: Mapping[str, list[str | None]]


def validate(
    candidates: Candidates,
    signature: Signature,
    unknown_category: UnknownCategory = "refuse",
    newest: Signature | None = None,
) -> ValidCandidates:
    """Check every value of every candidate.

    Fields that the signature does not know are passed over, as DictVectorizer does. Unknown categories may
    be ignored, but never those that `newest` lists.

    Raises
    ------
    InvalidRequest
        If a candidate is no object.
    InvalidCandidates
        With the first problems, in the order of the candidates and of the signature's fields.
    """
    candidates.check()
    numbers: dict[str, npt.NDArray[np.float64]] = {}
    categories: dict[str, list[str | None]] = {}
    wrong: dict[str, list[Any]] = {}
    problems: list[tuple[int, int]] = []
    total = 0
    for order, field in enumerate(signature.fields):
        raw = candidates.column(field.name)
        if raw is None:
            raw = [MISSING] * candidates.rows
        ignores = _ignores(field.name, unknown_category, newest)
        if isinstance(field, Number) and (number := _numbers(raw, field)) is not None:
            numbers[field.name] = number
        elif isinstance(field, Category) and (category := _categories(raw, field, ignores)) is not None:
            categories[field.name] = category
        else:
            values = wrong[field.name] = as_list(raw)
            rows = _wrong(values, field, ignores)
            total += len(rows)
            problems += ((row, order) for row in rows[:MAX_PROBLEMS])
    if problems:
        first = ((row, signature.fields[order]) for row, order in sorted(problems)[:MAX_PROBLEMS])
        sentences = [
            f"{candidates.locate(row, field.name)}: {_problem(wrong[field.name][row], field)}"
            for row, field in first
        ]
        raise InvalidCandidates(sentences, total)
    return ValidCandidates(candidates.rows, numbers, categories)


def _ignores(name: str, unknown_category: UnknownCategory, newest: Signature | None) -> Ignores:
    """Which values of a field are encoded as none where its signature does not list them."""
    if unknown_category == "refuse":
        return lambda _: False
    newer = {
        category
        for field in (newest.fields if newest is not None else ())
        if isinstance(field, Category) and field.name == name
        for category in field.categories
    }
    return lambda value: value not in newer


def _numbers(raw: RawColumn, field: Number) -> npt.NDArray[np.float64] | None:
    """The column as float64, or None if any value of it is not valid."""
    if isinstance(raw, np.ndarray):
        if raw.dtype.kind not in "iuf":
            return None
        column = raw.astype(np.float64)
    else:
        if field.default is not None:
            raw = [field.default if value is MISSING else value for value in raw]
        if not all(_is_number(kind) for kind in set(map(type, raw))):
            return None
        try:
            column = np.array(raw, dtype=np.float64)
        except OverflowError:
            return None
    # NaN fails both comparisons.
    in_range = bool(np.all((column >= field.minimum) & (column <= field.maximum)))
    return column if in_range else None


def _is_number(kind: type) -> bool:
    return issubclass(kind, (int, float)) and not issubclass(kind, bool)


def _categories(raw: RawColumn, field: Category, ignores: Ignores) -> list[str | None] | None:
    """The column as strings, or None if any value of it is not valid."""
    values = as_list(raw)
    if field.default is not None:
        values = [field.default if value is MISSING else value for value in values]
    if not all(issubclass(kind, str) for kind in set(map(type, values))):
        return None
    unknown = set(values).difference(field.categories)
    if not unknown:
        return values
    if not all(map(ignores, unknown)):
        return None
    return [None if value in unknown else value for value in values]


def _wrong(values: list[Any], field: RawField, ignores: Ignores) -> list[int]:
    """Rows whose value is not valid. There may be a hundred thousand, so that none is put into words yet."""
    optional = field.default is not None
    if isinstance(field, Number):
        least, greatest = field.minimum, field.maximum
        return [
            row
            for row, value in enumerate(values)
            if not (optional if value is MISSING else _is_number(type(value)) and least <= value <= greatest)
        ]
    return [
        row
        for row, value in enumerate(values)
        if not (
            optional
            if value is MISSING
            else isinstance(value, str) and (value in field.categories or ignores(value))
        )
    ]


def _problem(value: object, field: RawField) -> str:
    """What is wrong with a value that is not valid."""
    if value is MISSING:
        return f"is required, expected {field.expected}"
    if isinstance(field, Number):
        kind, fits = "a number", _is_number(type(value))
    else:
        kind, fits = "a string", isinstance(value, str)
    if fits:
        return f"must be {field.expected}, got {_echo(value)}"
    return f"must be {kind}, {field.expected}, got {typed(value)}"


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
