"""A process of the local service: one component with its bundle, through all its restarts."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from inferenceservice.local.launch import TransformerProcess
from inferenceservice.rollout_target import TargetError
from predictor.last_words import CANNOT_LOAD, describe_status, reason_of_end
from predictor.process import PredictorProcess
from transformer.bundle.format import Bundle

#: Lines at the end of a log that are searched for the reason of an end.
_TAIL_LINES = 200

Process = TransformerProcess | PredictorProcess


class LocalServiceError(TargetError):
    """The local service does not run, or a change of it failed; the message says which component and why."""


@dataclass(frozen=True, slots=True)
class End:
    """An unexpected end of a process.

    Attributes
    ----------
    what
        The rest of a sentence about the process: ``ended with status 1``.
    reason
        Its last words, or an empty string if its log has none.
    """

    at: datetime
    what: str
    reason: str

    @classmethod
    def now(cls, what: str, reason: str = "") -> Self:
        """Return an end at this moment."""
        return cls(datetime.now().astimezone(), what, reason)

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}" if self.reason else self.what


@dataclass(slots=True, eq=False)
class RunningProcess:
    """A component's process, and the private copy of the bundle that it serves.

    Attributes
    ----------
    process
        The process; a restart replaces it.
    launch
        Starts another process of the same kind with the same copy of the bundle.
    ready
        True while the component can serve. The supervisor sets it.
    restarts
        Number of restarts.
    failures
        Number of ends in a row, without a longer time of service between them.
    last_end
        The last unexpected end.
    restarting
        The task that restarts it, if it has ended.
    exit_status
        Exit status; set when it is asked to stop.
    """

    uri: str
    bundle: Bundle
    process: Process
    component: str
    directory: Path
    log: Path
    launch: Callable[[], Process]
    ready: bool = False
    restarts: int = 0
    failures: int = 0
    last_end: End | None = None
    restarting: asyncio.Task[None] | None = None
    exit_status: asyncio.Future[int] | None = None

    @property
    def address(self) -> str:
        """``host:port`` for REST."""
        return f"127.0.0.1:{self.process.http_port}"

    @property
    def grpc_address(self) -> str:
        """``host:port`` for gRPC."""
        return f"127.0.0.1:{self.process.grpc_port}"

    @property
    def running(self) -> bool:
        """True if it has not ended, and is not being restarted."""
        return self.restarting is None and self.process.poll() is None

    def end(self) -> End | None:
        """Return the end of the process, or None while it runs."""
        status = self.process.poll()
        if status is None:
            return None
        reason = reason_of_end(status, self.process.tail(_TAIL_LINES))
        return End.now(f"ended with {describe_status(status)}", reason)

    def advice(self) -> str:
        """Return what to do about the last end."""
        end = self.last_end
        if isinstance(self.process, PredictorProcess) and end is not None and CANNOT_LOAD in end.reason:
            runtime = self.process.runtime
            return (
                f"{runtime.name} has scikit-learn {runtime.scikit_learn} and none of your own packages; "
                f"train the version again with `placement train`; the log is {self.log}"
            )
        return f"the log is {self.log}"

    def require_running(self) -> None:
        """Raise LocalServiceError if the process has ended."""
        self.last_end = self.end() or self.last_end
        if self.process.poll() is not None:
            raise LocalServiceError(f"the {self.component} {self.last_end}; {self.advice()}")
