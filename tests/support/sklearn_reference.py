"""The scores of scikit-learn in this process, with which tests compare every served answer."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.feature_extraction import DictVectorizer

from transformer.bundle.format import MODEL_FILE, Version, load_bundle

Matrix = npt.NDArray[np.float64]


def vectorizer_of(version: Version) -> DictVectorizer:
    """Return the DictVectorizer that a version was fitted with."""
    vectorizer = DictVectorizer(sparse=False, separator=version.vectorizer.separator)
    vectorizer.feature_names_ = list(version.vectorizer.feature_names)
    vectorizer.vocabulary_ = dict(version.vectorizer.index)
    return vectorizer


class SklearnReference:
    """A version's model and vectorizer in this process.

    It keeps the scores of rows: a forest takes milliseconds for each call, and tests repeat the same rows.
    """

    def __init__(self, directory: Path) -> None:
        self.bundle = load_bundle(directory)
        self.model = joblib.load(directory / MODEL_FILE)
        self._vectorizer = vectorizer_of(self.bundle)
        self._scores: dict[bytes, Matrix] = {}

    def encode(self, candidates: Sequence[dict[str, Any]]) -> Matrix:
        """Return the encoding of DictVectorizer."""
        encoded: Matrix = self._vectorizer.transform(candidates)
        return encoded

    def probabilities(self, candidates: Sequence[dict[str, Any]]) -> list[float]:
        """Return the probability of the positive class for each candidate."""
        scores = self._predict(self.encode(candidates))
        probabilities: list[float] = scores[:, self.bundle.target.positive_column].tolist()
        return probabilities

    def predict_proba(self, rows: Any) -> Matrix:
        """Return the model's probabilities for a frame or an array, or raise the model's error."""
        names = self.model.feature_names_in_
        if isinstance(rows, pd.DataFrame):
            accepted = list(rows.columns) == list(names)
        else:
            accepted = np.ndim(rows) == 2 and np.shape(rows)[1] == len(names)
        if accepted:
            return self._predict(np.asarray(rows, np.float64))
        with warnings.catch_warnings():
            # scikit-learn warns about every plain array.
            warnings.filterwarnings("ignore", "X does not have valid feature names")
            scores: Matrix = self.model.predict_proba(rows)
            return scores

    def predict(self, rows: Any) -> npt.NDArray[Any]:
        """Return the model's classes or numbers for a frame or an array, or raise the model's error."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "X does not have valid feature names")
            answers: npt.NDArray[Any] = self.model.predict(rows)
            return answers

    def _predict(self, matrix: Matrix) -> Matrix:
        keys = [row.tobytes() for row in matrix]
        new = {key: row for key, row in zip(keys, matrix, strict=True) if key not in self._scores}
        if new:
            frame = pd.DataFrame(np.array(list(new.values())), columns=self.model.feature_names_in_)
            self._scores.update(zip(new, self.model.predict_proba(frame), strict=True))
        return np.array([self._scores[key] for key in keys])
