"""Rows for an imported model: those of a sample that its signature accepts, or artificial ones."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from training.candidates import Candidate
from training.data import DataError
from training.estimators import SEED
from training.imports.sample import Sample, as_category, as_number, spellings
from transformer.bundle.signature import Category, Number, RawField, Signature, Value

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
    spelled = {one.name: spellings(one.categories) for one in signature.fields if isinstance(one, Category)}
    found = ValidRows()
    for number, row in enumerate(sample.rows):
        try:
            candidate: Candidate = {
                one.name: _value(one, row.get(column_of[one.name]), spelled.get(one.name, {}))
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


def _value(field: RawField, value: Any, spelled: dict[str, str]) -> Value:  # noqa: ANN401
    if value is None:
        if field.default is None:
            raise ValueError(f"{field.name} is missing")
        return field.default
    if isinstance(field, Number):
        number = as_number(value)
        least, most = field.range
        if not least <= number <= most:
            raise ValueError(f"{field.name} is not {field.expected}")
        return number
    if not isinstance(field, Category):
        raise ValueError(f"{field.name} is of the type {field.type}, which an import cannot read")  # noqa: TRY004
    category = as_category(value, field.categories, spelled)
    if category is None:
        raise ValueError(f"{field.name} has a value that the vectorizer does not know")
    return category


def random_rows(signature: Signature) -> ValidRows:
    """Return artificial rows: any category, and numbers of all magnitudes within their ranges."""
    random = np.random.default_rng(SEED)
    columns = []
    for one in signature.fields:
        if isinstance(one, Number):
            values = np.clip(10 ** random.uniform(*_EXPONENTS, RANDOM_ROWS), *one.range)
            columns.append([float(f"{value:.3g}") for value in values])
        elif isinstance(one, Category):
            columns.append(
                [one.categories[place] for place in random.integers(len(one.categories), size=RANDOM_ROWS)]
            )
    rows = [dict(zip(signature.names, values, strict=True)) for values in zip(*columns, strict=True)]
    return ValidRows(rows, list(range(len(rows))))
