"""Inference of a task: the fields that a fitted DictVectorizer encodes, and what a sample says about them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sklearn.feature_extraction import DictVectorizer

from training.data import DataError
from training.drafting import plain, wider
from training.imports.sample import Sample, as_category, as_number, spellings

#: Minimum values from which a range is drawn.
MIN_VALUES = 20
#: Value that DictVectorizer gives a number that a row does not have.
_ABSENT = 0.0


class InferenceError(Exception):
    """A vectorizer whose fields cannot be told; the message names the fields and features."""


@dataclass(frozen=True)
class InferredFields:
    """Fields of a vectorizer.

    Attributes
    ----------
    fields
        The fields as in a task file, in the sample's order.
    remarks
        What each field was drawn from.
    """

    fields: list[dict[str, Any]]
    remarks: list[str]


def infer_fields(vectorizer: DictVectorizer, sample: Sample | None) -> InferredFields:
    """Infer the fields: categories from features ``name=value``, numbers from the others.

    Raises
    ------
    InferenceError
        If two fields have a feature of one name, or a field is both a number and a category.
    training.data.DataError
        If the sample lacks a field, or a number has a value that is none.
    """
    categories = _categories(vectorizer, sample.columns if sample else ())
    if sample is None:
        fields = [_field(name, values, None) for name, values in categories.items()]
        return InferredFields(fields, ["not in a sample" for _ in fields])
    column_of = sample.column_of(categories)
    missing = [name for name, column in column_of.items() if column not in sample.columns]
    if missing:
        raise DataError(
            sample.source,
            [
                f"must have a column for each field; missing: {', '.join(missing)}; "
                f"found: {', '.join(sample.columns)}"
            ],
        )
    ordered = sorted(categories, key=lambda name: sample.columns.index(column_of[name]))
    fields, remarks = [], []
    for name in ordered:
        values = sample.values(column_of[name])
        fields.append(_field(name, categories[name], values, len(sample.rows) - len(values), sample.source))
        remarks.append(_remark(categories[name], values, len(sample.rows)))
    return InferredFields(fields, remarks)


def _categories(vectorizer: DictVectorizer, columns: Sequence[str]) -> dict[str, list[str] | None]:
    """Return the fields with their categories; None for a number."""
    found: dict[str, list[str] | None] = {}
    separator = vectorizer.separator
    for feature in vectorizer.feature_names_:
        parts = feature.split(separator)
        splits = [
            (separator.join(parts[:n]), separator.join(parts[n:])) for n in range(len(parts) - 1, 0, -1)
        ]
        in_sample = [split for split in splits if split[0] in columns]
        if feature in columns and in_sample:
            raise InferenceError(
                f"feature {feature!r} can be the number {feature!r} or the value {in_sample[0][1]!r} of "
                f"{in_sample[0][0]!r}, and the sample has both columns; rename one, and fit the model again"
            )
        if not splits or feature in columns:
            name, values = feature, None
        else:
            # Without a sample that tells, a field's name has no separator.
            name, value = in_sample[0] if in_sample else splits[-1]
            values = [value]
        if name in found and (found[name] is None or values is None):
            raise InferenceError(
                f"field {name!r} is a number and a category, as its features show: {name!r} and "
                f"{name + separator!r}…; missing values (NaN, None) become such a number: "
                "replace them by a text, and fit the model again"
            )
        found[name] = [*(found.get(name) or ()), *values] if values is not None else None
    return found


def _field(
    name: str, categories: list[str] | None, values: list[Any] | None, absent: int = 0, source: str = ""
) -> dict[str, Any]:
    if categories is not None:
        spelled = spellings(categories)
        counts = Counter(as_category(value, categories, spelled) for value in values or ())
        ordered = sorted(categories, key=lambda category: -counts[category])
        return {"name": name, "type": "category", "categories": ordered}
    field: dict[str, Any] = {"name": name, "type": "number"}
    numbers = _numbers(name, values or (), source)
    if len(numbers) >= MIN_VALUES and min(numbers) < max(numbers):
        least, most = wider(min(numbers), max(numbers))
        if absent:
            least, most = min(least, _ABSENT), max(most, _ABSENT)
        field |= {"minimum": plain(least), "maximum": plain(most)}
    return {**field, "default": plain(_ABSENT)} if absent else field


def _numbers(name: str, values: Sequence[Any], source: str) -> list[float]:
    try:
        return [as_number(value) for value in values]
    except ValueError as error:
        raise DataError(source, [f"column {name!r}, a number in the vectorizer: {error}"]) from error


def _remark(categories: list[str] | None, values: list[Any], rows: int) -> str:
    empty = rows - len(values)
    if categories is not None:
        return f"{len(categories)} values in the vectorizer" + (
            f"; {empty:,} rows without one" if empty else ""
        )
    numbers = [as_number(value) for value in values]
    seen = f"{min(numbers):g} to {max(numbers):g} in the sample" if numbers else "empty in the sample"
    return seen + (f"; {empty:,} rows without it get 0, as the vectorizer gives them" if empty else "")
