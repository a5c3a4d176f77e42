"""Requests that wait for a connection, and connections that wait for a batch of them.

No timer makes a batch: whenever a connection may carry one, everything that waits goes, up to a limit. Only
where callers have just been answered who used to ask again at once are they waited for, a fraction of a
call's time: or two groups of them would take turns in calls that are half full.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable

from transformer.concurrency import Call, ConcurrencyLimit
from transformer.errors import QueueFull, ServiceError
from transformer.jobs import Batch, Job, Part
from transformer.prediction import Prediction

logger = logging.getLogger("kserve.transformer")

#: Whether a connection can carry a job.
Accepts = Callable[[Job], bool]

#: Callers who ask again are waited for until so many of them have, or so much of a call's usual time is over.
RETURNED = 0.9
HOLD = 0.25
#: If fewer do, on a moving average, they are not waited for in the next calls, so many.
WORTH_IT = 0.5
CALLS_WITHOUT = 32
#: Requests that the event loop has taken in, but not read yet, are waited for: so many of its turns at most.
MAX_TURNS = 16


class Dispatcher:
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
        self._waiting: OrderedDict[Job, None] = OrderedDict()
        #: Candidates of the jobs that wait, also of those that wait in part.
        self._waiting_rows = 0
        #: Jobs that no connection can carry at present.
        self._parked: OrderedDict[Job, None] = OrderedDict()
        self._parked_rows = 0
        self._free: dict[asyncio.Future[tuple[Batch, Call]], Accepts] = {}
        self._limit = ConcurrencyLimit(connections, self.hand_out_soon)
        self._scheduled = False
        self._arrivals = self._turns = 0
        self._returning = _Returning(self._loop)
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
        rows = self._waiting_rows if able else self._parked_rows
        if rows and rows + job.rows > self._max_waiting_rows:
            raise QueueFull(f"{rows} candidates are waiting already, try again later")
        self._returning.came += 1
        if able:
            self._arrivals += 1
            self.put(job)
        else:
            self._park(job)

    def sort(self, able: Callable[[Job], bool]) -> None:
        """See anew which jobs a connection is able to carry."""
        for job in [*self._parked, *self._waiting]:
            if self._accepted(able, job) == (job in self._waiting):
                continue
            waits = job in self._waiting
            self.forget(job)
            if waits:
                self._park(job)
            else:
                self.put(job)
        self.hand_out_soon()

    def _park(self, job: Job) -> None:
        self._parked[job] = None
        self._parked_rows += job.rows

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
        if job in self._waiting:
            del self._waiting[job]
            self._waiting_rows -= job.rows
        elif job in self._parked:
            del self._parked[job]
            self._parked_rows -= job.rows

    def fail_all(self, error: ServiceError) -> None:
        """Fail every job that waits."""
        for job in [*self._waiting, *self._parked]:
            self.forget(job)
            job.fail(error)

    def expect(self, callers: int) -> None:
        """Note that so many callers are being answered, who may ask again at once."""
        self._returning.expect(callers, HOLD * self._limit.usual_s)

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
        if self._arrivals and self._turns < MAX_TURNS and self._waiting_rows < self._max_batch_rows:
            self._arrivals = 0
            self._turns += 1
            self.hand_out_soon()
            return
        if self._waiting_rows < self._max_batch_rows and (left_s := self._returning.wait_s()) > 0:
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
                part = job.take(min(room, self._share) if self._cuts else job.rows)
                parts.append(part)
                room -= part.rows
                if job.unsent:
                    self._waiting.move_to_end(job)
                else:
                    self.forget(job)
                if room <= 0:
                    break
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
            if (self._cuts or rows <= room or first is None) and self._accepted(accepts, job):
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


class _Returning:
    """Callers who have just been answered: how many there were, and how many came since."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.came = 0
        self._expected = 0
        self._until = 0.0
        #: Which part of them comes in time, on a moving average.
        self._usual = 1.0
        self._without = 0

    def expect(self, callers: int, patience_s: float) -> None:
        """Begin to wait for them."""
        self.came = 0
        self._without -= 1
        if self._without > 0:
            return
        self._expected = callers
        self._until = self._loop.time() + patience_s

    def wait_s(self) -> float:
        """Seconds for which they are still waited for; 0 or less if they are not."""
        if self.came >= RETURNED * self._expected:
            return 0.0
        return self._until - self._loop.time()

    def stop(self) -> None:
        """Wait no longer, and learn how many came."""
        if not self._expected:
            return
        self._usual += 0.2 * (min(1.0, self.came / self._expected) - self._usual)
        self._expected = 0
        if self._usual < WORTH_IT:
            self._without = CALLS_WITHOUT
            self._usual = 1.0


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
    # Not asyncio.timeout_at, which costs four times as much.
    timer = job.loop.call_at(job.deadline, job.expire)
    try:
        return await job.answer
    finally:
        timer.cancel()
        dispatcher.forget(job)
        job.release()
