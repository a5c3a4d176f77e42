"""A byte budget for requests in flight, because large requests take memory before anything else.

The queue counts candidates, which cost time. A request of few candidates can be long all the same, and its
parsed form takes several times its bytes until it is answered.
"""

from transformer.errors import QueueFull

#: The budget, in requests of the maximum size. Parsed JSON takes up to eight times its bytes.
BUDGET_IN_MAX_REQUESTS = 4


class ByteBudget:
    """The budget of one server process.

    Parameters
    ----------
    max_bytes
        Maximum bytes of all requests in flight. A single request always fits.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._reserved = 0

    def reserve(self, size: int) -> None:
        """Reserve the bytes of a request, to be released when it is answered.

        Raises
        ------
        QueueFull
            If the budget is used up.
        """
        if self._reserved and self._reserved + size > self._max_bytes:
            raise QueueFull(
                f"too many bytes in flight: limit {self._max_bytes}, {self._reserved} are reserved, got "
                f"{size} more; try again later",
                limit="bytes in flight",
            )
        self._reserved += size

    def release(self, size: int) -> None:
        """Release the bytes of a request."""
        self._reserved -= size
