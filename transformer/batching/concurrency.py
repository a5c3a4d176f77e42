"""A limit on the calls in flight: as many as raise the throughput, and no more.

A predictor with one worker answers one call after another: a second call in flight only makes the next batch
smaller. Several replicas are idle unless several calls are in flight. The number of replicas is not known
here, so the limit is found by trials: it stays where neither one more nor one fewer is better. "Better" means
a higher power, which is throughput divided by response time (L. Kleinrock, 1979). It fits callers that wait
for an answer before they send the next request, and callers that do not.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

#: Minimum length of a measurement: calls, and seconds.
EPOCH_CALLS = 8
EPOCH_S = 0.25
#: A limit of one more must raise the power by this factor; one of one fewer may lower it by this factor.
GAIN = 1.15
LOSS = 0.97
#: A trial ends after 4 calls if it reaches less than this part of the power before.
HOPELESS_CALLS = 4
HOPELESS = 0.7
#: Measurements between two trials: doubled while trials change nothing.
FIRST_PAUSE = 2
LAST_PAUSE = 64
#: A call no longer counts as in flight after 4 times its usual duration, and at least 0.1 s.
SLOW_FACTOR = 4.0
MIN_SLOW_S = 0.1


class Call(Protocol):
    """One call in flight."""

    def end(self, rows: int, waited_s: float) -> None:
        """Account for the end of the call.

        Parameters
        ----------
        rows
            Candidates that it scored; 0 if it failed.
        waited_s
            Seconds from a request to its answer, summed over those candidates.
        """


class LimitedCall:
    """One call in flight that counts for the limit; `end` it."""

    __slots__ = ("_limit", "_since", "_timer")

    def __init__(self, limit: "ConcurrencyLimit", slow_s: float) -> None:
        self._limit = limit
        self._since = limit.loop.time()
        self._timer: asyncio.TimerHandle | None = limit.loop.call_later(slow_s, self._leave)

    def _leave(self) -> None:
        """Stop counting the call."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._limit.leave()

    def end(self, rows: int, waited_s: float) -> None:
        """Stop counting the call, and measure it; see `Call.end`."""
        self._leave()
        self._limit.measure(self._limit.loop.time() - self._since, rows, waited_s)


class ConcurrencyLimit:
    """Limits the calls in flight. Made inside the event loop that they run in.

    Parameters
    ----------
    max_limit
        The highest limit: the number of connections.
    on_free
        Called when another call may begin.

    Attributes
    ----------
    loop
        The event loop.
    usual_s
        Moving average of a call's duration in seconds; 0 before the first.
    """

    def __init__(self, max_limit: int, on_free: Callable[[], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self._climb = _HillClimb(max_limit)
        self._on_free = on_free
        self._in_flight = 0
        self.usual_s = 0.0
        self._calls = self._rows = 0
        self._waited_s = 0.0
        self._epoch_since = 0.0

    @property
    def limit(self) -> int:
        """Present limit on calls in flight."""
        return self._climb.limit

    def may_begin(self) -> bool:
        """Return True if another call may begin."""
        return self._in_flight < self._climb.limit

    def begin(self) -> LimitedCall:
        """Start a call."""
        if not self._calls:
            self._epoch_since = self.loop.time()
        self._in_flight += 1
        return LimitedCall(self, max(MIN_SLOW_S, SLOW_FACTOR * self.usual_s))

    def leave(self) -> None:
        """Count one call fewer."""
        self._in_flight -= 1
        self._on_free()

    def measure(self, took_s: float, rows: int, waited_s: float) -> None:
        """Record a call that has ended; see `Call.end`."""
        if rows:
            # A failed call may have waited until its deadline, which says nothing about other calls.
            self.usual_s = took_s if not self.usual_s else 0.9 * self.usual_s + 0.1 * took_s
        self._calls += 1
        self._rows += rows
        self._waited_s += waited_s
        elapsed_s = self.loop.time() - self._epoch_since
        power = self._rows**2 / (elapsed_s * self._waited_s) if elapsed_s and self._waited_s else 0.0
        over = self._calls >= EPOCH_CALLS and elapsed_s >= EPOCH_S
        if over or (power and self._calls >= HOPELESS_CALLS and self._climb.is_hopeless(power)):
            if power:
                self._climb.step(power)
            self._calls = self._rows = 0
            self._waited_s = 0.0


class _HillClimb:
    """Searches for the limit with the highest power, one step at a time.

    A trial must beat the measurement before it and the one after it: otherwise more callers, or a machine
    that is faster for a moment, would look like an effect of the limit.
    """

    def __init__(self, max_limit: int) -> None:
        self.limit = 1
        self._max = max_limit
        #: The best limit so far, and its power.
        self._kept = 1
        self._power = 0.0
        #: The limit on trial, 0 if none, and its power while the best one is measured again.
        self._tried = 0
        self._reached = 0.0
        self._upwards = True
        self._pause = FIRST_PAUSE
        self._left = FIRST_PAUSE

    def is_hopeless(self, power: float) -> bool:
        """Return True if a trial is so bad that it can end early."""
        return self.limit == self._tried and power < HOPELESS * self._power

    def step(self, power: float) -> None:
        """Record a measurement at the present limit, and choose the next limit."""
        if not self._tried:
            self._power = power if not self._power else 0.5 * (self._power + power)
            self._left -= 1
            if self._left <= 0:
                self._try_another()
        elif self.limit == self._kept:
            self._power = power
            self._end(better=self._is_better(self._reached, power))
        elif self._is_better(power, self._power):
            self._reached = power
            self.limit = self._kept
        else:
            self._end(better=False)

    def _try_another(self) -> None:
        upwards = self._kept < self._max and (self._upwards or self._kept == 1)
        self._left = self._pause
        if upwards or self._kept > 1:
            self._tried = self.limit = self._kept + (1 if upwards else -1)

    def _is_better(self, tried: float, kept: float) -> bool:
        return tried > kept * (GAIN if self._tried > self._kept else LOSS)

    def _end(self, *, better: bool) -> None:
        upwards = self._tried > self._kept
        if better:
            self._kept = self._tried
            self._power = self._reached
            self._upwards = upwards
            self._pause = FIRST_PAUSE
        else:
            self._upwards = not upwards
            self._pause = min(LAST_PAUSE, 2 * self._pause)
        self.limit = self._kept
        self._tried = 0
        self._left = self._pause
