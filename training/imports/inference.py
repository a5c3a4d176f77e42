"""Inference of a task: the fields that a fitted DictVectorizer encodes, and what a sample says about them."""

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sklearn.feature_extraction import DictVectorizer

from training.cells import elements
from training.drafting import plain, wider
from training.imports.sample import Sample, as_category, as_number, is_boolean, spellings
from training.table import DataError

#: Minimum values from which a range is drawn.
MIN_VALUES = 20
#: Texts that tables have for a missing category.
_MISSING = ("", "nan")
_WHOLE = re.compile("[+-]?[0-9]+")


class InferenceError(Exception):
    """A vectorizer whose fields cannot be told; the message names the fields and features."""


def infer_fields(vectorizer: DictVectorizer, sample: Sample | None) -> list[dict[str, Any]]:
    """Infer the fields: categories from features ``name=value``, numbers and booleans from the others.

    Returns
    -------
    The fields as in a task file, in the sample's order; their comments say what they were drawn from.

    Raises
    ------
    InferenceError
        If two fields have a feature of one name, or a field is both a number and a category.
    training.data.DataError
        If the sample lacks a field, or a number has a value that is none.
    """
    categories = _categories(vectorizer, sample.columns if sample else ())
    if sample is None:
        return [
            {"name": name, **(_number("", name, []) if values is None else _categorical(values, []))}
            | {"comment": "not in a sample"}
            for name, values in categories.items()
        ]
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
    return [_field(name, categories[name], sample, column_of[name]) for name in ordered]


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


def _field(name: str, categories: list[str] | None, sample: Sample, column: str) -> dict[str, Any]:
    values = sample.values(column)
    absent: Any
    if categories is not None:
        field = _categorical(categories, values)
        missing = next((one for one in categories if one.strip().casefold() in _MISSING), None)
        absent = [] if field["type"] == "categories" else missing
    elif values and all(map(is_boolean, values)):
        field, absent = {"type": "boolean", "comment": "true or false in the sample"}, False
    else:
        field, absent = _number(sample.source, name, values), 0
    comment, empty = field.pop("comment"), len(sample.rows) - len(values)
    if empty:
        comment += f"; {empty:,} rows without one"
    if empty and absent is not None:
        if "minimum" in field:
            field |= {"minimum": min(field["minimum"], absent), "maximum": max(field["maximum"], absent)}
        field["default"] = absent
        comment += f" get {json.dumps(absent)}"
    return {"name": name, **field, "comment": comment}


def _categorical(categories: list[str], values: list[Any]) -> dict[str, Any]:
    """Return a field of categories: open if some of the values are others."""
    has_lists = any(isinstance(value, list) for value in values)
    known = spellings(categories)
    given = [one for value in values for one in elements(value)] if has_lists else values
    counts = Counter(as_category(one, known) for one in given)
    ordered = sorted(categories, key=lambda category: -counts[category])
    field: dict[str, Any] = {"type": "categories" if has_lists else "category", "categories": ordered}
    unknown = counts.pop(None, 0)
    comment = f"{len(categories)} values in the vectorizer"
    if unknown and counts:
        field["open"] = True
        comment += f"; {unknown:,} others in the sample, which the model ignores"
    return {**field, "comment": comment}


def _number(source: str, name: str, values: list[Any]) -> dict[str, Any]:
    """Return a number, with a range if there are enough values; an integer if all of these are written so."""
    try:
        numbers = [as_number(value) for value in values]
    except ValueError as error:
        raise DataError(source, [f"column {name!r}, a number in the vectorizer: {error}"]) from error
    if not numbers:
        return {"type": "number", "comment": "empty in the sample"}
    field: dict[str, Any] = {"type": "number"}
    if len(numbers) >= MIN_VALUES:
        whole = all(_WHOLE.fullmatch(str(value)) for value in values)
        field["type"] = "integer" if whole else "number"
        if min(numbers) < max(numbers):
            least, most = wider(min(numbers), max(numbers))
            limits = (math.floor(least), math.ceil(most)) if whole else (least, most)
            field["minimum"], field["maximum"] = map(plain, limits)
    return {**field, "comment": f"{min(numbers):g} to {max(numbers):g} in the sample"}
