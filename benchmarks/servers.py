"""A system's processes: started, awaited, paused while others are measured, weighed, ended."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Final, Protocol

import psutil

_POLL_S: Final = 0.05
_READY_TIMEOUT_S: Final = 60


class ServerError(Exception):
    """A server that does not serve; the message names it and ends with its last lines."""


class Process(Protocol):
    """What `predictor.child.ChildProcess` and `predictor.process.PredictorProcess` have in common."""

    @property
    def pid(self) -> int:
        """Process id."""

    def poll(self) -> int | None:
        """Exit status once it has ended, else None."""

    def tail(self, lines: int = 20) -> list[str]:
        """Its last lines."""

    def stop(self, grace: float = 10.0) -> int:
        """End it."""


class Server:
    """A process that was just started, with all that it starts itself.

    Attributes
    ----------
    ready_s
        Seconds from its start to its first right answer.
    """

    def __init__(self, name: str, process: Process) -> None:
        self.name = name
        self.ready_s = 0.0
        self._process = process
        self._started = time.monotonic()

    def wait(self, answers: Callable[[], bool]) -> None:
        """Wait until it answers.

        Raises
        ------
        ServerError
            If it ends instead, or takes too long.
        """
        while not answers():
            status = self._process.poll()
            if status is not None:
                raise self._failure(f"ended with status {status}")
            if time.monotonic() - self._started > _READY_TIMEOUT_S:
                raise self._failure(f"does not answer after {_READY_TIMEOUT_S} s")
            time.sleep(_POLL_S)
        self.ready_s = time.monotonic() - self._started

    def pause(self) -> None:
        """Let it take no processor time, however it spends its idle hours."""
        for process in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self) -> None:
        """Go on; children first, so that no parent finds them silent."""
        for process in reversed(list(self._family())):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def processor_s(self) -> float:
        """Seconds of processor time that its processes have taken."""
        total = 0.0
        for process in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def memory_mb(self) -> float:
        """Resident memory of its processes together."""
        total = 0
        for process in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total / 2**20

    def stop(self) -> None:
        """End it at once; there is nothing to drain."""
        for process in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.stop(grace=0)

    def _family(self) -> Iterator[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self._process.pid)
            # Some put their workers into sessions of their own.
            yield from (parent, *parent.children(recursive=True))

    def _failure(self, what: str) -> ServerError:
        return ServerError("\n  ".join([f"{self.name} {what}; its last lines:", *self._process.tail(10)]))
