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
    """Looks for the limit at which the power is highest, one step at a time."""

    def __init__(self, most: int) -> None:
        self.limit = 1
        self._most = most
        self._power = 0.0
        #: What the limit was before a trial of another one; 0 outside of a trial.
        self._before = 0
        self._upwards = True
        self._rest = FIRST_REST
        self._left = FIRST_REST

    def is_hopeless(self, power: float) -> bool:
        """Whether a trial goes so badly that it need not be measured to its end."""
        return bool(self._before) and power < HOPELESS * self._power

    def step(self, power: float) -> None:
        """Take one measurement at the present limit, and choose the next limit."""
        if self._before:
            self._judge(power)
        else:
            self._power = power if not self._power else 0.5 * (self._power + power)
            self._left -= 1
            if self._left <= 0:
                self._try_another()

    def _try_another(self) -> None:
        upwards = self.limit < self._most and (self._upwards or self.limit == 1)
        self._left = self._rest
        if upwards or self.limit > 1:
            self._before = self.limit
            self.limit += 1 if upwards else -1

    def _judge(self, power: float) -> None:
        upwards = self.limit > self._before
        if power > self._power * (GAIN if upwards else LOSS):
            self._power = power
            self._upwards = upwards
            self._rest = FIRST_REST
        else:
            self.limit = self._before
            self._upwards = not upwards
            self._rest = min(LAST_REST, 2 * self._rest)
        self._before = 0
        self._left = self._rest
