"""Requests that wait for a connection, and connections that wait for a batch of them.

No timer makes a batch: whenever a connection may carry one, everything that waits goes, up to a limit.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from transformer.concurrency import Call, ConcurrencyLimit
from transformer.errors import QueueFull, ServiceError
from transformer.jobs import Batch, Job, Part
from transformer.prediction import Prediction

#: Whether a connection can carry a job.
Accepts = Callable[[Job], bool]

#: Requests that the event loop has taken in, but not read yet, are waited for: so many of its turns at most.
MAX_TURNS = 16


class Dispatcher:
    """Brings what waits to free connections, oldest first, a large request's parts in turn with the others.

    Parameters
    ----------
    connections
        How many connections there are.
    max_batch_rows
        Candidates that one call may carry.
    max_waiting_rows
        Candidates that may wait.
    """

    def __init__(self, connections: int, max_batch_rows: int, max_waiting_rows: int) -> None:
        self._max_batch_rows = max_batch_rows
        self._max_waiting_rows = max_waiting_rows
        self._waiting: OrderedDict[Job, None] = OrderedDict()
        #: Candidates of the jobs that wait, also of those that wait in part.
        self._waiting_rows = 0
        self._free: dict[asyncio.Future[tuple[Batch, Call]], Accepts] = {}
        self._limit = ConcurrencyLimit(connections, self.hand_out_soon)
        self._scheduled = False
        self._arrivals = self._turns = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def admit(self, job: Job) -> None:
        """Let a new job wait.

        Raises
        ------
        QueueFull
            If too many candidates wait already.
        """
        if self._waiting and self._waiting_rows + job.rows > self._max_waiting_rows:
            raise QueueFull(f"{self._waiting_rows} candidates are waiting already, try again later")
        self._arrivals += 1
        self.put(job)

    def put(self, job: Job, *, first: bool = False) -> None:
        """Let a job wait, `first` in front of the others.

        One whose caller does not wait any more is forgotten.
        """
        if job.answer.done() or not job.unsent:
            return
        if job not in self._waiting:
            self._waiting[job] = None
            self._waiting_rows += job.rows
        if first:
            self._waiting.move_to_end(job, last=False)
        self.hand_out_soon()

    async def take(self, accepts: Accepts, timeout_s: float) -> tuple[Batch, Call] | None:
        """A batch of waiting jobs that are accepted; None if there is none within the time."""
        taking: asyncio.Future[tuple[Batch, Call]] = asyncio.get_running_loop().create_future()
        self._free[taking] = accepts
        self.hand_out_soon()
        try:
            async with asyncio.timeout(timeout_s):
                return await taking
        except TimeoutError:
            return taking.result() if taking.done() and not taking.cancelled() else None
        except asyncio.CancelledError:
            if taking.done() and not taking.cancelled():
                self._take_back(*taking.result())
            raise
        finally:
            del self._free[taking]

    def forget(self, job: Job) -> None:
        """Let a job wait no longer."""
        if job in self._waiting:
            del self._waiting[job]
            self._waiting_rows -= job.rows

    def fail_all(self, error: ServiceError) -> None:
        """Fail every job that waits."""
        for job in list(self._waiting):
            self.forget(job)
            job.fail(error)

    def hand_out_soon(self) -> None:
        """See what can go after this turn of the event loop."""
        if not self._scheduled and self._free and self._waiting:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._hand_out)

    def _hand_out(self) -> None:
        self._scheduled = False
        if not self._limit.may_begin():
            return
        # While each turn of the event loop takes in more requests, a batch is still growing.
        if self._arrivals and self._turns < MAX_TURNS and self._waiting_rows < self._max_batch_rows:
            self._arrivals = 0
            self._turns += 1
            self.hand_out_soon()
            return
        self._arrivals = self._turns = 0
        for taking, accepts in self._free.items():
            if not self._limit.may_begin():
                break
            if not taking.done() and (parts := self._gather(accepts)):
                taking.set_result((Batch(parts), self._limit.begin()))

    def _gather(self, accepts: Accepts) -> list[Part]:
        """Parts for one call: one of each job in turn, and again while there is room."""
        parts: list[Part] = []
        room = self._max_batch_rows
        while jobs := self._choose(accepts, room, parts):
            for job in jobs:
                part = job.unsent.popleft()
                parts.append(part)
                room -= part.rows
                if job.unsent:
                    self._waiting.move_to_end(job)
                else:
                    self.forget(job)
        return parts

    def _choose(self, accepts: Accepts, room: int, parts: list[Part]) -> list[Job]:
        """Jobs whose next parts go together, and with those that are chosen already."""
        chosen: list[Job] = []
        first = parts[0].job if parts else None
        for job in self._waiting:
            if room == 0:
                break
            rows = job.unsent[0].rows
            alike = first is None or job.credentials == first.credentials
            if rows <= room and alike and accepts(job):
                chosen.append(job)
                first = first or job
                room -= rows
        return chosen

    def _take_back(self, batch: Batch, call: Call) -> None:
        call.end(0, 0.0)
        for part in reversed(batch.parts):
            part.job.take_back(part)
            self.put(part.job, first=True)


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
        raise job.late() from error
    finally:
        dispatcher.forget(job)
