"""Cross-validation: each candidate is scored by a model that was fitted on other candidates.

With probabilities, the loss of a row is its Brier score: callers get a probability, and the Brier score
rewards calibrated probabilities. Unlike the log loss, it stays finite when a forest gives 0 or 1 and errs.
Without probabilities, it is 1 for a wrong class; for numbers, it is the squared error.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.model_selection import KFold, StratifiedKFold
from threadpoolctl import threadpool_limits

from training.backends import LOCAL, Run
from training.candidates import Task
from training.estimators import SEED, NamedEstimator, scores_of
from training.threshold import DEFAULT as DEFAULT_THRESHOLD
from transformer.bundle.classes import Label
from transformer.bundle.target import Scores, Target

#: Number of folds of the cross-validation.
FOLDS = 5

Progress = Callable[[str], None]
Floats = npt.NDArray[np.float64]
Fold = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]


@dataclass(frozen=True)
class Trial:
    """Result of one estimator in cross-validation.

    Attributes
    ----------
    target
        What the models of this estimator predict, with the default threshold.
    loss, loss_error
        Mean of the candidates' losses, and the standard error over the candidates; five folds are too few for
        a standard error over the folds.
    accuracy
        Share of right classes; None for numbers.
    """

    estimator: NamedEstimator
    target: Target
    loss: float
    loss_error: float
    accuracy: float | None

    def __str__(self) -> str:
        accuracy = "" if self.accuracy is None else f", accuracy {self.accuracy:.1%}"
        loss = f"{self.loss:.4f} ± {self.loss_error:.4f}"
        if self.target.kind == "regression":
            loss = f"{self.loss:.4g} ± {self.loss_error:.2g}"
        return f"{self.estimator}: {loss_name(self.target)} {loss}{accuracy}"


@dataclass(frozen=True)
class ScoredTrial(Trial):
    """A trial with its scores.

    Attributes
    ----------
    scores : ndarray of float64, shape (candidates, `target.columns`)
        Out-of-fold scores of each candidate.
    """

    scores: Scores


@dataclass(frozen=True)
class CrossValidation:
    """Labelled candidates, on which estimators are compared.

    Attributes
    ----------
    features : DataFrame, shape (candidates, features)
        Encoded candidates.
    labels
        Class or number of each candidate.
    first_rows
        Index of the first row that is equal to each row, see `folds`.
    """

    features: pd.DataFrame
    labels: Sequence[Label]
    task: Task
    first_rows: Sequence[int] | None = None

    @cached_property
    def _truth(self) -> npt.NDArray[Any]:
        return truth_of(self.labels, self.task)

    @cached_property
    def _folds(self) -> list[Fold]:
        return folds(self._truth, self.first_rows)

    @property
    def sha256(self) -> str:
        """Digest of all that the trials of an estimator depend on."""
        content = (self.features.columns.tolist(), list(self.labels), self.task.kind, self.first_rows, FOLDS)
        values = np.ascontiguousarray(self.features.to_numpy(np.float64))
        return sha256(json.dumps(content).encode() + values.tobytes()).hexdigest()

    def trials(self, estimators: Iterable[NamedEstimator], run: Run = LOCAL) -> Iterator[ScoredTrial]:
        """Cross-validate estimators.

        Parameters
        ----------
        run
            Runs the fits of the folds, here or on a cluster; the result is the same.
        """
        wanted = list(estimators)
        fits = ((estimator, number) for estimator in wanted for number in range(FOLDS))
        scores = iter(run(self._fold_scores, fits))
        for estimator in wanted:
            yield self._trial(estimator, list(islice(scores, FOLDS)))

    def _fold_scores(self, estimator: NamedEstimator, number: int) -> Scores:
        """Fit on the other folds, and return the scores of this one."""
        rows, held_out = self._folds[number]
        labels = np.array(self.labels)[rows].tolist()
        # The number of threads of the linear algebra can change the last digits.
        with threadpool_limits(1):
            model = estimator.fit(self.features.iloc[rows], labels, self.task.kind)
            return scores_of(model, self.features.iloc[held_out], self.target_of(estimator))

    def _trial(self, estimator: NamedEstimator, parts: Sequence[Scores]) -> ScoredTrial:
        target = self.target_of(estimator)
        scores: Scores = np.empty((len(self.labels), target.columns))
        for (_, held_out), part in zip(self._folds, parts, strict=True):
            scores[held_out] = part
        lost = losses(target, self._truth, scores)
        answers, _ = target.answers(scores)
        return ScoredTrial(
            estimator=estimator,
            target=target,
            loss=float(lost.mean()),
            loss_error=float(lost.std(ddof=1) / np.sqrt(len(lost))),
            accuracy=None if self.task.kind == "regression" else float(np.mean(answers == self._truth)),
            scores=scores,
        )

    def target_of(self, estimator: NamedEstimator) -> Target:
        """Return what models of an estimator predict, with the default threshold."""
        has_probabilities = hasattr(estimator.make(self.task.kind), "predict_proba")
        return task_target(self.task, float(DEFAULT_THRESHOLD), has_probabilities=has_probabilities)


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
