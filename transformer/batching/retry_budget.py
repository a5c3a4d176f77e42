"""How many calls may be sent again, so that a predictor that drops its calls does not get twice as many."""

#: What each answered request adds: so calls are sent again for a fifth of them at most (as in Finagle's
#: RetryBudget).
EARNED = 0.2
#: What may be saved up. A predictor that goes away drops a call for each connection; to find the one request
#: of 4,096 on which it fails takes 24 calls.
MOST = 100.0


class RetryBudget:
    """Earned by answered requests, spent by calls that are sent again."""

    def __init__(self) -> None:
        self._left = MOST

    def earn(self, requests: int) -> None:
        """Note requests that were answered."""
        self._left = min(MOST, self._left + EARNED * requests)

    def spend(self, calls: int = 1) -> bool:
        """Whether so many calls may be sent again; they are counted if so."""
        if self._left < calls:
            return False
        self._left -= calls
        return True
