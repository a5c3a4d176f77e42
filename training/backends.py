"""Where fits run: in this process, or on a Dask or Ray cluster."""

import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import starmap
from typing import Any

import joblib
import numpy as np
import sklearn

#: Calls a function with each tuple of arguments, and returns the results in this order.
Run = Callable[[Callable[..., Any], Iterable[tuple[Any, ...]]], Iterable[Any]]
#: One call after the other, when its result is needed.
LOCAL: Run = starmap
#: Packages of the backends, and the extras that install them.
_PACKAGES = {"dask": "distributed", "ray": "ray"}
BACKENDS = tuple(_PACKAGES)
#: Times that Ray runs a call again whose worker has died. Dask's default is the same.
_RETRIES = 3
#: Seconds to connect to Ray.
CONNECT_S = 10
#: Errors of Dask and Ray while they connect or start; for tls:// without certificates, Dask's is a TypeError.
CONNECTION_ERRORS = (OSError, RuntimeError, TypeError, ValueError)


class BackendError(Exception):
    """A backend that cannot be used; the message says what to change."""


@contextmanager
def connect(backend: str | None, cluster: str | None = None) -> Iterator[Run]:
    """Connect to a cluster, and return what runs calls on it.

    The cluster replaces workers that die, and runs their calls again. Workers need this project and the same
    libraries.

    Parameters
    ----------
    backend
        A name of `BACKENDS`; None for this process.
    cluster
        Address of Dask's scheduler, or of Ray; None for a new cluster on this machine.

    Raises
    ------
    BackendError
        If the backend is not installed, does not answer or start, or its workers have other libraries; and if
        the workers that run one call die again and again.
    """
    if backend is None:
        if cluster is not None:
            raise BackendError(f"--cluster needs --backend {' or '.join(BACKENDS)}")
        yield LOCAL
        return
    connected = {"dask": _dask, "ray": _ray}[backend](cluster)
    with ExitStack() as stack:
        try:
            run = stack.enter_context(connected)
        except ModuleNotFoundError as error:
            raise BackendError(
                f"--backend {backend} needs the package {_PACKAGES[backend]}: in a checkout run "
                "`make engines`, then .runtimes/engines/bin/placement train …; elsewhere install "
                f"placement[{backend}]"
            ) from error
        except CONNECTION_ERRORS as error:
            raise BackendError(f"--backend {backend}: {connection_problem(cluster, error)}") from error
        yield run


def connection_problem(cluster: str | None, error: Exception) -> str:
    """Return the message about an error of `CONNECTION_ERRORS`."""
    problem = f"no cluster answers at {cluster}" if cluster else "cannot start a cluster on this machine"
    return f"{problem}: {error}"


def loss_problem(call: str, error: Exception) -> str:
    """Return the message about a call, such as ``a fit``, that a cluster does not run again."""
    reason = str(error).partition("\n")[0].rstrip(".")
    return (
        f"the cluster gave up {call}: {reason}; workers often die because they have too little memory: give "
        "each of them more, or start fewer"
    )


@contextmanager
def dask_client(cluster: str | None, workers: int | None = None) -> Iterator[Any]:
    """Connect to the scheduler at an address, or to a new cluster on this machine with so many workers.

    Raises
    ------
    one of CONNECTION_ERRORS
        If none answers, or none can start.
    """
    from distributed import Client, LocalCluster

    with ExitStack() as stack:
        address = cluster or stack.enter_context(
            LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
        )
        yield stack.enter_context(Client(address))


@contextmanager
def _dask(cluster: str | None) -> Iterator[Run]:
    from distributed import CancelledError
    from distributed.scheduler import KilledWorker

    with dask_client(cluster) as client:

        def run(function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
            # Dask would hash the data of a pure function.
            futures = client.map(partial(_on_worker, function, _libraries()), list(calls), pure=False)
            try:
                for future in futures:
                    yield future.result()
            except (CancelledError, KilledWorker) as error:
                raise _given_up("dask", error) from error

        yield run


def start_ray(cluster: str | None, workers: int | None = None) -> None:
    """Connect to Ray at an address, or start it on this machine with so many workers.

    Raises
    ------
    one of CONNECTION_ERRORS
        If it does not answer or start.
    """
    # By default, Ray tries a call that needs too much memory for ever. It reads this when it is imported.
    os.environ.setdefault("RAY_task_oom_retries", str(_RETRIES))
    import ray

    _check_ray_answers(cluster)
    ray.init(cluster, num_cpus=workers, logging_level=logging.WARNING)


def _check_ray_answers(cluster: str | None) -> None:
    """Connect once to the address of a Ray cluster; Ray itself would try for more than ten minutes."""
    host, _, port = (cluster or "").rpartition("/")[2].rpartition(":")
    if host:
        socket.create_connection((host, int(port)), CONNECT_S).close()


@contextmanager
def _ray(cluster: str | None) -> Iterator[Run]:
    start_ray(cluster)
    import ray
    from ray.exceptions import RayError, RayTaskError

    def run(function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        on_worker = ray.remote(max_retries=_RETRIES)(_on_worker)
        shared = ray.put(function)
        results = [on_worker.remote(shared, _libraries(), arguments) for arguments in calls]
        try:
            for result in results:
                yield ray.get(result)
        except RayTaskError as error:
            # The error that the function has raised.
            raise error.cause from error
        except RayError as error:
            raise _given_up("ray", error) from error

    try:
        yield run
    finally:
        ray.shutdown()


def _given_up(backend: str, error: Exception) -> BackendError:
    problem = loss_problem("a fit", error)
    return BackendError(f"--backend {backend}: {problem}; --tune-storage keeps the trials that are done")


def _on_worker(function: Callable[..., Any], libraries: dict[str, str], arguments: tuple[Any, ...]) -> Any:  # noqa: ANN401 (any function)
    """Call a function on a worker that has the same libraries."""
    if _libraries() != libraries:
        raise BackendError(f"a worker has {_libraries()}, expected {libraries}")
    # The cluster's cores are busy with other calls.
    with joblib.parallel_config("sequential"):
        return function(*arguments)


def _libraries() -> dict[str, str]:
    return {one.__name__: one.__version__ for one in (np, joblib, sklearn)}
