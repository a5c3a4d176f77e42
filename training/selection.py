"""Which classifier: the fastest to predict within one standard error of the best in cross-validation.

The best is the one with the lowest Brier score, because callers are given a probability and the Brier score
rewards probabilities that are true; unlike the log loss it stays finite when a forest is certain and wrong.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.model_selection import StratifiedKFold

from training.estimators import ESTIMATORS, SEED, Estimator

FOLDS = 5
AUTO = "auto"

Progress = Callable[[str], None]
Floats = npt.NDArray[np.float64]
Fold = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]


@dataclass(frozen=True)
class Trial:
    """How one estimator did in cross-validation.

    Attributes
    ----------
    probabilities
        Of the positive class, for each candidate, by the one model that had not seen them.
    brier, brier_error
        Mean of the candidates' Brier scores and its standard error, over the candidates: five folds are too
        few to tell how their means spread.
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


def candidates_for(name: str, rows: int) -> list[Estimator]:
    """Estimators that the name stands for, fastest to predict first.

    Raises
    ------
    UnknownEstimatorError
        If there is none.
    """
    if name == AUTO:
        return [e for e in ESTIMATORS.values() if e.automatic and rows <= e.max_rows]
    if name not in ESTIMATORS:
        raise UnknownEstimatorError(name)
    return [ESTIMATORS[name]]


def folds(positive: npt.NDArray[np.bool_]) -> list[Fold]:
    """Rows to fit on and rows to predict, for each of the `FOLDS`."""
    splitter = StratifiedKFold(FOLDS, shuffle=True, random_state=SEED)
    return list(splitter.split(np.zeros(len(positive)), positive))


def try_estimator(
    estimator: Estimator, features: pd.DataFrame, labels: Sequence[str], positive_class: str
) -> Trial:
    """Cross-validate one estimator."""
    classes = np.array(labels)
    positive = classes == positive_class
    probabilities = np.empty(len(classes))
    for fit, held_out in folds(positive):
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


def choose(trials: Sequence[Trial]) -> Trial:
    """Take the first trial, so the fastest estimator, within one standard error of the best."""
    best = min(trials, key=lambda trial: trial.brier)
    return next(trial for trial in trials if trial.brier <= best.brier + best.brier_error)


def select(
    name: str,
    features: pd.DataFrame,
    labels: Sequence[str],
    positive_class: str,
    progress: Progress = lambda _: None,
) -> tuple[Trial, list[Trial]]:
    """Cross-validate what the name stands for; return the chosen trial and all of them.

    Parameters
    ----------
    name
        A name of `ESTIMATORS`, or ``auto`` for the choice among all that are meant for it.
    """
    trials = []
    for estimator in candidates_for(name, len(labels)):
        trial = try_estimator(estimator, features, labels, positive_class)
        progress(
            f"{estimator.name}: Brier score {trial.brier:.4f} ± {trial.brier_error:.4f}, "
            f"accuracy {trial.accuracy:.1%}"
        )
        trials.append(trial)
    return choose(trials), trials
