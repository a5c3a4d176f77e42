"""Counts of the candidates that one version has answered: values, scores and decisions."""

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
from prometheus_client.utils import floatToGoString

from transformer.bundle.distribution import SCORE_BOUNDS
from transformer.bundle.encoder import Matrix
from transformer.bundle.format import Version
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
        decisions = _POSITIVE, _NEGATIVE
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
        self, matrix: Matrix, probabilities: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_]
    ) -> None:
        """Count candidates.

        Parameters
        ----------
        matrix : ndarray of float64, shape (candidates, feature names)
            The candidates in the version's encoding.
        probabilities, positive : ndarray, shape (candidates,)
            Their prediction.
        """
        counts = self._bins.count(matrix)
        self._counts += counts
        self._scores.observe(probabilities)
        accepted = int(np.count_nonzero(positive))
        self._decided += (accepted, len(matrix) - accepted)
        if self._places:
            selected = self._groups.count(matrix[positive])
            self._groups_decided += np.concatenate([selected, counts[self._places] - selected])

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
    shares = np.cumsum(distribution.scores) / sum(distribution.scores)
    for bound, part in zip(SCORE_BOUNDS, shares.tolist(), strict=True):
        TRAINING_SCORE_SHARE.labels(version.version, floatToGoString(bound)).set(part)
    TRAINING_CANDIDATES.labels(version.version).set(distribution.rows)
