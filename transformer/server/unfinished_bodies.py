"""A byte budget for bodies of REST requests that are still arriving: slow clients could fill the memory."""

from transformer.server.byte_budget import ByteBudget
from transformer.server.fair_reader import MAX_READING

#: The budget, in bodies of the maximum size: those that `FairReader` reads at the same time, and half as much
#: for smaller ones and the beginnings of those that wait.
BUDGET_IN_MAX_BODIES = MAX_READING + MAX_READING // 2


class UnfinishedBodies:
    """The budget of one server process. Bodies that arrive in one piece with their end need none of it.

    Parameters
    ----------
    max_body
        Maximum bytes of a body. What comes beyond is discarded, and takes no memory.
    """

    def __init__(self, max_body: int) -> None:
        self.max_body = max_body
        self._budget = ByteBudget(BUDGET_IN_MAX_BODIES * max_body)

    def hold(self, size: int) -> None:
        """Reserve bytes that have arrived.

        Raises
        ------
        QueueFull
            If the budget is used up.
        """
        self._budget.reserve(size)

    def release(self, size: int) -> None:
        """Release bytes of a body that is complete, discarded or dropped."""
        self._budget.release(size)


class UnfinishedBody:
    """The body that one connection reads.

    Parameters
    ----------
    budget
        The budget of all connections.

    Attributes
    ----------
    size
        Bytes that have arrived.
    """

    def __init__(self, budget: UnfinishedBodies) -> None:
        self.size = 0
        self._held = 0
        self._budget = budget

    def begin(self) -> None:
        """Begin another body."""
        self.size = 0

    def hold(self, *, discarded: bool) -> None:
        """Reserve the bytes that have arrived since the last time; release all if they are discarded.

        Raises
        ------
        QueueFull
            If the budget is used up.
        """
        if discarded or self.size > self._budget.max_body:
            self.release()
        elif self.size > self._held:
            self._budget.hold(self.size - self._held)
            self._held = self.size

    def release(self) -> None:
        """Release the bytes of a body that is complete, discarded or dropped."""
        if self._held:
            self._budget.release(self._held)
            self._held = 0
