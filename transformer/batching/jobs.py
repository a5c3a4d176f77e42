"""Requests in the queue: whole or in parts, and the batches that carry them to the predictor."""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from transformer.batching.deadlines import Expiring
from transformer.bundle.candidates import Candidates
from transformer.bundle.encoder import Matrix
from transformer.bundle.prediction import Prediction
from transformer.errors import PredictorTooSlow, PredictorUnavailable, ServiceError
from transformer.headers import AUTHORIZATION
from transformer.tracing.traced_headers import TracedHeaders
from transformer.upstream.known_versions import KnownVersion, UpstreamModel

if TYPE_CHECKING:
    from transformer.tracing.spans import RequestTrace

#: Seconds for which an explanation's last call may go on after its deadline.
LAST_CALL_S = 1.0
#: Parts of one job that different models may answer before the job starts again.
MAX_MODEL_CHANGES = 8


class ModelGone(PredictorUnavailable):
    """The only model that may answer a job is no longer behind any connection."""

    def __init__(self) -> None:
        super().__init__("the model that gave the first part of the answer is gone; try again")


class Job:
    """One request. A large one is sent in parts, and one model must answer all of them.

    Parameters
    ----------
    candidates
        The candidates as the request holds them. None for rows that exist in one encoding only.
    encoded_for
        The version in whose encoding `matrix` is: the newest one, which has validated the candidates.
    matrix
        The candidates in its encoding.
    headers
        Headers to forward to the predictor.
    version
        The only version that may answer; any if None.
    loop
        The event loop.
    timeout_s
        Seconds until the caller gets an error.
    low_priority
        Wait until no job of normal priority is in the queue.
    only
        The only model that may answer; any if None. The job fails with `ModelGone` when it is gone.

    Attributes
    ----------
    created, deadline
        Loop times.
    answer
        The result that the caller awaits.
    expiring
        The jobs that expire at the same time, while this is one of them.
    unsent
        Parts in the queue.
    refusals
        Times that no model took the job, or that its call was not sent because the connection had closed.
    retry_group
        Jobs share a call only with jobs of the same group: a call that they all shared has failed, and the
        cause is one of them.
    not_before
        Only connections verified after this loop time may carry the job.
    """

    __slots__ = (
        "_answers",
        "_candidates",
        "_matrices",
        "_model_changes",
        "_parts",
        "answer",
        "created",
        "credentials",
        "deadline",
        "expiring",
        "headers",
        "loop",
        "low_priority",
        "model",
        "not_before",
        "only",
        "refusals",
        "retry_group",
        "rows",
        "unsent",
        "version",
    )

    def __init__(
        self,
        candidates: Candidates | None,
        encoded_for: KnownVersion,
        matrix: Matrix,
        headers: Mapping[str, str],
        version: str | None,
        loop: asyncio.AbstractEventLoop,
        timeout_s: float,
        *,
        low_priority: bool = False,
        only: UpstreamModel | None = None,
    ) -> None:
        self.rows = len(matrix)
        self.headers = headers
        self.credentials = headers.get(AUTHORIZATION)
        self.version = version
        self.low_priority = low_priority
        self.only = only
        self.loop = loop
        self.created = loop.time()
        self.deadline = self.created + timeout_s
        self.answer: asyncio.Future[Prediction] = loop.create_future()
        self.expiring: set[Expiring] | None = None
        self.refusals = 0
        self.retry_group: object = None
        self.not_before = 0.0
        self._candidates = candidates
        self._matrices: dict[str, Matrix | None] = {encoded_for.name: matrix}
        self.restart()

    def restart(self) -> None:
        """Forget the answers so far; any model may answer."""
        whole = Part(self, 0, self.rows)
        self.unsent = [whole]
        self.model: UpstreamModel | None = None
        #: Parts since the last restart, sent or not. Answers to others are ignored.
        self._parts = {whole}
        self._answers: dict[Part, Prediction] = {}
        self._model_changes = 0

    @property
    def is_unsent(self) -> bool:
        """True if no part of the job is in flight or answered."""
        return len(self.unsent) == len(self._parts)

    def next_part(self, max_rows: int) -> "Part":
        """Remove the next part from the queue, cut to `max_rows` candidates."""
        part = self.unsent.pop(0)
        if part.rows > max_rows:
            self._parts.remove(part)
            part, rest = part.split(max_rows)
            self._parts |= {part, rest}
            self.unsent.insert(0, rest)
        return part

    def requeue(self, part: "Part") -> None:
        """Put a part back; one from before a restart is ignored."""
        if part in self._parts:
            self.unsent.insert(0, part)
            if self.is_unsent:
                self.model = None

    def matrix(self, version: KnownVersion) -> Matrix | None:
        """Return the candidates in a version's encoding, or None if it cannot express them."""
        if version.name not in self._matrices:
            candidates = self._candidates
            self._matrices[version.name] = None if candidates is None else version.try_encode(candidates)
        return self._matrices[version.name]

    def accepts(self, model: UpstreamModel) -> bool:
        """Return True if the caller accepts an answer of this model."""
        if self.only is not None:
            return self.only.is_same_model(model)
        return self.version is None or self.version == model.label

    def add_answer(self, part: "Part", prediction: Prediction, model: UpstreamModel) -> bool:
        """Record a model's answer to a part; return False if the part must be sent again."""
        if part not in self._parts or self.answer.done():
            return True
        if self.model is None:
            self.model = model
        elif not self.model.is_same_model(model):
            self._model_changes += 1
            if self._model_changes > MAX_MODEL_CHANGES:
                self.restart()
            else:
                self.unsent.insert(0, part)
            return False
        if len(self._parts) == 1:
            self.answer.set_result(prediction)
            return True
        self._answers[part] = prediction
        if len(self._answers) == len(self._parts):
            parts = sorted(self._parts, key=lambda one: one.start)
            self.answer.set_result(_join([self._answers[one] for one in parts]))
        return True

    def release(self) -> None:
        """Drop all references that keep a finished job alive, such as an error's traceback."""
        if self.expiring is not None:
            self.expiring.discard(self)
            self.expiring = None
        self.unsent.clear()
        self._parts.clear()
        self._answers.clear()
        if self.answer.done() and not self.answer.cancelled() and self.answer.exception():
            self.answer = self.loop.create_future()
            self.answer.cancel()

    def timeout_error(self) -> ServiceError:
        """Return the error of a job whose deadline has passed."""
        if self.version is not None:
            return PredictorUnavailable(f"no predictor of version {self.version} answered in time")
        if self.low_priority and self.is_unsent:
            return PredictorUnavailable("no predictor was free in time: explanations wait behind predictions")
        # One refusal may be a rollout. A job that only met refusals did not wait for a slow predictor.
        if self.is_unsent or self.refusals > 1:
            return PredictorUnavailable("no predictor that can score this request was available in time")
        if self.low_priority:
            return PredictorTooSlow("the explanation was not complete in time")
        return PredictorTooSlow("the predictor did not answer in time")

    def expire(self) -> None:
        """Fail the job because its deadline has passed."""
        self.fail(self.timeout_error())

    def fail(self, error: ServiceError) -> None:
        """Give the caller an error, if it still waits."""
        if not self.answer.done():
            self.answer.set_exception(error)


class Part:
    """Candidates of one job that are sent in the same call.

    Attributes
    ----------
    drops
        Calls that carried the part and got no response.
    """

    __slots__ = ("_stop", "drops", "job", "rows", "start")

    def __init__(self, job: Job, start: int, stop: int) -> None:
        self.job = job
        self.start = start
        self.rows = stop - start
        self.drops = 0
        self._stop = stop

    def split(self, rows: int) -> "tuple[Part, Part]":
        """Return the first candidates and the others."""
        middle = self.start + rows
        first, rest = Part(self.job, self.start, middle), Part(self.job, middle, self._stop)
        first.drops = rest.drops = self.drops
        return first, rest

    def matrix(self, version: KnownVersion) -> Matrix | None:
        """Return the rows in a version's encoding, or None if it cannot express the job."""
        matrix = self.job.matrix(version)
        return matrix if matrix is None or self.rows == len(matrix) else matrix[self.start : self._stop]


class Batch:
    """Parts that one call carries. Their callers sent the same credentials.

    Attributes
    ----------
    low_priority
        True if the parts' jobs have low priority; a batch has one priority.
    unanswered
        Parts that no model has answered yet.
    """

    def __init__(self, parts: list[Part]) -> None:
        self.parts = parts
        self.unanswered = list(parts)
        self.low_priority = parts[0].job.low_priority
        self.rows = sum([part.rows for part in parts])

    @property
    def deadline(self) -> float:
        """Loop time at which the call is cut off, which closes its connection."""
        latest = max([part.job.deadline for part in self.parts])
        return latest + LAST_CALL_S if self.low_priority else latest

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the call: all of them for one request, else only the shared credentials."""
        job = self.parts[0].job
        if all(part.job is job for part in self.parts):
            return dict(job.headers)
        return {} if job.credentials is None else {AUTHORIZATION: job.credentials}

    def answer(
        self, parts: Collection[Part], matrix: Matrix, probabilities: Matrix, model: UpstreamModel
    ) -> list[Job]:
        """Give parts of the batch their rows of a matrix and the model's probabilities for it.

        Returns
        -------
        Jobs with a part that must be sent again, because another model has answered the parts before it.
        """
        prediction = model.version.prediction(matrix, probabilities, model.label)
        start = 0
        again = []
        for part in parts:
            rows = slice(start, start := start + part.rows)
            if not part.job.add_answer(part, prediction.of(rows), model):
                again.append(part.job)
        if len(parts) == len(self.unanswered):
            self.unanswered.clear()
        else:
            answered = set(parts)
            self.unanswered = [part for part in self.unanswered if part not in answered]
        return again


def encode(parts: Iterable[Part], version: KnownVersion) -> Matrix:
    """Return the rows of those parts that a version can express, in its encoding."""
    matrices = [matrix for part in parts if (matrix := part.matrix(version)) is not None]
    return matrices[0] if len(matrices) == 1 else np.concatenate(matrices)


def jobs_of(parts: Iterable[Part]) -> dict[Job, None]:
    """Return the jobs that parts belong to, each once, in order."""
    return dict.fromkeys([part.job for part in parts])


def traces_of(parts: Sequence[Part]) -> "Sequence[RequestTrace]":
    """Return the traces of the requests that parts belong to; none if tracing is off."""
    if not isinstance(parts[0].job.headers, TracedHeaders):
        return ()
    every = (job.headers for job in jobs_of(parts))
    return [headers.trace for headers in every if isinstance(headers, TracedHeaders)]


def _join(predictions: list[Prediction]) -> Prediction:
    """Join the answers to a job's parts."""
    return Prediction(
        predictions[0].version,
        predictions[0].encoding,
        np.concatenate([one.matrix for one in predictions]),
        np.concatenate([one.probabilities for one in predictions]),
        np.concatenate([one.positive for one in predictions]),
    )
