"""How many calls may be sent again, so that a predictor that drops its calls does not get twice as many."""

#: What each answered call adds: so a fifth of the calls may be retries (as in Finagle's RetryBudget).
EARNED = 0.2
#: What may be saved up. A predictor that goes away drops a call for each connection; one that fails on a
#: single request of many makes each of them go alone.
MOST = 100.0


class RetryBudget:
    """Earned by answered calls, spent by those that are sent again."""

    def __init__(self) -> None:
        self._left = MOST

    def earn(self) -> None:
        """Note a call that was answered."""
        self._left = min(MOST, self._left + EARNED)

    def spend(self) -> bool:
        """Whether a call may be sent again; it is counted if so."""
        if self._left < 1:
            return False
        self._left -= 1
        return True
