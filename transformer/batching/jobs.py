"""Requests on their way to the predictor: whole or in parts, and the batches that carry them."""

import asyncio
from collections import deque
from collections.abc import Mapping

import numpy as np

from transformer.bundle.candidates import Candidates
from transformer.bundle.prediction import Prediction
from transformer.errors import PredictorTooSlow, PredictorUnavailable, ServiceError
from transformer.headers import AUTHORIZATION
from transformer.upstream.known_versions import KnownVersion, UpstreamModel
from transformer.upstream.messages import Matrix

#: How often a part may meet another model than the one that answered the parts before it.
MAX_STRANGERS = 8


class Job:
    """One request. A large one travels in parts, all of which one model must answer.

    Parameters
    ----------
    candidates
        As they came in.
    newest
        The newest version, which has validated them.
    matrix
        The candidates in its encoding.
    headers
        What goes along to the predictor.
    loop
        The event loop.
    timeout_s
        Seconds after which the caller gets an answer in any case.

    Attributes
    ----------
    since, deadline
        Loop time of the question, and of the latest answer.
    answer
        What the caller waits for.
    unsent
        Parts that wait for a connection.
    """

    def __init__(
        self,
        candidates: Candidates,
        newest: KnownVersion,
        matrix: Matrix,
        headers: Mapping[str, str],
        loop: asyncio.AbstractEventLoop,
        timeout_s: float,
    ) -> None:
        self.rows = len(matrix)
        self.headers = headers
        self.credentials = headers.get(AUTHORIZATION)
        self.loop = loop
        self.since = loop.time()
        self.deadline = self.since + timeout_s
        self.answer: asyncio.Future[Prediction] = loop.create_future()
        #: How often no model took it, or its answer came over a connection that was not verified.
        self.refusals = 0
        #: Jobs share calls with those of the same group only: one that they all shared has failed, and nobody
        #: knows by whom.
        self.group: object = None
        #: Only connections that were verified after this loop time may carry it.
        self.not_before = 0.0
        self._candidates = candidates
        self._matrices: dict[str, Matrix | None] = {newest.name: matrix}
        self._begin()

    def _begin(self) -> None:
        """From the start, whoever may answer."""
        whole = Part(self, 0, self.rows)
        self.unsent = deque([whole])
        self.model: UpstreamModel | None = None
        #: Parts that are of use, sent or not; those of an earlier start are forgotten.
        self._parts = {whole}
        self._answers: dict[Part, Prediction] = {}
        self._strangers = 0

    @property
    def waits(self) -> bool:
        """Whether nothing of it has been sent."""
        return len(self.unsent) == len(self._parts)

    def take(self, rows: int) -> "Part":
        """The next part to send, of so many candidates at most."""
        part = self.unsent.popleft()
        if part.rows > rows:
            self._parts.remove(part)
            part, rest = part.cut(rows)
            self._parts |= {part, rest}
            self.unsent.appendleft(rest)
        return part

    def matrix(self, version: KnownVersion) -> Matrix | None:
        """The candidates in a version's encoding, or None if it cannot express them."""
        if version.name not in self._matrices:
            self._matrices[version.name] = version.try_encode(self._candidates)
        return self._matrices[version.name]

    def take_back(self, part: "Part") -> None:
        """Let a part wait again; one of an earlier start is forgotten."""
        if part in self._parts:
            self.unsent.appendleft(part)
            if self.waits:
                self.model = None

    def answered(self, part: "Part", prediction: Prediction, behind: UpstreamModel) -> bool:
        """Take a model's answer to a part; whether all is well, or the part must be asked again."""
        if part not in self._parts or self.answer.done():
            return True
        if self.model is None:
            self.model = behind
        elif not self.model.is_same_model(behind):
            self._strangers += 1
            if self._strangers > MAX_STRANGERS:
                self._begin()
            else:
                self.unsent.appendleft(part)
            return False
        self._answers[part] = prediction
        if len(self._answers) == len(self._parts):
            parts = sorted(self._parts, key=lambda one: one.start)
            self.answer.set_result(_joined([self._answers[one] for one in parts]))
        return True

    def start_again(self) -> None:
        """Forget the answers so far: the model that gave them is not there any more."""
        self._begin()

    def release(self) -> None:
        """Let go of what holds it: its parts, and an error, whose traceback does; nobody waits any more."""
        self.unsent.clear()
        self._parts.clear()
        self._answers.clear()
        if self.answer.done() and not self.answer.cancelled() and self.answer.exception():
            self.answer = self.loop.create_future()
            self.answer.cancel()

    def late(self) -> ServiceError:
        """Why there is no answer at the deadline, while a connection has this job."""
        # Once may be a swap of predictors; an answer that was always another one is not a slow one.
        if self.waits or self.refusals > 1:
            return PredictorUnavailable("no predictor that can score this was there in time")
        return PredictorTooSlow("the predictor did not answer in time")

    def expire(self) -> None:
        """Tell the caller that its time is over."""
        self.fail(self.late())

    def fail(self, error: ServiceError) -> None:
        """Tell the caller, if it still waits, why there is no answer."""
        if not self.answer.done():
            self.answer.set_exception(error)


class Part:
    """Some candidates of a job, that go to the predictor together."""

    __slots__ = ("_stop", "drops", "job", "rows", "start")

    def __init__(self, job: Job, start: int, stop: int) -> None:
        self.job = job
        self.start = start
        self.rows = stop - start
        #: Calls that carried it and were dropped.
        self.drops = 0
        self._stop = stop

    def cut(self, rows: int) -> "tuple[Part, Part]":
        """Its first candidates, and the others."""
        middle = self.start + rows
        first, rest = Part(self.job, self.start, middle), Part(self.job, middle, self._stop)
        first.drops = rest.drops = self.drops
        return first, rest

    def matrix(self, version: KnownVersion) -> Matrix | None:
        """Its rows in a version's encoding, or None if it cannot express the job."""
        matrix = self.job.matrix(version)
        return matrix if matrix is None else matrix[self.start : self._stop]


class Batch:
    """Parts that one call carries; their callers sent the same credentials."""

    def __init__(self, parts: list[Part]) -> None:
        self.parts = parts
        self.rows = sum(part.rows for part in parts)

    @property
    def deadline(self) -> float:
        """Loop time until which somebody waits for it."""
        return max(part.job.deadline for part in self.parts)

    @property
    def headers(self) -> dict[str, str]:
        """What goes along: of one request all, of several only what they share, their credentials."""
        job = self.parts[0].job
        if all(part.job is job for part in self.parts):
            return dict(job.headers)
        return {} if job.credentials is None else {AUTHORIZATION: job.credentials}


def encoded(parts: list[Part], version: KnownVersion) -> Matrix:
    """The rows of several parts that a version can express, in its encoding."""
    matrices = [matrix for part in parts if (matrix := part.matrix(version)) is not None]
    return matrices[0] if len(matrices) == 1 else np.concatenate(matrices)


def _joined(predictions: list[Prediction]) -> Prediction:
    """The answers to a job's parts as one."""
    if len(predictions) == 1:
        return predictions[0]
    return Prediction(
        predictions[0].version,
        np.concatenate([one.probabilities for one in predictions]),
        np.concatenate([one.positive for one in predictions]),
    )
