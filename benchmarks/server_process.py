"""Control of one server's processes: wait for it, pause and resume it, measure its memory, stop it."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import psutil

_POLL_S = 0.02
_READY_TIMEOUT_S = 120


class ServerError(Exception):
    """A server that did not start; the message ends with the last lines of its log."""


class Process(Protocol):
    """Common interface of `predictor.child.ChildProcess` and `predictor.process.PredictorProcess`."""

    @property
    def pid(self) -> int:
        """Process id."""

    def poll(self) -> int | None:
        """Return the exit status, or None while the process runs."""

    def tail(self, lines: int = 20) -> list[str]:
        """Return the last lines of its log."""

    def stop(self, grace: float = 10.0) -> int:
        """Stop it."""


class ServerProcess:
    """A process that was just started, and its children.

    Attributes
    ----------
    ready_s
        Seconds from its start to its first correct answer.
    """

    def __init__(self, name: str, process: Process) -> None:
        self.name = name
        self.ready_s = 0.0
        self._process = process
        self._started = time.monotonic()

    def wait(self, is_answering: Callable[[], bool]) -> None:
        """Wait until the server answers.

        Raises
        ------
        ServerError
            If the process ends, or does not answer within the time-out.
        """
        while not is_answering():
            status = self._process.poll()
            if status is not None:
                raise self._failure(f"ended with status {status}")
            if time.monotonic() - self._started > _READY_TIMEOUT_S:
                raise self._failure(f"did not answer within {_READY_TIMEOUT_S} s")
            time.sleep(_POLL_S)
        self.ready_s = time.monotonic() - self._started

    def pause(self) -> None:
        """Suspend all processes, so that they use no processor time."""
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self) -> None:
        """Resume all processes, children first, so that a parent never finds a suspended child."""
        for process in reversed(list(self._processes())):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def processor_s(self) -> float:
        """Processor time that all processes have used, in seconds."""
        total = 0.0
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def memory_mb(self) -> float:
        """Resident memory of all processes together."""
        total = 0
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total / 2**20

    def stop(self) -> None:
        """Kill all processes; there are no requests to finish."""
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.stop(grace=0)

    def _processes(self) -> Iterator[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self._process.pid)
            # Recursive, because some servers start their workers in another session.
            yield from (parent, *parent.children(recursive=True))

    def _failure(self, what: str) -> ServerError:
        return ServerError("\n  ".join([f"{self.name} {what}; its last lines:", *self._process.tail(10)]))
