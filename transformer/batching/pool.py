"""The pool of connections to the predictor: scores requests, and knows when it cannot."""

import asyncio
from collections.abc import Sequence

from transformer.batching.balanced_upstream import BalancedUpstream
from transformer.batching.connection_worker import ConnectionWorker, WorkerContext
from transformer.batching.deadlines import Deadlines
from transformer.batching.failure_policy import FailurePolicy
from transformer.batching.jobs import Job
from transformer.batching.queue import RequestQueue
from transformer.batching.retry_budget import RetryBudget
from transformer.batching.usable_models import UsableModels
from transformer.errors import PredictorUnavailable, ServiceError
from transformer.settings import Settings
from transformer.upstream.client import PredictorAddress, connect
from transformer.upstream.failure_reasons import FailureReasons
from transformer.upstream.known_versions import KnownVersion

#: Requests wait this long after the last connection has gone, then get 503. A verified reconnect takes about
#: 30 ms, and a rollout of the predictor should lose no request.
GRACE_S = 2.0
#: Without requests for this long, a predictor behind a proxy that balances requests may have scaled to zero.
#: It must be shorter than Knative's own window, 60 s.
IDLE_S = 10.0
#: Maximum bytes of the feature matrix in one call to the predictor. 256 rows of 4,096 features have as many.
MAX_CALL_BYTES = 1 << 23


def max_call_rows(versions: Sequence[KnownVersion], max_batch_rows: int) -> int:
    """Return the maximum rows of one call: fewer where a wide vocabulary makes rows of many bytes."""
    row_bytes = 8 * max(len(version.feature_names) for version in versions)
    return max(1, min(max_batch_rows, MAX_CALL_BYTES // row_bytes))


class Pool:
    """Connections that each carry requests in the encoding of the version behind them.

    Made inside the event loop that serves.

    Parameters
    ----------
    versions
        The versions that may be behind the connections, newest first.
    address
        The predictor.
    settings
        Number and use of the connections.

    Attributes
    ----------
    loop
        The event loop.
    models
        The models behind the usable connections.
    """

    def __init__(
        self, versions: Sequence[KnownVersion], address: PredictorAddress, settings: Settings
    ) -> None:
        self.loop = asyncio.get_running_loop()
        by_request = settings.verify == "request"
        self._deadlines = Deadlines(self.loop)
        self._queue = RequestQueue(
            settings.predictor_connections,
            max_call_rows(versions, settings.max_batch_rows),
            settings.max_waiting_rows,
            splits=not by_request,
        )
        self.models = UsableModels(versions, by_request=by_request, on_change=self._models_changed)
        retries = RetryBudget()
        context = WorkerContext(
            queue=self._queue,
            models=self.models,
            retries=retries,
            failures=FailurePolicy(self._queue, retries, self._is_waking, by_request=by_request),
            balanced=BalancedUpstream(self.models, settings.unknown_model),
            settings=settings,
            connect=lambda: connect(address, reconnects=by_request),
            log_failure=FailureReasons(address.host).log,
        )
        #: True while requests get 503 at once.
        self._down = False
        self._going_down: asyncio.TimerHandle | None = None
        self._may_sleep = by_request
        #: Time of the last job, at first of the pool's start.
        self._last_job = self.loop.time()
        #: Time until which the predictor may be starting for it.
        self._waking_until = 0.0
        workers = [
            ConnectionWorker(context, searches=number == 0 and not by_request)
            for number in range(settings.predictor_connections)
        ]
        self._tasks = [asyncio.create_task(worker.run()) for worker in workers]
        self._go_down_soon()

    async def close(self) -> None:
        """Close all connections, and fail the requests in the queue."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._cancel_going_down()
        self._go_down()

    def submit(self, job: Job) -> None:
        """Queue a job. Its answer is a prediction or one of these errors; `remove` must follow.

        - `PredictorUnavailable` at the deadline if no connection could carry the job,
        - `PredictorTooSlow` if the predictor was scoring the job at its deadline,
        - another `ServiceError` for any other reason why there is no prediction.

        Raises
        ------
        PredictorUnavailable
            If there has been no verified connection for `GRACE_S`. The first job after `IDLE_S` and those
            behind it wait longer, until the first one's deadline.
        QueueFull
            If the queue is full.
        """
        if self._may_sleep:
            self._expect_sleep(job)
        try:
            if self._down:
                raise _no_connection()
            self._queue.admit(job, can_go=self.models.can_carry(job))
        except ServiceError:
            job.release()
            raise
        job.expiring = self._deadlines.add(job)

    @property
    def queued(self) -> dict[str, int]:
        """Candidates in the queue by state; see `RequestQueue.rows`."""
        return self._queue.rows

    def remove(self, job: Job) -> None:
        """Remove a job from the queue, if it is there."""
        if job.unsent:
            self._queue.remove(job)

    def _models_changed(self) -> None:
        if self.models:
            self._down = False
            self._cancel_going_down()
        elif not self._down:
            self._go_down_soon()
        self._queue.reclassify(self.models.can_carry)

    def _expect_sleep(self, job: Job) -> None:
        """Give the predictor until the job's deadline to start, if there was no job for `IDLE_S`."""
        if job.created - self._last_job >= IDLE_S:
            self._waking_until = job.deadline
            if not self.models:
                self._down = False
                self._go_down_soon()
        self._last_job = job.created

    def _is_waking(self) -> bool:
        return self.loop.time() < self._waking_until

    def _go_down_soon(self) -> None:
        self._cancel_going_down()
        at = max(self.loop.time() + GRACE_S, self._waking_until)
        self._going_down = self.loop.call_at(at, self._go_down)

    def _cancel_going_down(self) -> None:
        if self._going_down is not None:
            self._going_down.cancel()
            self._going_down = None

    def _go_down(self) -> None:
        self._down = True
        self._queue.fail_all(_no_connection())


def _no_connection() -> PredictorUnavailable:
    return PredictorUnavailable("no verified predictor connection available")
