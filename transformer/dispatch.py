"""Requests that wait for a connection, and connections that wait for a request."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping

from transformer.errors import PredictorTooSlow, PredictorUnavailable, ServiceError
from transformer.prediction import Prediction
from transformer.validation import Candidates
from transformer.versions import KnownVersion
from transformer.wire import Matrix

#: A dropped call is sent once more: to score twice changes nothing, to retry for ever helps nobody.
MAX_DROPS = 1
_TOO_SLOW = "the predictor did not answer in time"


class Job:
    """One request on its way.

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
    deadline
        Loop time at which the caller gets an answer in any case.
    """

    def __init__(
        self,
        candidates: Candidates,
        newest: KnownVersion,
        matrix: Matrix,
        headers: Mapping[str, str],
        deadline: float,
    ) -> None:
        self.headers = headers
        self.deadline = deadline
        self.answer: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()
        self.drops = 0
        #: How often no model took it, or its answer came over a connection that was not verified.
        self.turned_away = 0
        #: Only connections that were verified after this loop time may carry it.
        self.not_before = 0.0
        self._candidates = candidates
        self._matrices: dict[str, Matrix | None] = {newest.name: matrix}

    def matrix(self, version: KnownVersion) -> Matrix | None:
        """The candidates in a version's encoding, or None if it cannot express them."""
        if version.name not in self._matrices:
            self._matrices[version.name] = version.express(self._candidates)
        return self._matrices[version.name]

    def succeed(self, prediction: Prediction) -> None:
        """Answer the caller, if it still waits."""
        if not self.answer.done():
            self.answer.set_result(prediction)

    def late(self) -> ServiceError:
        """Why there is no answer at the deadline, while a connection has this job."""
        # Once may be a swap of predictors; an answer that was always another one is not a slow one.
        return _unavailable() if self.turned_away > 1 else PredictorTooSlow(_TOO_SLOW)

    def fail(self, error: ServiceError) -> None:
        """Tell the caller, if it still waits, why there is no answer."""
        if not self.answer.done():
            self.answer.set_exception(error)


#: Whether a connection can carry a job.
Accepts = Callable[[Job], bool]


class Dispatcher:
    """Brings each job to the first free connection that can carry it, oldest first."""

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self._free: dict[asyncio.Future[Job], Accepts] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job, *, first: bool = False) -> None:
        """Hand a job to a free connection, or let it wait; `first` in front of the others.

        One whose caller does not wait any more is forgotten.
        """
        if job.answer.done():
            return
        for taking, accepts in self._free.items():
            if not taking.done() and accepts(job):
                taking.set_result(job)
                return
        if first:
            self._jobs.appendleft(job)
        else:
            self._jobs.append(job)

    async def take(self, accepts: Accepts, timeout_s: float) -> Job | None:
        """The first waiting job that is accepted; None if there is none within the time."""
        for position, job in enumerate(self._jobs):
            if not job.answer.done() and accepts(job):
                del self._jobs[position]
                return job
        taking: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        self._free[taking] = accepts
        try:
            async with asyncio.timeout(timeout_s):
                return await taking
        except TimeoutError:
            return taking.result() if taking.done() and not taking.cancelled() else None
        except asyncio.CancelledError:
            if taking.done() and not taking.cancelled():
                self.put(taking.result(), first=True)
            raise
        finally:
            del self._free[taking]

    def remove(self, job: Job) -> bool:
        """Forget a job; whether it was still waiting."""
        if job not in self._jobs:
            return False
        self._jobs.remove(job)
        return True

    def fail_all(self, error: ServiceError) -> None:
        """Fail every job that waits."""
        while self._jobs:
            self._jobs.popleft().fail(error)


async def answer_in_time(job: Job, dispatcher: Dispatcher) -> Prediction:
    """The job's answer.

    Raises
    ------
    PredictorTooSlow
        If the predictor was at work on it when the deadline came.
    PredictorUnavailable
        If it was still waiting for a connection that can carry it.
    ServiceError
        Any other reason why there is no prediction.
    """
    try:
        async with asyncio.timeout_at(job.deadline):
            return await job.answer
    except TimeoutError as error:
        if dispatcher.remove(job):
            raise _unavailable() from error
        raise job.late() from error
    except asyncio.CancelledError:
        dispatcher.remove(job)
        raise


def _unavailable() -> PredictorUnavailable:
    return PredictorUnavailable("no predictor that can score this was there in time")
