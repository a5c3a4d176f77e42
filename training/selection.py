"""Choose the estimator: a fast one within one standard error of the best in cross-validation.

A forest's time is that of the form that will be served.

The best one has the lowest mean loss. With probabilities, the loss of a row is its Brier score: callers get a
probability, and the Brier score rewards calibrated probabilities. Unlike the log loss, it stays finite when a
forest gives 0 or 1 and is wrong. Without probabilities, it is 1 for a wrong class; for numbers, it is the
squared error.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.model_selection import KFold, StratifiedKFold

from training.candidates import Task
from training.estimators import ESTIMATORS, SEED, Classifier, Estimator, scores_of
from transformer.bundle.classes import Kind, Label
from transformer.bundle.target import Scores, Target

#: Number of folds of the cross-validation.
FOLDS = 5
#: Longer time to predict 64 rows that does not count: a call to a stock server takes 1 ms besides.
NEGLIGIBLE_MS = 0.25
#: Threshold while estimators are compared.
DEFAULT_THRESHOLD = 0.5
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
    target
        What the models of this estimator predict, with a threshold of 0.5.
    scores : ndarray of float64, shape (candidates, `target.columns`)
        Out-of-fold scores of each candidate.
    loss, loss_error
        Mean of the candidates' losses, and the standard error over the candidates; five folds are too few for
        a standard error over the folds.
    accuracy
        Share of right classes; None for numbers.
    """

    estimator: Estimator
    target: Target
    scores: Scores
    loss: float
    loss_error: float
    accuracy: float | None

    def __str__(self) -> str:
        accuracy = "" if self.accuracy is None else f", accuracy {self.accuracy:.1%}"
        loss = f"{self.loss:.4f} ± {self.loss_error:.4f}"
        if self.target.kind == "regression":
            loss = f"{self.loss:.4g} ± {self.loss_error:.2g}"
        return f"{self.estimator.name}: {loss_name(self.target)} {loss}{accuracy}"


class UnknownEstimatorError(Exception):
    """A name that is not in `ESTIMATORS`, or is there for other kinds of question."""

    def __init__(self, name: str, kind: Kind) -> None:
        names = [AUTO, *(one.name for one in ESTIMATORS.values() if kind in one.kinds)]
        problem = f"does not answer {kind} questions" if name in ESTIMATORS else "is not known"
        super().__init__(f"estimator {name!r} {problem}, expected {', '.join(names)}")


def estimators_for(name: str, rows: int, *, rewrite: bool = True, kind: Kind = "binary") -> list[Estimator]:
    """Return the estimators of a name, fastest prediction first; ``auto`` stands for several.

    Parameters
    ----------
    rewrite
        False if forests are served as they were fitted.

    Raises
    ------
    UnknownEstimatorError
        If the name is unknown, or is that of an estimator for other kinds of question.
    """
    if name == AUTO:
        automatic = [e for e in ESTIMATORS.values() if e.automatic and kind in e.kinds and rows <= e.max_rows]
        return sorted(automatic, key=lambda e: e.milliseconds(rewrite=rewrite))
    if name not in ESTIMATORS or kind not in ESTIMATORS[name].kinds:
        raise UnknownEstimatorError(name, kind)
    return [ESTIMATORS[name]]


def folds(truth: npt.NDArray[Any], first_rows: Sequence[int] | None = None) -> list[Fold]:
    """Return the rows to fit on and the rows to predict, for each fold.

    Parameters
    ----------
    truth : ndarray, shape (candidates,)
        True classes, of which each fold has the same share; or numbers as float64.
    first_rows
        Index of the first row that is equal to each row; equal rows come into one fold, if
        `can_group_equal_rows`. By default, all rows differ.
    """
    grouped = first_rows is not None and can_group_equal_rows(truth, first_rows)
    first = np.asarray(first_rows) if grouped else np.arange(len(truth))
    different, group = np.unique(first, return_inverse=True)
    kind = KFold if truth.dtype.kind == "f" else StratifiedKFold
    splits = kind(FOLDS, shuffle=True, random_state=SEED).split(np.zeros(len(different)), truth[different])
    return [
        (np.flatnonzero(np.isin(group, fit)), np.flatnonzero(np.isin(group, held_out)))
        for fit, held_out in splits
    ]


def can_group_equal_rows(truth: npt.NDArray[Any], first_rows: Sequence[int]) -> bool:
    """Return True if enough rows differ, of each class, for every fold to get some of them.

    A table of a few categories may have less, and many rows of each.
    """
    different = truth[np.unique(first_rows)]
    if truth.dtype.kind == "f":
        return len(different) >= FOLDS
    return all(np.sum(different == one) >= FOLDS for one in np.unique(truth))


def truth_of(labels: Sequence[Label], task: Task | Target) -> npt.NDArray[Any]:
    """Return the true answers in the form of `Target.answers`: booleans, places of classes, or numbers.

    Parameters
    ----------
    task
        The task, or a model's target, whose classes may have other places.
    """
    if task.kind == "regression":
        return np.array(labels, np.float64)
    places = {label: place for place, label in enumerate(task.classes)}
    found = np.array([places[label] for label in labels])
    return found == places[task.positive_class] if task.positive_class is not None else found


def losses(target: Target, truth: npt.NDArray[Any], scores: Scores) -> Floats:
    """Return the loss of each candidate; see the module."""
    values, probabilities = target.answers(scores)
    lost: Floats
    if target.kind == "regression":
        lost = (values - truth) ** 2
    elif probabilities is None:
        lost = np.where(values == truth, 0.0, 1.0)
    elif target.kind == "binary":
        lost = (probabilities - truth) ** 2
    else:
        lost = ((probabilities - np.eye(target.columns)[truth]) ** 2).sum(axis=1)
    return lost


def loss_name(target: Target) -> str:
    """Return the name of the loss."""
    if target.kind == "regression":
        return "mean squared error"
    return "Brier score" if target.has_probabilities else "error rate"


def cross_validate(
    estimator: Estimator,
    features: pd.DataFrame,
    labels: Sequence[Label],
    task: Task,
    first_rows: Sequence[int] | None = None,
) -> Trial:
    """Cross-validate one estimator; for `first_rows` see `folds`."""
    values, truth = np.array(labels), truth_of(labels, task)
    target = task_target(task, DEFAULT_THRESHOLD, has_probabilities=False)
    scores: Scores | None = None
    for fit, held_out in folds(truth, first_rows):
        model = estimator.fit(features.iloc[fit], values[fit].tolist(), task.kind)
        if scores is None:
            target = target_of(model, task, DEFAULT_THRESHOLD)
            scores = np.empty((len(labels), target.columns))
        scores[held_out] = scores_of(model, features.iloc[held_out], target)
    assert scores is not None  # noqa: S101 (there are folds)
    lost = losses(target, truth, scores)
    answers, _ = target.answers(scores)
    return Trial(
        estimator=estimator,
        target=target,
        scores=scores,
        loss=float(lost.mean()),
        loss_error=float(lost.std(ddof=1) / np.sqrt(len(lost))),
        accuracy=None if task.kind == "regression" else float(np.mean(answers == truth)),
    )


def target_of(model: Classifier, task: Task, threshold: float) -> Target:
    """Return what a fitted model predicts."""
    return task_target(task, threshold, has_probabilities=hasattr(model, "predict_proba"))


def task_target(task: Task, threshold: float, *, has_probabilities: bool = True) -> Target:
    """Return what a model of a task predicts.

    Parameters
    ----------
    threshold
        Lowest probability of a positive prediction; only two classes with probabilities have one.
    has_probabilities
        True if the model gives the probability of each class.
    """
    used = threshold if task.kind == "binary" and has_probabilities else None
    return Target.of(task.classes, task.positive_class, used, has_probabilities=has_probabilities)


def choose(trials: Sequence[Trial], *, rewrite: bool = True) -> Trial:
    """Choose a trial within one standard error of the best.

    Of these, it is the best one that takes at most `NEGLIGIBLE_MS` longer than the fastest.
    """

    def time(trial: Trial) -> float:
        return trial.estimator.milliseconds(rewrite=rewrite)

    best = min(trials, key=lambda trial: trial.loss)
    good = [trial for trial in trials if trial.loss <= best.loss + best.loss_error]
    limit = min(map(time, good)) + NEGLIGIBLE_MS
    return min((trial for trial in good if time(trial) <= limit), key=lambda trial: trial.loss)


def select(
    name: str,
    features: pd.DataFrame,
    labels: Sequence[Label],
    task: Task,
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
    for estimator in estimators_for(name, len(labels), rewrite=rewrite, kind=task.kind):
        trial = cross_validate(estimator, features, labels, task, first_rows)
        progress(str(trial))
        trials.append(trial)
    return choose(trials, rewrite=rewrite), trials
