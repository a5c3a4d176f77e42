"""A log of failures: the first of each kind at once, the others as a count in the next line of that kind.

An overloaded server sends thousands of 503s a second. A line for each would cost more than the response.
"""

import logging
from collections import Counter
from collections.abc import Callable
from time import monotonic

from transformer.errors import NotImplementedHere, ServiceError
from transformer.metrics import REFUSALS

logger = logging.getLogger("kserve.transformer")

#: Minimum seconds between two lines of one kind.
INTERVAL_S = 10.0


class FailureLog:
    """The failures of one server.

    Parameters
    ----------
    now
        Returns the time in seconds.
    """

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        #: Earliest time of the next line, and failures since the last one, by kind.
        self._next: dict[type[ServiceError], float] = {}
        self._unlogged: Counter[type[ServiceError]] = Counter()

    def record(self, status: str, error: ServiceError) -> None:
        """Log a failure that is not the caller's fault, unless one of its kind was logged recently.

        One by a limit is counted in the metrics.
        """
        if error.limit:
            REFUSALS.labels(error.limit).inc()
        if error.status < 500 or isinstance(error, NotImplementedHere):
            return
        kind, now = type(error), self._now()
        if now < self._next.get(kind, now):
            self._unlogged[kind] += 1
            return
        self._next[kind] = now + INTERVAL_S
        count = self._unlogged.pop(kind, 0)
        logger.warning(
            "%s: %s%s", status, error, f" ({count} more since the last such line)" if count else ""
        )
