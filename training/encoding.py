"""Encode candidates with DictVectorizer into a DataFrame with the feature names as columns."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.feature_extraction import DictVectorizer

from training.candidates import Candidate
from transformer.bundle.signature import (
    BOOLEANS,
    SEPARATOR,
    Boolean,
    Category,
    CategoryList,
    Number,
    RawField,
    Signature,
    Value,
)


def fit_vectorizer(signature: Signature) -> DictVectorizer:
    """Fit a DictVectorizer on every category of the signature.

    The features then depend on the signature only, even if the data lack a category, or an open field of the
    data has others.
    """
    widest = max((len(getattr(field, "categories", " ")) for field in signature.fields), default=1)
    examples = [_example(signature, order) for order in range(widest)]
    return DictVectorizer(dtype=np.float64, separator=SEPARATOR, sparse=False).fit(examples)


def encode(vectorizer: DictVectorizer, candidates: Sequence[Candidate]) -> pd.DataFrame:
    """Encode candidates into a DataFrame whose columns are the feature names.

    A model that is fitted on such a DataFrame remembers the names and refuses others.
    """
    return pd.DataFrame(vectorizer.transform(candidates), columns=vectorizer.get_feature_names_out())


def _example(signature: Signature, order: int) -> Candidate:
    return {field.name: _value(field, order) for field in signature.fields}


def _value(field: RawField, order: int) -> Value:
    if isinstance(field, Number):
        return field.range[0]
    if isinstance(field, Boolean):
        return True
    category = field.categories[order % len(field.categories)]
    return category if isinstance(field, Category) else (category,)


def categories_of(field: Boolean | Category | CategoryList) -> tuple[str, ...]:
    """Return the categories of a field; of a boolean they are ``true`` and ``false``."""
    return BOOLEANS if isinstance(field, Boolean) else field.categories


def has_category(values: Sequence[Value], category: str) -> npt.NDArray[np.bool_]:
    """Return True for each value that is a category, or has it among several."""

    def has(value: Value) -> bool:
        if isinstance(value, bool):
            return category == BOOLEANS[not value]
        return category in value if isinstance(value, tuple) else value == category

    return np.array([has(value) for value in values], np.bool_)
