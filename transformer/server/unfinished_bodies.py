"""A byte budget for bodies of REST requests that are still arriving: slow clients could fill the memory."""

from transformer.server.byte_budget import ByteBudget

#: The budget, in bodies of the maximum size.
BUDGET_IN_MAX_BODIES = 16


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
