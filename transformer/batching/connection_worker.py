"""One worker per connection: it connects, verifies, carries batches, and starts again."""

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass

from transformer.batching.balanced_upstream import BalancedUpstream
from transformer.batching.call_metrics import CallMetrics
from transformer.batching.concurrency import Call
from transformer.batching.failure_policy import FailurePolicy
from transformer.batching.jobs import Batch, Job, encode, jobs_of, traces_of
from transformer.batching.queue import RequestQueue
from transformer.batching.retry_budget import RetryBudget
from transformer.batching.usable_models import ANY_VERSION, UsableModels
from transformer.errors import (
    EncodingRefused,
    InvalidPredictorResponse,
    PredictorUnavailable,
    ServiceError,
)
from transformer.metrics import CONNECTIONS, VERIFICATIONS
from transformer.settings import Settings
from transformer.upstream.client import PredictorClient
from transformer.upstream.known_versions import UpstreamModel
from transformer.upstream.verification import NotVerified, verify

logger = logging.getLogger("kserve.transformer")

#: Interval of health checks on an idle connection: uvicorn, and so MLServer, closes it after 5 s.
HEARTBEAT_S = 2.0
#: While a request waits for a version that no connection leads to, one worker renews its connection so often.
SEARCH_S = 0.25
#: Timeout of a verification and of a health check.
VERIFY_TIMEOUT_S = 10.0
#: Back-off of a connection that cannot be used: doubled from the first to the last, each with jitter.
FIRST_BACKOFF_S = 0.05
LAST_BACKOFF_S = 2.0
#: A connection that fails sooner than this counts as a failure for the back-off.
SHORT_LIFE_S = 1.0
#: Attempts to verify a balanced predictor, where each call may reach another version, and the pause between.
VERIFY_ROUNDS = 8
VERIFY_PAUSE_S = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerContext:
    """Everything that the workers of one pool share.

    Attributes
    ----------
    connect
        Makes a client, which connects at its first call.
    log_failure
        Logs why a connection cannot be used.
    """

    queue: RequestQueue
    models: UsableModels
    retries: RetryBudget
    failures: FailurePolicy
    balanced: BalancedUpstream
    settings: Settings
    connect: Callable[[], PredictorClient]
    log_failure: Callable[[str], None]


class ConnectionWorker:
    """Keeps one connection to the predictor, and carries batches over it.

    Parameters
    ----------
    searches
        Renew the connection early while a request waits for another version than those behind connections.
    """

    def __init__(self, context: WorkerContext, *, searches: bool = False) -> None:
        self._context = context
        self._searches = searches
        self._queue = context.queue
        self._models = context.models
        self._now = asyncio.get_running_loop().time
        #: Connections in a row that could not be used, and the time at which the last one was opened.
        self._failed_connections = 0
        self._opened_at = 0.0
        self._by_request = context.settings.verify == "request"

    async def run(self) -> None:
        """Connect, verify and carry batches, until cancelled."""
        while True:
            if self._failed_connections:
                with CONNECTIONS.labels("", "waiting").track_inprogress():
                    await asyncio.sleep(self._backoff())
            try:
                await self._use_connections()
            except InvalidPredictorResponse as error:
                # To one request, over a verified connection: no reason to keep the others waiting.
                self._failed_connections = 0
                self._context.log_failure(str(error))
            except ServiceError as error:
                lived = self._now() - self._opened_at > SHORT_LIFE_S
                self._failed_connections = 0 if lived else self._failed_connections + 1
                self._context.log_failure(str(error))
            except Exception:
                # A worker must survive a bug that one connection triggers.
                logger.exception("predictor %s: connection failed", self._context.settings.predictor_host)
                self._failed_connections += 1

    def _backoff(self) -> float:
        full = min(LAST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(self._failed_connections - 1, 16))
        return full * random.uniform(0.5, 1.0)  # noqa: S311 (jitter)

    async def _use_connections(self) -> None:
        """Carry batches over a connection, and over those that replace it, until one fails.

        A terminating predictor still answers while its successor may be of an unknown version. So an old
        connection is used until another one is verified.
        """
        client, model = await self._connect()
        try:
            while True:
                self._failed_connections = 0
                verified_at = self._now()
                await self._carry_batches(client, model, verified_at, self._age_s())
                while (newer := await self._try_to_connect()) is None:
                    await self._check_health(client)
                    await self._carry_batches(client, model, verified_at, self._backoff())
                old, (client, model) = client, newer
                await old.close()
        finally:
            await client.close()

    async def _connect(self) -> tuple[PredictorClient, UpstreamModel]:
        """Open a connection and verify it."""
        self._opened_at = self._now()
        client = self._context.connect()
        try:
            with CONNECTIONS.labels("", "verifying").track_inprogress():
                return client, await (self._verify_any(client) if self._by_request else self._verify(client))
        except BaseException:
            await client.close()
            raise

    async def _try_to_connect(self) -> tuple[PredictorClient, UpstreamModel] | None:
        """Open a connection and verify it; return None if it cannot be used."""
        try:
            return await self._connect()
        except ServiceError as error:
            self._failed_connections += 1
            self._context.log_failure(str(error))
            return None

    def _age_s(self) -> float:
        return self._context.settings.predictor_connection_age * random.uniform(0.8, 1.2)  # noqa: S311 (jitter)

    async def _verify(self, client: PredictorClient) -> UpstreamModel:
        try:
            async with asyncio.timeout(VERIFY_TIMEOUT_S):
                return await verify(client, self._models.versions, self._context.settings.unknown_model)
        except NotVerified:
            raise
        except (TimeoutError, ServiceError) as error:
            VERIFICATIONS.labels("failed").inc()
            raise PredictorUnavailable(str(error) or "the predictor did not answer in time") from error

    async def _verify_any(self, client: PredictorClient) -> UpstreamModel:
        """Find a known version where each call may reach another one."""
        for _ in range(VERIFY_ROUNDS - 1):
            try:
                return await self._verify(client)
            except NotVerified:
                await asyncio.sleep(VERIFY_PAUSE_S)
        return await self._verify(client)

    async def _carry_batches(
        self, client: PredictorClient, model: UpstreamModel, verified_at: float, seconds: float
    ) -> None:
        """Carry batches over a verified connection until it should be renewed.

        Where each call is verified, a connection without batches makes no calls while no request waits: they
        would keep a predictor from scaling to zero, or wake it.
        """
        start = self._now()
        end = start + seconds

        def accepts(job: Job) -> bool:
            return job.not_before <= verified_at and (self._by_request or self._can_answer(job, model))

        poll_s = SEARCH_S if self._searches else HEARTBEAT_S
        last_use = start
        metrics = CallMetrics(ANY_VERSION if self._by_request else model.label)
        idles = self._by_request
        with self._models.in_use(model):
            while (left := end - self._now()) > 0 or idles:
                ready = await self._queue.next_batch(accepts, poll_s if idles else min(poll_s, left))
                if ready is not None:
                    await self._carry(client, *ready, None if self._by_request else model, metrics)
                    last_use = self._now()
                    idles = False
                elif (not idles or self._queue) and self._now() - last_use >= HEARTBEAT_S:
                    # Also if idle: a request that another connection has lost waits until none is usable.
                    await self._check_health(client)
                    last_use = self._now()
                if self._searches and self._queue.waits_for_version and self._now() - start >= SEARCH_S:
                    return

    def _can_answer(self, job: Job, model: UpstreamModel) -> bool:
        """Return True if the model behind this connection can score a job, or the rest of it."""
        if not job.accepts(model) or job.matrix(model.version) is None:
            return False
        if job.model is not None and not job.model.is_same_model(model):
            if self._models.has(job.model):
                return False
            job.restart()
        return True

    async def _check_health(self, client: PredictorClient) -> None:
        try:
            async with asyncio.timeout(VERIFY_TIMEOUT_S):
                await client.ping()
        except TimeoutError as error:
            raise PredictorUnavailable("predictor health check timed out") from error

    async def _carry(
        self,
        client: PredictorClient,
        batch: Batch,
        call: Call,
        model: UpstreamModel | None,
        metrics: CallMetrics,
    ) -> None:
        """Score a batch; in one call if the `model` behind the connection is known.

        What gets no answer goes to the failure policy. An error then ends this connection.
        """
        try:
            with metrics.measured(batch, self._now()):
                async with asyncio.timeout_at(batch.deadline):
                    await self._score(client, batch, model)
        except TimeoutError as error:
            for job in jobs_of(batch.unanswered):
                job.fail(job.timeout_error())
            raise PredictorUnavailable("the predictor did not answer in time") from error
        except ServiceError as error:
            self._context.failures.call_failed(batch.unanswered, error)
            if model is not None or not isinstance(error, EncodingRefused):
                raise
        except asyncio.CancelledError:
            # The pool is closing.
            self._context.failures.resend(batch.unanswered, "interrupted")
            raise
        except Exception:
            # A bug. Sent again, the batch would trigger it again.
            for job in jobs_of(batch.unanswered):
                job.fail(ServiceError("the response of the predictor could not be handled"))
            raise
        finally:
            self._end(batch, call)

    async def _score(self, client: PredictorClient, batch: Batch, model: UpstreamModel | None) -> None:
        if model is None:
            await self._context.balanced.score(client, batch)
            return
        version = model.version
        matrix = encode(batch.parts, version)
        traces = traces_of(batch.parts)
        scores = await client.call(matrix, None, version.target, batch.headers, traces)
        for job in batch.answer(batch.parts, matrix, scores, model):
            self._queue.put(job)

    def _end(self, batch: Batch, call: Call) -> None:
        """Account for a call that has ended."""
        answered = batch.parts
        if batch.unanswered:
            unanswered = set(batch.unanswered)
            answered = [part for part in batch.parts if part not in unanswered]
        self._context.retries.earn(len(answered))
        if not batch.low_priority:
            self._queue.expect_callers(sum([job.answer.done() for job in jobs_of(answered)]))
        now = self._now()
        call.end(
            sum([part.rows for part in answered]),
            sum([part.rows * (now - part.job.created) for part in answered]),
        )
