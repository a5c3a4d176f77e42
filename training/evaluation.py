"""Evaluation of the answers on candidates that the model was not fitted on."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    confusion_matrix,
    f1_score,
    log_loss,
    mean_absolute_error,
    precision_score,
    r2_score,
    recall_score,
    roc_auc_score,
    roc_curve,
    root_mean_squared_error,
)

from training.cross_validation import Floats, ScoredTrial, folds, losses, task_target, truth_of
from training.data import Dataset
from training.encoding import categories_of, has_category
from training.estimators import SEED, Estimator, scores_of
from training.stored import StoredVersion
from training.threshold import Bools, ChooseThreshold
from transformer.bundle.signature import SEPARATOR, Number, features_of
from transformer.bundle.target import Target

#: Number of equal intervals of probability in the calibration.
CALIBRATION_GROUPS = 10
#: Number of times that each field is shuffled in each fold.
SHUFFLES = 3


@dataclass(frozen=True)
class Importance:
    """Loss when the values of one raw field are shuffled among unseen candidates.

    It is that of accuracy (0 to 1), or of numbers the rise of the mean absolute error.
    """

    field: str
    mean: float
    error: float


@dataclass(frozen=True)
class Group:
    """Accuracy for the unseen candidates of one category, or of numbers the mean absolute error."""

    field: str
    category: str
    rows: int
    quality: float


@dataclass(frozen=True)
class Evaluation:
    """Quality of a model, measured by cross-validation.

    Attributes
    ----------
    target
        What the model predicts, with the threshold that was chosen.
    truth, values : ndarray, shape (candidates,)
        True and out-of-fold answer to each candidate, see `Target.answers`.
    probabilities : ndarray of float64
        Out-of-fold probabilities, see `Target.answers`; None if the model gives none.
    metrics
        Metrics for the bundle.
    """

    target: Target
    truth: npt.NDArray[Any]
    values: npt.NDArray[Any]
    probabilities: Floats | None
    metrics: dict[str, float]
    importances: list[Importance]
    groups: list[Group]

    @property
    def threshold(self) -> float:
        """Lowest probability of a positive prediction."""
        return self.target.threshold

    @property
    def positive_probabilities(self) -> Floats:
        """Probability of the positive class of two with probabilities."""
        assert self.target.kind == "binary" and self.probabilities is not None  # noqa: S101, PT018
        return self.probabilities

    @cached_property
    def roc(self) -> tuple[Floats, Floats]:
        """False positive rates and true positive rates."""
        false_rates, true_rates, _ = roc_curve(self.truth, self.positive_probabilities)
        return false_rates, true_rates

    @cached_property
    def calibration(self) -> tuple[Floats, Floats, npt.NDArray[np.intp]]:
        """Mean probability, share of positives and number of candidates, for each interval with some."""
        return _calibration(self.truth, self.positive_probabilities)

    @cached_property
    def confusion(self) -> npt.NDArray[np.intp]:
        """Number of candidates by true class and by prediction; of two classes, the negative one first."""
        labels = [False, True] if self.target.kind == "binary" else range(len(self.target.classes))
        counts: npt.NDArray[np.intp] = confusion_matrix(self.truth, self.values, labels=list(labels))
        return counts


def evaluate(
    dataset: Dataset, features: pd.DataFrame, trial: ScoredTrial, choose_threshold: ChooseThreshold
) -> Evaluation:
    """Evaluate the chosen estimator with the out-of-fold scores of its trial.

    The estimator was chosen on the same folds. With few estimators, this bias is smaller than the standard
    error; a search of many trials raises it (docs/tuning.md measures it).
    """
    truth = truth_of(dataset.labels, dataset.task)
    target = trial.target
    _, probabilities = target.answers(trial.scores)
    if target.kind == "binary" and probabilities is not None:
        target = task_target(dataset.task, choose_threshold(truth, probabilities))
    importances = sorted(_importances(dataset, features, trial, truth, target), key=lambda i: -i.mean)
    return _evaluation(dataset, target, truth, trial.scores, importances)


def evaluate_version(version: StoredVersion, dataset: Dataset) -> Evaluation:
    """Evaluate a version on candidates that it was not fitted on and accepts all of.

    Fields' importances are left out.
    """
    target = version.bundle.target
    _, scores = version.score(dataset.candidates)
    return _evaluation(dataset, target, truth_of(dataset.labels, target), scores, [])


def _evaluation(
    dataset: Dataset, target: Target, truth: npt.NDArray[Any], scores: Floats, importances: list[Importance]
) -> Evaluation:
    values, probabilities = target.answers(scores)
    return Evaluation(
        target=target,
        truth=truth,
        values=values,
        probabilities=probabilities,
        metrics=metrics_of(target, truth, scores),
        importances=importances,
        groups=list(_groups(dataset, _errors(target, truth, values))),
    )


def metrics_of(target: Target, truth: npt.NDArray[Any], scores: Floats) -> dict[str, float]:
    """Return the metrics that fit the kind of question.

    Parameters
    ----------
    truth
        True answers, see `training.cross_validation.truth_of`.
    scores : ndarray of float64, shape (rows, `target.columns`)
        The model's scores.
    """
    values, probabilities = target.answers(scores)
    if target.kind == "regression":
        metrics = {
            "mae": mean_absolute_error(truth, values),
            "rmse": root_mean_squared_error(truth, values),
            "r2": r2_score(truth, values),
        }
        return {name: float(value) for name, value in metrics.items()}
    metrics = {"accuracy": accuracy_score(truth, values)}
    if probabilities is not None and target.kind == "binary":
        metrics |= {
            "roc_auc": roc_auc_score(truth, probabilities),
            "brier": brier_score_loss(truth, probabilities),
            "log_loss": log_loss(truth, probabilities),
        }
    elif probabilities is not None:
        metrics |= {
            "brier": losses(target, truth, scores).mean(),
            "log_loss": log_loss(truth, probabilities, labels=list(range(len(target.classes)))),
        }
    if target.kind == "binary":
        metrics |= {
            "f1": f1_score(truth, values, zero_division=0.0),
            "precision": precision_score(truth, values, zero_division=0.0),
            "recall": recall_score(truth, values),
        }
    else:
        metrics["macro_f1"] = f1_score(truth, values, average="macro", zero_division=0.0)
    return {name: float(value) for name, value in metrics.items()}


def _errors(target: Target, truth: npt.NDArray[Any], values: npt.NDArray[Any]) -> Floats:
    """Return 1 for a wrong class and 0 for a right one; of numbers, the absolute error."""
    return np.abs(values - truth) if target.kind == "regression" else np.where(values == truth, 0.0, 1.0)


def _calibration(positive: Bools, probabilities: Floats) -> tuple[Floats, Floats, npt.NDArray[np.intp]]:
    group = np.minimum((probabilities * CALIBRATION_GROUPS).astype(int), CALIBRATION_GROUPS - 1)
    counts = np.bincount(group, minlength=CALIBRATION_GROUPS)
    used = counts > 0
    means = np.bincount(group, probabilities, CALIBRATION_GROUPS)[used] / counts[used]
    parts = np.bincount(group, positive, CALIBRATION_GROUPS)[used] / counts[used]
    return means, parts, counts[used]


def _importances(
    dataset: Dataset, features: pd.DataFrame, trial: ScoredTrial, truth: npt.NDArray[Any], target: Target
) -> Iterator[Importance]:
    """Shuffle all features of a raw field together, since one at a time would make impossible candidates."""
    random, labels = np.random.default_rng(SEED), np.array(dataset.labels)
    fields = dataset.task.signature.fields
    lost: dict[str, list[float]] = {field.name: [] for field in fields}
    for fit, held_out in folds(truth, dataset.first_rows):
        # Fitted again, because the models of all trials would fill the memory. The result is the same model.
        model = trial.estimator.fit(features.iloc[fit], labels[fit].tolist(), dataset.task.kind)
        unseen, true = features.iloc[held_out], truth[held_out]
        before = _error(model, unseen, true, target)
        for field in fields:
            columns = list(features_of(field, SEPARATOR))
            for _ in range(SHUFFLES):
                shuffled = _shuffled(unseen, columns, random)
                lost[field.name].append(_error(model, shuffled, true, target) - before)
    for name, values in lost.items():
        yield Importance(name, float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values))))


def _error(model: Estimator, features: pd.DataFrame, truth: npt.NDArray[Any], target: Target) -> float:
    values, _ = target.answers(scores_of(model, features, target))
    return float(_errors(target, truth, values).mean())


def _shuffled(features: pd.DataFrame, columns: list[str], random: np.random.Generator) -> pd.DataFrame:
    values = features[columns].to_numpy()[random.permutation(len(features))]
    return features.assign(**dict(zip(columns, values.T, strict=True)))


def _groups(dataset: Dataset, errors: Floats) -> Iterator[Group]:
    for field in dataset.task.signature.fields:
        if not isinstance(field, Number):
            values = [candidate[field.name] for candidate in dataset.candidates]
            for category in categories_of(field):
                rows = errors[has_category(values, category)]
                if len(rows):
                    mean = float(rows.mean())
                    quality = mean if dataset.task.kind == "regression" else 1 - mean
                    yield Group(field.name, category, len(rows), quality)
