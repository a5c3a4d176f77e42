"""A stock runtime as a process on this machine: start it, check its health, stop it."""

import http.client
import os
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Self

from predictor.child import ChildProcess, Log
from predictor.runtimes import Runtime

#: Variables that a runtime inherits from our environment, besides PATH. A container would inherit none.
INHERITED_VARIABLES = ("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "TMPDIR", "TZ")
#: Path of a health check that says only that a server answers: MLServer's, KServe's and the transformer's.
LIVE_PATH = "/v2/health/live"
#: Timeouts of the health checks, in seconds. That of liveness is the spec's.
READY_TIMEOUT_S, LIVE_TIMEOUT_S = 2, 5
_MODEL_SUFFIXES = (".joblib", ".pkl", ".pickle")


class PredictorError(RuntimeError):
    """The runtime cannot be started; the message says why."""


class PredictorProcess:
    """A stock runtime that serves the model of one directory; the constructor starts it.

    Use it as a context manager, or call `stop`. It also ends when this process ends.

    Parameters
    ----------
    runtime
        The runtime (`get_runtime`).
    model_dir
        Directory with exactly one model file.
    python
        Interpreter of the runtime's environment (`environment.ensure`).
    model_name
        Name of the InferenceService.
    http_port, grpc_port
        Ports to listen on; None chooses a free port.
    args, env
        `predictor.model.args` and `.env` of the InferenceService. They override all defaults, also the ports.
    log
        File to append the output to, or a callable that gets each line on another thread, or None.

    Raises
    ------
    LaunchError
        If `args` or `env` are invalid.
    PredictorError
        If `model_dir` does not hold exactly one model file, or a port is in use.
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
        _require_one_model(runtime, model_dir)
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
        # Picked ports are not checked: a process that another thread has forked may still hold them.
        for port in {launch.http_port, launch.grpc_port} - {free_http, free_grpc}:
            _require_free_port(runtime, port)
        self.runtime = runtime
        self.model_name = launch.model_name
        self.http_port = launch.http_port
        self.grpc_port = launch.grpc_port
        self._child = ChildProcess(launch.argv, env=_environment(python) | dict(launch.env), log=log)

    @property
    def pid(self) -> int:
        """Process id of the server, which leads a process group with all processes that it starts."""
        return self._child.pid

    def poll(self) -> int | None:
        """Return the exit status of an ended process (128 + N after signal N), else None."""
        return self._child.poll()

    def tail(self, lines: int = 20) -> list[str]:
        """Return the last lines of its output."""
        return self._child.tail(lines)

    def ready(self) -> bool:
        """Return True if the server reports that the model is ready."""
        path = self.runtime.readiness_path.format(model_name=self.model_name)
        return probe(self.http_port, path, READY_TIMEOUT_S)

    def live(self) -> bool:
        """Return True if the server answers."""
        return probe(self.http_port, LIVE_PATH, LIVE_TIMEOUT_S)

    def stop(self, grace: float = 10.0) -> int:
        """Send SIGTERM, and after `grace` seconds SIGKILL to the process group. Return the exit status."""
        return self._child.stop(grace)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def probe(port: int, path: str, timeout_s: float) -> bool:
    """Return True if a server on this machine answers a health check with 200, as a kubelet checks it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _environment(python: Path) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
    path = os.pathsep.join([str(python.parent), os.environ.get("PATH", os.defpath)])
    return {**inherited, "PATH": path, "PYTHONUNBUFFERED": "1"}


#: Ports that were picked before; their users may not listen on them yet.
_picked_before: set[int] = set()
_pick_lock = threading.Lock()


def free_ports(count: int) -> list[int]:
    """Pick ports on which nothing listens, and which were not picked before."""
    picked: list[int] = []
    with _pick_lock, ExitStack() as open_sockets:
        while len(picked) < count:
            candidate = open_sockets.enter_context(socket.socket())
            candidate.bind(("", 0))
            port = candidate.getsockname()[1]
            if port not in _picked_before:
                _picked_before.add(port)
                picked.append(port)
    return picked


def _require_one_model(runtime: Runtime, model_dir: Path) -> None:
    """Require one model file: with two, MLServer silently loads one and sklearnserver fails."""
    found = []
    if model_dir.is_dir():
        found = sorted(path.name for path in model_dir.iterdir() if path.suffix in _MODEL_SUFFIXES)
    if len(found) != 1:
        wanted = f"exactly one model file (*{', *'.join(_MODEL_SUFFIXES)})"
        raise PredictorError(
            f"{runtime.name}: {model_dir} must hold {wanted}, found {', '.join(found) or 'none'}"
        )


def _require_free_port(runtime: Runtime, port: int) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError as error:
            reason = error.strerror or error
            raise PredictorError(
                f"{runtime.name}: cannot use port {port} ({reason}); stop the process that uses it, or "
                "choose another port"
            ) from error
