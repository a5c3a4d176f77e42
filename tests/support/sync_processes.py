"""Real processes for tests whose clients block."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import grpc
import psutil
from anyio.from_thread import start_blocking_portal

from inferenceservice.local.launch import TransformerProcess
from inferenceservice.local.local_service import LocalService, run_local_service
from inferenceservice.spec import InferenceService
from predictor.environment import ensure
from predictor.process import PredictorProcess, free_ports
from predictor.runtimes import Runtime
from tests.support.inference_service import SPEC, with_arguments
from tests.support.waiting import wait_until_sync


@contextlib.contextmanager
def running_service(inference_service: InferenceService, model: Path, logs: Path) -> Iterator[LocalService]:
    """Run an InferenceService with a trained bundle, in another thread's event loop."""
    port, grpc_port = free_ports(2)
    running = run_local_service(
        inference_service,
        model=str(model),
        port=port,
        grpc_port=grpc_port,
        logs=logs,
        progress=lambda _: None,
    )
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(running) as (served, _):
        yield served


@contextlib.contextmanager
def running_predictor(
    runtime: Runtime, version: Path, model_name: str = "placement", **options: Any
) -> Iterator[PredictorProcess]:
    """Run a stock model server with a version, and with further options of `PredictorProcess`."""
    with PredictorProcess(
        runtime, version, python=ensure(runtime), model_name=model_name, **options
    ) as process:
        wait_while_running(process, process.ready)
        yield process


@contextlib.contextmanager
def running_transformer(
    ports: tuple[int, int],
    bundle: Path,
    log: Path,
    *arguments: str,
    env: Mapping[str, str] = MappingProxyType({}),
    ready: Callable[[TransformerProcess], bool] = TransformerProcess.ready,
) -> Iterator[TransformerProcess]:
    """Start a transformer in front of a predictor's two ports; it answers over REST and gRPC."""
    service = with_arguments(*arguments, transformer_env={**SPEC.transformer_env, **env})
    process = TransformerProcess(service, bundle, ports, log)
    try:
        wait_while_running(process, lambda: ready(process))
        with grpc.insecure_channel(f"127.0.0.1:{process.grpc_port}") as channel:
            grpc.channel_ready_future(channel).result(timeout=30)
        yield process
    finally:
        process.stop()


def wait_while_running(process: PredictorProcess | TransformerProcess, condition: Callable[[], bool]) -> None:
    """Wait until a condition is true; fail if the process ends before."""

    def is_true() -> bool:
        assert process.poll() is None, "\n".join(process.tail())
        return condition()

    wait_until_sync(is_true)


def process_families(*pids: int) -> list[psutil.Process]:
    """Return processes with their guards and all that they started."""
    processes = [psutil.Process(pid) for pid in pids]
    return [
        member
        for process in processes
        for member in (process.parent(), process, *process.children(recursive=True))
        if member is not None
    ]


def still_running(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return the processes that do not end."""
    _, alive = psutil.wait_procs(processes, timeout=10)
    return list(alive)
