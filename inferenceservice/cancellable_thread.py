"""Blocking work in a thread that a cancelled caller does not wait for."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

from transformer.bundle.deadline import Deadline

#: Seconds for which a cancelled caller waits, so that work which is not blocked ends with it.
_CANCEL_S = 1.0

_Result = TypeVar("_Result")


async def run_cancellable(work: Callable[[Deadline], _Result], seconds: float) -> _Result:
    """Do work in a thread, and return its result; cancelling and the deadline both end it.

    The threads of asyncio's own pool are few, and the process waits for them at its end. A thread of this
    function that blocks in the operating system is left behind instead.

    Raises
    ------
    TimeoutError
        If the work takes longer.
    """
    deadline = Deadline(seconds)
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Result] = loop.create_future()

    def finish(result: list[_Result], error: Exception | None) -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(result[0])
        else:
            future.set_exception(error)

    def run() -> None:
        result: list[_Result] = []
        error = None
        try:
            result.append(work(deadline))
        except Exception as raised:  # noqa: BLE001 (raised in the caller's task)
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(finish, result, error)

    threading.Thread(target=run, name="cancellable", daemon=True).start()
    try:
        done, _ = await asyncio.wait([future], timeout=seconds)
    except asyncio.CancelledError:
        deadline.cancel()
        try:
            await asyncio.wait([future], timeout=_CANCEL_S)
        finally:
            _drop(future)
        raise
    if not done:
        deadline.cancel()
        future.cancel()
        raise deadline.error()
    return future.result()


def _drop(future: asyncio.Future[_Result]) -> None:
    """Cancel a future, and mark its error as seen."""
    if not future.cancel() and not future.cancelled():
        future.exception()
