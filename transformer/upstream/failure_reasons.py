"""A log of the reasons why connections to the predictor cannot be used."""

import asyncio
import logging

logger = logging.getLogger("kserve.transformer")

#: Each reason is logged once in this time, and at most this many reasons.
INTERVAL_S = 60.0
MAX_REASONS = 20


class FailureReasons:
    """Logs each reason once a minute. Made inside the event loop that serves.

    Parameters
    ----------
    host
        The predictor's host, as it appears in the log.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._now = asyncio.get_running_loop().time
        self._logged: set[str] = set()
        self._since = 0.0

    def log(self, reason: str) -> None:
        """Log a reason, unless it was logged within the last minute."""
        if self._now() - self._since > INTERVAL_S:
            self._logged.clear()
            self._since = self._now()
        if reason not in self._logged and len(self._logged) < MAX_REASONS:
            self._logged.add(reason)
            logger.warning("predictor %s: %s", self._host, reason)
