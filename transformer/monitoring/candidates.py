"""Counts of the candidates that one version has answered: values, scores and decisions."""

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client.utils import floatToGoString

from transformer.bundle.distribution import SCORE_BOUNDS
from transformer.bundle.encoder import Matrix
from transformer.bundle.format import Version
from transformer.bundle.target import Target
from transformer.metrics import (
    CANDIDATES,
    DECISIONS,
    GROUP_DECISIONS,
    SCORES,
    TRAINING_CANDIDATES,
    TRAINING_SCORE_SHARE,
    TRAINING_SHARE,
    HistogramBatch,
    add_counts,
)
from transformer.monitoring.bins import Bins

_POSITIVE, _NEGATIVE = "positive", "negative"
#: Label of a regression's answers, which are counted although they decide nothing.
_NUMBER = "number"


class CandidateCounts:
    """Counts of the candidates that one model has answered. All its series exist from the start.

    Parameters
    ----------
    version
        The version whose encoding the model takes.
    label
        The version that answers name: the same, or ``unverified``.
    groups
        Fields whose bins are counted by decision.
    """

    def __init__(self, version: Version, label: str, groups: Collection[str]) -> None:
        self._bins = Bins(version, version.signature.names)
        self._groups = Bins(version, groups)
        #: Places of the groups among all bins.
        self._places = [self._bins.labels.index(group) for group in self._groups.labels]
        self._values = [CANDIDATES.labels(label, *bin_) for bin_ in self._bins.labels]
        self._scores = HistogramBatch(SCORES.labels(label))
        self._version = version
        decisions = _decisions(version.target)
        self._decisions = [DECISIONS.labels(label, decision) for decision in decisions]
        self._group_decisions = [
            GROUP_DECISIONS.labels(label, *group, decision)
            for decision in decisions
            for group in self._groups.labels
        ]
        self._counts = np.zeros(len(self._values), np.int64)
        self._decided = np.zeros(len(self._decisions), np.int64)
        self._groups_decided = np.zeros(len(self._group_decisions), np.int64)

    def add(
        self, matrix: Matrix, values: npt.NDArray[Any], probabilities: npt.NDArray[np.float64] | None
    ) -> None:
        """Count candidates.

        Parameters
        ----------
        matrix : ndarray of float64, shape (candidates, feature names)
            The candidates in the version's encoding.
        values, probabilities
            Their prediction; see `transformer.bundle.prediction.Prediction`.
        """
        counts = self._bins.count(matrix)
        self._counts += counts
        scores = drift_scores(self._version, values, probabilities)
        if scores is not None:
            self._scores.observe(scores)
        decided = _by_decision(self._version.target, values)
        self._decided += [int(np.count_nonzero(rows)) for rows in decided]
        if self._places:
            # The last decision gets what the others leave.
            selected = [self._groups.count(matrix[rows]) for rows in decided[:-1]]
            self._groups_decided += np.concatenate([*selected, counts[self._places] - sum(selected)])

    def flush(self) -> None:
        """Add the counts to the metrics."""
        self._scores.flush()
        for children, counts in (
            (self._values, self._counts),
            (self._decisions, self._decided),
            (self._group_decisions, self._groups_decided),
        ):
            add_counts(children, counts)
            counts[:] = 0


def publish_training(version: Version) -> None:
    """Set the metrics that say how the training candidates of a version were distributed."""
    distribution = version.distribution
    if distribution is None:
        return
    bins = Bins(version, version.signature.names)
    for bin_, count in zip(bins.labels, bins.training, strict=True):
        TRAINING_SHARE.labels(version.version, *bin_).set(count / distribution.rows)
    if distribution.scores:
        shares = np.cumsum(distribution.scores) / sum(distribution.scores)
        for bound, part in zip(SCORE_BOUNDS, shares.tolist(), strict=True):
            TRAINING_SCORE_SHARE.labels(version.version, floatToGoString(bound)).set(part)
    TRAINING_CANDIDATES.labels(version.version).set(distribution.rows)


def drift_scores(
    version: Version, values: npt.NDArray[Any], probabilities: npt.NDArray[np.float64] | None
) -> npt.NDArray[np.float64] | None:
    """Return one score from 0 to 1 for each candidate, whose distribution shows drift; None if there is none.

    It is the probability of the positive class, that of the likeliest class, or for a regression the upper
    bound of the tenth of the training candidates' numbers that the number falls into.
    """
    scores = version.target.ordered_scores(values, probabilities)
    if scores is None or version.target.kind != "regression":
        return scores
    edges = () if version.distribution is None else version.distribution.number_edges
    return np.array(SCORE_BOUNDS)[np.searchsorted(edges, scores)] if edges else None


def _decisions(target: Target) -> tuple[str, ...]:
    if target.kind == "binary":
        return _POSITIVE, _NEGATIVE
    return target.class_names or (_NUMBER,)


def _by_decision(target: Target, values: npt.NDArray[Any]) -> list[npt.NDArray[np.bool_]]:
    """Return for each decision which candidates got it."""
    if target.kind == "binary":
        return [values, ~values]
    if target.kind == "regression":
        return [np.ones(len(values), np.bool_)]
    return [values == place for place in range(len(target.classes))]
