"""Metrics of the calls to the predictor over one connection."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from transformer.batching.jobs import Batch
from transformer.metrics import BATCHES, CALL_SECONDS, EXPLANATION_ROWS, QUEUE_SECONDS, observe_all


class CallMetrics:
    """Measures calls.

    Parameters
    ----------
    version
        Label of the version behind the connection.
    """

    def __init__(self, version: str) -> None:
        self._rows = BATCHES.labels(version)
        self._explanation_rows = EXPLANATION_ROWS.labels(version)
        self._call_seconds = CALL_SECONDS.labels(version)
        self._queue_seconds = QUEUE_SECONDS.labels(version)

    @contextmanager
    def measured(self, batch: Batch, now: float) -> Iterator[None]:
        """Measure the call that carries a batch; `now` is the loop's time."""
        if batch.low_priority:
            # Explanations wait behind predictions: their time in the queue says nothing about an overload.
            self._explanation_rows.inc(batch.rows)
        else:
            self._rows.observe(batch.rows)
            observe_all(self._queue_seconds, [now - part.job.created for part in batch.parts])
        start = perf_counter()
        try:
            yield
        finally:
            self._call_seconds.observe(perf_counter() - start)
