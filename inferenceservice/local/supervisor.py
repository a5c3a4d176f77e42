"""Supervisor of the local service's processes: starts each with a copy of its bundle, and stops it.

Threads start and stop the processes, and a thread cannot be cancelled. So the supervisor records a process in
the thread that starts it, even if the caller is cancelled meanwhile, and `close` stops all of them.
"""

import asyncio
import contextlib
import dataclasses
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from inferenceservice.cancellable_thread import run_cancellable
from inferenceservice.local.launch import TransformerProcess, install_predictor, start_predictor
from inferenceservice.local.scratch_directory import ScratchDirectory
from inferenceservice.rollout_target import Progress, TargetError
from inferenceservice.spec import InferenceService
from predictor.environment import InstallError
from predictor.process import PredictorError, PredictorProcess
from predictor.runtimes import LaunchError
from storage import bundles
from transformer.bundle.deadline import Deadline
from transformer.bundle.format import Bundle, BundleError

#: Seconds until a component must be ready; a stock server takes 3 to 8.
READY_TIMEOUT_S = 120
#: Seconds for installing a stock server; minutes on a slow network.
INSTALL_TIMEOUT_S = 3600
#: Logs that are kept of processes which ended or did not become ready.
MAX_FAILED_LOGS = 10
_POLL_S = 0.1
_LOG_NAME = re.compile(r"(transformer|predictor)-.+-\d+\.log")

_Process = TransformerProcess | PredictorProcess
_Result = TypeVar("_Result")


class LocalServiceError(TargetError):
    """The local service does not run, or a change of it failed; the message says which component and why."""


@dataclass(slots=True, eq=False)
class RunningProcess:
    """A component's process, and the private copy of the bundle that it serves."""

    uri: str
    bundle: Bundle
    process: _Process
    component: str
    directory: Path
    log: Path
    #: Exit status; set when `stop` is called.
    exit_status: asyncio.Future[int] | None = None

    @property
    def address(self) -> str:
        """``host:port`` for REST."""
        return f"127.0.0.1:{self.process.http_port}"

    @property
    def grpc_address(self) -> str:
        """``host:port`` for gRPC."""
        return f"127.0.0.1:{self.process.grpc_port}"

    def require_running(self) -> None:
        """Raise LocalServiceError if the process has ended."""
        status = self.process.poll()
        if status is not None:
            last = "\n  ".join(self.process.tail())
            raise LocalServiceError(
                f"the {self.component} ended with status {status}; the last lines of {self.log}:\n  {last}"
            )


class ProcessSupervisor:
    """Starts and stops the processes of one InferenceService.

    Parameters
    ----------
    service
        The spec; set it to change the processes that are started from then on.
    logs
        Directory for the processes' logs, which no other service uses. Older logs are removed.
    """

    def __init__(self, service: InferenceService, logs: Path) -> None:
        self.service = service
        self._logs = logs
        self._scratch = ScratchDirectory()
        self._failed_logs: deque[Path] = deque()
        self._start_count = 0
        self._closed = False
        #: Processes that must be stopped, and those of them that have become ready.
        self._processes: list[RunningProcess] = []
        self._ready: list[RunningProcess] = []
        self._thread_work: set[asyncio.Future[Any]] = set()
        for log in logs.glob("*.log"):
            if _LOG_NAME.fullmatch(log.name):
                log.unlink(missing_ok=True)

    async def start_transformer(
        self, uri: str, predictor_ports: tuple[int, int], progress: Progress
    ) -> RunningProcess:
        """Start a transformer, and return it when it is ready: connected to a predictor that it recognises.

        Parameters
        ----------
        uri
            The transformer's bundle.
        predictor_ports
            Ports of the predictor on this machine, for REST and for gRPC.

        Raises
        ------
        LocalServiceError
            If it does not become ready.
        """
        with self._new_directory() as directory:
            bundle, log = await self._fetch_for("transformer", uri, directory)
            progress(f"transformer: starting with {bundle.name} {bundle.version}")

            def launch() -> RunningProcess:
                # It is drained before it is stopped.
                arguments = (*self.service.transformer_args, "--shutdown_delay_seconds=0")
                service = dataclasses.replace(self.service, transformer_args=arguments)
                process = TransformerProcess(service, directory, predictor_ports, log)
                return RunningProcess(uri, bundle, process, "transformer", directory, log)

            return await self._start(launch)

    async def start_predictor(self, uri: str, progress: Progress) -> RunningProcess:
        """Start a stock server, and return it when it serves the bundle's model.

        Raises
        ------
        LocalServiceError
            If it does not become ready.
        """
        with self._new_directory() as directory:
            bundle, log = await self._fetch_for("predictor", uri, directory)
            progress(f"predictor: {self.service.runtime} is loading {bundle.name} {bundle.version}")
            try:
                python = await run_cancellable(
                    lambda _: install_predictor(self.service, progress), INSTALL_TIMEOUT_S
                )

                def launch() -> RunningProcess:
                    process = start_predictor(self.service, python, directory, log)
                    return RunningProcess(uri, bundle, process, "predictor", directory, log)

                return await self._start(launch)
            except TimeoutError as error:
                text = (
                    f"{self.service.runtime} is not installed after {INSTALL_TIMEOUT_S} s; check the network"
                )
                raise LocalServiceError(text) from error
            except (InstallError, LaunchError, PredictorError) as error:
                raise LocalServiceError(str(error)) from error

    async def read_bundle(self, uri: str) -> Bundle:
        """Read the bundle at a URI, and check the digest of its model.

        Raises
        ------
        LocalServiceError
            If it cannot be read.
        """
        return await _read_storage(lambda deadline: bundles.check(uri, deadline))

    async def stop(self, old: RunningProcess) -> None:
        """Stop a process that was replaced, and remove its files."""
        failed = old not in self._ready or old.process.poll() is not None
        await self._stop(old)
        if failed:
            self._keep_failed_log(old.log)
        else:
            old.log.unlink(missing_ok=True)

    async def _stop(self, old: RunningProcess) -> None:
        """Send a process SIGTERM, and SIGKILL after its grace period."""
        if old in self._ready:
            self._ready.remove(old)
        if old.exit_status is None:
            old.exit_status = self._run_in_thread(old.process.stop)
        await asyncio.shield(old.exit_status)
        if old in self._processes:
            self._processes.remove(old)
        shutil.rmtree(old.directory, ignore_errors=True)

    def require_all_running(self) -> None:
        """Raise LocalServiceError if a process has ended after it became ready."""
        for one in self._ready:
            one.require_running()

    async def close(self) -> None:
        """Stop all processes; the transformers first, because they need the predictors to finish requests.

        The logs of these processes are kept.
        """
        self._closed = True
        for component in ("transformer", "predictor"):
            await asyncio.gather(*(self._stop(one) for one in self._processes if one.component == component))
        await asyncio.gather(*self._thread_work, return_exceptions=True)
        # Processes that a thread was still starting.
        await asyncio.gather(*map(self._stop, self._processes))
        self._scratch.remove()

    @contextlib.contextmanager
    def _new_directory(self) -> Iterator[Path]:
        """Name a new directory for a copy of a bundle, and remove it if the process does not start."""
        self._start_count += 1
        directory = self._scratch.path / f"{self._start_count}-models"
        try:
            yield directory
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise

    async def _fetch_for(self, component: str, uri: str, directory: Path) -> tuple[Bundle, Path]:
        """Copy a bundle to a new directory, as KServe's storage initializer does.

        Returns
        -------
        The bundle, and the path of the new process's log.
        """
        number = directory.name.partition("-")[0]
        bundle = await _read_storage(lambda deadline: bundles.fetch(uri, directory, deadline))
        log = self._logs / f"{component}-{bundle.version}-{number}.log"
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.unlink(missing_ok=True)
        except OSError as error:
            text = f"{log.parent}: {error.strerror}; name another directory with --run"
            raise LocalServiceError(text) from error
        return bundle, log

    async def _start(self, launch: Callable[[], RunningProcess]) -> RunningProcess:
        """Launch a process, and return it when it is ready; stop it if it does not become ready in time."""
        if self._closed:
            raise LocalServiceError("the local service is being stopped")

        def launch_and_record() -> RunningProcess:
            self._processes.append(launched := launch())
            return launched

        starting = self._run_in_thread(launch_and_record)
        try:
            new = await asyncio.shield(starting)
            await self._wait_until_ready(new)
        except BaseException:
            await asyncio.wait([starting])
            if starting.exception() is None:
                await self.stop(starting.result())
            raise
        self._ready.append(new)
        return new

    async def _wait_until_ready(self, new: RunningProcess) -> None:
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while not await asyncio.to_thread(new.process.ready):
                    new.require_running()
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise LocalServiceError(
                f"the {new.component} is not ready after {READY_TIMEOUT_S} s; see {new.log}"
            ) from error

    def _keep_failed_log(self, log: Path) -> None:
        """Keep the log of a process that failed, and remove the oldest of too many."""
        if log not in self._failed_logs:
            self._failed_logs.append(log)
        while len(self._failed_logs) > MAX_FAILED_LOGS:
            self._failed_logs.popleft().unlink(missing_ok=True)

    def _run_in_thread(self, work: Callable[[], _Result]) -> asyncio.Future[_Result]:
        """Run work in a thread that `close` waits for. Shield the future: it cannot be cancelled."""
        running = asyncio.get_running_loop().run_in_executor(None, work)
        self._thread_work.add(running)
        running.add_done_callback(self._thread_work.discard)
        return running


async def _read_storage(work: Callable[[Deadline], Bundle]) -> Bundle:
    """Read a version from its storage. A storage that does not answer delays no stop and no other work."""
    try:
        return await run_cancellable(work, bundles.COPY_TIMEOUT_S)
    except TimeoutError as error:
        raise LocalServiceError(f"the storage does not answer: {error.strerror}") from error
    except (bundles.StorageError, BundleError) as error:
        raise LocalServiceError(str(error)) from error
