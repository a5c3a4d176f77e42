"""Choose the form in which a model is served: a serving form with equal results, else the model itself."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.feature_extraction import DictVectorizer
from sklearn.pipeline import Pipeline

from training.candidates import Candidate
from training.cross_validation import Floats, Progress
from training.encoding import encode
from training.estimators import SEED, Estimator
from training.serving_form import NotRewritableError, forest_of, forms
from transformer.bundle.target import Target

#: Largest difference that rounding makes for a class that no caller gets: 1 - p beside a sum of many shares.
ROUNDING = 1e-12
#: Maximum thresholds of one feature that rows are made for; of more, it is a random sample.
MAX_THRESHOLDS = 50_000
#: Rows that are compared at once.
_CHUNK = 4096


@dataclass(frozen=True)
class Served:
    """A model as it is served.

    Attributes
    ----------
    model
        The serving form, or the fitted model itself.
    rows
        Number of rows on which the serving form gave the fitted model's results; 0 for the model itself.
    rounding
        Largest difference between the probabilities of the other class, which no caller gets.
    reason
        Reason why a forest is served as it was fitted; empty for other models.
    """

    model: Estimator
    rows: int = 0
    rounding: float = 0.0
    reason: str = ""

    def __str__(self) -> str:
        if self.rows:
            return f"serving form equals the forest on {self.rows:,} rows"
        return f"serving form not used: {self.reason}" if self.reason else "the fitted model itself"


class UnequalError(Exception):
    """A serving form whose results differ from the model's; the message says how."""


def serve_checked(
    model: Estimator,
    features: pd.DataFrame,
    vectorizer: DictVectorizer,
    made: Sequence[Candidate],
    target: Target,
    progress: Progress,
    *,
    rewrite: bool = True,
) -> Served:
    """Choose the form of a model, compared on these features and on further candidates; see `serve`.

    Parameters
    ----------
    made
        The artificial candidates of the bundle.
    progress
        Called with a line about a forest.
    """
    rows = pd.concat([features, encode(vectorizer, made)], ignore_index=True)
    column = target.positive_column if target.kind == "binary" else None
    served = serve(model, rows, column, rewrite=rewrite)
    if served.rows or served.reason:
        progress(str(served))
    return served


def serve(
    model: Any,  # noqa: ANN401 (scikit-learn has no types)
    rows: pd.DataFrame,
    column: int | None = None,
    *,
    rewrite: bool = True,
) -> Served:
    """Return a fitted model as it is served.

    Parameters
    ----------
    rows
        Rows on which a serving form must give the model's results. It must do so around each split, too.
    column
        Column of `predict_proba` that callers get; None for all columns, and for regression.
    rewrite
        False to serve a forest as it was fitted.
    """
    if forest_of(model) is None:
        return Served(model)
    reason = "it is turned off"
    try:
        for form in forms(model) if rewrite else ():
            try:
                return compare(model, form, rows, column)
            except UnequalError as error:
                reason = str(error)
    except NotRewritableError as error:
        reason = str(error)
    return Served(model, reason=reason)


def compare(model: Any, form: Any, rows: pd.DataFrame, column: int | None) -> Served:  # noqa: ANN401
    """Compare a serving form with its model on `rows` and around each split.

    Raises
    ------
    UnequalError
        If the probabilities in `column` or the predicted classes are not equal.
    """
    around = rows_around_splits(model, rows)
    forest = forest_of(model)
    pairs = [(model, form, rows), (forest, form.steps[-1][1] if isinstance(form, Pipeline) else form, around)]
    rounding = max(
        _rounding(one, other, chunk, column) for one, other, all_rows in pairs for chunk in _chunks(all_rows)
    )
    return Served(form, rows=len(rows) + len(around), rounding=rounding)


def rows_around_splits(model: Any, rows: pd.DataFrame) -> pd.DataFrame | Floats:  # noqa: ANN401
    """Return rows for a model's forest whose values lie at the thresholds of its splits, and on both sides.

    A forest rounds its input to float32, so the values are a threshold, the float32 number nearest to it, the
    two beside that one, and the numbers halfway to them. All features of a row lie around some threshold.
    """
    forest = forest_of(model)
    inner: Any = rows
    if isinstance(model, Pipeline) and len(model.steps) > 1:
        inner = model[:-1].transform(rows)
    base = np.asarray(inner.toarray() if hasattr(inner, "toarray") else inner, np.float64)
    random = np.random.default_rng(SEED)
    values = [_around(random.permutation(one)[:MAX_THRESHOLDS]) for one in _thresholds(forest)]
    made = base[random.integers(len(base), size=max(map(len, values)))]
    for feature, around in enumerate(values):
        if len(around):
            made[:, feature] = random.permutation(np.resize(around, len(made)))
    names = getattr(forest, "feature_names_in_", None)
    return made if names is None else pd.DataFrame(made, columns=names)


def _thresholds(forest: Any) -> Iterator[Floats]:  # noqa: ANN401
    """Yield the different thresholds of each feature."""
    trees = [fitted.tree_ for fitted in forest.estimators_]
    features = np.concatenate([tree.feature for tree in trees])
    thresholds = np.concatenate([tree.threshold for tree in trees])
    for feature in range(forest.n_features_in_):
        yield np.unique(thresholds[features == feature])


def _around(thresholds: Floats) -> Floats:
    nearest = thresholds.astype(np.float32)
    below, above = (np.nextafter(nearest, np.float32(end)) for end in (-np.inf, np.inf))
    middle, low, high = (numbers.astype(np.float64) for numbers in (nearest, below, above))
    return np.concatenate([thresholds, low, (low + middle) / 2, middle, (middle + high) / 2, high])


def _chunks(rows: Any) -> Iterator[Any]:  # noqa: ANN401 (a frame or an array)
    for start in range(0, len(rows), _CHUNK):
        yield rows[start : start + _CHUNK]


def _rounding(model: Any, form: Any, rows: Any, column: int | None) -> float:  # noqa: ANN401
    """Compare both on some rows; return the largest difference of a probability in another column."""
    expected = _results(model, rows)
    try:
        given = _results(form, rows)
    except ValueError as error:
        raise UnequalError(f"it refuses a row: {str(error).splitlines()[0]}") from error
    difference = np.abs(expected - given)
    if difference[:, slice(None) if column is None else column].any() or difference.max() > ROUNDING:
        raise UnequalError(f"its results differ by up to {difference.max():.1g}")
    if hasattr(model, "predict_proba"):
        # As the forest's `predict`, which would compute the probabilities again.
        classes = model.classes_.take(expected.argmax(axis=1))
        if not np.array_equal(classes, form.predict(rows)):
            raise UnequalError("it predicts another class")
    return float(difference.max())


def _results(model: Any, rows: Any) -> Floats:  # noqa: ANN401
    results: Floats = (
        model.predict_proba(rows) if hasattr(model, "predict_proba") else model.predict(rows)[:, np.newaxis]
    )
    return results
