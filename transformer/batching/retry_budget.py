"""A budget for retries, so that a predictor that drops its calls does not get twice as many."""

#: Retries that each answered request adds: at most a fifth of the calls are retries (as in Finagle's
#: RetryBudget).
EARNED = 0.2
#: The most retries that can be saved up. A predictor that stops drops a call for each connection; to find the
#: one request of 4,096 that makes it fail takes 24 calls.
MAX_SAVED = 100.0


class RetryBudget:
    """Retries, earned by answered requests and spent by calls that are sent again."""

    def __init__(self) -> None:
        self._left = MAX_SAVED

    def earn(self, requests: int) -> None:
        """Add the retries that answered requests earn."""
        self._left = min(MAX_SAVED, self._left + EARNED * requests)

    def spend(self, calls: int = 1) -> bool:
        """Spend retries; return False, and spend none, if there are too few."""
        if self._left < calls:
            return False
        self._left -= calls
        return True
