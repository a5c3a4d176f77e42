"""The connections to the predictor, seen as one: takes requests, and knows whether they can be answered."""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from transformer.batching.connection_worker import ConnectionWorker
from transformer.batching.jobs import Job
from transformer.batching.queue import RequestQueue, answer_in_time
from transformer.batching.retry_budget import RetryBudget
from transformer.bundle.prediction import Prediction
from transformer.errors import PredictorUnavailable
from transformer.metrics import CONNECTIONS, REQUESTS
from transformer.upstream.client import PredictorAddress
from transformer.upstream.known_versions import KnownVersion, UpstreamModel
from transformer.upstream.verification import UnknownModel

logger = logging.getLogger("kserve.transformer")

Verify = Literal["connection", "request"]

#: How long requests wait when the last connection has gone, before they get 503: a verified reconnect takes
#: some 30 ms, and a swap of predictors should not be noticed.
GRACE_S = 2.0
#: Reasons why connections cannot be used, of which each is logged once in so many seconds.
MAX_TOLD = 20
TOLD_S = 60.0


@dataclass(frozen=True)
class PoolSettings:
    """How the connections are made.

    Attributes
    ----------
    connections
        How many.
    max_batch_rows
        Candidates that one call may carry.
    max_waiting_rows
        Candidates that may wait for a connection.
    verify
        Once for each connection, or with every request (behind a proxy that balances requests, and for gRPC).
    unknown_model
        Whether a model that no bundle describes, but whose encoding is known, is served.
    max_age_s
        Seconds after which a connection is renewed, give or take a fifth. New replicas get their share, and a
        predictor that is taken out of its Service is left before it is told to stop, if its preStop pause is
        longer: MLServer 1.7 never answers what it has accepted when it is. A renewal costs some 30 ms.
    """

    connections: int = 4
    max_batch_rows: int = 256
    max_waiting_rows: int = 50_000
    verify: Verify = "connection"
    unknown_model: UnknownModel = "serve"
    max_age_s: float = 5.0


class Pool:
    """Connections that score jobs, each for the version that it was verified to have behind it.

    Parameters
    ----------
    versions
        The versions that may be behind, newest first.
    address
        The predictor.

    Attributes
    ----------
    loop
        The event loop that serves; the pool is made inside it.
    """

    def __init__(
        self, versions: Sequence[KnownVersion], address: PredictorAddress, settings: PoolSettings
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.versions = versions
        self.address = address
        self.settings = settings
        self.dispatcher = RequestQueue(
            settings.connections,
            settings.max_batch_rows,
            settings.max_waiting_rows,
            cuts=settings.verify == "connection",
        )
        self.retries = RetryBudget()
        #: What is behind each connection that can carry requests.
        self._usable: list[UpstreamModel] = []
        #: When each version was last found behind a connection or a call.
        self.met: dict[KnownVersion, float] = {}
        self._down = False
        self._going_down: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []
        #: Reasons that were logged since a loop time.
        self._told: set[str] = set()
        self._told_since = 0.0

    @property
    def usable(self) -> bool:
        """Whether at least one connection can carry requests."""
        return bool(self._usable)

    def start(self) -> None:
        """Begin to connect, inside the event loop that is to serve."""
        if not self._tasks:
            slots = [ConnectionWorker(self) for _ in range(self.settings.connections)]
            self._tasks = [asyncio.create_task(slot.run()) for slot in slots]
            self._go_down_soon()

    async def close(self) -> None:
        """Close every connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._going_down is not None:
            self._going_down.cancel()
        # Nobody is left who would answer what waits.
        self._go_down()

    async def score(self, job: Job) -> Prediction:
        """The job's prediction.

        Raises
        ------
        PredictorUnavailable
            At once if there has been no usable connection for `GRACE_S`; or see `answer_in_time`.
        QueueFull
            At once if too much waits already.
        ServiceError
            Any other reason why there is no prediction.
        """
        try:
            if self._down:
                raise _no_connection()
            self.dispatcher.admit(job, able=self._able(job))
            prediction = await answer_in_time(job, self.dispatcher)
        finally:
            job.release()
        REQUESTS.labels(prediction.version).inc()
        return prediction

    @contextmanager
    def in_use(self, label: str, behind: UpstreamModel) -> Iterator[None]:
        """Count a connection as usable, for the version that a label names."""
        gauge = CONNECTIONS.labels(label, "usable")
        gauge.inc()
        self._usable.append(behind)
        self.dispatcher.sort(self._able)
        self._down = False
        if self._going_down is not None:
            self._going_down.cancel()
            self._going_down = None
        try:
            yield
        finally:
            gauge.dec()
            self._usable.remove(behind)
            if not self._usable:
                self._go_down_soon()
            # What only that one could go on with may start again elsewhere.
            self.dispatcher.sort(self._able)

    def has(self, model: UpstreamModel) -> bool:
        """Whether a model is behind any usable connection."""
        return any(model.is_same_model(behind) for behind in self._usable)

    def _able(self, job: Job) -> bool:
        """Whether a connection can express a job, as far as that is known before a call."""
        if self.settings.verify == "request" or not self._usable:
            return True
        if job.matrix(self._usable[0].version) is not None:
            return True
        return any(job.matrix(behind.version) is not None for behind in self._usable)

    def _go_down_soon(self) -> None:
        self._going_down = self.loop.call_later(GRACE_S, self._go_down)

    def _go_down(self) -> None:
        self._down = True
        self.dispatcher.fail_all(_no_connection())

    def tell(self, reason: str) -> None:
        """Log why a connection cannot be used: each reason once a minute, and no more than a few."""
        if self.loop.time() - self._told_since > TOLD_S:
            self._told.clear()
            self._told_since = self.loop.time()
        if reason not in self._told and len(self._told) < MAX_TOLD:
            self._told.add(reason)
            logger.warning("predictor %s: %s", self.address.host, reason)


def _no_connection() -> PredictorUnavailable:
    return PredictorUnavailable("no verified predictor is there")
