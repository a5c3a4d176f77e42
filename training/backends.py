"""Where fits run: in this process, or on a Dask or Ray cluster through joblib's backends."""

import logging
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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
#: Options of joblib's backends. Dask replaces dead workers by itself; Ray does so if it is asked to.
_OPTIONS = {"dask": {}, "ray": {"ray_remote_args": {"max_restarts": -1, "max_task_retries": -1}}}
#: Seconds to connect to Ray.
CONNECT_S = 10


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
        If the backend is not installed, does not answer or start, or its workers have other libraries.
    """
    if backend is None:
        if cluster is not None:
            raise BackendError(f"--cluster needs --backend {' or '.join(BACKENDS)}")
        yield LOCAL
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(_dask(cluster) if backend == "dask" else _ray(cluster))
        except ModuleNotFoundError as error:
            raise BackendError(
                f"--backend {backend} needs the package {_PACKAGES[backend]}: in a checkout run "
                "`make engines`, then .runtimes/engines/bin/placement train …; elsewhere install "
                f"placement[{backend}]"
            ) from error
        # Dask raises a TypeError for tls:// without certificates.
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            problem = (
                f"no cluster answers at {cluster}" if cluster else "cannot start a cluster on this machine"
            )
            raise BackendError(f"--backend {backend}: {problem}: {error}") from error
        yield partial(_run_on_workers, backend)


@contextmanager
def _dask(cluster: str | None) -> Iterator[None]:
    from distributed import Client, LocalCluster

    with ExitStack() as stack:
        address = cluster or stack.enter_context(LocalCluster(threads_per_worker=1, dashboard_address=None))
        stack.enter_context(Client(address))
        yield


def check_ray_answers(cluster: str | None) -> None:
    """Connect once to the address of a Ray cluster; Ray itself would try for more than ten minutes.

    Raises
    ------
    OSError, ValueError
        If nothing answers, or the port is no number.
    """
    host, _, port = (cluster or "").rpartition("/")[2].rpartition(":")
    if host:
        socket.create_connection((host, int(port)), CONNECT_S).close()


@contextmanager
def _ray(cluster: str | None) -> Iterator[None]:
    import ray
    from ray.util.joblib import register_ray

    check_ray_answers(cluster)
    register_ray()
    ray.init(cluster, logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


def _run_on_workers(
    backend: str, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]
) -> Iterable[Any]:
    call = joblib.delayed(_OnWorker(function, _libraries()))
    with joblib.parallel_config(backend, n_jobs=-1, **_OPTIONS[backend]):
        results: list[Any] = joblib.Parallel()(call(*arguments) for arguments in calls)
    return results


# Dask's backend hashes the function, and names tasks by its representation, which would contain the data.
@dataclass(frozen=True, eq=False, repr=False)
class _OnWorker:
    """A function that a worker with the same libraries calls.

    Its data are not arguments of the call: Dask would give them to one worker, and lose them with it.
    """

    function: Callable[..., Any]
    libraries: dict[str, str]

    def __call__(self, *arguments: object) -> Any:  # noqa: ANN401 (any function)
        if _libraries() != self.libraries:
            raise BackendError(f"a worker has {_libraries()}, expected {self.libraries}")
        # The cluster's cores are busy with other calls.
        with joblib.parallel_config("sequential"):
            return self.function(*arguments)


def _libraries() -> dict[str, str]:
    return {one.__name__: one.__version__ for one in (np, joblib, sklearn)}
