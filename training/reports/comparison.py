"""Comparison of a new model with the version that it replaces: the metrics, and the rows that change side."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from storage.errors import StorageError
from training.encoding import encode
from training.estimators import scores_of
from training.fitting import Fitted
from training.stored import StoredVersion
from transformer.bundle.classes import Label
from transformer.bundle.format import Bundle, BundleError


class ComparisonError(Exception):
    """A version whose model cannot be compared; the message says why."""


@dataclass(frozen=True)
class Change:
    """A row whose class the two versions predict differently.

    Attributes
    ----------
    row
        Number of the row in the training data, from 1.
    now
        Prediction of the new version, see `Target.labels`.
    is_right
        True if that is its true class.
    """

    row: int
    now: Label
    is_right: bool


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
        Those that change side, in the order of the data; empty for numbers.
    mean_change
        Mean absolute difference of the numbers; None for classes.
    """

    previous: Bundle
    rows: int
    changes: Sequence[Change]
    mean_change: float | None = None

    def __str__(self) -> str:
        if self.mean_change is not None:
            return (
                f"the numbers of {self.rows:,} rows differ by {self.mean_change:.4g} in the mean from those "
                f"of {self.previous.version}"
            )
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
    try:
        stored = StoredVersion.load(uri)
    except (BundleError, StorageError) as error:
        raise ComparisonError(str(error)) from error
    bundle = stored.bundle
    accepted, scores = stored.score(dataset.candidates)
    if not accepted.any():
        return Comparison(bundle, 0, ())
    target, now_target = bundle.target, fitted.evaluation.target
    if target.outputs != now_target.outputs:
        raise ComparisonError(f"{bundle.version} answers another kind of question")
    before, _ = target.answers(scores)
    encoded_now = encode(fitted.vectorizer, dataset.candidates)
    now, _ = now_target.answers(scores_of(fitted.served.model, encoded_now, now_target))
    numbers = np.flatnonzero(accepted)
    if target.kind == "regression":
        return Comparison(bundle, len(numbers), (), float(np.abs(before - now[accepted]).mean()))
    # The places of classes may differ.
    labels = now_target.labels(now)
    pairs = zip(numbers.tolist(), target.labels(before), strict=True)
    changed = [row for row, label in pairs if labels[row] != label]
    truth = fitted.evaluation.truth
    return Comparison(
        bundle,
        len(numbers),
        [Change(row + 1, labels[row], bool(now[row] == truth[row])) for row in changed],
    )
