"""A running ingress of the local service, and backends for it."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import grpc
from aiohttp import web
from aiohttp.test_utils import TestServer

from inferenceservice.local.forwarder import Backend
from inferenceservice.local.ingress import Ingress
from predictor.process import free_ports
from tests.support.web_server import Handler, catch_all

SERVICE = "placement-default.example.com"
PREDICTOR = "placement-predictor-default.example.com"
INGRESS_TIMEOUT_S = 20
#: A port without a server: it refuses connections at once.
UNREACHABLE = "127.0.0.1:1"

T = TypeVar("T")
Conversation = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Backends:
    """Sets the backends of an ingress: one address for each component."""

    ingress: Ingress

    def __init__(self, ingress: Ingress) -> None:
        self.__dict__["ingress"] = ingress
        self.transformer = self.predictor = self.transformer_grpc = UNREACHABLE

    def __setattr__(self, component: str, address: str) -> None:
        backends = [Backend(address)]
        if component == "transformer_grpc":
            self.ingress.transformer_grpc.backends = backends
        else:
            setattr(self.ingress, component, backends)


class RunningIngress:
    """An ingress and its ports."""

    def __init__(self) -> None:
        self.port, self.grpc_port = free_ports(2)
        self.url = f"http://127.0.0.1:{self.port}"
        self.grpc_address = f"127.0.0.1:{self.grpc_port}"
        self.ingress = Ingress("placement", "default")
        self.backends = Backends(self.ingress)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


@contextlib.asynccontextmanager
async def backend(handler: Handler) -> AsyncIterator[str]:
    """Run a web server with one handler for all requests."""
    async with TestServer(catch_all(handler)) as server:
        yield f"127.0.0.1:{server.port}"


@contextlib.asynccontextmanager
async def raw_backend(conversation: Conversation) -> AsyncIterator[str]:
    """Run a server that reads and writes bytes itself."""
    talks: set[asyncio.Task[None]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            await conversation(reader, writer)

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.add(asyncio.create_task(talk(reader, writer)))

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for task in talks:
        task.cancel()
    await asyncio.gather(*talks, return_exceptions=True)


def says(text: str) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=text)

    return handler


async def in_time(awaitable: Awaitable[T]) -> T:
    return await asyncio.wait_for(awaitable, INGRESS_TIMEOUT_S)


async def send_raw(running: RunningIngress, request: str) -> str:
    reader, writer = await running.connect()
    with contextlib.closing(writer):
        writer.write(request.encode())
        head = (await in_time(reader.readuntil(b"\r\n\r\n"))).decode()
        length = re.search("content-length: ([0-9]+)", head, re.IGNORECASE)
        body = await in_time(reader.readexactly(int(length[1])) if length else reader.read())
        return head + body.decode()


def responds(response: bytes) -> Conversation:
    """Respond with these bytes, and close."""

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response)
        await writer.drain()

    return conversation


def grpc_echo(channel: grpc.aio.Channel) -> grpc.aio.UnaryUnaryMultiCallable:
    """Return a method of a gRPC backend."""
    return channel.unary_unary("/test.Echo/Echo")
