"""Failures in the log: the first of a kind at once, and with a later one how many more there were.

An overload is answered with thousands of 503s a second. A line for each would cost more than the answer.
"""

import logging
from collections import Counter
from collections.abc import Callable
from time import monotonic

from transformer.errors import NotImplementedHere, ServiceError

logger = logging.getLogger("kserve.transformer")

#: Seconds from one line about a kind of failure to the next.
INTERVAL_S = 10.0


class FailureLog:
    """Of one server.

    Parameters
    ----------
    now
        The time in seconds.
    """

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        #: When the next failure of a kind gets a line, and how many have got none since the last one.
        self._next: dict[type[ServiceError], float] = {}
        self._silent: Counter[type[ServiceError]] = Counter()

    def tell(self, status: str, error: ServiceError) -> None:
        """Log a failure that is not the caller's own, unless one of its kind was logged a moment ago."""
        if error.status < 500 or isinstance(error, NotImplementedHere):
            return
        kind, now = type(error), self._now()
        if now < self._next.get(kind, now):
            self._silent[kind] += 1
            return
        self._next[kind] = now + INTERVAL_S
        silent = self._silent.pop(kind, 0)
        logger.warning(
            "%s: %s%s", status, error, f" ({silent} more since the last such line)" if silent else ""
        )
