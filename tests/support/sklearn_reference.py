"""The scores of scikit-learn in this process, with which tests compare every served answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from sklearn.feature_extraction import DictVectorizer

from transformer.bundle.format import MODEL_FILE, Version, load_bundle


def vectorizer_of(version: Version) -> DictVectorizer:
    """Return the DictVectorizer that a version was fitted with."""
    vectorizer = DictVectorizer(sparse=False, separator=version.vectorizer.separator)
    vectorizer.feature_names_ = list(version.vectorizer.feature_names)
    vectorizer.vocabulary_ = dict(version.vectorizer.index)
    return vectorizer


class SklearnReference:
    """A version's model and vectorizer in this process."""

    def __init__(self, directory: Path) -> None:
        self.bundle = load_bundle(directory)
        self.model = joblib.load(directory / MODEL_FILE)
        self._vectorizer = vectorizer_of(self.bundle)

    def encode(self, candidates: Sequence[dict[str, Any]]) -> np.ndarray:
        """Return the encoding of DictVectorizer."""
        encoded: np.ndarray = self._vectorizer.transform(candidates)
        return encoded

    def probabilities(self, candidates: Sequence[dict[str, Any]]) -> list[float]:
        """Return the probability of the positive class for each candidate."""
        frame = pd.DataFrame(self.encode(candidates), columns=self._vectorizer.feature_names_)
        scores: np.ndarray = self.model.predict_proba(frame)
        probabilities: list[float] = scores[:, self.bundle.positive_column].tolist()
        return probabilities
