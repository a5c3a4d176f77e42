"""The real transformer in the test's event loop: its REST application and its gRPC server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
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
from transformer.bundle.format import load_bundle
from transformer.options import parse
from transformer.server.kserve_server import TransformerServer


@dataclass
class InProcessTransformer:
    """Clients of a transformer."""

    http: httpx.AsyncClient
    grpc: GRPCInferenceServiceStub
    grpc_address: str

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
    """

    port: int
    state: ServerState


@contextlib.asynccontextmanager
async def in_process_transformer(
    directory: Path, predictor_host: str, *arguments: str, ready: bool = True
) -> AsyncIterator[InProcessTransformer]:
    """Serve a bundle in front of a predictor, with further arguments of the command line.

    Its REST application is called without a socket; its gRPC server listens.
    """
    (port,) = free_ports(1)
    server = _create(directory, predictor_host, f"--grpc_port={port}", *arguments)
    application = _rest_config(server).app
    grpc_server = server.grpc_server()
    running = asyncio.create_task(grpc_server.start())
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    try:
        # The transport raises an exception that the application does not turn into a response.
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://transformer") as http:
            await asyncio.wait_for(channel.channel_ready(), 10)
            served = InProcessTransformer(http, GRPCInferenceServiceStub(channel), f"127.0.0.1:{port}")
            if ready:
                await wait_until(served.is_ready)
            yield served
    finally:
        await channel.close()
        await grpc_server.stop()
        await running
        await server.dataplane.handler.scorer.close()


@contextlib.asynccontextmanager
async def listening_transformer(
    directory: Path, predictor_host: str, *arguments: str
) -> AsyncIterator[ListeningTransformer]:
    """Serve a bundle over REST on a free port; it is ready when the block begins."""
    server = _create(directory, predictor_host, *arguments)
    config = _rest_config(server)
    config.load()
    state = ServerState()
    listening = await asyncio.get_running_loop().create_server(
        lambda: config.http_protocol_class(config=config, server_state=state, app_state={}),
        "127.0.0.1",
        ssl=config.ssl,
    )
    try:
        await wait_until(server.dataplane.ready)
        yield ListeningTransformer(listening.sockets[0].getsockname()[1], state)
    finally:
        listening.close()
        await server.dataplane.handler.scorer.close()


def _create(directory: Path, predictor_host: str, *arguments: str) -> TransformerServer:
    settings = parse([f"--predictor_host={predictor_host}", *arguments])
    return TransformerServer(load_bundle(directory), settings)


def _rest_config(server: TransformerServer) -> Any:
    """Return uvicorn's configuration with the REST application and our protocol class."""
    rest = server.rest_server()
    rest.create_application()
    return rest.config
