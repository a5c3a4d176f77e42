"""REST in several worker processes: KServe's multiprocess server with another check for dead workers."""

import asyncio
import gc
import logging
import os
import pickle
from functools import partial
from socket import socket

from kserve.protocol.rest.multiprocess.server import RESTServerMultiProcess, RESTServerProcess

from transformer.server.rest import LEAVE, RestServer

logger = logging.getLogger("kserve.transformer")

#: Growth in the number of objects that starts a garbage collection; Python's own is 700.
COLLECT_AFTER = 20_000


class Worker(RESTServerProcess):  # type: ignore[misc]
    """One process that serves REST."""

    def is_alive(self, timeout: float = 0) -> bool:
        """Return True if the process runs.

        KServe waits 5 s for a worker to answer, and kills it if it does not: on a slow machine that kills
        every worker while it starts, again and again, and blocks gRPC meanwhile.
        """
        return bool(self._process.is_alive())


class Workers(RESTServerMultiProcess):  # type: ignore[misc]
    """Starts the processes, replaces one that has ended, and stops them.

    Parameters
    ----------
    rest
        The server that each worker runs; its configuration has the number of workers.
    log_config_file
        As `kserve.logging.configure_logging` takes it.
    """

    def __init__(self, rest: RestServer, log_config_file: str | None) -> None:
        # Not KServe's own, which would make a server of KServe's own.
        self.log_config_file = log_config_file
        self.should_exit = asyncio.Event()
        self._rest_server = rest
        # Pickled now: once this process serves gRPC, it has connections that cannot be pickled.
        self._pickled = pickle.dumps(rest)
        self._processes: list[Worker] = []

    def init_processes(self, sockets: list[socket]) -> None:
        """Start all workers."""
        self._sockets = sockets
        self._processes = [self._started(sockets) for _ in range(self._rest_server.config.workers)]

    async def keep_subprocess_alive(self, sockets: list[socket]) -> None:
        """Replace workers that have ended."""
        for number, worker in enumerate(self._processes):
            if not worker.is_alive() and not self.should_exit.is_set():
                logger.warning("worker %d has ended; starting another", worker.pid)
                self._processes[number] = self._started(sockets)

    def leave(self) -> None:
        """Ask all workers to leave; see `RestServer.leave`."""
        for worker in self._processes:
            if worker.is_alive() and worker.pid is not None:
                os.kill(worker.pid, LEAVE)

    async def terminate_all(self) -> None:
        """Stop all workers, after closing this process's copy of the sockets: nothing accepts on it."""
        for one in self._sockets:
            one.close()
        await super().terminate_all()

    def kill(self) -> None:
        """Kill the workers that still run, because this process would wait for them."""
        for worker in self._processes:
            worker.kill()

    def _started(self, sockets: list[socket]) -> Worker:
        worker = Worker(sockets, partial(_serve, self._pickled), self.log_config_file)
        worker.start()
        logger.info("worker %d serves REST", worker.pid)
        return worker


def collect_garbage_less_often() -> None:
    """Exclude imported modules from garbage collection, and collect less often: requests leave no cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


def _serve(pickled: bytes, sockets: list[socket]) -> None:
    rest: RestServer = pickle.loads(pickled)  # noqa: S301 (our own, from the process that started us)
    collect_garbage_less_often()
    rest.run(sockets)
