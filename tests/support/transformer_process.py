"""A transformer's process in front of a model server, for tests whose clients block."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import grpc
import psutil

from inferenceservice.local.launch import TransformerProcess
from tests.support.local_service import SPEC


def family(*pids: int) -> list[psutil.Process]:
    """Processes, their guards and all that they started."""
    processes = [psutil.Process(pid) for pid in pids]
    return [
        member
        for process in processes
        for member in (process.parent(), process, *process.children(recursive=True))
    ]


def left_of(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that do not end."""
    return psutil.wait_procs(processes, timeout=10)[1]


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, but not for ever."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextlib.contextmanager
def transformer(
    ports: tuple[int, int],
    bundle: Path,
    log: Path,
    *arguments: str,
    env: Mapping[str, str] = MappingProxyType({}),
    ready: Callable[[TransformerProcess], bool] = TransformerProcess.ready,
) -> Iterator[TransformerProcess]:
    """A transformer's process that answers over REST and gRPC, in front of a predictor's two ports."""
    inference_service = dataclasses.replace(
        SPEC,
        transformer_args=(*SPEC.transformer_args, *arguments),
        transformer_env={**SPEC.transformer_env, **env},
    )
    process = TransformerProcess(inference_service, bundle, ports, log)

    def is_ready() -> bool:
        assert process.poll() is None, "\n".join(process.tail())
        return ready(process)

    try:
        until(is_ready)
        with grpc.insecure_channel(f"127.0.0.1:{process.grpc_port}") as channel:
            grpc.channel_ready_future(channel).result(timeout=30)
        yield process
    finally:
        process.stop()
