"""Evaluation of a new version on held-out candidates, beside the version that serves."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
from sklearn.metrics import roc_curve

from pipelines.step import PipelineError
from pipelines.summary import Comparison, GroupResult, Summary
from placement.drift import stability_index
from training.candidates import Candidate
from training.data import Dataset
from training.encoding import has_category
from training.evaluation import Evaluation, evaluate_version
from training.stored import StoredVersion
from transformer.bundle.target import Target
from transformer.monitoring.bins import Bins

#: Maximum points of a ROC curve for Kubeflow's page.
ROC_POINTS = 100


@dataclass(frozen=True)
class RocCurve:
    """Rates of false and of true positives, and the threshold of each point, in the order of the rates."""

    false_rates: list[float]
    true_rates: list[float]
    thresholds: list[float]


def evaluate(
    uri: str, training: Dataset, held_out: Dataset, serving: str, groups: Sequence[str]
) -> tuple[Evaluation, Summary]:
    """Evaluate the version at a URI on held-out candidates.

    Parameters
    ----------
    training
        Candidates that it was fitted on; with the held-out ones they are the new candidates of the drift.
    serving
        URI of the version that serves; empty if none does.
    groups
        Fields whose categories are compared.

    Raises
    ------
    PipelineError
        If the version that serves answers another question.
    storage.errors.StorageError, BundleError
        If a version cannot be read, or its model cannot be loaded.
    """
    new = StoredVersion.load(uri)
    evaluation = evaluate_version(new, held_out)
    comparison = None
    if serving:
        comparison = _compare(new, StoredVersion.load(serving), training, held_out)
    summary = Summary(
        version=new.bundle.version,
        rows=len(held_out.labels),
        metrics=evaluation.metrics,
        comparison=comparison,
        groups=list(_groups(evaluation, held_out, groups)),
    )
    return evaluation, summary


def roc(evaluation: Evaluation) -> RocCurve | None:
    """Return the ROC curve of a yes or no with probabilities, else None."""
    if not evaluation.target.has_threshold:
        return None
    curve = roc_curve(evaluation.truth, evaluation.positive_probabilities)
    points = np.unique(np.linspace(0, len(curve[0]) - 1, ROC_POINTS).round().astype(int))
    # The first threshold is infinite, which JSON cannot express.
    false_rates, true_rates, thresholds = (np.minimum(one[points], 1.0).tolist() for one in curve)
    return RocCurve(false_rates, true_rates, thresholds)


def _compare(new: StoredVersion, old: StoredVersion, training: Dataset, held_out: Dataset) -> Comparison:
    if _question(new.bundle.target) != _question(old.bundle.target):
        raise PipelineError(
            f"{old.bundle.version}, which serves, answers another question than {new.bundle.version}: "
            f"{old.bundle.target} of {old.bundle.target.class_names}, expected {new.bundle.target} of "
            f"{new.bundle.target.class_names}; give the new model another name"
        )
    accepted, _ = old.encode(held_out.candidates)
    both = dataclasses.replace(
        held_out,
        candidates=list(compress(held_out.candidates, accepted)),
        labels=list(compress(held_out.labels, accepted)),
    )
    can_compare = len(both.labels) > 0 and set(both.labels) >= set(held_out.task.classes)
    psi, psi_rows = _drift(old, [*training.candidates, *held_out.candidates])
    return Comparison(
        version=old.bundle.version,
        rows=len(both.labels),
        metrics=evaluate_version(new, both).metrics if can_compare else {},
        serving_metrics=evaluate_version(old, both).metrics if can_compare else {},
        psi=psi,
        psi_rows=psi_rows,
    )


def _question(target: Target) -> object:
    return target.outputs, set(target.classes), target.positive_class


def _drift(old: StoredVersion, candidates: Sequence[Candidate]) -> tuple[dict[str, float], int]:
    """Return the stability index of each field, and the number of candidates that count."""
    if old.bundle.distribution is None:
        return {}, 0
    _, matrix = old.encode(candidates, unknown_category="ignore")
    if not len(matrix):
        return {}, 0
    bins = Bins(old.bundle, old.bundle.signature.names)
    shares = zip(
        bins.count(matrix) / len(matrix), np.array(bins.training) / old.bundle.distribution.rows, strict=True
    )
    of_fields: dict[str, list[tuple[float, float]]] = {}
    for (field, _), (now, before) in zip(bins.labels, shares, strict=True):
        of_fields.setdefault(field, []).append((float(now), float(before)))
    return {field: stability_index(pairs) for field, pairs in of_fields.items()}, len(matrix)


def _groups(evaluation: Evaluation, held_out: Dataset, fields: Sequence[str]) -> Iterator[GroupResult]:
    kind = evaluation.target.kind
    for group in evaluation.groups:
        if group.field in fields:
            values = [candidate[group.field] for candidate in held_out.candidates]
            selected = evaluation.values[has_category(values, group.category)]
            yield GroupResult(
                field=group.field,
                group=group.category,
                rows=group.rows,
                accuracy=None if kind == "regression" else group.quality,
                selection_rate=float(selected.mean()) if kind == "binary" else None,
            )
