"""The local ingress forwards responses unchanged, and while they arrive."""

import asyncio
import contextlib
import io

import pytest
from aiohttp import web

from tests.support.running_ingress import backend, in_time, raw_backend, responds, says, send_raw

# What reaches the client


@pytest.mark.parametrize("status", [200, 201, 204, 302, 304, 400, 404, 413, 500, 503])
async def test_status_headers_and_body_reach_the_client(status, running, client):
    async def handler(request: web.Request) -> web.Response:
        headers = [("x-model-version", "v3"), ("x-twice", "a"), ("x-twice", "b"), ("retry-after", "1")]
        headers += [("location", "/elsewhere"), ("etag", '"1"')]
        body = None if status in {204, 304} else b"\x1f\x8b not really gzip"
        return web.Response(status=status, reason="So It Is", body=body, headers=headers)

    async with (
        backend(handler) as running.backends.transformer,
        client.get(running.url, allow_redirects=False) as response,
    ):
        assert (response.status, response.reason) == (status, "So It Is")
        assert response.headers.getall("x-twice") == ["a", "b"]
        assert response.headers["x-model-version"] == "v3"
        assert response.headers["location"] == "/elsewhere"
        assert response.headers.getall("etag") == ['"1"']
        body = b"" if status in {204, 304} else b"\x1f\x8b not really gzip"
        assert await response.read() == body


async def test_the_client_gets_only_the_backends_headers(running):
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Custom: 1\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\n"
            b"Keep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nTrailer: X-T\r\nUpgrade: h2c\r\n\r\nok"
        )
        await writer.drain()

    async with raw_backend(conversation) as running.backends.transformer:
        reader, writer = await running.connect()
        with contextlib.closing(writer):
            writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
            head = await in_time(reader.readuntil(b"\r\n\r\n"))
            assert await in_time(reader.readexactly(2)) == b"ok"
    lines = head.decode().lower().split("\r\n")
    assert lines[0] == "http/1.1 200 ok"
    assert sorted(line for line in lines[1:] if line) == ["content-length: 2", "x-custom: 1"]


async def test_an_empty_response_gets_no_added_etag(running, client):
    async def handler(request: web.Request) -> web.Response:
        return web.Response()

    async with (
        backend(handler) as running.backends.transformer,
        client.get(running.url, headers={"if-none-match": "*"}) as response,
    ):
        assert (response.status, "etag" in response.headers) == (200, False)


async def test_a_head_request_gets_only_the_headers(running, client):
    async with backend(says("0123456789")) as running.backends.transformer:
        async with client.head(running.url) as response:
            assert (response.status, response.headers["content-length"]) == (200, "10")
            assert await response.read() == b""
        async with client.get(running.url) as response:
            assert await response.text() == "0123456789"


VALID = {
    "informational responses before": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
    ),
    "chunks": b"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
    "lines that end with LF": b"HTTP/1.1 200 OK\ncontent-length: 5\n\nhello",
    "no length": b"HTTP/1.1 200 OK\r\n\r\nhello",
}


@pytest.mark.parametrize("response", VALID.values(), ids=VALID)
async def test_every_framing_of_a_response_reaches_the_client(response, running, client):
    async with (
        raw_backend(responds(response)) as running.backends.transformer,
        client.get(running.url) as answer,
    ):
        assert (answer.status, await answer.read()) == (200, b"hello")
        assert "link" not in answer.headers


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
@pytest.mark.parametrize("framing", ["content-length: 5", "transfer-encoding: chunked"])
async def test_a_response_that_has_no_body_is_complete_with_its_head(
    method, status, framing, running, client
):
    head = f"HTTP/1.1 {status} Reason\r\n{framing}\r\n\r\n".encode()
    async with (
        raw_backend(responds(head)) as running.backends.transformer,
        client.request(method, running.url) as response,
    ):
        assert (response.status, await response.read()) == (status, b"")


async def test_a_connection_is_reused_for_many_requests(running):
    async with backend(says("ok")) as running.backends.transformer:
        reader, writer = await running.connect()
        with contextlib.closing(writer):
            for _ in range(3):
                writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
                head = await in_time(reader.readuntil(b"\r\n\r\n"))
                assert b"200 OK" in head
                assert await in_time(reader.readexactly(2)) == b"ok"


async def test_a_client_of_http_1_0_is_answered(running):
    async def chunked(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"in parts")
        return response

    async with backend(chunked) as running.backends.transformer:
        answer = await send_raw(running, "GET / HTTP/1.0\r\nhost: localhost\r\n\r\n")
    assert answer.endswith("\r\n\r\nin parts")


# Streaming


async def test_a_response_is_streamed_to_the_client(running, client):
    arrived = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await arrived.wait()
        await response.write(b"second")
        return response

    async with backend(handler) as running.backends.transformer, client.get(running.url) as response:
        assert await response.content.readexactly(5) == b"first"
        arrived.set()
        assert await response.read() == b"second"


async def test_headers_arrive_before_the_first_byte_of_the_body(running, client):
    arrived = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await arrived.wait()
        return response

    async with backend(handler) as running.backends.transformer, client.get(running.url) as response:
        assert response.status == 200
        arrived.set()
        assert await response.read() == b""


async def test_a_body_of_50_mb_is_not_held_in_memory(running, client):
    chunk, count = bytes(2**20), 50
    sent = received = most = 0
    first = asyncio.Event()

    async def body():
        nonlocal sent
        for number in range(count):
            if number == count // 2:
                # The backend has the first part before the rest is sent.
                await in_time(first.wait())
            sent += len(chunk)
            yield chunk

    async def handler(request: web.Request) -> web.Response:
        nonlocal received, most
        async for part in request.content.iter_any():
            first.set()
            most = max(most, sent - received)
            received += len(part)
            for _ in range(10):  # the sender is much faster
                await asyncio.sleep(0)
        return web.Response(text=str(received))

    async with backend(handler) as running.backends.transformer:
        headers = {"content-length": str(len(chunk) * count)}
        async with client.post(running.url, data=body(), headers=headers) as response:
            assert await response.text() == str(len(chunk) * count)
    # The buffers of the kernel and of the ingress.
    assert most < 24 * 2**20


async def test_an_early_response_reaches_a_client_that_is_still_sending(running):
    """The transformer refuses a body that is too large before it has read it."""

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig")
        await writer.drain()

    async with raw_backend(conversation) as running.backends.transformer:
        reader, writer = await running.connect()
        with contextlib.closing(writer):
            writer.write(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50000000\r\n\r\n")
            writer.write(bytes(1000))
            head = await in_time(reader.readuntil(b"\r\n\r\n"))
            assert head.startswith(b"HTTP/1.1 413 Too Large\r\n")
            assert await in_time(reader.readexactly(3)) == b"big"


async def test_an_early_response_is_kept_while_the_rest_of_the_body_arrives(running, client):
    """A client that reads only after it has sent all must not lose the answer to a reset connection."""

    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"error": "too large"}, status=413)

    async with backend(handler) as running.backends.transformer:
        for size in (10**5, 10**6, 10**7):
            async with client.post(running.url, data=io.BytesIO(bytes(size))) as response:
                assert (response.status, await response.json()) == (413, {"error": "too large"})
