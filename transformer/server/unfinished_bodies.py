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
