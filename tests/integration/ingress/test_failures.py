"""The local ingress with backends that fail, clients that disconnect, and ports that are in use."""

import asyncio
import contextlib
import socket

import aiohttp
import grpc
import pytest

from inferenceservice.local.ingress import Ingress, IngressError
from predictor.process import free_ports
from tests.support.running_ingress import (
    INGRESS_TIMEOUT_S,
    Backends,
    backend,
    grpc_echo,
    in_time,
    raw_backend,
    responds,
    says,
)

# Backends that fail


async def test_a_backend_that_is_down_gives_503_with_retry_after(running, client):
    for body in (None, bytes(10**6)):
        async with client.post(running.url, data=body) as response:
            assert (response.status, response.headers["retry-after"]) == (503, "1")
            assert await response.json() == {"error": "the service cannot be reached"}
    async with client.head(running.url) as response:
        assert (response.status, response.headers["retry-after"]) == (503, "1")


async def test_a_starting_service_gives_503(running, client):
    running.ingress.transformer = running.ingress.transformer_grpc.backends = ()
    async with client.get(running.url) as response:
        assert (response.status, response.headers["retry-after"]) == (503, "1")
    async with grpc.aio.insecure_channel(running.grpc_address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await grpc_echo(channel)(b"hello", timeout=INGRESS_TIMEOUT_S)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_backend_that_hangs_up_gives_503_with_retry_after(running, client):
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    async with (
        raw_backend(conversation) as running.backends.transformer,
        client.post(running.url, data=b"x") as response,
    ):
        assert (response.status, response.headers["retry-after"]) == (503, "1")


@pytest.mark.parametrize("framing", ["content-length: 100", "transfer-encoding: chunked"])
async def test_a_response_that_breaks_off_breaks_off_for_the_client_too(framing, running, client):
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n5\r\nshort\r\n".encode())
        await writer.drain()

    async with (
        raw_backend(conversation) as running.backends.transformer,
        client.get(running.url) as response,
    ):
        assert response.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


INVALID_HEAD = {
    "nothing": b"",
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "a head that breaks off": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n",
    "a head without end": b"HTTP/1.1 200 OK\r\nx: " + b"x" * 2**17,
    "a header without a name": b"HTTP/1.1 200 OK\r\n: value\r\n\r\n",
    "informational responses alone": b"HTTP/1.1 100 Continue\r\n\r\n" * 2,
    "a length that is no number": b"HTTP/1.1 200 OK\r\ncontent-length: five\r\n\r\nhello",
    "a negative length": b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nhello",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
}


@pytest.mark.parametrize("response", INVALID_HEAD.values(), ids=INVALID_HEAD)
async def test_a_response_that_is_not_http_gives_503(response, running, client):
    async with raw_backend(responds(response)) as running.backends.transformer:
        for method in ("GET", "POST"):
            async with client.request(method, running.url) as answer:
                assert (answer.status, answer.headers["retry-after"]) == (503, "1")


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
INVALID_BODY = {
    "a length and chunks": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "another encoding": b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nhello",
    "a chunk without a size": CHUNKED + b"hello\r\n0\r\n\r\n",
    "a chunk that breaks off": CHUNKED + b"5\r\nhell",
    "trailers": CHUNKED + b"5\r\nhello\r\n0\r\nx: 1\r\n\r\n",
}


@pytest.mark.parametrize("response", INVALID_BODY.values(), ids=INVALID_BODY)
async def test_a_body_that_is_not_http_breaks_off(response, running, client):
    async with (
        raw_backend(responds(response)) as running.backends.transformer,
        client.get(running.url) as answer,
    ):
        assert answer.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()


# Clients that leave


LEAVING = {
    "before its body is sent": b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\nhalf",
    "before the answer": b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4\r\n\r\nbody",
    "within the answer": b"GET /stream HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "without reading the answer": b"GET /endless HTTP/1.1\r\nhost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("request_", LEAVING.values(), ids=LEAVING)
async def test_a_client_that_disconnects_ends_the_backends_request(request_, running, client):
    begun, left = asyncio.Event(), asyncio.Event()

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"/stream" in head:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nfirst")
            await writer.drain()
        begun.set()
        with contextlib.suppress(ConnectionError):
            if b"/endless" in head:
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while b"/endless" in head:
                writer.write(bytes(2**16))
                await writer.drain()
            while await reader.read(100):
                pass
        left.set()

    async with raw_backend(conversation) as running.backends.transformer:
        reader, writer = await running.connect()
        writer.write(request_)
        await in_time(begun.wait())
        if b"/stream" in request_:
            await in_time(reader.readuntil(b"first"))
        writer.close()
        await in_time(left.wait())
    async with backend(says("ok")) as running.backends.transformer, client.get(running.url) as response:
        assert response.status == 200


# Start and end


@pytest.mark.parametrize("option", ["--port", "--grpc-port"])
async def test_the_error_for_a_port_in_use_names_the_option(option):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        ports = (number, *free_ports(1)) if option == "--port" else (*free_ports(1), number)
        ingress = Ingress("placement", "default")
        with pytest.raises(IngressError) as raised:
            await ingress.start(*ports)
        await ingress.close()
    assert str(raised.value) == f"port {number} is in use; free it, or choose another with {option}"


@pytest.mark.parametrize("port", [-1, 65536, 10**9])
async def test_the_error_for_an_invalid_port_names_it(port):
    ingress = Ingress("placement", "default")
    for option, ports in (("--port", (port, *free_ports(1))), ("--grpc-port", (*free_ports(1), port))):
        with pytest.raises(IngressError, match=f"^port {port}: .*; choose another with {option}$"):
            await ingress.start(*ports)
        await ingress.close()


async def test_only_this_machine_can_connect(running):
    listening = {sock.getsockname()[0] for sock in running.ingress.transformer_grpc._server.sockets}
    assert listening == {"127.0.0.1"}
    for port in (running.port, running.grpc_port):
        with socket.socket() as other:
            other.bind(("127.0.0.2", port))  # free because no server listens on all addresses


async def test_closing_ends_open_requests_and_frees_the_ports(running):
    begun = asyncio.Event()

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun.set()
        await reader.read()

    async with raw_backend(conversation) as address:
        running.backends.transformer = running.backends.transformer_grpc = address
        for port in (running.port, running.grpc_port):
            begun.clear()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.closing(writer):
                writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
                await in_time(begun.wait())
                await in_time(running.ingress.close())
                assert await in_time(reader.read()) == b""
            again = Ingress("placement", "default")
            await again.start(running.port, running.grpc_port)
            running.ingress, running.backends = again, Backends(again)
            running.backends.transformer = running.backends.transformer_grpc = address


@pytest.mark.parametrize("side", ["request", "response"])
async def test_closing_does_not_wait_for_a_client_that_does_not_read(side, running):
    begun = asyncio.Event()

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if side == "response":
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 50000000\r\n\r\n" + bytes(5 * 10**7))
        begun.set()
        await asyncio.Event().wait()

    async with raw_backend(conversation) as running.backends.transformer:
        _, writer = await running.connect()
        with contextlib.closing(writer):
            writer.write(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50000000\r\n\r\n")
            if side == "request":
                writer.write(bytes(5 * 10**7))
            await in_time(begun.wait())
            await asyncio.sleep(0.1)  # until the buffers are full
            await in_time(running.ingress.close())
