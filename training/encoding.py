"""Candidates as the classifier sees them: DictVectorizer's features, in columns that carry their names."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.feature_extraction import DictVectorizer

from training.candidates import Candidate
from transformer.bundle.signature import Category, Signature

#: Stands between a category's field and its value in a feature name.
SEPARATOR = "="


def fit_vectorizer(signature: Signature, candidates: Sequence[Candidate]) -> DictVectorizer:
    """Fit on the candidates and on each category that the signature allows, seen or not.

    So the features are exactly those that the signature can express, whatever the data happened to hold.
    """
    widest = max((len(f.categories) for f in signature.fields if isinstance(f, Category)), default=1)
    examples = [_example(signature, order) for order in range(widest)]
    return DictVectorizer(dtype=np.float64, separator=SEPARATOR, sparse=False).fit([*candidates, *examples])


def encode(vectorizer: DictVectorizer, candidates: Sequence[Candidate]) -> pd.DataFrame:
    """Encode candidates into a frame whose columns are the feature names.

    Fitted on such a frame, scikit-learn remembers the names and refuses any others.
    """
    return pd.DataFrame(vectorizer.transform(candidates), columns=vectorizer.get_feature_names_out())


def _example(signature: Signature, order: int) -> Candidate:
    return {
        field.name: field.categories[order % len(field.categories)]
        if isinstance(field, Category)
        else field.minimum
        for field in signature.fields
    }
