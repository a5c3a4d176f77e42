"""Real processes for tests whose clients share an event loop, each ready when its block begins."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

from inferenceservice.local.launch import TransformerProcess
from inferenceservice.local.local_service import LocalService
from inferenceservice.rollout_target import Progress
from inferenceservice.spec import InferenceService
from predictor.child import ChildProcess
from predictor.environment import ensure
from predictor.process import PredictorProcess, free_ports
from predictor.runtimes import get_runtime
from tests.support.in_memory_target import ignore_progress
from tests.support.inference_service import with_arguments
from tests.support.sync_processes import wait_while_running
from tests.support.version_pairs import VersionPair
from tests.support.waiting import wait_until

MLSERVER = "kserve-mlserver"
SKLEARNSERVER = "kserve-sklearnserver"
#: Variables of MLServer as the overlay knative sets them.
KNATIVE_ENV = {"MLSERVER_PARALLEL_WORKERS": "1"}
#: Renews connections more often than the default, so that they leave a replaced predictor sooner.
RENEW_SOON = "--predictor_connection_age=1"


@contextlib.asynccontextmanager
async def running_local_service(
    service: InferenceService, run: Path, progress: Progress = ignore_progress
) -> AsyncIterator[LocalService]:
    """Run an InferenceService on free ports; its logs go below `run`."""
    port, grpc_port = free_ports(2)
    async with LocalService(
        service, port=port, grpc_port=grpc_port, logs=run / "logs", progress=progress
    ) as local:
        await local.start()
        yield local


def running_service(
    pair: VersionPair, run: Path, *arguments: str
) -> contextlib.AbstractAsyncContextManager[LocalService]:
    """Run an InferenceService with the pair's old version."""
    return running_local_service(with_arguments(RENEW_SOON, *arguments, storage_uri=str(pair.old)), run)


@contextlib.asynccontextmanager
async def running_predictor(
    bundle: Path,
    log: Path,
    runtime_name: str = MLSERVER,
    http_port: int | None = None,
    env: dict[str, str] | None = None,
) -> AsyncIterator[PredictorProcess]:
    """Run a stock model server with a version; `env` are variables that its spec sets to other values."""
    runtime = get_runtime(runtime_name)
    python = await asyncio.to_thread(ensure, runtime)
    process = await asyncio.to_thread(
        lambda: PredictorProcess(
            runtime,
            bundle,
            python=python,
            model_name="placement",
            args=runtime.tuned_args,
            env={**runtime.spec_env, **(env or {})},
            log=log,
            http_port=http_port,
        )
    )
    try:
        await asyncio.to_thread(wait_while_running, process, process.ready)
        yield process
    finally:
        await asyncio.to_thread(process.stop)


@contextlib.asynccontextmanager
async def running_transformer(
    bundle: Path, predictor_port: int, log: Path, *arguments: str, ready: bool = True
) -> AsyncIterator[TransformerProcess]:
    """Run a transformer. With ``ready=False`` it is only live when the block begins."""
    process = TransformerProcess(with_arguments(*arguments), bundle, (predictor_port, predictor_port), log)
    try:
        await wait_until_healthy(process, process.http_port, "ready" if ready else "live")
        yield process
    finally:
        await asyncio.to_thread(process.stop)


@contextlib.asynccontextmanager
async def documented_transformer(
    bundle: Path, predictor_port: int, port: int, log: Path
) -> AsyncIterator[None]:
    """Run the transformer of KServe's documentation."""
    command = [
        sys.executable,
        str(Path(__file__).with_name("documented_transformer.py")),
        str(bundle),
        "--model_name=placement",
        f"--predictor_host=127.0.0.1:{predictor_port}",
        f"--http_port={port}",
    ]
    with ChildProcess(command, env=dict(os.environ), log=log) as process:
        await wait_until_healthy(process, port, "ready")
        yield


async def wait_until_healthy(process: TransformerProcess | ChildProcess, port: int, health: str) -> None:
    """Wait until a server is ``live`` or ``ready``."""

    async def is_healthy() -> bool:
        assert process.poll() is None, process.tail()
        with contextlib.suppress(aiohttp.ClientError):
            async with session.get(f"http://127.0.0.1:{port}/v2/health/{health}") as response:
                return response.status == 200
        return False

    async with aiohttp.ClientSession() as session:
        await wait_until(is_healthy, poll_s=0.05)


def addresses(process: TransformerProcess) -> tuple[str, str]:
    """Return a transformer's REST URL and its gRPC address."""
    return f"http://127.0.0.1:{process.http_port}", f"127.0.0.1:{process.grpc_port}"
