"""Room for the requests that are being answered, in bytes: memory is what a large request takes first.

The queue counts candidates, since these are what costs time. A request of few may be long all the same, and
what was parsed of it takes several times its bytes until it is answered.
"""

from transformer.errors import QueueFull

#: So many of the longest requests have room at once. JSON takes eight times its bytes at worst.
LONGEST_REQUESTS = 4


class ByteBudget:
    """Of one server process.

    Parameters
    ----------
    max_bytes
        Bytes of all requests together; a single one has room in any case.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._taken = 0

    def take(self, size: int) -> int:
        """Take room for a request of so many bytes, and return them: to be given back once it is answered.

        Raises
        ------
        QueueFull
            If there is none.
        """
        if self._taken and self._taken + size > self._max_bytes:
            raise QueueFull(f"requests of {self._taken} bytes are being answered already, try again later")
        self._taken += size
        return size

    def give_back(self, size: int) -> None:
        """Give room back."""
        self._taken -= size
