"""The processes of the local service: each with a copy of its bundle, started, awaited and stopped."""

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from inferenceservice.local.components import TransformerProcess, start_predictor
from inferenceservice.rollout import TargetError
from inferenceservice.spec import InferenceService
from predictor.process import PredictorError, PredictorProcess
from storage import bundles
from transformer.bundle import Bundle, BundleError

Progress = Callable[[str], None]

#: Seconds until a component must serve; a stock server takes 3 to 8.
READY_TIMEOUT_S = 120
_POLL_S = 0.1


class LocalServiceError(TargetError):
    """The InferenceService does not run, or a step of it failed; the message says which part and why."""


@dataclass(frozen=True, slots=True)
class Running:
    """A component's process and the bundle that it serves."""

    uri: str
    bundle: Bundle
    process: TransformerProcess | PredictorProcess
    component: str
    log: Path

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
        #: All that must be stopped, and those of them that serve.
        self._started_processes: list[Running] = []
        self._serving: list[Running] = []

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
        process = await asyncio.to_thread(TransformerProcess, self.service, directory, predictor_ports, log)
        return await self._ready(Running(uri, bundle, process, "transformer", log))

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
            process = await asyncio.to_thread(start_predictor, self.service, directory, log, progress)
        except PredictorError as error:
            raise LocalServiceError(str(error)) from error
        return await self._ready(Running(uri, bundle, process, "predictor", log))

    async def read_bundle(self, uri: str) -> Bundle:
        """The bundle at a URI, its model held against its digest.

        Raises
        ------
        LocalServiceError
            If there is none that can be served.
        """
        directory = Path(tempfile.mkdtemp(dir=self._work))
        try:
            return await _fetch(uri, directory)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    async def stop(self, old: Running) -> None:
        """End a process: SIGTERM, then SIGKILL after its grace period."""
        if old in self._serving:
            self._serving.remove(old)
        self._started_processes.remove(old)
        await asyncio.to_thread(old.process.stop)

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
        for one in sorted(self._started_processes, key=lambda one: one.component == "predictor"):
            await asyncio.to_thread(one.process.stop)
        shutil.rmtree(self._work, ignore_errors=True)

    async def _storage(self, uri: str, component: str) -> tuple[Path, Bundle, Path]:
        """Do what KServe's storage initializer does, into a directory of the new process's own."""
        self._started += 1
        directory = self._work / f"{self._started}-models"
        bundle = await _fetch(uri, directory)
        log = self._logs / f"{component}-{bundle.version}-{self._started}.log"
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.unlink(missing_ok=True)
        except OSError as error:
            text = f"{log.parent}: {error.strerror}; name another directory with --run"
            raise LocalServiceError(text) from error
        return directory, bundle, log

    async def _ready(self, new: Running) -> Running:
        """Wait until a new process serves; one that does not is stopped."""
        self._started_processes.append(new)
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while not await self._is_ready(new):
                    new.check()
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            await self.stop(new)
            raise LocalServiceError(f"the {new.component} is not ready after {READY_TIMEOUT_S} s") from error
        except BaseException:
            await self.stop(new)
            raise
        self._serving.append(new)
        return new

    async def _is_ready(self, new: Running) -> bool:
        if isinstance(new.process, PredictorProcess):
            return await asyncio.to_thread(new.process.ready)
        url = f"http://{new.address}/v2/models/{self.service.name}/ready"
        with contextlib.suppress(aiohttp.ClientError):
            async with aiohttp.ClientSession() as session, session.get(url) as response:
                return response.status == 200
        return False


async def _fetch(uri: str, directory: Path) -> Bundle:
    try:
        return await asyncio.to_thread(bundles.fetch, uri, directory)
    except (bundles.StorageError, BundleError) as error:
        raise LocalServiceError(str(error)) from error
