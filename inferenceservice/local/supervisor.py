"""The processes of the local service: each with a copy of its bundle, started, awaited and stopped.

Threads start and stop them, and a thread cannot be interrupted. So whatever is started belongs to `Processes`
from its first moment, whoever waits for it: `close` leaves none behind.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from inferenceservice.local.launch import TransformerProcess, install_predictor, start_predictor
from inferenceservice.rollout_target import Progress, TargetError
from inferenceservice.spec import InferenceService
from predictor.environment import InstallError
from predictor.process import PredictorError, PredictorProcess
from predictor.runtimes import LaunchError
from storage import bundles
from transformer.bundle.format import Bundle, BundleError

#: Seconds until a component must serve; a stock server takes 3 to 8.
READY_TIMEOUT_S = 120
_POLL_S = 0.1

_Process = TransformerProcess | PredictorProcess
_Result = TypeVar("_Result")


class LocalServiceError(TargetError):
    """The InferenceService does not run, or a step of it failed; the message says which part and why."""


@dataclass(slots=True, eq=False)
class Running:
    """A component's process and the bundle that it serves."""

    uri: str
    bundle: Bundle
    process: _Process
    component: str
    log: Path
    #: Its end, once it is asked for.
    ending: asyncio.Future[int] | None = None

    @property
    def address(self) -> str:
        """Where it is reached over REST."""
        return f"127.0.0.1:{self.process.http_port}"

    @property
    def grpc_address(self) -> str:
        """Where it is reached over gRPC."""
        return f"127.0.0.1:{self.process.grpc_port}"

    def check(self) -> None:
        """Hold that it still runs.

        Raises
        ------
        LocalServiceError
            If it has ended.
        """
        status = self.process.poll()
        if status is not None:
            last = "\n  ".join(self.process.tail())
            raise LocalServiceError(
                f"the {self.component} ended with status {status}; its last lines ({self.log}):\n  {last}"
            )


class Processes:
    """Starts and stops the processes of one InferenceService.

    Parameters
    ----------
    service
        What to run; set it to run something else from then on.
    logs
        Directory for the processes' logs.
    """

    def __init__(self, service: InferenceService, logs: Path) -> None:
        self.service = service
        self._logs = logs
        self._work = Path(tempfile.mkdtemp(prefix="inferenceservice-"))
        self._started = 0
        self._closed = False
        #: All that must be stopped, and those of them that serve.
        self._owned: list[Running] = []
        self._serving: list[Running] = []
        self._in_threads: set[asyncio.Future[Any]] = set()

    async def transformer(self, uri: str, predictor_ports: tuple[int, int], progress: Progress) -> Running:
        """Start a transformer, and return it when it has found a version that it knows behind the predictor.

        Parameters
        ----------
        uri
            Its bundle.
        predictor_ports
            Where the predictor is reached on this machine, over REST and over gRPC.

        Raises
        ------
        LocalServiceError
            If it does not get ready.
        """
        directory, bundle, log = await self._storage(uri, "transformer")
        progress(f"transformer: starts with {bundle.name} {bundle.version}")

        def start() -> Running:
            process = TransformerProcess(self.service, directory, predictor_ports, log)
            return Running(uri, bundle, process, "transformer", log)

        return await self._run(start)

    async def predictor(self, uri: str, progress: Progress) -> Running:
        """Start a stock server, and return it when it serves the bundle's model.

        Raises
        ------
        LocalServiceError
            If it does not get ready.
        """
        directory, bundle, log = await self._storage(uri, "predictor")
        progress(f"predictor: {self.service.runtime} loads {bundle.name} {bundle.version}")
        try:
            python = await asyncio.to_thread(install_predictor, self.service, progress)

            def start() -> Running:
                process = start_predictor(self.service, python, directory, log)
                return Running(uri, bundle, process, "predictor", log)

            return await self._run(start)
        except (InstallError, LaunchError, PredictorError) as error:
            raise LocalServiceError(str(error)) from error

    async def read_bundle(self, uri: str) -> Bundle:
        """The bundle at a URI, its model held against its digest.

        Raises
        ------
        LocalServiceError
            If there is none that can be served.
        """
        directory = Path(tempfile.mkdtemp(dir=self._work))
        try:
            return await self._fetch(uri, directory)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    async def stop(self, old: Running) -> None:
        """End a process: SIGTERM, then SIGKILL after its grace period."""
        if old in self._serving:
            self._serving.remove(old)
        if old.ending is None:
            old.ending = self._thread(old.process.stop)
        await asyncio.shield(old.ending)
        if old in self._owned:
            self._owned.remove(old)

    def check(self) -> None:
        """Hold that all that serve still run.

        Raises
        ------
        LocalServiceError
            If one has ended by itself.
        """
        for one in self._serving:
            one.check()

    async def close(self) -> None:
        """Stop every process: first the transformers, which answer what they have accepted."""
        self._closed = True
        for component in ("transformer", "predictor"):
            await asyncio.gather(*(self.stop(one) for one in self._owned if one.component == component))
        await asyncio.gather(*self._in_threads, return_exceptions=True)
        # Those that were just being started.
        await asyncio.gather(*map(self.stop, self._owned))
        shutil.rmtree(self._work, ignore_errors=True)

    async def _storage(self, uri: str, component: str) -> tuple[Path, Bundle, Path]:
        """Do what KServe's storage initializer does, into a directory of the new process's own."""
        self._started += 1
        number = self._started
        directory = self._work / f"{number}-models"
        bundle = await self._fetch(uri, directory)
        log = self._logs / f"{component}-{bundle.version}-{number}.log"
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.unlink(missing_ok=True)
        except OSError as error:
            text = f"{log.parent}: {error.strerror}; name another directory with --run"
            raise LocalServiceError(text) from error
        return directory, bundle, log

    async def _run(self, start: Callable[[], Running]) -> Running:
        """Start a process, and return it when it serves; one that does not, or too late, is stopped."""
        if self._closed:
            raise LocalServiceError("the local service is being stopped")

        def owned() -> Running:
            self._owned.append(started := start())
            return started

        starting = self._thread(owned)
        try:
            new = await asyncio.shield(starting)
            await self._until_ready(new)
        except BaseException:
            await asyncio.wait([starting])
            if starting.exception() is None:
                await self.stop(starting.result())
            raise
        self._serving.append(new)
        return new

    async def _until_ready(self, new: Running) -> None:
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while not await asyncio.to_thread(new.process.ready):
                    new.check()
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise LocalServiceError(f"the {new.component} is not ready after {READY_TIMEOUT_S} s") from error

    async def _fetch(self, uri: str, directory: Path) -> Bundle:
        try:
            return await asyncio.shield(self._thread(lambda: bundles.fetch(uri, directory)))
        except (bundles.StorageError, BundleError) as error:
            raise LocalServiceError(str(error)) from error

    def _thread(self, work: Callable[[], _Result]) -> asyncio.Future[_Result]:
        """Work on a thread, for whose end `close` waits; shield it, for cancelling would not end it."""
        running = asyncio.get_running_loop().run_in_executor(None, work)
        self._in_threads.add(running)
        running.add_done_callback(self._in_threads.discard)
        return running
