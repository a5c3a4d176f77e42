"""The connections to the predictor: each verified before it carries a request, renewed when it ages."""

import asyncio
import logging
import random
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from transformer.dispatch import MAX_DROPS, Dispatcher, Job, answer_in_time
from transformer.errors import (
    EncodingRefused,
    PredictorAnswer,
    PredictorUnavailable,
    ServiceError,
)
from transformer.metrics import CONNECTIONS, REQUESTS, RETRIES, VERIFICATIONS
from transformer.prediction import Prediction
from transformer.predictor_client import PredictorAddress, PredictorClient, Reconnected, connect
from transformer.verification import NotVerified, UnknownModel, verified_call, verify
from transformer.versions import Behind, KnownVersion
from transformer.wire import Matrix

logger = logging.getLogger("kserve.transformer")

_Scoring = Coroutine[Any, Any, Prediction]

Verify = Literal["connection", "request"]

#: An idle connection is asked for a sign of life this often: uvicorn, and so MLServer, closes after 5 s.
HEARTBEAT_S = 2.0
#: How long requests wait when the last connection has gone, before they get 503: a verified reconnect takes
#: some 30 ms, and a swap of predictors should not be noticed.
GRACE_S = 2.0
#: Time-out of a verification and of a heartbeat.
VERIFY_TIMEOUT_S = 10.0
#: Back-off of a connection that cannot be used: doubled from the first to the last, each with jitter.
FIRST_BACKOFF_S = 0.05
LAST_BACKOFF_S = 2.0
#: A connection that lived shorter than this counts as failed.
SHORT_LIFE_S = 1.0
#: First and longest pause of a request that met only models of other encodings; doubled each time.
REFUSED_PAUSE_S = 0.01
LAST_REFUSED_PAUSE_S = 0.5
#: What connections are labelled with whose every call may meet another version.
ANY_VERSION = "any"
#: Rounds of verification behind a balancing proxy, where each call may meet another version.
VERIFY_ROUNDS = 8


@dataclass(frozen=True)
class PoolSettings:
    """How the connections are made.

    Attributes
    ----------
    connections
        How many.
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
    """

    def __init__(
        self, versions: Sequence[KnownVersion], address: PredictorAddress, settings: PoolSettings
    ) -> None:
        self.versions = versions
        self.address = address
        self.settings = settings
        self.dispatcher = Dispatcher()
        self._usable = 0
        self._down = False
        self._going_down: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._told = ""

    @property
    def usable(self) -> bool:
        """Whether at least one connection can carry requests."""
        return self._usable > 0

    def start(self) -> None:
        """Begin to connect, inside the event loop that is to serve."""
        if not self._tasks:
            slots = [_Slot(self) for _ in range(self.settings.connections)]
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
        ServiceError
            Any other reason why there is no prediction.
        """
        if self._down:
            raise _no_connection()
        self.dispatcher.put(job)
        prediction = await answer_in_time(job, self.dispatcher)
        REQUESTS.labels(prediction.version).inc()
        return prediction

    @contextmanager
    def in_use(self, label: str) -> Iterator[None]:
        """Count a connection as usable, for the version that a label names."""
        gauge = CONNECTIONS.labels(label, "usable")
        gauge.inc()
        self._usable += 1
        self._down = False
        if self._going_down is not None:
            self._going_down.cancel()
            self._going_down = None
        try:
            yield
        finally:
            gauge.dec()
            self._usable -= 1
            if not self._usable:
                self._go_down_soon()

    def _go_down_soon(self) -> None:
        self._going_down = asyncio.get_running_loop().call_later(GRACE_S, self._go_down)

    def _go_down(self) -> None:
        self._down = True
        self.dispatcher.fail_all(_no_connection())

    def tell(self, reason: str) -> None:
        """Log why a connection cannot be used, once for all connections and until another reason comes."""
        if reason and reason != self._told:
            logger.warning("predictor %s: %s", self.address.host, reason)
        self._told = reason


class _Slot:
    """One place in the pool: a connection after the other."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._failures = 0
        self._last = pool.versions[0]

    async def run(self) -> None:
        """Connect, verify, serve; again and again."""
        while True:
            if self._failures:
                with CONNECTIONS.labels("", "waiting").track_inprogress():
                    await asyncio.sleep(self._backoff())
            start = _now()
            try:
                await self._one_connection()
                self._failures = 0
            except PredictorAnswer as error:
                # To one request, over a verified connection: no reason to keep the others waiting.
                self._failures = 0
                self._pool.tell(str(error))
            except ServiceError as error:
                self._failures = 0 if _now() - start > SHORT_LIFE_S else self._failures + 1
                self._pool.tell(str(error))
            except Exception:
                # A slot must outlive whatever one connection brings.
                logger.exception("predictor %s: connection failed", self._pool.address.host)
                self._failures += 1

    async def _one_connection(self) -> None:
        client = connect(self._pool.address)
        try:
            await self._serve(client)
        finally:
            await client.close()

    def _backoff(self) -> float:
        full = min(LAST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(self._failures - 1, 16))
        return full * random.uniform(0.5, 1.0)  # noqa: S311 (jitter)

    async def _serve(self, client: PredictorClient) -> None:
        """Verify one connection and let it carry jobs until it is old."""
        by_request = self._pool.settings.verify == "request"
        with CONNECTIONS.labels("", "verifying").track_inprogress():
            behind = await (self._verify_some(client) if by_request else self._verify_one(client))
        verified_at = _now()
        end = verified_at + self._pool.settings.max_age_s * random.uniform(0.8, 1.2)  # noqa: S311 (jitter)
        self._pool.tell("")

        def accepts(job: Job) -> bool:
            if job.not_before > verified_at:
                return False
            return by_request or job.matrix(behind.version) is not None

        with self._pool.in_use(ANY_VERSION if by_request else behind.label):
            while (left := end - _now()) > 0:
                job = await self._pool.dispatcher.take(accepts, min(HEARTBEAT_S, left))
                if job is None:
                    await self._heartbeat(client)
                elif by_request:
                    await self._carry(client, job, self._score_named(client, job))
                else:
                    await self._carry(client, job, self._score_plain(client, job, behind))

    async def _verify_one(self, client: PredictorClient) -> Behind:
        """Verify a connection: all of it on that one, or it says nothing."""
        behind = await self._verify(client)
        if client.connects != 1:
            raise PredictorUnavailable("the predictor closed the connection while it was verified")
        client.sealed = True
        return behind

    async def _verify_some(self, client: PredictorClient) -> Behind:
        """Find out whether any known version answers, where each call may meet another one."""
        for _ in range(VERIFY_ROUNDS - 1):
            try:
                return await self._verify(client)
            except NotVerified:
                await asyncio.sleep(REFUSED_PAUSE_S)
        return await self._verify(client)

    async def _verify(self, client: PredictorClient) -> Behind:
        try:
            async with asyncio.timeout(VERIFY_TIMEOUT_S):
                return await verify(client, self._pool.versions, self._pool.settings.unknown_model)
        except NotVerified:
            raise
        except (TimeoutError, ServiceError) as error:
            VERIFICATIONS.labels("failed").inc()
            raise PredictorUnavailable(str(error) or "the predictor did not answer in time") from error

    async def _heartbeat(self, client: PredictorClient) -> None:
        before = client.connects
        try:
            async with asyncio.timeout(VERIFY_TIMEOUT_S):
                await client.ping()
        except TimeoutError as error:
            raise PredictorUnavailable("the predictor gave no sign of life in time") from error
        self._same_connection(client, before)

    def _same_connection(self, client: PredictorClient, before: int) -> None:
        if self._pool.settings.verify == "connection" and client.connects != before:
            raise Reconnected("the predictor closed the connection")

    async def _carry(
        self, client: PredictorClient, job: Job, scoring: Coroutine[Any, Any, Prediction]
    ) -> None:
        """Bring a job its answer; or see to it that it gets another chance, and give up this connection."""
        try:
            async with asyncio.timeout_at(job.deadline):
                prediction = await self._answer_of_this(client, scoring)
        except TimeoutError as error:
            job.fail(job.late())
            raise PredictorUnavailable("the predictor did not answer in time") from error
        except Reconnected:
            job.turned_away += 1
            self._again(job, "reconnected")
            raise
        except EncodingRefused:
            job.turned_away += 1
            if self._pool.settings.verify == "request":
                self._later(job)
                return
            self._again(job, "refused")
            raise
        except PredictorUnavailable as error:
            job.drops += 1
            if job.drops > MAX_DROPS:
                job.fail(error)
            else:
                self._again(job, "dropped")
            raise
        except ServiceError as error:
            job.fail(error)
            raise
        except Exception:
            # A bug, that the next connection would meet again.
            job.fail(ServiceError("the answer of the predictor could not be handled"))
            raise
        except asyncio.CancelledError:
            # The pool is closing, and nobody else has this job.
            self._again(job, "interrupted")
            raise
        job.succeed(prediction)

    async def _answer_of_this(
        self, client: PredictorClient, scoring: Coroutine[Any, Any, Prediction]
    ) -> Prediction:
        """Whatever comes of it, unless it came over another connection than the verified one."""
        before = client.connects
        try:
            prediction = await scoring
        except ServiceError:
            self._same_connection(client, before)
            raise
        self._same_connection(client, before)
        return prediction

    def _again(self, job: Job, reason: str) -> None:
        RETRIES.labels(reason).inc()
        job.not_before = _now()
        self._pool.dispatcher.put(job, first=True)

    def _later(self, job: Job) -> None:
        """Let others pass: what takes this job may not be there yet."""
        pause = min(LAST_REFUSED_PAUSE_S, REFUSED_PAUSE_S * 2.0 ** min(job.turned_away, 16))
        asyncio.get_running_loop().call_later(pause, self._pool.dispatcher.put, job)

    async def _score_plain(self, client: PredictorClient, job: Job, behind: Behind) -> Prediction:
        """A plain array in the encoding of the version behind this connection."""
        matrix = job.matrix(behind.version)
        if matrix is None:
            raise AssertionError("a job was taken that this version cannot express")
        probabilities = await client.call(matrix, None, behind.version.classes, job.headers)
        return behind.version.prediction(probabilities, behind.label)

    async def _score_named(self, client: PredictorClient, job: Job) -> Prediction:
        """Named columns, in one version's encoding after the other, until that version's model answers."""
        for version in sorted(self._pool.versions, key=lambda version: version is not self._last):
            matrix = job.matrix(version)
            if matrix is None:
                continue
            try:
                behind, probabilities = await verified_call(
                    client, matrix, version, self._pool.versions, dict(job.headers)
                )
            except EncodingRefused:
                RETRIES.labels("refused").inc()
                continue
            if not behind.verified and self._pool.settings.unknown_model == "refuse":
                continue
            self._last = behind.version
            # Versions of the same feature names may still differ in what a missing or an unknown value is.
            if behind.version is version or _equal(job.matrix(behind.version), matrix):
                return behind.version.prediction(probabilities, behind.label)
        raise EncodingRefused("no model was met that takes this request")


def _no_connection() -> PredictorUnavailable:
    return PredictorUnavailable("no verified predictor is there")


def _equal(one: Matrix | None, other: Matrix) -> bool:
    return one is not None and np.array_equal(one, other)


def _now() -> float:
    return asyncio.get_running_loop().time()
