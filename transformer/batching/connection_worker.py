"""One place in the pool: a connection after the other, each verified before it carries a request."""

import asyncio
import logging
import random
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

import numpy as np

from transformer.batching.concurrency import Call
from transformer.batching.jobs import Batch, Job, Part, encoded
from transformer.errors import EncodingRefused, InvalidPredictorResponse, PredictorUnavailable, ServiceError
from transformer.metrics import BATCHES, CONNECTIONS, RETRIES, VERIFICATIONS
from transformer.upstream.client import PredictorClient, Reconnected, connect
from transformer.upstream.known_versions import KnownVersion, UpstreamModel
from transformer.upstream.messages import Matrix
from transformer.upstream.verification import NotVerified, verified_call, verify

if TYPE_CHECKING:
    from transformer.batching.pool import Pool

logger = logging.getLogger("kserve.transformer")

#: An idle connection is asked for a sign of life this often: uvicorn, and so MLServer, closes after 5 s.
HEARTBEAT_S = 2.0
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
#: A dropped call is sent once more, and where requests shared it each goes once alone: to score again changes
#: nothing, to retry for ever helps nobody.
MAX_DROPS = 1
#: How many calls behind a balancing proxy look for a model that takes a batch, before others pass.
NAMED_TRIES = 8
#: A version that has not answered behind it for so many seconds is not expected there.
LATELY_S = 30.0
#: Rounds of verification behind a balancing proxy, where each call may meet another version.
VERIFY_ROUNDS = 8


class ConnectionWorker:
    """Connects, verifies and serves, again and again.

    Parameters
    ----------
    pool
        Where the requests come from.
    """

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._now = pool.loop.time
        self._failures = 0
        #: Whether each call may meet another version; else it is verified once what is behind a connection.
        self._by_request = pool.settings.verify == "request"

    async def run(self) -> None:
        """Connect, verify, serve; again and again."""
        while True:
            if self._failures:
                with CONNECTIONS.labels("", "waiting").track_inprogress():
                    await asyncio.sleep(self._backoff())
            start = self._now()
            try:
                await self._one_connection()
                self._failures = 0
            except InvalidPredictorResponse as error:
                # To one request, over a verified connection: no reason to keep the others waiting.
                self._failures = 0
                self._pool.tell(str(error))
            except ServiceError as error:
                self._failures = 0 if self._now() - start > SHORT_LIFE_S else self._failures + 1
                self._pool.tell(str(error))
            except Exception:
                # A slot must outlive whatever one connection brings.
                logger.exception("predictor %s: connection failed", self._pool.address.host)
                self._failures += 1

    async def _one_connection(self) -> None:
        client = connect(self._pool.address, reconnects=self._by_request)
        try:
            await self._serve(client)
        finally:
            await client.close()

    def _backoff(self) -> float:
        full = min(LAST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(self._failures - 1, 16))
        return full * random.uniform(0.5, 1.0)  # noqa: S311 (jitter)

    async def _serve(self, client: PredictorClient) -> None:
        """Verify one connection and let it carry jobs until it is old."""
        with CONNECTIONS.labels("", "verifying").track_inprogress():
            behind = await (self._verify_some(client) if self._by_request else self._verify(client))
        verified_at = self._now()
        self._pool.met[behind.version] = verified_at
        end = verified_at + self._pool.settings.max_age_s * random.uniform(0.8, 1.2)  # noqa: S311 (jitter)

        def accepts(job: Job) -> bool:
            if job.not_before > verified_at:
                return False
            return self._by_request or self._can_answer(job, behind)

        with self._pool.in_use(ANY_VERSION if self._by_request else behind.label, behind):
            while (left := end - self._now()) > 0:
                taken = await self._pool.dispatcher.take(accepts, min(HEARTBEAT_S, left))
                if taken is None:
                    await self._heartbeat(client)
                else:
                    await self._carry(client, *taken, None if self._by_request else behind)

    def _can_answer(self, job: Job, behind: UpstreamModel) -> bool:
        """Whether the model behind can express a job, and go on with it where it has been begun."""
        if job.matrix(behind.version) is None:
            return False
        if job.model is not None and not job.model.is_same_model(behind):
            if self._pool.has(job.model):
                return False
            job.start_again()
        return True

    async def _verify_some(self, client: PredictorClient) -> UpstreamModel:
        """Find out whether any known version answers, where each call may meet another one."""
        for _ in range(VERIFY_ROUNDS - 1):
            try:
                return await self._verify(client)
            except NotVerified:
                await asyncio.sleep(REFUSED_PAUSE_S)
        return await self._verify(client)

    async def _verify(self, client: PredictorClient) -> UpstreamModel:
        try:
            async with asyncio.timeout(VERIFY_TIMEOUT_S):
                return await verify(client, self._pool.versions, self._pool.settings.unknown_model)
        except NotVerified:
            raise
        except (TimeoutError, ServiceError) as error:
            VERIFICATIONS.labels("failed").inc()
            raise PredictorUnavailable(str(error) or "the predictor did not answer in time") from error

    async def _heartbeat(self, client: PredictorClient) -> None:
        try:
            async with asyncio.timeout(VERIFY_TIMEOUT_S):
                await client.ping()
        except TimeoutError as error:
            raise PredictorUnavailable("the predictor gave no sign of life in time") from error

    async def _carry(
        self, client: PredictorClient, batch: Batch, call: Call, behind: UpstreamModel | None
    ) -> None:
        """Bring a batch its answers, in one call if it is known what is `behind`.

        What gets none has another chance; then this connection is given up.
        """
        BATCHES.observe(batch.rows)
        left = list(batch.parts)
        try:
            async with asyncio.timeout_at(batch.deadline):
                if behind is None:
                    await self._score_named(client, batch, left)
                else:
                    await self._score_plain(client, batch, left, behind)
        except TimeoutError as error:
            for job in _jobs(left):
                job.fail(job.late())
            raise PredictorUnavailable("the predictor did not answer in time") from error
        except ServiceError as error:
            self._not_answered(left, error)
            if behind is not None or not isinstance(error, EncodingRefused):
                raise
        except Exception:
            # A bug, that the next connection would meet again.
            for job in _jobs(left):
                job.fail(ServiceError("the answer of the predictor could not be handled"))
            raise
        except asyncio.CancelledError:
            # The pool is closing, and nobody else has these.
            self._again(left, "interrupted")
            raise
        finally:
            unanswered = set(left)
            answered = [part for part in batch.parts if part not in unanswered]
            self._pool.retries.earn(len(answered))
            self._pool.dispatcher.expect(sum(job.answer.done() for job in _jobs(answered)))
            now = self._now()
            call.end(
                sum(part.rows for part in answered),
                sum(part.rows * (now - part.job.since) for part in answered),
            )

    def _not_answered(self, left: list[Part], error: ServiceError) -> None:
        """See what becomes of parts that a call brought no answer for."""
        left = [part for part in left if not part.job.answer.done()]
        if isinstance(error, Reconnected | EncodingRefused):
            for job in _jobs(left):
                job.refusals += 1
            if self._by_request and isinstance(error, EncodingRefused):
                self._later(left)
            else:
                self._again(left, "refused" if isinstance(error, EncodingRefused) else "reconnected")
        elif isinstance(error, PredictorUnavailable):
            again = any(part.drops < MAX_DROPS for part in left) and self._pool.retries.spend()
            for part in left:
                part.drops += 1
            shared = len(_jobs(left)) > 1
            for job in _jobs(part for part in left if part.drops > MAX_DROPS or not again):
                # Whoever shared the call may have brought the predictor down.
                if shared and self._pool.retries.spend():
                    job.group = job
                else:
                    job.fail(error)
            self._again(left, "dropped")
        else:
            if not isinstance(error, InvalidPredictorResponse) or not self._halve(_jobs(left)):
                for job in _jobs(left):
                    job.fail(error)
            self._again(left, "halved")

    def _halve(self, jobs: Collection[Job]) -> bool:
        """Let jobs that shared a failed call go on in two, to see whose fault it is; whether they may."""
        if len(jobs) < 2 or not self._pool.retries.spend(2):
            return False
        groups = object(), object()
        for number, job in enumerate(jobs):
            job.group = groups[2 * number // len(jobs)]
        return True

    def _again(self, parts: list[Part], reason: str) -> None:
        """Let parts go first, over a connection that is verified from now on."""
        for part in reversed(parts):
            if not part.job.answer.done():
                RETRIES.labels(reason).inc()
                part.job.not_before = self._now()
                part.job.take_back(part)
                self._pool.dispatcher.put(part.job, first=True)

    def _later(self, parts: list[Part]) -> None:
        """Let others pass: what takes these may not be there yet."""
        for part in reversed(parts):
            part.job.take_back(part)
        for job in _jobs(parts):
            pause = min(LAST_REFUSED_PAUSE_S, REFUSED_PAUSE_S * 2.0 ** min(job.refusals, 16))
            self._pool.loop.call_later(pause, self._pool.dispatcher.put, job)

    async def _score_plain(
        self, client: PredictorClient, batch: Batch, left: list[Part], behind: UpstreamModel
    ) -> None:
        """A plain array in the encoding of the version behind this connection."""
        version = behind.version
        matrix = encoded(batch.parts, version)
        probabilities = await client.call(matrix, None, version.classes, batch.headers)
        self._answer(batch.parts, probabilities, behind)
        left.clear()

    async def _score_named(self, client: PredictorClient, batch: Batch, left: list[Part]) -> None:
        """Named columns, in one version's encoding after the other, until a model of each part answers."""
        refused = False
        for _ in range(NAMED_TRIES):
            version = self._guess(left, refused)
            if version is None:
                break
            parts = [part for part in left if part.matrix(version) is not None]
            matrix = encoded(parts, version)
            try:
                behind, probabilities = await verified_call(
                    client, matrix, version, self._pool.versions, batch.headers
                )
            except EncodingRefused:
                RETRIES.labels("refused").inc()
                refused = True
                continue
            if not behind.verified and self._pool.settings.unknown_model == "refuse":
                continue
            self._pool.met[behind.version] = self._now()
            # Versions of the same feature names may still differ in what a missing or an unknown value is.
            if behind.version is version or _equal([part.matrix(behind.version) for part in parts], matrix):
                self._answer(parts, probabilities, behind)
                answered = set(parts)
                left[:] = [part for part in left if part not in answered]
            if not left:
                return
        raise EncodingRefused("no model was met that takes this request")

    def _guess(self, parts: list[Part], refused: bool) -> KnownVersion | None:
        """A version whose model may be met by the next call, and that can express any of the parts.

        Each that was met lately is as likely: then a canary gives just its share of the answers, since its
        share of the calls is what it takes of them. To begin with the one that answered last would give
        little more than the square.
        """
        able = [one for one in self._pool.versions if any(part.matrix(one) is not None for part in parts)]
        lately = [one for one in able if self._pool.met.get(one, -LATELY_S) > self._now() - LATELY_S]
        possible = able if refused or not lately else lately
        return random.choice(possible) if possible else None  # noqa: S311 (no secret)

    def _answer(self, parts: list[Part], probabilities: Matrix, behind: UpstreamModel) -> None:
        """Give each part its rows' probabilities."""
        prediction = behind.version.prediction(probabilities, behind.label)
        start = 0
        for part in parts:
            rows = slice(start, start := start + part.rows)
            if not part.job.answered(part, prediction.of(rows), behind):
                self._pool.dispatcher.put(part.job)


def _jobs(parts: Iterable[Part]) -> dict[Job, None]:
    """The requests that the parts belong to, each once."""
    return dict.fromkeys(part.job for part in parts)


def _equal(ones: list[Matrix | None], other: Matrix) -> bool:
    """Whether matrices, one after the other, are the other one."""
    start = 0
    for one in ones:
        if one is None or not np.array_equal(one, other[start : start + len(one)]):
            return False
        start += len(one)
    return True
