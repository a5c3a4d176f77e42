"""Choose the classifier: a fast one within one standard error of the best in cross-validation.

A forest's time is that of the form that will be served.

The best one has the lowest Brier score: callers get a probability, and the Brier score rewards calibrated
probabilities. Unlike the log loss, it stays finite when a forest gives 0 or 1 and is wrong.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.model_selection import StratifiedKFold

from training.estimators import ESTIMATORS, SEED, Estimator

#: Number of folds of the cross-validation.
FOLDS = 5
#: Longer time to predict 64 rows that does not count: a call to a stock server takes 1 ms besides.
NEGLIGIBLE_MS = 0.25
#: Name for the automatic choice among all estimators.
AUTO = "auto"

Progress = Callable[[str], None]
Floats = npt.NDArray[np.float64]
Fold = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]


@dataclass(frozen=True)
class Trial:
    """Result of one estimator in cross-validation.

    Attributes
    ----------
    probabilities
        Out-of-fold probability of the positive class for each candidate.
    brier, brier_error
        Mean of the candidates' Brier scores, and the standard error over the candidates; five folds are too
        few for a standard error over the folds.
    """

    estimator: Estimator
    probabilities: Floats
    brier: float
    brier_error: float
    accuracy: float


class UnknownEstimatorError(Exception):
    """A name that is not in `ESTIMATORS`."""

    def __init__(self, name: str) -> None:
        super().__init__(f"estimator {name!r} is not known, expected {', '.join([AUTO, *ESTIMATORS])}")


def estimators_for(name: str, rows: int, *, rewrite: bool = True) -> list[Estimator]:
    """Return the estimators of a name, fastest prediction first; ``auto`` stands for several.

    Parameters
    ----------
    rewrite
        False if forests are served as they were fitted.

    Raises
    ------
    UnknownEstimatorError
        If the name is unknown.
    """
    if name == AUTO:
        automatic = [e for e in ESTIMATORS.values() if e.automatic and rows <= e.max_rows]
        return sorted(automatic, key=lambda e: e.milliseconds(rewrite=rewrite))
    if name not in ESTIMATORS:
        raise UnknownEstimatorError(name)
    return [ESTIMATORS[name]]


def folds(positive: npt.NDArray[np.bool_], first_rows: Sequence[int] | None = None) -> list[Fold]:
    """Return the rows to fit on and the rows to predict, for each fold.

    Parameters
    ----------
    positive
        True for the rows of the positive class.
    first_rows
        Index of the first row that is equal to each row; equal rows come into one fold. By default, all rows
        differ.
    """
    first = np.arange(len(positive)) if first_rows is None else np.asarray(first_rows)
    different, group = np.unique(first, return_inverse=True)
    splitter = StratifiedKFold(FOLDS, shuffle=True, random_state=SEED)
    splits = splitter.split(np.zeros(len(different)), positive[different])
    return [
        (np.flatnonzero(np.isin(group, fit)), np.flatnonzero(np.isin(group, held_out)))
        for fit, held_out in splits
    ]


def cross_validate(
    estimator: Estimator,
    features: pd.DataFrame,
    labels: Sequence[str],
    positive_class: str,
    first_rows: Sequence[int] | None = None,
) -> Trial:
    """Cross-validate one estimator; for `first_rows` see `folds`."""
    classes = np.array(labels)
    positive = classes == positive_class
    probabilities = np.empty(len(classes))
    for fit, held_out in folds(positive, first_rows):
        model = estimator.fit(features.iloc[fit], classes[fit].tolist())
        column = list(model.classes_).index(positive_class)
        probabilities[held_out] = model.predict_proba(features.iloc[held_out])[:, column]
    scores = (probabilities - positive) ** 2
    return Trial(
        estimator=estimator,
        probabilities=probabilities,
        brier=float(scores.mean()),
        brier_error=float(scores.std(ddof=1) / np.sqrt(len(scores))),
        accuracy=float(np.mean((probabilities >= 0.5) == positive)),
    )


def choose(trials: Sequence[Trial], *, rewrite: bool = True) -> Trial:
    """Choose a trial within one standard error of the best.

    Of these, it is the best one that takes at most `NEGLIGIBLE_MS` longer than the fastest.
    """

    def time(trial: Trial) -> float:
        return trial.estimator.milliseconds(rewrite=rewrite)

    best = min(trials, key=lambda trial: trial.brier)
    good = [trial for trial in trials if trial.brier <= best.brier + best.brier_error]
    limit = min(map(time, good)) + NEGLIGIBLE_MS
    return min((trial for trial in good if time(trial) <= limit), key=lambda trial: trial.brier)


def select(
    name: str,
    features: pd.DataFrame,
    labels: Sequence[str],
    positive_class: str,
    progress: Progress = lambda _: None,
    *,
    rewrite: bool = True,
    first_rows: Sequence[int] | None = None,
) -> tuple[Trial, list[Trial]]:
    """Cross-validate the estimators of a name; return the chosen trial and all trials.

    Parameters
    ----------
    name
        A name of `ESTIMATORS`, or ``auto`` for the automatic choice.
    rewrite
        False if forests are served as they were fitted.
    first_rows
        See `folds`.
    """
    trials = []
    for estimator in estimators_for(name, len(labels), rewrite=rewrite):
        trial = cross_validate(estimator, features, labels, positive_class, first_rows)
        progress(
            f"{estimator.name}: Brier score {trial.brier:.4f} ± {trial.brier_error:.4f}, "
            f"accuracy {trial.accuracy:.1%}"
        )
        trials.append(trial)
    return choose(trials, rewrite=rewrite), trials
