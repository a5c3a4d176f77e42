"""The real transformer in the test's event loop: its REST and its gRPC server."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from uvicorn.server import ServerState

from predictor.process import free_ports
from tests.support.endpoints import SERVER_READY
from tests.support.waiting import wait_until
from transformer.batching.scorer import Scorer
from transformer.bundle.format import load_bundle
from transformer.options import parse
from transformer.server.kserve_server import TransformerServer

#: Made once, because httpx takes 20 ms to make its own.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@dataclass
class InProcessTransformer:
    """Clients of a transformer."""

    http: httpx.AsyncClient
    grpc: GRPCInferenceServiceStub
    grpc_address: str
    #: The ASGI application.
    application: Any

    @property
    def without_sockets(self) -> httpx.AsyncClient:
        """A client of the application, whose requests arrive at once and are not read by an HTTP parser.

        It raises an exception that the application does not turn into a response.
        """
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(self.application), base_url="http://transformer"
        )

    async def is_ready(self) -> bool:
        """Return True if it is ready over REST."""
        return (await self.http.get(SERVER_READY)).status_code == 200


@dataclass
class ListeningTransformer:
    """A transformer's REST server on a port of this machine.

    Attributes
    ----------
    state
        Its open connections, and the tasks of the requests that it handles.
    application
        The ASGI application.
    scorer
        Has the queue.
    leave
        Begins what SIGTERM begins.
    """

    port: int
    state: ServerState
    leave: Callable[[], None]
    application: Any
    scorer: Scorer

    @property
    def queued(self) -> int:
        """Number of requests in the queue."""
        assert self.scorer._pool is not None
        return len(self.scorer._pool._queue)


@contextlib.asynccontextmanager
async def in_process_transformer(
    directory: Path, predictor_host: str, *arguments: str, ready: bool = True
) -> AsyncIterator[InProcessTransformer]:
    """Serve a bundle in front of a predictor, with further arguments of the command line."""
    (port,) = free_ports(1)
    server = _create(directory, predictor_host, f"--grpc_port={port}", *arguments)
    grpc_server = server.grpc_server()
    running = asyncio.create_task(grpc_server.start())
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    try:
        async with (
            _listening(server) as rest,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{rest.port}", timeout=60, verify=NO_TLS) as http,
        ):
            await asyncio.wait_for(channel.channel_ready(), 10)
            served = InProcessTransformer(
                http, GRPCInferenceServiceStub(channel), f"127.0.0.1:{port}", rest.application
            )
            if ready:
                await wait_until(served.is_ready)
            yield served
    finally:
        await channel.close()
        await grpc_server.stop()
        await running
        await server.dataplane.handler.close()


@contextlib.asynccontextmanager
async def listening_transformer(
    directory: Path, predictor_host: str, *arguments: str
) -> AsyncIterator[ListeningTransformer]:
    """Serve a bundle over REST on a free port; it is ready when the block begins."""
    server = _create(directory, predictor_host, *arguments)
    try:
        async with _listening(server) as listening:
            await wait_until(server.dataplane.ready)
            yield listening
    finally:
        await server.dataplane.handler.close()


@contextlib.asynccontextmanager
async def _listening(server: TransformerServer) -> AsyncIterator[ListeningTransformer]:
    rest = server.rest_server()
    rest.create_application()
    config = rest.config
    config.load()
    state = rest._server.server_state
    listening = await asyncio.get_running_loop().create_server(
        lambda: config.http_protocol_class(config=config, server_state=state, app_state={}),
        "127.0.0.1",
        ssl=config.ssl,
    )
    try:
        port = listening.sockets[0].getsockname()[1]
        yield ListeningTransformer(port, state, rest.leave, config.app, server.dataplane.handler.scorer)
    finally:
        listening.close()


def _create(directory: Path, predictor_host: str, *arguments: str) -> TransformerServer:
    settings = parse([f"--predictor_host={predictor_host}", *arguments])
    return TransformerServer(load_bundle(directory), settings)
