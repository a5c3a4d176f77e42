"""The queue of requests, and how batches are made of it.

A free connection takes everything in the queue, up to a limit, so an idle service adds no latency. The one
exception: a batch waits briefly for callers that resend as soon as they are answered, see `caller_wait`.

Jobs of low priority go one call at a time, and only while no other job waits. So no other job waits longer
than for one of their calls, which are small. While other jobs come all the time, these calls take at most a
quarter of the time.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial

from transformer.batching.caller_wait import CallerWait
from transformer.batching.concurrency import Call, ConcurrencyLimit
from transformer.batching.jobs import Batch, Job, ModelGone, Part
from transformer.errors import QueueFull, ServiceError

logger = logging.getLogger("kserve.transformer")

#: Returns True if a connection can carry a job.
Accepts = Callable[[Job], bool]

#: Maximum rows in a call of low priority, for which other jobs may have to wait.
LOW_PRIORITY_ROWS = 256
#: Pause after such a call, in durations of the call, if other jobs were sent meanwhile.
LOW_PRIORITY_PAUSE = 3.0
#: Maximum turns of the event loop for which a batch waits while each turn adds requests.
MAX_TURNS = 16


class RequestQueue:
    """Gives batches to free connections, oldest jobs first. Large requests share the calls with small ones.

    Made inside the event loop that serves.

    Parameters
    ----------
    connections
        Number of connections.
    max_batch_rows
        Maximum candidates per call.
    max_waiting_rows
        Maximum candidates in the queue. Parked candidates, which no version can express now, have the same
        limit of their own. It does not apply to jobs of low priority, which their caller limits.
    splits
        Split large requests. False where each call may reach another model, since one model must answer all
        of a request.
    """

    def __init__(
        self, connections: int, max_batch_rows: int, max_waiting_rows: int, *, splits: bool = True
    ) -> None:
        # Kept, because asyncio.get_running_loop() asks the system for the process id each time (Python 3.11).
        self._loop = asyncio.get_running_loop()
        self._max_batch_rows = max_batch_rows
        self._max_low_priority_rows = min(max_batch_rows, LOW_PRIORITY_ROWS)
        self._max_waiting_rows = max_waiting_rows
        #: Candidates that a batch takes of one request before it takes some of the others.
        self._share = max(1, max_batch_rows // 2)
        self._splits = splits
        self._waiting = _JobList()
        self._low_priority = _JobList()
        #: False while a call of low priority is in flight, and in the pause after it.
        self._may_send_low_priority = True
        #: True if a batch of normal priority was sent since the last call of low priority ended.
        self._sent = False
        #: Jobs that no connection can carry at present.
        self._parked = _JobList()
        self._lists = (self._waiting, self._low_priority, self._parked)
        self._free: dict[asyncio.Future[tuple[Batch, Call]], Accepts] = {}
        self._limit = ConcurrencyLimit(connections, self.dispatch_soon)
        self._scheduled = False
        self._arrivals = self._turns = 0
        self._caller_wait = CallerWait(self._loop)
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return sum(map(len, self._lists))

    @property
    def rows(self) -> dict[str, int]:
        """Candidates that wait for a free connection, and those that no connection can carry at present."""
        return {"waiting": self._waiting.rows, "parked": self._parked.rows}

    @property
    def waits_for_version(self) -> bool:
        """True if a request waits for a version that no connection leads to."""
        return any(job.version is not None for job in self._parked)

    def admit(self, job: Job, *, can_go: bool = True) -> None:
        """Add a new job; park it if no connection can carry it at present.

        Raises
        ------
        QueueFull
            If too many candidates are in the queue.
        ModelGone
            If only one model may answer, and no connection leads to it.
        """
        if job.only is not None and not can_go:
            raise ModelGone
        jobs = self._list_of(job) if can_go else self._parked
        if not job.low_priority:
            if jobs.rows and jobs.rows + job.rows > self._max_waiting_rows:
                raise QueueFull(
                    f"the queue is full: limit {self._max_waiting_rows} rows, {jobs.rows} are waiting; "
                    "try again later",
                    limit="queue",
                )
            self._caller_wait.arrived += 1
            self._arrivals += can_go
        if can_go:
            self.put(job)
        else:
            jobs.add(job)

    def reclassify(self, can_go: Accepts) -> None:
        """Check again which jobs a connection can carry, and park the others."""
        waiting, parked = [*self._waiting, *self._low_priority], list(self._parked)
        for job in parked:
            if self._check(can_go, job):
                self._parked.remove(job)
                self.put(job)
        for job in waiting:
            if not self._check(can_go, job) and not job.answer.done():
                self.remove(job)
                if job.only is None:
                    self._parked.add(job)
                else:
                    job.fail(ModelGone())
        self.dispatch_soon()

    def put(self, job: Job, *, first: bool = False) -> None:
        """Add a job, `first` at the front. A job whose caller has gone is ignored."""
        if job.answer.done() or not job.unsent:
            return
        self._list_of(job).add(job, first=first)
        self.dispatch_soon()

    def _list_of(self, job: Job) -> "_JobList":
        return self._low_priority if job.low_priority else self._waiting

    async def next_batch(self, accepts: Accepts, timeout_s: float) -> tuple[Batch, Call] | None:
        """Wait for a batch of jobs that the connection accepts; None after the timeout."""
        ready: asyncio.Future[tuple[Batch, Call]] = self._loop.create_future()
        self._free[ready] = accepts
        self.dispatch_soon()
        try:
            async with asyncio.timeout(timeout_s):
                return await ready
        except TimeoutError:
            return ready.result() if ready.done() and not ready.cancelled() else None
        except asyncio.CancelledError:
            if ready.done() and not ready.cancelled():
                self._return(*ready.result())
            raise
        finally:
            del self._free[ready]

    def remove(self, job: Job) -> None:
        """Remove a job, if it is in the queue."""
        for jobs in self._lists:
            jobs.remove(job)

    def fail_all(self, error: ServiceError) -> None:
        """Fail every job in the queue."""
        for job in [job for jobs in self._lists for job in jobs]:
            self.remove(job)
            job.fail(error)

    def expect_callers(self, callers: int) -> None:
        """Note that callers are being answered, and may resend at once."""
        self._caller_wait.start(callers, self._limit.usual_s)

    def dispatch_soon(self) -> None:
        """Make batches after this turn of the event loop."""
        if not self._scheduled and self._free and (self._waiting or self._low_priority):
            self._scheduled = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._scheduled = False
        if self._waiting:
            self._dispatch_waiting()
        if not self._waiting and self._may_send_low_priority:
            self._dispatch_low_priority()

    def _dispatch_waiting(self) -> None:
        if not self._limit.may_begin():
            return
        # While each turn of the event loop adds requests, a batch is still growing.
        if self._arrivals and self._turns < MAX_TURNS and self._waiting.rows < self._max_batch_rows:
            self._arrivals = 0
            self._turns += 1
            self.dispatch_soon()
            return
        if self._waiting.rows < self._max_batch_rows and (left_s := self._caller_wait.remaining_s()) > 0:
            self._dispatch_after(left_s)
            return
        self._caller_wait.stop()
        self._arrivals = self._turns = 0
        for ready, accepts in self._free.items():
            if not (self._waiting and self._limit.may_begin()):
                break
            if not ready.done() and (parts := self._fill(self._waiting, accepts, self._max_batch_rows)):
                ready.set_result((Batch(parts), self._limit.begin()))
                self._sent = True

    def _dispatch_low_priority(self) -> None:
        """Make one batch of low priority. It does not count for the limit, which it would mislead."""
        for ready, accepts in self._free.items():
            if not ready.done() and (
                parts := self._fill(self._low_priority, accepts, self._max_low_priority_rows)
            ):
                self._may_send_low_priority = False
                call = _LowPriorityCall(partial(self._low_priority_ended, self._loop.time()))
                ready.set_result((Batch(parts), call))
                return

    def _low_priority_ended(self, began: float) -> None:
        took_s = self._loop.time() - began
        self._loop.call_later(LOW_PRIORITY_PAUSE * took_s if self._sent else 0.0, self._resume_low_priority)
        self._sent = False

    def _resume_low_priority(self) -> None:
        self._may_send_low_priority = True
        self.dispatch_soon()

    def _dispatch_after(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self.dispatch_soon)

    def _fill(self, waiting: "_JobList", accepts: Accepts, capacity: int) -> list[Part]:
        """Take the parts of one batch: each job's share, then the rest while there is capacity."""
        parts: list[Part] = []
        share = min(self._share, capacity)
        while capacity > 0 and (jobs := self._select(waiting, accepts, capacity, share, parts)):
            for job in jobs:
                part = job.next_part(share if self._splits else job.rows)
                parts.append(part)
                capacity -= part.rows
                if job.unsent:
                    waiting.move_to_end(job)
                else:
                    waiting.remove(job)
        return parts

    def _select(
        self, waiting: "_JobList", accepts: Accepts, capacity: int, share: int, parts: list[Part]
    ) -> list[Job]:
        """Select jobs that fit the capacity, may share a call, and may join the parts chosen already."""
        selected: list[Job] = []
        first = parts[0].job if parts else None
        for job in list(waiting):
            if capacity <= 0:
                break
            if first is not None and not _may_share(job, first):
                continue
            rows = min(job.unsent[0].rows, share) if self._splits else job.rows
            # A request that does not fit goes whole with the next call: split in two it would take longer.
            if (rows <= capacity or first is None) and self._check(accepts, job):
                selected.append(job)
                first = first or job
                capacity -= rows
        return selected

    def _check(self, accepts: Accepts, job: Job) -> bool:
        try:
            return accepts(job)
        except Exception:
            # A bug that only this request triggers must not stop the others.
            logger.exception("a request could not be encoded")
            self.remove(job)
            job.fail(ServiceError("the request could not be encoded"))
            return False

    def _return(self, batch: Batch, call: Call) -> None:
        """Put back a batch that its connection did not take."""
        call.end(0, 0.0)
        for part in reversed(batch.parts):
            part.job.requeue(part)
            self.put(part.job, first=True)


def _may_share(job: Job, other: Job) -> bool:
    """Return True if two jobs may share a call."""
    return job.retry_group is other.retry_group and job.credentials == other.credentials


class _LowPriorityCall:
    """The call of low priority that is in flight."""

    def __init__(self, on_end: Callable[[], None]) -> None:
        self._on_end = on_end

    def end(self, rows: int, waited_s: float) -> None:
        """See `Call.end`."""
        self._on_end()


class _JobList:
    """Jobs in order, and the number of their candidates, sent in part or not."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[Job, None] = OrderedDict()
        self.rows = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs)

    def add(self, job: Job, *, first: bool = False) -> None:
        """Add a job that is not in the list, and move it to the front if it is to be the `first`."""
        if job not in self._jobs:
            self._jobs[job] = None
            self.rows += job.rows
        if first:
            self._jobs.move_to_end(job, last=False)

    def move_to_end(self, job: Job) -> None:
        """Move a job behind the others."""
        self._jobs.move_to_end(job)

    def remove(self, job: Job) -> None:
        """Remove a job, if it is in the list."""
        if job in self._jobs:
            del self._jobs[job]
            self.rows -= job.rows
