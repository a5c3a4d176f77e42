"""Evaluation of the probabilities on candidates that the model was not fitted on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from training.data import Dataset
from training.estimators import SEED, Classifier
from training.selection import Floats, Trial, folds
from transformer.bundle.signature import SEPARATOR, Category, Signature

#: Number of equal intervals of probability in the calibration.
CALIBRATION_GROUPS = 10
#: Number of times that each field is shuffled in each fold.
SHUFFLES = 3

Bools = npt.NDArray[np.bool_]
#: Returns the threshold for true classes and out-of-fold probabilities; see `training.threshold`.
ChooseThreshold = Callable[[Bools, Floats], float]


@dataclass(frozen=True)
class Importance:
    """Loss of accuracy (0 to 1) when the values of one raw field are shuffled among unseen candidates."""

    field: str
    mean: float
    error: float


@dataclass(frozen=True)
class Group:
    """Accuracy for the unseen candidates of one category."""

    field: str
    category: str
    rows: int
    accuracy: float


@dataclass(frozen=True)
class Evaluation:
    """Quality of a model, measured by cross-validation.

    Attributes
    ----------
    positive, probabilities
        True class and out-of-fold probability of each candidate.
    threshold
        Lowest probability of a positive prediction.
    metrics
        Metrics for the bundle.
    roc
        False positive rates and true positive rates.
    calibration
        Mean probability, share of positives and number of candidates, for each interval with candidates.
    confusion
        Number of candidates by true class (negative, positive) and by prediction.
    """

    positive: Bools
    probabilities: Floats
    threshold: float
    metrics: dict[str, float]
    roc: tuple[Floats, Floats]
    calibration: tuple[Floats, Floats, npt.NDArray[np.intp]]
    confusion: npt.NDArray[np.intp]
    importances: list[Importance]
    groups: list[Group]


def evaluate(
    dataset: Dataset, features: pd.DataFrame, trial: Trial, choose_threshold: ChooseThreshold
) -> Evaluation:
    """Evaluate the chosen estimator with the out-of-fold probabilities of its trial.

    The estimator was chosen on the same folds. With so few estimators, this bias is smaller than the standard
    error.
    """
    positive = np.array(dataset.labels) == dataset.task.positive_class
    threshold = choose_threshold(positive, trial.probabilities)
    predicted = trial.probabilities >= threshold
    rates = roc_curve(positive, trial.probabilities)
    confusion = [
        [int(np.sum((positive == t) & (predicted == p))) for p in (False, True)] for t in (False, True)
    ]
    return Evaluation(
        positive=positive,
        probabilities=trial.probabilities,
        threshold=threshold,
        metrics=measure(positive, trial.probabilities, predicted),
        roc=(rates[0], rates[1]),
        calibration=_calibration(positive, trial.probabilities),
        confusion=np.array(confusion),
        importances=sorted(
            _importances(dataset, features, trial, positive, threshold), key=lambda i: -i.mean
        ),
        groups=list(_groups(dataset, positive == predicted)),
    )


def measure(positive: Bools, probabilities: Floats, predicted: Bools) -> dict[str, float]:
    """Return the metrics of predictions for rows of both classes, each array of shape (rows,)."""
    metrics = {
        "accuracy": accuracy_score(positive, predicted),
        "roc_auc": roc_auc_score(positive, probabilities),
        "brier": brier_score_loss(positive, probabilities),
        "log_loss": log_loss(positive, probabilities),
        "f1": f1_score(positive, predicted, zero_division=0.0),
        "precision": precision_score(positive, predicted, zero_division=0.0),
        "recall": recall_score(positive, predicted),
    }
    return {name: float(value) for name, value in metrics.items()}


def _calibration(positive: Bools, probabilities: Floats) -> tuple[Floats, Floats, npt.NDArray[np.intp]]:
    group = np.minimum((probabilities * CALIBRATION_GROUPS).astype(int), CALIBRATION_GROUPS - 1)
    counts = np.bincount(group, minlength=CALIBRATION_GROUPS)
    used = counts > 0
    means = np.bincount(group, probabilities, CALIBRATION_GROUPS)[used] / counts[used]
    parts = np.bincount(group, positive, CALIBRATION_GROUPS)[used] / counts[used]
    return means, parts, counts[used]


def _importances(
    dataset: Dataset, features: pd.DataFrame, trial: Trial, positive: Bools, threshold: float
) -> Iterator[Importance]:
    """Shuffle all features of a raw field together, since one at a time would make impossible candidates."""
    random, labels = np.random.default_rng(SEED), np.array(dataset.labels)
    fields = dataset.task.signature.fields
    lost: dict[str, list[float]] = {field.name: [] for field in fields}
    for fit, held_out in folds(positive, dataset.first_rows):
        # Fitted again, because the models of all trials would fill the memory. The result is the same model.
        model = trial.estimator.fit(features.iloc[fit], labels[fit].tolist())
        unseen, truth = features.iloc[held_out], positive[held_out]
        before = _accuracy(dataset, model, unseen, truth, threshold)
        for field in fields:
            columns = list(Signature(fields=(field,)).feature_names(SEPARATOR))
            for _ in range(SHUFFLES):
                shuffled = _shuffled(unseen, columns, random)
                lost[field.name].append(before - _accuracy(dataset, model, shuffled, truth, threshold))
    for name, values in lost.items():
        yield Importance(name, float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values))))


def _accuracy(
    dataset: Dataset, model: Classifier, features: pd.DataFrame, positive: Bools, threshold: float
) -> float:
    column = list(model.classes_).index(dataset.task.positive_class)
    predicted = model.predict_proba(features)[:, column] >= threshold
    return float(np.mean(predicted == positive))


def _shuffled(features: pd.DataFrame, columns: list[str], random: np.random.Generator) -> pd.DataFrame:
    values = features[columns].to_numpy()[random.permutation(len(features))]
    return features.assign(**dict(zip(columns, values.T, strict=True)))


def _groups(dataset: Dataset, correct: Bools) -> Iterator[Group]:
    for field in dataset.task.signature.fields:
        if isinstance(field, Category):
            values = np.array([candidate[field.name] for candidate in dataset.candidates])
            for category in field.categories:
                rows = correct[values == category]
                if len(rows):
                    yield Group(field.name, category, len(rows), float(rows.mean()))
