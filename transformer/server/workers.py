"""REST in several processes: KServe's, but for when one of them is taken for dead."""

import asyncio
import gc
import logging
import pickle
from functools import partial
from socket import socket

from kserve.protocol.rest.multiprocess.server import RESTServerMultiProcess, RESTServerProcess

from transformer.server.rest import RestServer

logger = logging.getLogger("kserve.transformer")

#: New objects, less those that went, after which cycles among them are looked for; Python's own is 700.
COLLECT_AFTER = 20_000


class Worker(RESTServerProcess):  # type: ignore[misc]
    """One process that serves REST."""

    def is_alive(self, timeout: float = 0) -> bool:
        """Whether the process runs.

        KServe waits for 5 s for its answer, and kills it if there is none: on a slow or busy machine that is
        every worker that is still starting, again and again, while gRPC stands still.
        """
        return bool(self._process.is_alive())


class Workers(RESTServerMultiProcess):  # type: ignore[misc]
    """Starts the processes, replaces one that has ended, and stops them.

    Parameters
    ----------
    rest
        What each of them serves; its configuration says how many they are.
    log_config_file
        As `kserve.logging.configure_logging` takes it.
    """

    def __init__(self, rest: RestServer, log_config_file: str | None) -> None:
        # Not KServe's own, which would make a server of KServe's own.
        self.log_config_file = log_config_file
        self.should_exit = asyncio.Event()
        self._rest_server = rest
        # As it is now: once this process serves gRPC, it has connections that cannot be handed on.
        self._pickled = pickle.dumps(rest)
        self._processes: list[Worker] = []

    def init_processes(self, sockets: list[socket]) -> None:
        """Start all."""
        self._sockets = sockets
        self._processes = [self._started(sockets) for _ in range(self._rest_server.config.workers)]

    async def keep_subprocess_alive(self, sockets: list[socket]) -> None:
        """Replace those that have ended."""
        for number, worker in enumerate(self._processes):
            if not worker.is_alive() and not self.should_exit.is_set():
                logger.warning("worker %d has ended; starting another", worker.pid)
                self._processes[number] = self._started(sockets)

    async def terminate_all(self) -> None:
        """Stop all. Without our own copy of the sockets: while one is open, clients connect to nobody."""
        for one in self._sockets:
            one.close()
        await super().terminate_all()

    def kill(self) -> None:
        """End those that still run, or this process would wait for them for ever."""
        for worker in self._processes:
            worker.kill()

    def _started(self, sockets: list[socket]) -> Worker:
        worker = Worker(sockets, partial(_serve, self._pickled), self.log_config_file)
        worker.start()
        logger.info("worker %d serves REST", worker.pid)
        return worker


def collect_seldom() -> None:
    """Keep the garbage collector off what was imported, and off requests, which are freed without it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


def _serve(pickled: bytes, sockets: list[socket]) -> None:
    rest: RestServer = pickle.loads(pickled)  # noqa: S301 (our own, from the process that started us)
    collect_seldom()
    rest.run(sockets)
