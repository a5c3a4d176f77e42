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
from pathlib import Path
from typing import Any, TypeVar

from inferenceservice.cancellable_thread import run_cancellable
from inferenceservice.local.launch import TransformerProcess, install_predictor, start_predictor
from inferenceservice.local.running_process import LocalServiceError, Process, RunningProcess
from inferenceservice.local.scratch_directory import ScratchDirectory
from inferenceservice.rollout_target import Progress
from inferenceservice.spec import InferenceService
from predictor.child import ChildStartError
from predictor.environment import InstallError
from predictor.process import PredictorError
from predictor.runtimes import LaunchError
from storage import bundles
from storage.errors import StorageError
from storage.uris import shown
from transformer.bundle.deadline import Deadline
from transformer.bundle.format import Bundle, BundleError

#: Seconds until a component must be ready; a stock server takes 3 to 8.
READY_TIMEOUT_S = 120
#: Seconds for installing a stock server; minutes on a slow network.
INSTALL_TIMEOUT_S = 3600
#: Seconds for a process that does not answer to end by itself before its restart.
RESTART_GRACE_S = 2
#: Logs that are kept of processes which ended or did not become ready.
MAX_FAILED_LOGS = 10
_POLL_S = 0.1
_LOG_NAME = re.compile(r"(transformer|predictor)-.+-\d+\.log")

_Result = TypeVar("_Result")


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
        #: Processes that must be stopped.
        self._processes: list[RunningProcess] = []
        self._thread_work: set[asyncio.Future[Any]] = set()
        for log in logs.glob("*.log"):
            if _LOG_NAME.fullmatch(log.name):
                log.unlink(missing_ok=True)

    async def start_transformer(
        self, uri: str, predictor_ports: tuple[int, int], progress: Progress, *, ready: bool = True
    ) -> RunningProcess:
        """Start a transformer, and return it when it is ready: connected to a predictor that it recognises.

        Parameters
        ----------
        uri
            The transformer's bundle.
        predictor_ports
            Ports of the predictor on this machine, for REST and for gRPC.
        ready
            False returns it as soon as it is live.

        Raises
        ------
        LocalServiceError
            If it does not become ready.
        """
        with self._new_directory() as directory:
            bundle, log = await self._fetch_for("transformer", uri, directory)
            progress(f"transformer: starting with {bundle.name} {bundle.version}")

            # It is drained before it is stopped.
            arguments = (*self.service.transformer_args, "--shutdown_delay_seconds=0")
            service = dataclasses.replace(self.service, transformer_args=arguments)

            def launch() -> Process:
                return TransformerProcess(service, directory, predictor_ports, log)

            return await self._start(
                lambda: RunningProcess(uri, bundle, launch(), "transformer", directory, log, launch),
                ready=ready,
            )

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

                service = self.service

                def launch() -> Process:
                    return start_predictor(service, python, directory, log)

                return await self._start(
                    lambda: RunningProcess(uri, bundle, launch(), "predictor", directory, log, launch)
                )
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
        return await _read_storage(lambda deadline: bundles.check(shown(uri), deadline))

    async def stop(self, old: RunningProcess) -> None:
        """Stop a process that was replaced, and remove its files."""
        failed = not old.ready or old.process.poll() is not None
        await self._stop(old)
        if failed:
            self._keep_failed_log(old.log)
        else:
            old.log.unlink(missing_ok=True)

    async def _stop(self, old: RunningProcess) -> None:
        """Send a process SIGTERM, and SIGKILL after its grace period."""
        if old.restarting is not None:
            old.restarting.cancel()
            await asyncio.wait([old.restarting])
        old.ready = False
        if old.exit_status is None:
            old.exit_status = self._run_in_thread(old.process.stop)
        await asyncio.shield(old.exit_status)
        if old in self._processes:
            self._processes.remove(old)
        shutil.rmtree(old.directory, ignore_errors=True)

    async def restart(self, one: RunningProcess) -> None:
        """Start a process again that has ended or does not answer, with the same copy of its bundle.

        It returns when a predictor is ready, and when a transformer is live: its readiness depends on the
        predictor, which may have ended, too.

        Raises
        ------
        LocalServiceError
            If the new process ends, or does not get so far in time.
        """
        await asyncio.shield(self._run_in_thread(lambda: one.process.stop(RESTART_GRACE_S)))
        if self._closed:
            raise LocalServiceError("the local service is being stopped")

        def launch() -> None:
            one.process = one.launch()

        starting = self._run_in_thread(launch)
        try:
            await asyncio.shield(starting)
        except (ChildStartError, LaunchError, OSError, PredictorError) as error:
            raise LocalServiceError(str(error)) from error
        finally:
            await asyncio.wait([starting])
            starting.exception()
        if one.component == "predictor":
            await self._wait_until(one.process.ready, one)
        else:
            await self._wait_until(one.process.live, one)

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
        bundle = await _read_storage(lambda deadline: bundles.fetch(shown(uri), directory, deadline))
        log = self._logs / f"{component}-{bundle.version}-{number}.log"
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.unlink(missing_ok=True)
        except OSError as error:
            text = f"{log.parent}: {error.strerror}; name another directory with --run"
            raise LocalServiceError(text) from error
        return bundle, log

    async def _start(self, launch: Callable[[], RunningProcess], *, ready: bool = True) -> RunningProcess:
        """Launch a process, and return it when it is ready (or live); stop it if it is not in time."""
        if self._closed:
            raise LocalServiceError("the local service is being stopped")

        def launch_and_record() -> RunningProcess:
            self._processes.append(launched := launch())
            return launched

        starting = self._run_in_thread(launch_and_record)
        try:
            new = await asyncio.shield(starting)
            await self._wait_until(new.process.ready if ready else new.process.live, new)
        except BaseException:
            await asyncio.wait([starting])
            if starting.exception() is None:
                await self.stop(starting.result())
            raise
        new.ready = ready
        return new

    async def _wait_until(self, check: Callable[[], bool], new: RunningProcess) -> None:
        """Wait until a health check of a new process succeeds."""
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while not await asyncio.to_thread(check):
                    new.require_running()
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise LocalServiceError(
                f"the {new.component} is not ready after {READY_TIMEOUT_S} s; the log is {new.log}"
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
    except (StorageError, BundleError) as error:
        raise LocalServiceError(str(error)) from error
