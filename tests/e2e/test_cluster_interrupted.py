"""`placement rollout` to a cluster as a process: Ctrl-C undoes it, and a second one ends it at once."""

import asyncio
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster.fixtures import V1, V2, Start, Versions
from tests.support.cluster.kubernetes_api import Cluster
from tests.support.paths import PLACEMENT

TIMEOUT_S = 60
Command = Callable[..., Any]


@pytest.fixture
def command(versions: Versions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Start `placement` for the cluster as a process."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    bundles = [f"--bundle={uri}={copy}" for uri, copy in versions.copies.items()]

    @asynccontextmanager
    async def started(*arguments: str, stderr: int = PIPE) -> AsyncIterator[Process]:
        process = await asyncio.create_subprocess_exec(
            PLACEMENT, *arguments, "--context=test", *bundles, stdout=PIPE, stderr=stderr
        )
        try:
            async with asyncio.timeout(TIMEOUT_S):
                yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    return started


async def progress_line(process: Process, text: str) -> str:
    """Return the line of progress that contains a text."""
    assert process.stderr is not None
    async for line in process.stderr:
        if text in line.decode():
            return line.decode()
    raise AssertionError(f"{text} was never told")


@asynccontextmanager
async def stuck(cluster: Cluster, command: Command) -> AsyncIterator[Process]:
    """Start a rollout whose transformer never becomes ready."""
    cluster.reconciles = False
    async with command("rollout", V2) as process:
        await progress_line(process, "waiting for KServe to update the Deployment")
        assert cluster.uri("transformer") == V2
        yield process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
async def test_ctrl_c_undoes_the_rollout(start: Start, command: Command, number: int) -> None:
    cluster = await start()
    async with stuck(cluster, command) as process:
        process.send_signal(number)
        output, errors = await process.communicate()
    assert (process.returncode, output) == (130, b"")
    assert cluster.uri("transformer") == V1
    lines = [line.split(" s  ")[1] for line in errors.decode().splitlines()]
    assert lines[:2] == ["interrupted; rolling back", f"transformer: back to {V1}"]
    assert lines[-1] == "the previous state is restored"


async def test_a_second_ctrl_c_prints_the_command_to_recover(start: Start, command: Command) -> None:
    cluster = await start()
    async with stuck(cluster, command) as process:
        cluster.hold = asyncio.Event()
        process.send_signal(signal.SIGINT)
        await cluster.held.wait()
        process.send_signal(signal.SIGINT)
        last = await progress_line(process, "interrupted while rolling back")
        cluster.hold.set()
        _, errors = await process.communicate()
    assert process.returncode == 130
    assert errors == b"", "no traceback"
    assert last.rstrip().endswith(
        "two versions may be serving now: see `placement status`, and run "
        f"`placement rollout {V1}` to recover"
    )
    cluster.hold = None
    cluster.reconciles = True
    async with command("rollout", V1) as process:
        output, _ = await process.communicate()
    assert output == b"v1 serves\n"
    assert (cluster.uri("transformer"), cluster.uri("predictor")) == (V1, V1)


async def test_a_third_ctrl_c_does_not_wait_for_the_api_server(start: Start, command: Command) -> None:
    cluster = await start()
    async with stuck(cluster, command) as process:
        cluster.hold = asyncio.Event()
        process.send_signal(signal.SIGINT)
        await cluster.held.wait()
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            await asyncio.sleep(0.2)
        _, errors = await process.communicate()
    cluster.hold.set()
    assert process.returncode == 130
    assert b"interrupted while rolling back" in errors
    assert b"Traceback" not in errors


async def test_a_rollout_continues_when_its_output_is_closed(start: Start, command: Command) -> None:
    cluster = await start()
    reading, writing = os.pipe()
    os.close(reading)
    async with command("rollout", V2, stderr=writing) as process:
        os.close(writing)
        output, _ = await process.communicate()
    assert (process.returncode, output) == (0, b"v2 serves\n")
    assert (cluster.uri("transformer"), cluster.uri("predictor")) == (V2, V2)
