"""The real transformer inside the test's own event loop: its REST application and its gRPC server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from predictor.process import free_ports
from transformer.__main__ import transformer_model
from transformer.bundle.format import load_bundle
from transformer.options import parse
from transformer.server.kserve_server import TransformerServer


@dataclass
class Serving:
    """Clients of a transformer."""

    http: httpx.AsyncClient
    grpc: GRPCInferenceServiceStub
    grpc_address: str


@contextlib.asynccontextmanager
async def serving(
    directory: Path, predictor_host: str, *arguments: str, ready: bool = True
) -> AsyncIterator[Serving]:
    """Serve a bundle in front of a predictor, with further arguments of the command line."""
    (port,) = free_ports(1)
    options = parse([f"--predictor_host={predictor_host}", f"--grpc_port={port}", *arguments])
    model = transformer_model(load_bundle(directory), options)
    server = TransformerServer(options)
    server.register_model(model)
    rest = server.rest_server()
    rest.create_application()
    grpc_server = server.grpc_server()
    running = asyncio.create_task(grpc_server.start(2))
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    try:
        # Errors are to become answers; what is raised through the application has become none.
        transport = httpx.ASGITransport(rest.config.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://transformer") as http:
            await asyncio.wait_for(channel.channel_ready(), 10)
            if ready:
                await asyncio.wait_for(_ready(http), 10)
            yield Serving(http, GRPCInferenceServiceStub(channel), f"127.0.0.1:{port}")
    finally:
        await channel.close()
        await grpc_server.stop()
        await running
        await model.scorer.close()


async def _ready(http: httpx.AsyncClient) -> None:
    while (await http.get("/v2/health/ready")).status_code != 200:
        await asyncio.sleep(0.01)
