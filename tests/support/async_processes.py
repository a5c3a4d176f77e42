"""The parts of a situation: real processes, each ready, and the addresses in front of them."""

import asyncio
import contextlib
import os
import random
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import aiohttp
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from inferenceservice import spec
from inferenceservice.local.forwarder import Backend, Forwarder
from inferenceservice.local.launch import TransformerProcess
from inferenceservice.local.local_service import LocalService
from inferenceservice.spec import InferenceService
from predictor.child import ChildProcess
from predictor.environment import ensure
from predictor.process import PredictorProcess, free_ports
from predictor.runtimes import get_runtime
from tests.support.paths import MANIFEST
from tests.support.version_pairs import Pair

MLSERVER = "kserve-mlserver"
SKLEARNSERVER = "kserve-sklearnserver"
#: Seconds in which connections must have left a pod before it is stopped, as in the spec.
PRE_STOP_S = 10
#: Connections are renewed more often than by default, so that what is replaced is left sooner.
RENEWED_SOON = "--predictor_connection_age=1"


def service(*arguments: str, **changes: object) -> InferenceService:
    """The project's own InferenceService, with further arguments for the transformer."""
    described = spec.read(MANIFEST)
    return replace(described, transformer_args=(*described.transformer_args, *arguments), **changes)  # type: ignore[arg-type]


def say_nothing(_: str) -> None:
    """Progress that nobody watches."""


@contextlib.asynccontextmanager
async def local_service(pair: Pair, run: Path, *arguments: str) -> AsyncIterator[LocalService]:
    """The old version, served."""
    port, grpc_port = free_ports(2)
    async with LocalService(
        service(RENEWED_SOON, *arguments, storage_uri=str(pair.old)),
        port=port,
        grpc_port=grpc_port,
        logs=run / "logs",
        progress=say_nothing,
    ) as local:
        await local.start()
        yield local


@contextlib.asynccontextmanager
async def predictor(
    bundle: Path, log: Path, runtime: str = MLSERVER, **ports: int
) -> AsyncIterator[PredictorProcess]:
    """A stock server with a version, ready."""
    stock = get_runtime(runtime)
    python = await asyncio.to_thread(ensure, stock)
    process = await asyncio.to_thread(
        lambda: PredictorProcess(
            stock, bundle, python=python, model_name="placement", env=stock.probability_env, log=log, **ports
        )
    )
    try:
        await asyncio.to_thread(process.wait_ready)
        yield process
    finally:
        await asyncio.to_thread(process.stop)


def backend(process: PredictorProcess, share: float = 1.0) -> Backend:
    """Where a predictor is reached over REST."""
    return Backend(f"127.0.0.1:{process.http_port}", share)


@contextlib.asynccontextmanager
async def transformer(
    bundle: Path, predictor_port: int, log: Path, *arguments: str, ready: bool = True
) -> AsyncIterator[TransformerProcess]:
    """A transformer process: ready, or only alive where it is not to get ready."""
    process = TransformerProcess(service(*arguments), bundle, (predictor_port, predictor_port), log)
    try:
        await answers(process, process.http_port, "ready" if ready else "live")
        yield process
    finally:
        await asyncio.to_thread(process.stop)


async def answers(process: TransformerProcess | ChildProcess, port: int, health: str) -> None:
    """Wait until a server says that it is alive, or ready."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(60):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"http://127.0.0.1:{port}/v2/health/{health}") as response:
                    if response.status == 200:
                        return
            assert process.poll() is None, process.tail()
            await asyncio.sleep(0.05)


async def metrics(url: str) -> list[Sample]:
    """What a transformer tells Prometheus."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
        families = text_string_to_metric_families(await response.text())
        return [sample for family in families for sample in family.samples]


def total(samples: Sequence[Sample], name: str, **labels: str) -> float:
    """The sum of the samples of a name that have these labels, and maybe others."""
    return sum(
        sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items()
    )


def addresses(process: TransformerProcess) -> tuple[str, str]:
    """Where a transformer is reached over REST and gRPC."""
    return f"http://127.0.0.1:{process.http_port}", f"127.0.0.1:{process.grpc_port}"


@contextlib.asynccontextmanager
async def forwarding(*backends: Backend) -> AsyncIterator[tuple[Forwarder, int]]:
    """A layer-4 address in front of the backends, and its port."""
    forwarder = Forwarder(backends)
    port = await forwarder.start()
    try:
        yield forwarder, port
    finally:
        await forwarder.close()


async def left(forwarder: Forwarder, address: str) -> None:
    """Wait until nobody is connected to an address any more, for as long as a preStop pause lasts."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PRE_STOP_S):
            while forwarder.connections[address]:
                await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def proxying(backends: Sequence[str]) -> AsyncIterator[int]:
    """A layer-7 proxy that gives each request to a random backend."""
    async with aiohttp.ClientSession() as session:

        async def handle(request: web.Request) -> web.Response:
            url = f"http://{random.choice(backends)}{request.path_qs}"
            body = await request.read()
            headers = {"content-type": request.content_type}
            async with session.request(request.method, url, data=body, headers=headers) as response:
                return web.Response(
                    status=response.status, body=await response.read(), content_type=response.content_type
                )

        application = web.Application(client_max_size=2**26)
        application.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield runner.addresses[0][1]
        finally:
            await runner.cleanup()


@contextlib.asynccontextmanager
async def documented_transformer(
    bundle: Path, predictor_port: int, port: int, log: Path
) -> AsyncIterator[None]:
    """The transformer that KServe documents, ready."""
    command = [
        sys.executable,
        str(Path(__file__).with_name("documented_transformer.py")),
        str(bundle),
        "--model_name=placement",
        f"--predictor_host=127.0.0.1:{predictor_port}",
        f"--http_port={port}",
    ]
    with ChildProcess(command, env=dict(os.environ), log=log) as process:
        await answers(process, port, "ready")
        yield
