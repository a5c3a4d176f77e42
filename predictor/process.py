"""A stock runtime on a model directory of this machine: start it, wait until it serves, stop it."""

from __future__ import annotations

import http.client
import os
import re
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Self

from predictor.child import ChildProcess, Log
from predictor.runtimes import Runtime

INHERITED_VARIABLES: Final = ("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "TMPDIR", "TZ")
"""All that a runtime sees of our environment, besides the path: a container would see none of it either."""
_POLL_SECONDS: Final = 0.1
_ERROR_LINE: Final = re.compile(r"(\w+\.)*\w*([Ee]rror|Exception)(: |$)|sklearnserver: ")
_MODEL_SUFFIXES: Final = (".joblib", ".pkl", ".pickle")


class PredictorError(RuntimeError):
    """The runtime could not be started, or did not become ready. The message ends with its last log lines."""


class PredictorProcess:
    """A stock runtime that serves one model directory, started at once.

    Use it as a context manager, or call ``stop``; it also ends when this process does.

    Parameters
    ----------
    runtime
        Which one (``get_runtime``).
    model_dir
        Directory with exactly one model file.
    python
        Interpreter of the runtime's environment (``environment.ensure``).
    model_name
        The InferenceService's name.
    http_port, grpc_port
        Where to listen; free ports are picked where None.
    args, env
        ``predictor.model.args`` and ``.env`` of the InferenceService; they win, also over the ports.
    log
        A file to append its output to, a callable that gets each line on another thread, or None.

    Raises
    ------
    LaunchError
        When ``args`` or ``env`` cannot work.
    PredictorError
        When ``model_dir`` does not hold exactly one model file, or a port is in use.
    """

    def __init__(
        self,
        runtime: Runtime,
        model_dir: Path,
        *,
        python: Path,
        model_name: str,
        http_port: int | None = None,
        grpc_port: int | None = None,
        args: Sequence[str] = (),
        env: Mapping[str, str] = MappingProxyType({}),
        log: Log = None,
    ) -> None:
        _refuse_other_than_one_model(runtime, model_dir)
        free_http, free_grpc, metrics = free_ports(3)
        launch = runtime.launch(
            python,
            model_name=model_name,
            model_dir=model_dir.resolve(),
            http_port=http_port or free_http,
            grpc_port=grpc_port or free_grpc,
            metrics_port=metrics,
            args=args,
            env=env,
        )
        # Not those that were just picked: a process that another thread forks holds them for a moment more.
        for port in {launch.http_port, launch.grpc_port} - {free_http, free_grpc}:
            _refuse_port_in_use(runtime, port)
        self.runtime: Final = runtime
        self.model_name: Final = launch.model_name
        self.http_port: Final = launch.http_port
        self.grpc_port: Final = launch.grpc_port
        self._child: Final = ChildProcess(launch.argv, env=_environment(python) | dict(launch.env), log=log)

    @property
    def pid(self) -> int:
        """The server's process id; it leads a process group with all that it starts."""
        return self._child.pid

    def poll(self) -> int | None:
        """Return the exit status once it has ended (128 + N after signal N), None before."""
        return self._child.poll()

    def tail(self, lines: int = 20) -> list[str]:
        """Return the last lines that it wrote."""
        return self._child.tail(lines)

    def ready(self) -> bool:
        """Ask the server itself whether it would answer for the model."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=2)
        try:
            connection.request("GET", self.runtime.readiness_path.format(model_name=self.model_name))
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Wait until the model is served.

        Raises
        ------
        PredictorError
            At once when the process has ended, or after ``timeout`` seconds; with the last log lines.
        """
        end = time.monotonic() + timeout
        while not self.ready():
            status = self.poll()
            if status is not None:
                raise self._failure(f"ended with status {status} before it was ready")
            if time.monotonic() > end:
                raise self._failure(f"is not ready after {timeout:g} s")
            time.sleep(_POLL_SECONDS)

    def stop(self, grace: float = 10.0) -> int:
        """End it and all that it started: SIGTERM, after ``grace`` seconds SIGKILL. Return its status."""
        return self._child.stop(grace)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _failure(self, what: str) -> PredictorError:
        lines = self.tail(40)
        reason = next((line.strip() for line in reversed(lines) if _ERROR_LINE.match(line.strip())), "")
        headline = f"{self.runtime.name} {what}" + (f": {reason}" if reason else "")
        return PredictorError("\n".join([headline, *(f"  {line}" for line in lines[-20:])]))


def _environment(python: Path) -> dict[str, str]:
    ours = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
    path = os.pathsep.join([str(python.parent), os.environ.get("PATH", os.defpath)])
    return {**ours, "PATH": path, "PYTHONUNBUFFERED": "1"}


_given: Final[set[int]] = set()
"""Ports that were picked before: whoever got one may not listen there yet."""
_one_picks_at_a_time: Final = threading.Lock()


def free_ports(count: int) -> list[int]:
    """Pick different ports that nobody listens on now, and that were not picked before."""
    picked: list[int] = []
    with _one_picks_at_a_time, ExitStack() as open_sockets:
        while len(picked) < count:
            candidate = open_sockets.enter_context(socket.socket())
            candidate.bind(("", 0))
            port = candidate.getsockname()[1]
            if port not in _given:
                _given.add(port)
                picked.append(port)
    return picked


def _refuse_other_than_one_model(runtime: Runtime, model_dir: Path) -> None:
    """Say it before the servers do: given two, MLServer takes one and sklearnserver refuses both."""
    found = []
    if model_dir.is_dir():
        found = sorted(path.name for path in model_dir.iterdir() if path.suffix in _MODEL_SUFFIXES)
    if len(found) != 1:
        wanted = f"exactly one model file (*{', *'.join(_MODEL_SUFFIXES)})"
        msg = f"{runtime.name}: {model_dir} must hold {wanted}, found {', '.join(found) or 'none'}"
        raise PredictorError(msg)


def _refuse_port_in_use(runtime: Runtime, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            reason = error.strerror or error
            msg = f"{runtime.name}: cannot use port {port} ({reason}); stop what uses it or choose another"
            raise PredictorError(msg) from error
