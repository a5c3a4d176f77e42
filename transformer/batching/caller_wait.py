"""Delays a batch briefly for callers that resend as soon as they are answered.

They then share one full call. Without the delay, two groups of them alternate for ever, in half-full calls.
"""

import asyncio

#: Wait until 90 % have resent, or 25 % of a usual call has passed.
RESENT = 0.9
WAIT = 0.25
#: If fewer resend, on a moving average, the next calls do not wait.
WORTHWHILE = 0.5
CALLS_WITHOUT = 32


class CallerWait:
    """Counts the callers that were just answered, and the requests that have arrived since.

    Attributes
    ----------
    arrived
        Requests since the callers were answered.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.arrived = 0
        self._expected = 0
        self._until = 0.0
        #: Moving average of the share that resends in time.
        self._usual = 1.0
        self._skipped = 0

    def start(self, callers: int, call_s: float) -> None:
        """Start to wait for callers, for a fraction of a usual call's duration `call_s` in seconds."""
        self.arrived = 0
        self._skipped -= 1
        if self._skipped > 0:
            return
        self._expected = callers
        self._until = self._loop.time() + WAIT * call_s

    def remaining_s(self) -> float:
        """Seconds left to wait; 0 or less if there is nothing to wait for."""
        if self.arrived >= RESENT * self._expected:
            return 0.0
        return self._until - self._loop.time()

    def stop(self) -> None:
        """Stop waiting, and learn from how many have resent."""
        if not self._expected:
            return
        self._usual += 0.2 * (min(1.0, self.arrived / self._expected) - self._usual)
        self._expected = 0
        if self._usual < WORTHWHILE:
            self._skipped = CALLS_WITHOUT
            self._usual = 1.0
