"""Time limit for work that may block, such as a read from a storage that does not answer."""

import errno
import threading
import time
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")


class Deadline:
    """Time limit of one piece of work, measured with a clock that never jumps.

    Parameters
    ----------
    seconds
        The time limit, from now.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds
        self._cancelled = threading.Event()

    @property
    def left_s(self) -> float:
        """Seconds that are left; 0 if the work was cancelled."""
        return 0.0 if self._cancelled.is_set() else max(0.0, self._end - time.monotonic())

    def cancel(self) -> None:
        """End the work early: its next check fails. Any thread may call this."""
        self._cancelled.set()

    def check(self) -> None:
        """Raise TimeoutError if no time is left."""
        if not self.left_s:
            raise self.error()

    def error(self) -> TimeoutError:
        """Return the error for work that did not end in time."""
        return TimeoutError(errno.ETIMEDOUT, f"not read within {self._seconds:g} s")


def call_within(seconds: float, work: Callable[[Deadline], _Result]) -> _Result:
    """Do work in a thread, and return its result.

    A thread that blocks in the operating system cannot be stopped. It is left behind, and does not keep the
    process alive.

    Raises
    ------
    TimeoutError
        If the work takes longer.
    """
    deadline = Deadline(seconds)
    results: list[_Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work(deadline))
        except BaseException as error:  # noqa: BLE001 (raised in the caller's thread)
            errors.append(error)

    thread = threading.Thread(target=run, name="deadline", daemon=True)
    thread.start()
    try:
        thread.join(seconds)
    finally:
        deadline.cancel()
    if errors:
        raise errors[0]
    if results:
        return results[0]
    raise deadline.error()
