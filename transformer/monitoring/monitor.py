"""Counts answered requests and their candidates, many requests at a time.

A request only adds itself to a list. Lists are counted with a few calls into numpy.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from kserve.metrics import EXPLAIN_HIST_TIME, POST_HIST_TIME, PRE_HIST_TIME, PREDICT_HIST_TIME, get_labels

from transformer.bundle.format import Bundle
from transformer.bundle.prediction import Prediction
from transformer.metrics import REQUEST_CANDIDATES, REQUEST_SECONDS, REQUESTS, HistogramBatch, start_at_zero
from transformer.monitoring.candidates import CandidateCounts, publish_training

#: Requests, and candidates, that are counted together. More would delay the requests that wait meanwhile.
MAX_REQUESTS = 512
BLOCK_SIZE = 4096
#: Bytes of feature matrices from which on requests are counted: of a wide vocabulary, few rows have as many.
MAX_PENDING_BYTES = 1 << 24
#: Statuses of failed requests, besides rare ones.
ERRORS = ("400", "413", "500", "502", "503", "504")


class Kind(NamedTuple):
    """Protocol of a request (``v1``, ``v2``, ``grpc``) and its verb (``predict``, ``explain``, ``infer``)."""

    protocol: str
    verb: str


V1_PREDICT = Kind("v1", "predict")
V1_EXPLAIN = Kind("v1", "explain")
V2_INFER = Kind("v2", "infer")
GRPC_INFER = Kind("grpc", "infer")
KINDS = (V1_PREDICT, V1_EXPLAIN, V2_INFER, GRPC_INFER)


#: Seconds that decoding, scoring and encoding of one request took.
Durations = tuple[float, float, float]


class Monitor:
    """Counts the requests for one model in one process.

    Parameters
    ----------
    model_name
        Name of the model, for KServe's histograms.
    bundle
        The versions.
    groups
        Fields whose bins are counted by decision.
    """

    def __init__(self, model_name: str, bundle: Bundle, groups: Sequence[str]) -> None:
        self._versions = {version.version: version for version in bundle.versions}
        self._groups = groups
        labels = get_labels(model_name)
        #: KServe's own: of decoding, of scoring without and with an explanation, and of encoding.
        self._parts = [
            HistogramBatch(one.labels(**labels))
            for one in (PRE_HIST_TIME, PREDICT_HIST_TIME, EXPLAIN_HIST_TIME, POST_HIST_TIME)
        ]
        self._seconds = {kind: HistogramBatch(REQUEST_SECONDS.labels(*kind)) for kind in KINDS}
        self._rows = {kind: HistogramBatch(REQUEST_CANDIDATES.labels(*kind)) for kind in KINDS}
        self._requests: Counter[tuple[Kind, str]] = Counter()
        self._candidates: dict[tuple[str, str], CandidateCounts] = {}
        start_at_zero()
        for kind, status in product(KINDS, ERRORS):
            REQUESTS.labels(*kind, status, "")
        for name, version in self._versions.items():
            publish_training(version)
            self._counts_of(name, name)
            for kind in KINDS:
                REQUESTS.labels(*kind, "200", name)
        #: Answered requests that are not counted yet.
        self._pending: list[tuple[Kind, Durations, Prediction, bool]] = []
        self._pending_rows = 0
        self._pending_bytes = 0

    def answered(
        self, kind: Kind, durations: Durations, prediction: Prediction, *, explained: bool = False
    ) -> None:
        """Note that a request was answered.

        Parameters
        ----------
        prediction
            The answer, without its explanation, which would be kept until the request is counted.
        explained
            True if it had one.
        """
        self._pending.append((kind, durations, prediction, explained))
        self._pending_rows += prediction.rows
        self._pending_bytes += prediction.matrix.nbytes
        if (
            self._pending_rows >= BLOCK_SIZE
            or self._pending_bytes >= MAX_PENDING_BYTES
            or len(self._pending) >= MAX_REQUESTS
        ):
            self._count()

    def failed(self, kind: Kind, status: int) -> None:
        """Count a request that ended with an error."""
        REQUESTS.labels(*kind, str(status), "").inc()

    def flush(self) -> None:
        """Add everything that was noted to the metrics."""
        self._count()
        for (kind, version), count in self._requests.items():
            REQUESTS.labels(*kind, "200", version).inc(count)
        self._requests.clear()
        for histogram in (*self._parts, *self._seconds.values(), *self._rows.values()):
            histogram.flush()
        for counts in self._candidates.values():
            counts.flush()

    def _count(self) -> None:
        """Count the requests that were noted."""
        if not self._pending:
            return
        groups: dict[tuple[Kind, str, str, bool], list[tuple[Durations, Prediction]]] = {}
        for kind, took, prediction, explained in self._pending:
            group = kind, prediction.encoding, prediction.version, explained
            groups.setdefault(group, []).append((took, prediction))
        self._pending, self._pending_rows, self._pending_bytes = [], 0, 0
        for (kind, encoding, version, explained), some in groups.items():
            durations = np.array([took for took, _ in some])
            predictions = [prediction for _, prediction in some]
            decoding, scoring, explaining, responding = self._parts
            parts = decoding, explaining if explained else scoring, responding
            for histogram, seconds in zip(parts, durations.T, strict=True):
                histogram.observe(seconds)
            self._seconds[kind].observe(durations.sum(axis=1))
            self._rows[kind].observe([one.rows for one in predictions])
            self._requests[kind, version] += len(some)
            # Explained candidates do not count: callers have usually asked for their prediction before.
            if not explained:
                _count_candidates(self._counts_of(encoding, version), predictions)

    def _counts_of(self, encoding: str, label: str) -> CandidateCounts:
        counts = self._candidates.get((encoding, label))
        if counts is None:
            counts = CandidateCounts(self._versions[encoding], label, self._groups)
            self._candidates[encoding, label] = counts
        return counts


def _count_candidates(counts: CandidateCounts, predictions: Sequence[Prediction]) -> None:
    # Joined as bytes: np.concatenate takes four times as long for small arrays.
    width = predictions[0].matrix.shape[1]
    matrix = np.frombuffer(b"".join([one.matrix.data for one in predictions])).reshape(-1, width)
    first = predictions[0]
    values = np.frombuffer(b"".join([one.values.data for one in predictions]), first.values.dtype)
    probabilities = None
    if first.probabilities is not None:
        found = [one.probabilities.data for one in predictions if one.probabilities is not None]
        probabilities = np.frombuffer(b"".join(found)).reshape(-1, *first.probabilities.shape[1:])
    for start in range(0, len(matrix), BLOCK_SIZE):
        rows = slice(start, start + BLOCK_SIZE)
        counts.add(matrix[rows], values[rows], None if probabilities is None else probabilities[rows])
