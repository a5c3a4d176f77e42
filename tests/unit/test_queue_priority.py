"""Jobs of low priority wait behind the others in the queue, and leave the predictor most of the time."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from transformer.batching.concurrency import Call
from transformer.batching.jobs import Batch, Job
from transformer.batching.queue import LOW_PRIORITY_PAUSE, LOW_PRIORITY_ROWS, RequestQueue
from transformer.errors import QueueFull
from transformer.upstream.known_versions import KnownVersion


class Clock:
    """The event loop with a clock that the test moves."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, callback: Callable[[], None]) -> SimpleNamespace:
        self.timers.append((self.now + seconds, callback))
        return SimpleNamespace(cancel=lambda: None)

    async def move_to(self, now: float) -> None:
        self.now = now
        due = [callback for at, callback in self.timers if at <= now]
        self.timers = [timer for timer in self.timers if timer[0] > now]
        for callback in due:
            callback()
        await turns()


async def turns() -> None:
    """Let the queue make its batches."""
    for _ in range(40):
        await asyncio.sleep(0)


class Connections:
    """A queue, and the batches that its connections have taken."""

    def __init__(self, max_batch_rows: int = 1000) -> None:
        self.queue = RequestQueue(4, max_batch_rows, 2000)
        self.clock = Clock()
        self.queue._loop = self.queue._limit.loop = cast(asyncio.AbstractEventLoop, self.clock)
        self.taken: list[tuple[Batch, Call]] = []
        self._free = [asyncio.create_task(self._take()) for _ in range(4)]

    async def _take(self) -> None:
        while (batch := await self.queue.next_batch(lambda _: True, 60)) is not None:
            self.taken.append(batch)

    async def add(self, rows: int = 1, *, low_priority: bool = False) -> Job:
        version = cast(KnownVersion, SimpleNamespace(name="v1"))
        job = Job(
            None,
            version,
            np.zeros((rows, 1)),
            {},
            None,
            asyncio.get_running_loop(),
            60,
            low_priority=low_priority,
        )
        self.queue.admit(job)
        await turns()
        return job

    async def end(self) -> None:
        """End the oldest call."""
        _, call = self.taken.pop(0)
        call.end(1, 0.001)
        await turns()

    @property
    def sent(self) -> list[bool]:
        """Whether each call in flight has low priority."""
        return [batch.low_priority for batch, _ in self.taken]

    async def close(self) -> None:
        for task in self._free:
            task.cancel()
        await asyncio.gather(*self._free, return_exceptions=True)


@pytest.fixture
async def connections():
    made = Connections()
    yield made
    await made.close()


async def test_no_call_of_low_priority_is_sent_while_another_job_waits(connections):
    await connections.add()
    # The limit on calls in flight is 1 at first, so this one waits.
    await connections.add()
    await connections.add(low_priority=True)
    assert connections.sent == [False]
    await connections.end()
    assert connections.sent == [False, True]


async def test_one_call_of_low_priority_is_in_flight_and_does_not_hold_up_others(connections):
    await connections.add(low_priority=True)
    await connections.add(low_priority=True)
    await connections.add()
    assert connections.sent == [True, False]


async def test_a_call_of_low_priority_is_small_and_never_shared_with_others(connections):
    await connections.add(LOW_PRIORITY_ROWS + 10, low_priority=True)
    await connections.add(5, low_priority=True)
    ((batch, _),) = connections.taken
    assert batch.rows == LOW_PRIORITY_ROWS
    await connections.add(700)
    assert [batch.rows for batch, _ in connections.taken] == [LOW_PRIORITY_ROWS, 700]


async def test_jobs_of_low_priority_go_one_after_another_while_nothing_else_is_sent(connections):
    for _ in range(3):
        await connections.add(LOW_PRIORITY_ROWS, low_priority=True)
    for now in (1.0, 2.0, 3.0):
        assert connections.sent == [True]
        connections.clock.now = now
        await connections.end()
        await connections.clock.move_to(now)
    assert connections.sent == []


async def test_after_a_call_of_low_priority_others_have_three_times_its_duration(connections):
    for _ in range(3):
        await connections.add(LOW_PRIORITY_ROWS, low_priority=True)
    await connections.add()
    assert connections.sent == [True, False]
    connections.clock.now = 2.0
    await connections.end()
    pause_s = 2.0 * LOW_PRIORITY_PAUSE
    await connections.clock.move_to(2.0 + pause_s - 0.1)
    assert connections.sent == [False]
    await connections.clock.move_to(2.0 + pause_s)
    assert connections.sent == [False, True]


async def test_jobs_of_low_priority_do_not_count_for_the_limit_of_the_others(connections):
    for _ in range(20):
        await connections.add(LOW_PRIORITY_ROWS, low_priority=True)
    await connections.add()
    await connections.add(1999)
    with pytest.raises(QueueFull):
        await connections.add(1000)
    # All but the calls in flight wait.
    assert len(connections.queue) == 20
