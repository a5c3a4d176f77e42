"""Decides which parts of a failed call are sent again, and when.

Scoring is idempotent, so retries are safe; the retry budget and each request's deadline bound them.
"""

import asyncio
from collections.abc import Callable, Collection

from transformer.batching.jobs import Job, ModelGone, Part, jobs_of
from transformer.batching.queue import RequestQueue
from transformer.batching.retry_budget import RetryBudget
from transformer.errors import (
    EncodingRefused,
    InvalidPredictorResponse,
    PredictorUnavailable,
    ServiceError,
)
from transformer.metrics import RETRIES, RETRIES_DENIED
from transformer.upstream.client import Reconnected

#: How often a dropped call is retried. If it is dropped again, each of its requests is sent once more, alone.
MAX_DROPS = 1
#: Refusals after which the only model that may answer a job counts as gone.
MAX_REFUSALS = 8
#: First and longest pause before a request is resent that every model so far has refused; doubled each time.
REFUSED_PAUSE_S = 0.01
LAST_REFUSED_PAUSE_S = 0.5


class FailurePolicy:
    """Decides which parts of a failed call are sent again, and when.

    Parameters
    ----------
    queue
        The queue that parts return to.
    retries
        The budget that bounds retries of dropped calls.
    is_waking
        Returns True while a predictor that was idle may be starting.
    by_request
        True where each call may reach another version.
    """

    def __init__(
        self,
        queue: RequestQueue,
        retries: RetryBudget,
        is_waking: Callable[[], bool],
        *,
        by_request: bool,
    ) -> None:
        self._queue = queue
        self._retries = retries
        self._is_waking = is_waking
        self._by_request = by_request
        self._loop = asyncio.get_running_loop()

    def call_failed(self, parts: Collection[Part], error: ServiceError) -> None:
        """Send parts without an answer again, or fail their requests with the call's error."""
        left = [part for part in parts if not part.job.answer.done()]
        if isinstance(error, EncodingRefused | Reconnected):
            self._not_scored(left, error)
        elif isinstance(error, PredictorUnavailable):
            self._dropped(left, error)
        else:
            self._rejected(left, error)

    def resend(self, parts: Collection[Part], reason: str) -> None:
        """Send parts again at once, over a connection whose verification ends after this moment.

        Parameters
        ----------
        reason
            Label of the metric.
        """
        for part in reversed(list(parts)):
            if not part.job.answer.done():
                RETRIES.labels(reason).inc()
                part.job.not_before = self._loop.time()
                part.job.requeue(part)
                self._queue.put(part.job, first=True)

    def _not_scored(self, parts: Collection[Part], error: ServiceError) -> None:
        """Handle a refused encoding, or a call that was not sent."""
        for job in jobs_of(parts):
            job.refusals += 1
        if not isinstance(error, EncodingRefused):
            self.resend(parts, "reconnected")
        elif self._by_request:
            self._resend_later(parts)
        else:
            self.resend(parts, "refused")

    def _resend_later(self, parts: Collection[Part]) -> None:
        """Let other requests go first: a model that takes these may not be there yet."""
        for part in reversed(list(parts)):
            part.job.requeue(part)
        for job in jobs_of(parts):
            if job.only is not None and job.refusals >= MAX_REFUSALS:
                job.fail(ModelGone())
            pause = min(LAST_REFUSED_PAUSE_S, REFUSED_PAUSE_S * 2.0 ** min(job.refusals, 16))
            self._loop.call_later(pause, self._queue.put, job)

    def _dropped(self, parts: Collection[Part], error: ServiceError) -> None:
        """Handle a call that the predictor dropped or was not ready for."""
        if self._is_waking():
            RETRIES.labels("starting").inc(len(parts))
            self._resend_later(parts)
            return
        again = any(part.drops < MAX_DROPS for part in parts) and self._spend("dropped")
        for part in parts:
            part.drops += 1
        shared = len(jobs_of(parts)) > 1
        for job in jobs_of(part for part in parts if part.drops > MAX_DROPS or not again):
            # One of the requests that shared the call may have made the predictor fail.
            if shared and self._spend("alone"):
                job.retry_group = job
            else:
                job.fail(error)
        self.resend(parts, "dropped")

    def _rejected(self, parts: Collection[Part], error: ServiceError) -> None:
        """Handle an error or an invalid response of the predictor."""
        if not isinstance(error, InvalidPredictorResponse) or not self._halve(jobs_of(parts)):
            for job in jobs_of(parts):
                job.fail(error)
        self.resend(parts, "halved")

    def _halve(self, jobs: Collection[Job]) -> bool:
        """Split jobs that shared a call into two groups; return False if there is only one or no budget."""
        if len(jobs) < 2 or not self._spend("halved", 2):
            return False
        groups = object(), object()
        for number, job in enumerate(jobs):
            job.retry_group = groups[2 * number // len(jobs)]
        return True

    def _spend(self, reason: str, calls: int = 1) -> bool:
        """Spend retries; return False if there are too few."""
        allowed = self._retries.spend(calls)
        if not allowed:
            RETRIES_DENIED.labels(reason).inc()
        return allowed
