"""How many calls may be under way at once: as many as raise the throughput, and no more.

A predictor with one worker takes calls in turn: a second one at the same time only makes the next batch
smaller. Several replicas are idle unless several calls are under way. Which it is cannot be told from
outside, so it is tried: a number of calls is kept if neither one more nor one fewer does better. "Better" is
throughput over response time, which L. Kleinrock (1979) calls power: it serves for callers that wait for
their answers before they ask again, and for callers that do not.
"""

import asyncio
from collections.abc import Callable

#: Shortest measurement: so many calls, and so many seconds.
EPOCH_CALLS = 8
EPOCH_S = 0.25
#: One more call at once must raise the power by so much; one fewer may lower it by so much.
GAIN = 1.15
LOSS = 0.97
#: A trial is given up after so many calls if it reaches no more than this part of the power before.
HOPELESS_CALLS = 4
HOPELESS = 0.7
#: Measurements between two trials: doubled while trials change nothing.
FIRST_REST = 2
LAST_REST = 64
#: A call that takes so many times as long as usual, and at least so many seconds, holds up nobody else.
PATIENCE = 4.0
LEAST_PATIENCE_S = 0.1


class Call:
    """One call under way; `end` it."""

    __slots__ = ("_limit", "_since", "_timer")

    def __init__(self, limit: "ConcurrencyLimit", patience_s: float) -> None:
        self._limit = limit
        self._since = limit.loop.time()
        self._timer: asyncio.TimerHandle | None = limit.loop.call_later(patience_s, self._let_go)

    def _let_go(self) -> None:
        """Count it no more, although it goes on."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._limit.leave()

    def end(self, rows: int, waited_s: float) -> None:
        """Count it no more, and measure it.

        Parameters
        ----------
        rows
            Candidates that it brought an answer for; 0 if it failed.
        waited_s
            Seconds from a caller's question to its answer, summed over those candidates.
        """
        self._let_go()
        self._limit.measure(self._limit.loop.time() - self._since, rows, waited_s)


class ConcurrencyLimit:
    """Lets calls begin. Made inside the event loop that they run in.

    Parameters
    ----------
    most
        The highest limit: the number of connections.
    on_open
        Called when another call may begin.

    Attributes
    ----------
    loop
        The event loop.
    usual_s
        Seconds that a call takes, on a moving average; 0 before the first.
    """

    def __init__(self, most: int, on_open: Callable[[], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self._climb = _Climb(most)
        self._on_open = on_open
        self._under_way = 0
        self.usual_s = 0.0
        self._calls = self._rows = 0
        self._waited_s = 0.0
        self._epoch_since = 0.0

    @property
    def limit(self) -> int:
        """Calls that may be under way at once for now."""
        return self._climb.limit

    def may_begin(self) -> bool:
        """Whether another call may begin."""
        return self._under_way < self._climb.limit

    def begin(self) -> Call:
        """Count a call."""
        if not self._calls:
            self._epoch_since = self.loop.time()
        self._under_way += 1
        return Call(self, max(LEAST_PATIENCE_S, PATIENCE * self.usual_s))

    def leave(self) -> None:
        """Count one call less."""
        self._under_way -= 1
        self._on_open()

    def measure(self, took_s: float, rows: int, waited_s: float) -> None:
        """Note a call that has ended; see `Call.end`."""
        if rows:
            # One that failed may have hung until its deadline, which is nothing to expect of others.
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


class _Climb:
    """Looks for the limit at which the power is highest, one step at a time.

    A trial must do better than the measurement before it and than one more after it: else more callers, or a
    machine that is faster for a moment, would be taken for what the limit does.
    """

    def __init__(self, most: int) -> None:
        self.limit = 1
        self._most = most
        #: The limit that is kept, and its power.
        self._kept = 1
        self._power = 0.0
        #: The limit on trial, 0 if there is none, and its power while the kept one is measured once more.
        self._tried = 0
        self._reached = 0.0
        self._upwards = True
        self._rest = FIRST_REST
        self._left = FIRST_REST

    def is_hopeless(self, power: float) -> bool:
        """Whether a trial goes so badly that it need not be measured to its end."""
        return self.limit == self._tried and power < HOPELESS * self._power

    def step(self, power: float) -> None:
        """Take one measurement at the present limit, and choose the next limit."""
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
        upwards = self._kept < self._most and (self._upwards or self._kept == 1)
        self._left = self._rest
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
            self._rest = FIRST_REST
        else:
            self._upwards = not upwards
            self._rest = min(LAST_REST, 2 * self._rest)
        self.limit = self._kept
        self._tried = 0
        self._left = self._rest
