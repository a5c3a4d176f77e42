"""Callers who ask again as soon as they are answered: whether, and how long, a call should wait for them.

Else two groups of callers would take turns for ever, in calls that are half full.
"""

import asyncio

#: Callers who ask again are waited for until so many of them have, or so much of a call's usual time is over.
RETURNED = 0.9
HOLD = 0.25
#: If fewer do, on a moving average, they are not waited for in the next calls, so many.
WORTH_IT = 0.5
CALLS_WITHOUT = 32


class CallerWait:
    """Callers who have just been answered: how many there were, and how many came since.

    Attributes
    ----------
    came
        How many requests have come since.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.came = 0
        self._expected = 0
        self._until = 0.0
        #: Which part of them comes in time, on a moving average.
        self._usual = 1.0
        self._without = 0

    def expect(self, callers: int, call_s: float) -> None:
        """Begin to wait for them, a part of the seconds that a call takes."""
        self.came = 0
        self._without -= 1
        if self._without > 0:
            return
        self._expected = callers
        self._until = self._loop.time() + HOLD * call_s

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
