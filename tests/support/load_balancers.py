"""Addresses in front of several predictors: by connection (layer 4) and by request (layer 7)."""

import contextlib
import random
from collections.abc import AsyncIterator, Sequence

import aiohttp
from aiohttp import web

from inferenceservice.local.forwarder import Backend, Forwarder
from inferenceservice.local.launch import TransformerProcess
from predictor.process import PredictorProcess
from tests.support.waiting import wait_until
from tests.support.web_server import catch_all, passed_on, running_application

#: Seconds in which connections must leave a pod before it is stopped, as in the spec.
PRE_STOP_S = 10


def backend(process: PredictorProcess, share: float = 1.0) -> Backend:
    """Return a predictor's REST address and its share of the connections."""
    return Backend(f"127.0.0.1:{process.http_port}", share)


def rest_backends(process: TransformerProcess) -> list[Backend]:
    """Return a transformer's REST address as the only backend."""
    return [Backend(f"127.0.0.1:{process.http_port}")]


def grpc_backends(process: TransformerProcess) -> list[Backend]:
    """Return a transformer's gRPC address as the only backend."""
    return [Backend(f"127.0.0.1:{process.grpc_port}")]


@contextlib.asynccontextmanager
async def balanced_by_connection(*backends: Backend) -> AsyncIterator[tuple[Forwarder, int]]:
    """Run a layer-4 forwarder in front of the backends, and return its port too."""
    forwarder = Forwarder(backends)
    port = await forwarder.start()
    try:
        yield forwarder, port
    finally:
        await forwarder.close()


async def wait_until_drained(forwarder: Forwarder, address: str) -> None:
    """Wait until a backend has no connections, but no longer than a preStop pause lasts."""
    with contextlib.suppress(TimeoutError):
        await wait_until(lambda: not forwarder.connections[address], timeout_s=PRE_STOP_S, poll_s=0.1)


@contextlib.asynccontextmanager
async def balanced_by_request(backends: Sequence[str]) -> AsyncIterator[int]:
    """Run a layer-7 proxy that sends each request to a random backend, and return its port."""
    async with aiohttp.ClientSession() as session:

        async def handle(request: web.Request) -> web.Response:
            try:
                return await passed_on(session, request, f"http://{random.choice(backends)}{request.path_qs}")
            except aiohttp.ClientError as error:
                # As a mesh does. uvicorn closes a connection after the 500 of an application that failed.
                return web.Response(status=503, text=str(error))

        async with running_application(catch_all(handle)) as port:
            yield port
