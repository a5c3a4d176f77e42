"""Prometheus metrics of the transformer, besides KServe's own histograms.

Every metric has labels, so that its values are made while the process serves: see `share`.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    values,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import REGISTRY

from transformer.bundle.distribution import SCORE_BOUNDS

# A second series for each counter, with the time at which it was made.
disable_created_metrics()

#: Upper bounds of latencies in seconds: a prediction takes from half a millisecond to its deadline of 10 s.
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 10_000)

CONNECTIONS = Gauge(
    "transformer_predictor_connections",
    "Connections to the predictor, by state and by the version behind them",
    ["version", "state"],
    multiprocess_mode="livesum",
)
VERIFICATIONS = Counter(
    "transformer_verifications",
    "Verifications of the version behind the predictor, by outcome",
    ["outcome"],
)
REQUESTS = Counter(
    "transformer_requests",
    "Requests for predictions and explanations, by the status of the response (gRPC: its HTTP equivalent), "
    "and by the version that answered",
    ["protocol", "verb", "status", "version"],
)
REQUEST_SECONDS = Histogram(
    "transformer_request_seconds",
    "Time from a complete request to its answer, of answered requests",
    ["protocol", "verb"],
    buckets=_SECONDS,
)
REQUEST_CANDIDATES = Histogram(
    "transformer_request_candidates", "Candidates per answered request", ["protocol", "verb"], buckets=_ROWS
)
REFUSALS = Counter("transformer_refusals", "Requests that a limit refused", ["limit"])
EXPLANATIONS = Counter(
    "transformer_explained_candidates", "Explained candidates, by the version that answered", ["version"]
)
EXPLANATION_ROWS = Counter(
    "transformer_explanation_rows",
    "Rows in calls to the predictor that serve explanations, by the version behind the call",
    ["version"],
)
CLIENTS_TURNED_AWAY = Counter(
    "transformer_clients_turned_away",
    "REST connections closed at the limit of connections: idle ones, and new ones that were refused",
    ["connection"],
)
QUEUED = Gauge(
    "transformer_queue_candidates",
    "Candidates in the queue: waiting for a free connection, or parked until a model can score them",
    ["state"],
    multiprocess_mode="livesum",
)
QUEUE_SECONDS = Histogram(
    "transformer_queue_seconds",
    "Time from a request's arrival in the queue to the call that carries it, by the version behind the call",
    ["version"],
    buckets=_SECONDS,
)
BATCHES = Histogram(
    "transformer_batch_candidates",
    "Candidates per call to the predictor for predictions, by the version behind it",
    ["version"],
    buckets=_ROWS,
)
CALL_SECONDS = Histogram(
    "transformer_predictor_call_seconds",
    "Duration of calls to the predictor, failed ones included, by the version behind it",
    ["version"],
    buckets=_SECONDS,
)
RETRIES = Counter("transformer_predictor_retries", "Retried calls to the predictor, by reason", ["reason"])
RETRIES_DENIED = Counter(
    "transformer_predictor_retries_denied", "Retries for which the retry budget had nothing left", ["reason"]
)

CANDIDATES = Counter(
    "transformer_candidate_values", "Answered candidates, by field and bin", ["version", "field", "bin"]
)
SCORES = Histogram(
    "transformer_candidate_score",
    "Probability of the positive class of answered candidates",
    ["version"],
    buckets=SCORE_BOUNDS,
)
DECISIONS = Counter(
    "transformer_decisions", "Answered candidates, by decision (positive, negative)", ["version", "decision"]
)
GROUP_DECISIONS = Counter(
    "transformer_group_decisions",
    "Answered candidates, by decision and by the bins of the fields in --groups",
    ["version", "field", "group", "decision"],
)
TRAINING_SHARE = Gauge(
    "transformer_training_share",
    "Share of the training candidates, by field and bin",
    ["version", "field", "bin"],
    multiprocess_mode="max",
)
TRAINING_SCORE_SHARE = Gauge(
    "transformer_training_score_share",
    "Share of the training candidates with at most this probability of the positive class",
    ["version", "score"],
    multiprocess_mode="max",
)
TRAINING_CANDIDATES = Gauge(
    "transformer_training_candidates", "Number of training candidates", ["version"], multiprocess_mode="max"
)

#: Values of the label `limit` of REFUSALS.
LIMITS = (
    "body",
    "bytes in flight",
    "candidates",
    "candidates to explain",
    "connections",
    "explanation rows",
    "fields",
    "grpc calls",
    "head",
    "path",
    "pipelined requests",
    "queue",
    "reading",
    "time",
    "unfinished bodies",
    "values",
)
#: Values of the label `reason` of RETRIES, and of RETRIES_DENIED.
RETRY_REASONS = ("dropped", "halved", "interrupted", "model gone", "other version", "reconnected", "refused")
DENIED_REASONS = ("alone", "dropped", "halved")
#: Values from which a `HistogramBatch` is faster than as many calls of `observe`, and from which it is faster
#: to compare them with each bound than to search for their buckets.
FEW, MANY = 8, 1024
#: Directory in memory that a container can write to even if its root filesystem is read-only.
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (a directory of our own is made in it)
_PREFIX, _LOCK = "transformer-metrics-", "lock"
_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"


class HistogramBatch:
    """Observations of one histogram, added many at a time.

    `Histogram.observe` takes about 1 µs, and a request has five histograms; this takes 0.05 µs for each value
    of a large batch. It uses private attributes of prometheus_client 0.26, compared with `observe` by a test.

    Parameters
    ----------
    histogram
        A histogram without labels, or with all its labels' values.
    """

    def __init__(self, histogram: Histogram) -> None:
        self._buckets = histogram._buckets  # noqa: SLF001
        self._total = histogram._sum  # noqa: SLF001
        self._bounds = np.array(histogram._upper_bounds)  # noqa: SLF001
        self._counts = np.zeros(len(self._bounds), np.int64)
        self._sum = 0.0

    def observe(self, some: npt.ArrayLike) -> None:
        """Observe an array of values."""
        observed = np.asarray(some, np.float64)
        if len(observed) < MANY:
            buckets = np.searchsorted(self._bounds, observed)
            self._counts += np.bincount(buckets, minlength=len(self._bounds))
        else:
            below = [0, *(int(np.count_nonzero(observed <= bound)) for bound in self._bounds)]
            self._counts += np.diff(below)
        self._sum += float(observed.sum())

    def flush(self) -> None:
        """Add what was observed to the histogram."""
        for bucket, count in zip(self._buckets, self._counts.tolist(), strict=True):
            if count:
                bucket.inc(count)
        self._total.inc(self._sum)
        self._counts[:] = 0
        self._sum = 0.0


def observe_all(histogram: Histogram, observed: Sequence[float]) -> None:
    """Observe values of one histogram; many of them together."""
    if len(observed) < FEW:
        for value in observed:
            histogram.observe(value)
    else:
        batch = HistogramBatch(histogram)
        batch.observe(observed)
        batch.flush()


def shared_directory() -> Path:
    """Make a directory for `share`: in memory, where a container can write without a volume.

    The directories of processes that were killed are removed: a pod's memory outlives its containers.
    """
    parent = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    for other in parent.glob(f"{_PREFIX}*/{_LOCK}"):
        with contextlib.suppress(OSError), other.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(other.parent, ignore_errors=True)
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    # Locked before it has its name, and until this process ends.
    unnamed = directory / f"{_LOCK}.new"
    fcntl.flock(os.open(unnamed, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC), fcntl.LOCK_EX)
    unnamed.rename(directory / _LOCK)
    return directory


def share(directory: Path, process: int) -> None:
    """Keep the values of all metrics in a directory that several processes share.

    Must precede the first value. A process that replaces another one gets its number and goes on with its
    counters, so that no counter ever falls.

    Parameters
    ----------
    process
        Number of this process, unique among those that run.
    """
    os.environ[_DIRECTORY] = str(directory)
    values.ValueClass = values.MultiProcessValue(lambda: process)


def forget(process: int) -> None:
    """Remove what a process that has ended said about the present: its connections and its queue."""
    mark_process_dead(process, os.environ[_DIRECTORY])


def registry() -> CollectorRegistry:
    """Return the metrics of all processes that share them, or else of this process."""
    if _DIRECTORY not in os.environ:
        return REGISTRY
    shared = CollectorRegistry()
    MultiProcessCollector(shared)
    return shared


def start_at_zero() -> None:
    """Make the series with known labels: Prometheus misses the growth of one that starts above 0."""
    for counter, labels in (
        (REFUSALS, LIMITS),
        (RETRIES, RETRY_REASONS),
        (RETRIES_DENIED, DENIED_REASONS),
        (CLIENTS_TURNED_AWAY, ("idle", "refused")),
        (VERIFICATIONS, ("equal", "unverified", "refused", "failed")),
    ):
        for label in labels:
            counter.labels(label)


def add_counts(children: Sequence[Counter], counts: npt.NDArray[np.int64]) -> None:
    """Add a count to each of some counters."""
    for child, count in zip(children, counts.tolist(), strict=True):
        if count:
            child.inc(count)
