"""Comparison of a new model with the version that it replaces: the metrics, and the rows that change side."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import joblib
import numpy as np
import numpy.typing as npt
import pandas as pd

from storage.bundles import fetch
from training.candidates import Candidate
from training.encoding import encode
from training.fitting import Fitted
from transformer.bundle.candidates import Rows
from transformer.bundle.encoder import Encoder
from transformer.bundle.format import Bundle
from transformer.errors import InvalidCandidates


class ComparisonError(Exception):
    """A version whose model cannot be compared; the message says why."""


@dataclass(frozen=True)
class Change:
    """A row that the two versions predict differently.

    Attributes
    ----------
    row
        Number of the row in the training data, from 1.
    now_positive
        Prediction of the new version.
    is_positive
        True class.
    """

    row: int
    now_positive: bool
    is_positive: bool


@dataclass(frozen=True)
class Comparison:
    """The version that serves now, beside a new one.

    Attributes
    ----------
    previous
        Bundle of that version.
    rows
        Number of rows of the training data that both versions accept.
    changes
        Those that change side, in the order of the data.
    """

    previous: Bundle
    rows: int
    changes: Sequence[Change]

    def __str__(self) -> str:
        return f"{len(self.changes)} of {self.rows:,} rows change side against {self.previous.version}"


def compare(uri: str | os.PathLike[str], fitted: Fitted) -> Comparison:
    """Compare a fitted model with an earlier version on the new training data, as callers would see them.

    This loads the earlier version's model, which is a pickle: the storage must be trusted, as for serving.

    Raises
    ------
    ComparisonError
        If the version or its model cannot be read.
    """
    dataset = fitted.dataset
    with tempfile.TemporaryDirectory() as directory:
        try:
            bundle = fetch(uri, directory)
            model = joblib.load(f"{directory}/{bundle.model.file}")
        except Exception as error:
            raise ComparisonError(str(error) or repr(error)) from error
    encoder = Encoder(bundle.vectorizer, bundle.signature)
    encoded = [_encode(encoder, candidate) for candidate in dataset.candidates]
    accepted = np.array([row is not None for row in encoded])
    if not accepted.any():
        return Comparison(bundle, 0, ())
    features = pd.DataFrame(
        np.vstack([row for row in encoded if row is not None]), columns=encoder.feature_names
    )
    before = model.predict_proba(features)[:, bundle.positive_column] >= bundle.threshold
    task = fitted.dataset.task
    now = fitted.served.model.predict_proba(encode(fitted.vectorizer, dataset.candidates))
    positive = now[:, task.classes.index(task.positive_class)] >= fitted.evaluation.threshold
    numbers = np.flatnonzero(accepted)
    changed = numbers[before != positive[accepted]]
    return Comparison(
        bundle,
        len(numbers),
        [
            Change(int(row) + 1, bool(positive[row]), dataset.labels[row] == task.positive_class)
            for row in changed
        ],
    )


def _encode(encoder: Encoder, candidate: Candidate) -> npt.NDArray[np.float64] | None:
    """Return the features of a candidate, or None if the earlier version does not accept it."""
    try:
        return encoder.encode(Rows([candidate], "row"))
    except InvalidCandidates:
        return None
