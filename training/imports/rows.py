"""Rows for an imported model: those of a sample that its signature accepts, or artificial ones."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from training.candidates import Candidate
from training.cells import elements
from training.estimators import SEED
from training.imports.sample import Sample, Spelling, as_category, as_number, spellings
from training.table import DataError
from transformer.bundle.signature import (
    Boolean,
    Category,
    CategoryList,
    Number,
    RawField,
    Signature,
    Value,
)

#: Number of artificial rows, and the exponents of ten between which their numbers lie.
RANDOM_ROWS = 512
_EXPONENTS = (-1, 4)


@dataclass(frozen=True)
class ValidRows:
    """Rows of a sample that a signature accepts.

    Attributes
    ----------
    candidates
        The rows as candidates.
    numbers
        Position of each in the sample, from 0.
    passed_over
        Number of other rows by reason.
    """

    candidates: list[Candidate] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)


def valid_rows(sample: Sample, signature: Signature) -> ValidRows:
    """Return the rows of a sample that a signature accepts.

    Raises
    ------
    training.data.DataError
        If it accepts none.
    """
    column_of = sample.column_of(signature.names)
    known = {
        one.name: spellings(one.categories)
        for one in signature.fields
        if isinstance(one, Category | CategoryList)
    }
    found = ValidRows()
    for number, row in enumerate(sample.rows):
        try:
            candidate: Candidate = {
                one.name: _value(one, row.get(column_of[one.name]), known.get(one.name, {}))
                for one in signature.fields
            }
        except ValueError as error:
            found.passed_over[str(error)] += 1
            continue
        found.candidates.append(candidate)
        found.numbers.append(number)
    if not found.candidates:
        reason, count = found.passed_over.most_common(1)[0]
        raise DataError(sample.source, [f"has no row that the model accepts; in {count:,} rows {reason}"])
    return found


def _value(field: RawField, value: Any, known: Mapping[Spelling, str]) -> Value:  # noqa: ANN401
    if value is None:
        if field.default is None:
            raise ValueError(f"{field.name} is missing")
        return field.default
    if isinstance(field, Category):
        return _category(field, value, known)
    if isinstance(field, CategoryList):
        return tuple(_category(field, one, known) for one in elements(value))
    try:
        number = as_number(value)
    except ValueError:
        number = math.nan
    if isinstance(field, Boolean):
        if number in {0, 1}:
            return bool(number)
    elif field.accepts(number):
        return number
    raise ValueError(f"{field.name} is not {field.expected}")


def _category(field: Category | CategoryList, value: Any, known: Mapping[Spelling, str]) -> str:  # noqa: ANN401
    category = as_category(value, known)
    if category is None and not field.open:
        raise ValueError(f"{field.name} has a value that the vectorizer does not know")
    return str(value) if category is None else category


def random_rows(signature: Signature) -> ValidRows:
    """Return artificial rows: any category, and numbers of all magnitudes within their ranges."""
    random = np.random.default_rng(SEED)
    columns = [_random_values(one, random) for one in signature.fields]
    rows = [dict(zip(signature.names, values, strict=True)) for values in zip(*columns, strict=True)]
    return ValidRows(rows, list(range(len(rows))))


def _random_values(field: RawField, random: np.random.Generator) -> list[Value]:
    if isinstance(field, Number):
        least, most = field.range
        values = [float(f"{value:.3g}") for value in 10 ** random.uniform(*_EXPONENTS, RANDOM_ROWS)]
        if field.is_whole:
            values, least, most = list(map(round, values)), math.ceil(least), math.floor(most)
        return [float(min(max(value, least), most)) for value in values]
    if isinstance(field, Boolean):
        return [bool(value) for value in random.integers(2, size=RANDOM_ROWS)]
    chosen = [field.categories[place] for place in random.integers(len(field.categories), size=RANDOM_ROWS)]
    if isinstance(field, Category):
        return list(chosen)
    # Two of a row, of which one or both may be left out.
    lengths = random.integers(3, size=RANDOM_ROWS)
    return [tuple(pair[:n]) for n, pair in zip(lengths, zip(chosen, chosen[::-1], strict=True), strict=True)]
