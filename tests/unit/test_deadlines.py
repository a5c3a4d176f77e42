"""Jobs expire at their deadlines, and those of the same moment share a timer."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from transformer.batching.deadlines import STEP_S, Deadlines


@dataclass
class Loop:
    """An event loop's timers."""

    timers: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def call_at(self, when: float, callback: Callable[..., None], *args: Any) -> None:
        self.timers.append((when, lambda: callback(*args)))


@dataclass(eq=False)
class Expired:
    """A job that counts how often it expires."""

    deadline: float
    times: int = 0

    def expire(self) -> None:
        self.times += 1


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def deadlines(loop) -> Deadlines:
    return Deadlines(cast(asyncio.AbstractEventLoop, loop))


@pytest.mark.parametrize("deadline", [0.0, 10.0, 10.01, 10.0499, 123_456.789])
def test_a_job_expires_at_its_deadline_or_a_step_later(loop, deadlines, deadline):
    job = Expired(deadline)
    deadlines.add(job)
    ((when, end),) = loop.timers
    assert deadline < when <= deadline + STEP_S * 1.0001
    end()
    assert job.times == 1


def test_jobs_of_the_same_moment_share_a_timer(loop, deadlines):
    early, late = [Expired(10.0), Expired(10.01)], Expired(10.0 + 2 * STEP_S)
    for job in (*early, late):
        deadlines.add(job)
    assert len(loop.timers) == 2
    loop.timers[0][1]()
    assert [job.times for job in (*early, late)] == [1, 1, 0]


def test_a_job_that_was_discarded_does_not_expire(loop, deadlines):
    done, waiting = Expired(10.0), Expired(10.0)
    deadlines.add(done).discard(done)
    deadlines.add(waiting)
    loop.timers[0][1]()
    assert (done.times, waiting.times) == (0, 1)
