"""Requests that wait for a connection, and connections that wait for a batch of them.

No timer makes a batch: whenever a connection may carry one, everything that waits goes, up to a limit. Only
where callers have just been answered who used to ask again at once are they waited for, a fraction of a
call's time: or two groups of them would take turns in calls that are half full.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator

from transformer.batching.caller_wait import CallerWait
from transformer.batching.concurrency import Call, ConcurrencyLimit
from transformer.batching.jobs import Batch, Job, Part
from transformer.bundle.prediction import Prediction
from transformer.errors import QueueFull, ServiceError

logger = logging.getLogger("kserve.transformer")

#: Whether a connection can carry a job.
Accepts = Callable[[Job], bool]

#: Requests that the event loop has taken in, but not read yet, are waited for: so many of its turns at most.
MAX_TURNS = 16


class RequestQueue:
    """Brings what waits to free connections, oldest first, a large request's parts in turn with the others.

    Made inside the event loop that is to serve.

    Parameters
    ----------
    connections
        How many connections there are.
    max_batch_rows
        Candidates that one call may carry.
    max_waiting_rows
        Candidates that may wait; as many again may wait for a version that can express them.
    cuts
        Whether large requests are cut: not where each call may meet another model, since one has to answer
        all of a request.
    """

    def __init__(
        self, connections: int, max_batch_rows: int, max_waiting_rows: int, *, cuts: bool = True
    ) -> None:
        # Python 3.11 asks the system for the process each time that it is asked for the loop.
        self._loop = asyncio.get_running_loop()
        self._max_batch_rows = max_batch_rows
        self._max_waiting_rows = max_waiting_rows
        #: What a call takes of one request before it looks at the others.
        self._share = max(1, max_batch_rows // 2)
        self._cuts = cuts
        self._waiting = _Queue()
        #: Jobs that no connection can carry at present.
        self._parked = _Queue()
        self._free: dict[asyncio.Future[tuple[Batch, Call]], Accepts] = {}
        self._limit = ConcurrencyLimit(connections, self.hand_out_soon)
        self._scheduled = False
        self._arrivals = self._turns = 0
        self._returning = CallerWait(self._loop)
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting) + len(self._parked)

    def admit(self, job: Job, *, able: bool = True) -> None:
        """Let a new job wait; apart from the others if no connection is `able` to carry it at present.

        Raises
        ------
        QueueFull
            If too many candidates wait already.
        """
        queue = self._waiting if able else self._parked
        if queue.rows and queue.rows + job.rows > self._max_waiting_rows:
            raise QueueFull(f"{queue.rows} candidates are waiting already, try again later")
        self._returning.came += 1
        if able:
            self._arrivals += 1
            self.put(job)
        else:
            queue.put(job)

    def sort(self, able: Callable[[Job], bool]) -> None:
        """See anew which jobs a connection is able to carry."""
        waiting, parked = list(self._waiting), list(self._parked)
        for job in parked:
            if self._accepted(able, job):
                self._parked.forget(job)
                self.put(job)
        for job in waiting:
            if not self._accepted(able, job) and not job.answer.done():
                self._waiting.forget(job)
                self._parked.put(job)
        self.hand_out_soon()

    def put(self, job: Job, *, first: bool = False) -> None:
        """Let a job wait, `first` in front of the others.

        One whose caller does not wait any more is forgotten.
        """
        if job.answer.done() or not job.unsent:
            return
        self._waiting.put(job, first=first)
        self.hand_out_soon()

    async def take(self, accepts: Accepts, timeout_s: float) -> tuple[Batch, Call] | None:
        """A batch of waiting jobs that are accepted; None if there is none within the time."""
        taking: asyncio.Future[tuple[Batch, Call]] = self._loop.create_future()
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
        self._waiting.forget(job)
        self._parked.forget(job)

    def fail_all(self, error: ServiceError) -> None:
        """Fail every job that waits."""
        for job in [*self._waiting, *self._parked]:
            self.forget(job)
            job.fail(error)

    def expect(self, callers: int) -> None:
        """Note that so many callers are being answered, who may ask again at once."""
        self._returning.expect(callers, self._limit.usual_s)

    def hand_out_soon(self) -> None:
        """See what can go after this turn of the event loop."""
        if not self._scheduled and self._free and self._waiting:
            self._scheduled = True
            self._loop.call_soon(self._hand_out)

    def _hand_out(self) -> None:
        self._scheduled = False
        if not self._limit.may_begin():
            return
        # While each turn of the event loop takes in more requests, a batch is still growing.
        if self._arrivals and self._turns < MAX_TURNS and self._waiting.rows < self._max_batch_rows:
            self._arrivals = 0
            self._turns += 1
            self.hand_out_soon()
            return
        if self._waiting.rows < self._max_batch_rows and (left_s := self._returning.wait_s()) > 0:
            self._look_again(left_s)
            return
        self._returning.stop()
        self._arrivals = self._turns = 0
        for taking, accepts in self._free.items():
            if not self._limit.may_begin():
                break
            if not taking.done() and (parts := self._gather(accepts)):
                taking.set_result((Batch(parts), self._limit.begin()))

    def _look_again(self, after_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(after_s, self.hand_out_soon)

    def _gather(self, accepts: Accepts) -> list[Part]:
        """Parts for one call: of each job in turn, a large one's share, and again if there is room."""
        parts: list[Part] = []
        room = self._max_batch_rows
        while room > 0 and (jobs := self._choose(accepts, room, parts)):
            for job in jobs:
                part = job.take(self._share if self._cuts else job.rows)
                parts.append(part)
                room -= part.rows
                if job.unsent:
                    self._waiting.put_last(job)
                else:
                    self.forget(job)
        return parts

    def _choose(self, accepts: Accepts, room: int, parts: list[Part]) -> list[Job]:
        """Jobs, as many as fill the room, that can go together, and with those that are chosen already."""
        chosen: list[Job] = []
        first = parts[0].job if parts else None
        for job in list(self._waiting):
            if room <= 0:
                break
            if first is not None and (job.group is not first.group or job.credentials != first.credentials):
                continue
            rows = min(job.unsent[0].rows, self._share) if self._cuts else job.rows
            # What fits no more goes next time, whole: its caller needs all of it, and two calls take longer.
            if (rows <= room or first is None) and self._accepted(accepts, job):
                chosen.append(job)
                first = first or job
                room -= rows
        return chosen

    def _accepted(self, accepts: Accepts, job: Job) -> bool:
        try:
            return accepts(job)
        except Exception:
            # A bug that only this request meets; it must not keep the others from being looked at.
            logger.exception("a request could not be encoded")
            self.forget(job)
            job.fail(ServiceError("the request could not be encoded"))
            return False

    def _take_back(self, batch: Batch, call: Call) -> None:
        call.end(0, 0.0)
        for part in reversed(batch.parts):
            part.job.take_back(part)
            self.put(part.job, first=True)


class _Queue:
    """Jobs in the order in which they go, and how many candidates they have, sent in part or not."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[Job, None] = OrderedDict()
        self.rows = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs)

    def put(self, job: Job, *, first: bool = False) -> None:
        """Add a job, if it is not there, and put it in front if it is to be the `first`."""
        if job not in self._jobs:
            self._jobs[job] = None
            self.rows += job.rows
        if first:
            self._jobs.move_to_end(job, last=False)

    def put_last(self, job: Job) -> None:
        """Let the others go before a job that is there."""
        self._jobs.move_to_end(job)

    def forget(self, job: Job) -> None:
        """Remove a job, if it is there."""
        if job in self._jobs:
            del self._jobs[job]
            self.rows -= job.rows


async def answer_in_time(job: Job, dispatcher: RequestQueue) -> Prediction:
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
    # Not asyncio.timeout_at, which costs four times as much.
    timer = job.loop.call_at(job.deadline, job.expire)
    try:
        return await job.answer
    finally:
        timer.cancel()
        dispatcher.forget(job)
