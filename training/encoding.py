"""Encode candidates with DictVectorizer into a DataFrame with the feature names as columns."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.feature_extraction import DictVectorizer

from training.candidates import Candidate
from transformer.bundle.signature import SEPARATOR, Category, Signature


def fit_vectorizer(signature: Signature, candidates: Sequence[Candidate]) -> DictVectorizer:
    """Fit a DictVectorizer on the candidates and on every category of the signature.

    The features then depend on the signature only, even if the data lack a category.
    """
    widest = max((len(f.categories) for f in signature.fields if isinstance(f, Category)), default=1)
    examples = [_example(signature, order) for order in range(widest)]
    return DictVectorizer(dtype=np.float64, separator=SEPARATOR, sparse=False).fit([*candidates, *examples])


def encode(vectorizer: DictVectorizer, candidates: Sequence[Candidate]) -> pd.DataFrame:
    """Encode candidates into a DataFrame whose columns are the feature names.

    A model that is fitted on such a DataFrame remembers the names and refuses others.
    """
    return pd.DataFrame(vectorizer.transform(candidates), columns=vectorizer.get_feature_names_out())


def _example(signature: Signature, order: int) -> Candidate:
    return {
        field.name: field.categories[order % len(field.categories)]
        if isinstance(field, Category)
        else field.range[0]
        for field in signature.fields
    }
