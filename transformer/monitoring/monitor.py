"""Counts answered requests and their candidates, many requests at a time.

A request only adds itself to a list. Lists are counted with a few calls into numpy.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import chain, product
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


class Durations(NamedTuple):
    """Times that the parts of one request took, in seconds."""

    decoding: float
    scoring: float
    encoding: float


class Answered(NamedTuple):
    """One answered request; of an explanation, only the prediction is kept until it is counted."""

    kind: Kind
    durations: Durations
    prediction: Prediction
    explained: bool = False


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
        self._pending: list[Answered] = []
        self._pending_rows = 0
        self._pending_bytes = 0

    def answered(self, request: Answered) -> None:
        """Note that a request was answered."""
        self._pending.append(request)
        self._pending_rows += request.prediction.rows
        self._pending_bytes += request.prediction.matrix.nbytes
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
        requests, self._pending, self._pending_rows, self._pending_bytes = self._pending, [], 0, 0
        flat = chain.from_iterable([request.durations for request in requests])
        durations = np.fromiter(flat, np.float64).reshape(len(requests), -1)
        explained = np.array([request.explained for request in requests])
        decoding, scoring, encoding = durations.T
        parts = decoding, scoring[~explained], scoring[explained], encoding
        for histogram, seconds in zip(self._parts, parts, strict=True):
            histogram.observe(seconds)
        totals = durations.sum(axis=1)
        by_kind: dict[Kind, list[int]] = {}
        by_model: dict[tuple[str, str], list[Answered]] = {}
        for number, request in enumerate(requests):
            by_kind.setdefault(request.kind, []).append(number)
            # Who asks for an explanation has usually asked for the prediction before.
            if not explained[number]:
                model = request.prediction.encoding, request.prediction.version
                by_model.setdefault(model, []).append(request)
        for kind, numbers in by_kind.items():
            self._seconds[kind].observe(totals[numbers])
            self._rows[kind].observe([requests[number].prediction.rows for number in numbers])
        self._requests.update((request.kind, request.prediction.version) for request in requests)
        for model, some in by_model.items():
            self._count_candidates(self._counts_of(*model), some)

    def _count_candidates(self, counts: CandidateCounts, requests: Sequence[Answered]) -> None:
        # Joined as bytes: np.concatenate takes four times as long for small arrays.
        width = requests[0].prediction.matrix.shape[1]
        matrix = np.frombuffer(b"".join([one.prediction.matrix.data for one in requests])).reshape(-1, width)
        first = requests[0].prediction
        values = np.frombuffer(b"".join([one.prediction.values.data for one in requests]), first.values.dtype)
        probabilities = None
        if first.probabilities is not None:
            found = [one.prediction.probabilities for one in requests]
            joined = np.frombuffer(b"".join([one.data for one in found if one is not None]))
            probabilities = joined.reshape(-1, *first.probabilities.shape[1:])
        for start in range(0, len(matrix), BLOCK_SIZE):
            rows = slice(start, start + BLOCK_SIZE)
            part = None if probabilities is None else probabilities[rows]
            counts.add(matrix[rows], values[rows], part)

    def _counts_of(self, encoding: str, label: str) -> CandidateCounts:
        counts = self._candidates.get((encoding, label))
        if counts is None:
            counts = CandidateCounts(self._versions[encoding], label, self._groups)
            self._candidates[encoding, label] = counts
        return counts
