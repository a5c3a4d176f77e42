"""Validation of raw candidates against the signature: finds and names every problem."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson

from transformer.bundle.candidates import Candidates, RawColumn, as_list
from transformer.bundle.plain_errors import describe, shown
from transformer.bundle.signature import Boolean, Category, CategoryList, Number, RawField, Signature
from transformer.errors import MAX_PROBLEMS, InvalidCandidates

#: A missing value, also JSON's null.
MISSING = None
#: Maximum unknown names that an error about a missing field lists.
MAX_UNKNOWN_NAMES = 5

UnknownCategory = Literal["refuse", "ignore"]
#: True for an unknown category that is encoded as zeros.
IsIgnored = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class ValidCandidates:
    """Candidates that the signature allows: one typed column per field.

    Attributes
    ----------
    numbers
        One float64 array per numeric field, and per boolean field, of 1 and 0.
    categories
        One list of strings per categorical field, None in place of an ignored value.
    lists
        One list of lists of strings per field of several categories, without ignored values.
    """

    rows: int
    numbers: Mapping[str, npt.NDArray[np.float64]]
    categories: Mapping[str, list[str | None]]
    lists: Mapping[str, list[list[str]]]


def validate(
    candidates: Candidates,
    signature: Signature,
    unknown_category: UnknownCategory = "refuse",
    newest: Signature | None = None,
) -> ValidCandidates:
    """Check every value of every candidate.

    Names that the signature does not list are skipped, as in DictVectorizer, unless one differs only in
    spelling from a field that is missing: the field would get its default. With ``ignore``, a value that
    no version lists is ignored; one that `newest` lists is still an error.

    Raises
    ------
    InvalidCandidates
        If a candidate is not an object. If all are, but a value is invalid; problems are in the order of the
        candidates, then of the fields.
    """
    candidates.check_objects()
    misspelled = signature.misspelled(candidates.names())
    numbers: dict[str, npt.NDArray[np.float64]] = {}
    categories: dict[str, list[str | None]] = {}
    lists: dict[str, list[list[str]]] = {}
    invalid: dict[str, list[Any]] = {}
    problems: list[tuple[int, int]] = []
    total = 0
    refused: set[int] = set()
    for order, field in enumerate(signature.fields):
        raw = candidates.column(field.name)
        if raw is None:
            raw = [MISSING] * candidates.rows
        is_ignored = _ignored_categories(field, unknown_category, newest)
        wrong_names = {name for name, meant in misspelled.items() if meant == field.name}
        misspelled_rows = _misspelled_rows(candidates, raw, wrong_names)
        values = _with_default(raw, field)
        column = None if misspelled_rows else _valid_column(values, field, is_ignored)
        if column is None:
            invalid[field.name] = as_list(raw)
            rows = sorted({*_invalid_rows(as_list(values), field, is_ignored), *misspelled_rows})
            total += len(rows)
            refused.update(rows)
            problems += ((row, order) for row in rows[:MAX_PROBLEMS])
        elif isinstance(column, np.ndarray):
            numbers[field.name] = column
        elif isinstance(field, CategoryList):
            lists[field.name] = column
        else:
            categories[field.name] = column
    if problems:
        names = _NamesSent(candidates, signature)
        first = ((row, signature.fields[order]) for row, order in sorted(problems)[:MAX_PROBLEMS])
        texts = [
            f"{candidates.locate(row, field.name)}: {_problem(invalid[field.name][row], field, row, names)}"
            for row, field in first
        ]
        raise InvalidCandidates(texts, total, sorted(refused))
    return ValidCandidates(candidates.rows, numbers, categories, lists)


def _ignored_categories(
    field: RawField, unknown_category: UnknownCategory, newest: Signature | None
) -> IsIgnored:
    """Return the rule for a field's values that its signature does not list."""
    name = field.name
    if unknown_category == "refuse" and not getattr(field, "open", False):
        return lambda _: False
    newer = {
        category
        for other in (newest.fields if newest is not None else ())
        if isinstance(other, Category | CategoryList) and other.name == name
        for category in other.categories
    }
    return lambda value: value not in newer


def _with_default(raw: RawColumn, field: RawField) -> RawColumn:
    """Return a field's values, its default in place of missing ones."""
    if field.default is None or isinstance(raw, np.ndarray):
        return raw
    return [field.default if value is MISSING else value for value in raw]


def _valid_column(raw: RawColumn, field: RawField, is_ignored: IsIgnored) -> Any:  # noqa: ANN401
    """Return a field's values in its type, see `ValidCandidates`, or None if one is invalid."""
    if isinstance(field, Number):
        return _valid_numbers(raw, field)
    if isinstance(field, Boolean):
        values = as_list(raw)
        return np.array(values, np.float64) if all(map(_is_boolean, values)) else None
    if isinstance(field, CategoryList):
        rows = [_valid_list(value, field, is_ignored) for value in as_list(raw)]
        return None if None in rows else rows
    return _valid_categories(raw, field, is_ignored)


def _is_boolean(value: object) -> bool:
    return isinstance(value, (int, float)) and value in {0, 1}


def _valid_list(value: object, field: CategoryList, is_ignored: IsIgnored) -> list[str] | None:
    """Return one candidate's known categories, or None if a value is invalid."""
    if isinstance(value, str):
        # An element of a V2 tensor.
        with suppress(ValueError):
            value = orjson.loads(value)
    if not isinstance(value, (list, tuple)):
        return None
    texts = [_category_text(one, field) for one in value]
    if not all(isinstance(one, str) and (one in field.categories or is_ignored(one)) for one in texts):
        return None
    return [one for one in texts if one in field.categories]


def _category_text(value: Any, field: Category | CategoryList) -> Any:  # noqa: ANN401 (of any type)
    """Return the category that a whole number stands for; any other value as it is."""
    return field.codes.get(value, value) if type(value) is int else value


def _valid_numbers(raw: RawColumn, field: Number) -> npt.NDArray[np.float64] | None:
    """Return the column as float64, or None if a value is invalid."""
    if isinstance(raw, np.ndarray):
        if raw.dtype.kind not in "iuf":
            return None
        column = raw.astype(np.float64)
    else:
        if not all(_is_number(kind) for kind in set(map(type, raw))):
            return None
        try:
            column = np.array(raw, dtype=np.float64)
        except OverflowError:
            return None
    # NaN fails both comparisons.
    least, most = field.range
    is_valid = bool(np.all((column >= least) & (column <= most)))
    if is_valid and field.is_whole:
        is_valid = bool(np.all(column == np.floor(column)))
    return column if is_valid else None


def _is_number(kind: type) -> bool:
    return issubclass(kind, (int, float)) and not issubclass(kind, bool)


def _valid_categories(raw: RawColumn, field: Category, is_ignored: IsIgnored) -> list[str | None] | None:
    """Return the column as strings, or None if a value is invalid."""
    values = as_list(raw)
    if field.codes:
        values = [_category_text(value, field) for value in values]
    if not all(issubclass(kind, str) for kind in set(map(type, values))):
        return None
    unknown = set(values).difference(field.categories)
    if not unknown:
        return values
    if not all(map(is_ignored, unknown)):
        return None
    return [None if value in unknown else value for value in values]


def _invalid_rows(values: list[Any], field: RawField, is_ignored: IsIgnored) -> list[int]:
    """Return the rows with an invalid value. There may be 100,000, so no text is built here."""
    if isinstance(field, Number):
        least, most = field.range
        return [
            row
            for row, value in enumerate(values)
            if not (
                _is_number(type(value))
                and least <= value <= most
                and not (field.is_whole and value != int(value))
            )
        ]
    if isinstance(field, Boolean):
        return [row for row, value in enumerate(values) if not _is_boolean(value)]
    if isinstance(field, CategoryList):
        return [row for row, value in enumerate(values) if _valid_list(value, field, is_ignored) is None]
    texts = [_category_text(value, field) for value in values]
    return [
        row
        for row, text in enumerate(texts)
        if not (isinstance(text, str) and (text in field.categories or is_ignored(text)))
    ]


def _misspelled_rows(candidates: Candidates, raw: RawColumn, wrong_names: set[str]) -> list[int]:
    """Return the rows without a field's value that have one under a misspelled name."""
    if not wrong_names or isinstance(raw, np.ndarray):
        return []
    return [
        row
        for row, value in enumerate(raw)
        if value is MISSING and not wrong_names.isdisjoint(candidates.names(slice(row, row + 1)))
    ]


class _NamesSent:
    """The names in a request that belong to no field, for problems with fields that are missing."""

    def __init__(self, candidates: Candidates, signature: Signature) -> None:
        self._candidates = candidates
        self._signature = signature
        self._listed_for: set[int] = set()

    def misspelled(self, row: int, field: str) -> str | None:
        """Return the name that a candidate has in place of a field's, if there is one."""
        wrong = self._signature.misspelled(self._unknown(row))
        return min((name for name, meant in wrong.items() if meant == field), default=None)

    def list_once(self, row: int) -> str:
        """Return the unknown names of a candidate as the end of a problem; once, as they stay the same."""
        unknown = sorted(self._unknown(row))
        if not unknown or row in self._listed_for:
            return ""
        self._listed_for.add(row)
        listed = [shown(name) for name in unknown[:MAX_UNKNOWN_NAMES]]
        more = f" and {len(unknown) - len(listed)} more" if len(unknown) > len(listed) else ""
        return f", got unknown names {', '.join(listed)}{more}"

    def _unknown(self, row: int) -> set[str]:
        return self._candidates.names(slice(row, row + 1)).difference(self._signature.names)


def _problem(value: object, field: RawField, row: int, names: _NamesSent) -> str:
    """Describe an invalid value."""
    if value is MISSING:
        if (wrong := names.misspelled(row, field.name)) is not None:
            return f"must be spelled {field.name!a}, got {shown(wrong)}"
        return f"is required, expected {field.expected}{names.list_once(row)}"
    if isinstance(field, Number):
        type_name, has_type = "a number", _is_number(type(value))
    elif isinstance(field, Boolean):
        return f"must be {field.expected}, got {describe(value)}"
    elif isinstance(field, CategoryList):
        return f"must be an array of strings, each {field.expected}, got {_first_wrong(value, field)}"
    else:
        type_name, has_type = "a string", isinstance(value, str)
    if has_type:
        return f"must be {field.expected}, got {shown(value)}"
    if field.expected.startswith(type_name):
        return f"must be {field.expected}, got {describe(value)}"
    expected = "" if field.expected == "a finite number" else f", {field.expected}"
    return f"must be {type_name}{expected}, got {describe(value)}"


def _first_wrong(value: object, field: CategoryList) -> str:
    """Describe the first wrong element of a list, or the value that is no list."""
    if not isinstance(value, (list, tuple)):
        return describe(value)
    for place, one in enumerate(value):
        if not isinstance(text := _category_text(one, field), str):
            return f"{describe(one)} at position {place}"
        if text not in field.categories:
            return f"{shown(one)} at position {place}"
    return describe(value)
