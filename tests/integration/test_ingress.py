"""The local ingress forwards requests and responses, unchanged and while they arrive."""

import asyncio
import contextlib
import io
import json
import logging
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import grpc
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from inferenceservice.local.forwarder import Backend
from inferenceservice.local.ingress import Ingress, IngressError
from predictor.process import free_ports
from tests.support.endpoints import V1_PREDICT

SERVICE = "placement-default.example.com"
PREDICTOR = "placement-predictor-default.example.com"
TIMEOUT_S = 20
#: A port without a server: it refuses connections at once.
UNREACHABLE = "127.0.0.1:1"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
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


@pytest.fixture
async def front() -> AsyncIterator[RunningIngress]:
    front = RunningIngress()
    await front.ingress.start(front.port, front.grpc_port)
    try:
        yield front
    finally:
        await front.ingress.close()


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog):
    """Check that the ingress logs no warning and no error, whatever a client or a backend does."""
    caplog.set_level(logging.WARNING)
    yield
    assert [record.getMessage() for record in caplog.records] == []


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session:
        yield session


@contextlib.asynccontextmanager
async def backend(handler: Handler) -> AsyncIterator[str]:
    """Web server with one handler for all requests."""
    application = web.Application(client_max_size=2**30)
    application.router.add_route("*", "/{path:.*}", handler)
    async with TestServer(application) as server:
        yield f"127.0.0.1:{server.port}"


@contextlib.asynccontextmanager
async def raw_backend(conversation: Conversation) -> AsyncIterator[str]:
    """Server that reads and writes bytes itself."""
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


def saying(text: str) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=text)

    return handler


async def in_time(awaitable):
    return await asyncio.wait_for(awaitable, TIMEOUT_S)


# Where requests go


@pytest.mark.parametrize(
    ("host", "component"),
    [
        (SERVICE, "transformer"),
        (f"{SERVICE}:8080", "transformer"),
        (SERVICE.upper(), "transformer"),
        ("placement-transformer-default.example.com", "transformer"),
        (PREDICTOR, "predictor"),
        ("localhost", "transformer"),
        ("localhost:8080", "transformer"),
        ("127.0.0.1", "transformer"),
        ("127.0.0.1:8080", "transformer"),
        ("[::1]:8080", "transformer"),
    ],
)
async def test_the_host_header_chooses_the_component(host, component, front, client):
    async with backend(saying("transformer")) as transformer, backend(saying("predictor")) as predictor:
        front.backends.transformer, front.backends.predictor = transformer, predictor
        async with client.get(front.url, headers={"host": host}) as response:
            assert (response.status, await response.text()) == (200, component)


@pytest.mark.parametrize(
    "host", ["example.com", "salary-default.example.com", "placement-default.example.org", "127.0.0.2"]
)
async def test_an_unknown_host_is_not_found(host, front, client):
    async with backend(saying("transformer")) as front.backends.transformer:
        for body in (None, b"x" * 10**6):
            async with client.post(front.url, headers={"host": host}, data=body) as response:
                assert response.status == 404
                assert response.content_type == "application/json"
                assert await response.json() == {"error": f"no InferenceService has the host '{host}'"}


async def test_new_requests_follow_a_changed_backend(front, client):
    async with backend(saying("old")) as old, backend(saying("new")) as new:
        for front.backends.transformer, expected in ((old, "old"), (new, "new"), (old, "old")):
            async with client.get(front.url) as response:
                assert await response.text() == expected


# What reaches the backend


async def seen(request: web.Request) -> web.Response:
    """Respond with the request as the backend receives it."""
    body = await request.read()
    return web.json_response(
        {
            "method": request.method,
            "path": request.raw_path,
            "headers": [(name.lower(), value) for name, value in request.headers.items()],
            "body": body.decode(),
        }
    )


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_method_and_body_reach_the_backend(method, front, client):
    async with backend(seen) as front.backends.transformer:
        body = b"" if method == "GET" else b"a body"
        async with client.request(method, front.url, data=body or None) as response:
            request = await response.json()
    assert (request["method"], request["body"]) == (method, body.decode())


@pytest.mark.parametrize(
    "target",
    [
        "/",
        V1_PREDICT,
        "/a%2Fb%20c/%C3%A9?x=%26%3D&y=1+2&x=%2B",
        "//double//slashes",
        "/a/../b/./c",
        "/semi;colon,comma",
        "/?",
        "/?only=query",
        "/%7Etilde/~tilde",
    ],
)
async def test_the_path_reaches_the_backend_unchanged(target, front):
    async with backend(seen) as front.backends.transformer:
        answer = await exchange(
            front, f"GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        )
    assert json.loads(answer.partition("\r\n\r\n")[2])["path"] == target


@pytest.mark.parametrize("target", ["http://127.0.0.1:1/", "@127.0.0.1:1/", ":1/", "*"])
async def test_no_request_line_reaches_another_host(target, front):
    async with backend(seen) as front.backends.transformer:
        answer = await exchange(front, f"OPTIONS {target} HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert answer.startswith("HTTP/1.1 400 ")


async def exchange(front: RunningIngress, request: str) -> str:
    reader, writer = await front.connect()
    with contextlib.closing(writer):
        writer.write(request.encode())
        head = (await in_time(reader.readuntil(b"\r\n\r\n"))).decode()
        length = re.search("content-length: ([0-9]+)", head, re.IGNORECASE)
        body = await in_time(reader.readexactly(int(length[1])) if length else reader.read())
        return head + body.decode()


async def test_only_end_to_end_headers_reach_the_backend(front):
    request = (
        "POST /x HTTP/1.1\r\nHost: localhost:8080\r\nContent-Length: 2\r\nContent-Type: application/json\r\n"
        "Authorization: Bearer x\r\nX-Request-Id: 7\r\nX-Twice: a\r\nX-Twice: b\r\nX-Empty:\r\n"
        "Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\n"
        "Proxy-Authorization: Basic x\r\nProxy-Connection: close\r\nUpgrade: h2c\r\n\r\n{}"
    )
    async with backend(seen) as front.backends.transformer:
        answer = await exchange(front, request)
    assert sorted(json.loads(answer.partition("\r\n\r\n")[2])["headers"]) == [
        ["authorization", "Bearer x"],
        # Added by the ingress: it opens one connection to a backend per request.
        ["connection", "close"],
        ["content-length", "2"],
        ["content-type", "application/json"],
        ["host", "localhost:8080"],
        ["x-empty", ""],
        ["x-request-id", "7"],
        ["x-twice", "a"],
        ["x-twice", "b"],
    ]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "GET"])
async def test_a_chunked_body_stays_chunked(method, front, client):
    async def chunks():
        yield b"one "
        yield b"two"

    async with (
        backend(seen) as front.backends.transformer,
        client.request(method, front.url, data=chunks()) as response,
    ):
        request = await response.json()
    assert request["body"] == "one two"
    assert request["headers"].count(["transfer-encoding", "chunked"]) == 1


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "GET", "HEAD"])
async def test_a_request_without_a_body_has_no_content_length(method, front):
    received: list[str] = []

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append((await reader.readuntil(b"\r\n\r\n")).decode().lower())
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        received.append((await reader.read()).decode())

    async with raw_backend(conversation) as front.backends.transformer:
        await exchange(front, f"{method} /x HTTP/1.1\r\nhost: localhost\r\n\r\n")
    head, rest = received
    assert rest == ""
    assert "transfer-encoding" not in head
    assert re.findall("content-length: (.*)\r", head) in ([], ["0"])


async def test_a_connection_option_cannot_remove_the_length_of_the_body(front):
    request = (
        "POST /x HTTP/1.1\r\nHost: localhost\r\nConnection: close, Content-Length\r\n"
        "Content-Length: 2\r\n\r\n{}"
    )
    async with backend(seen) as front.backends.transformer:
        answer = await exchange(front, request)
    assert json.loads(answer.partition("\r\n\r\n")[2])["body"] == "{}"


async def test_a_repeated_content_length_is_sent_once(front):
    request = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}"
    async with backend(seen) as front.backends.transformer:
        answer = await exchange(front, request)
    assert json.loads(answer.partition("\r\n\r\n")[2])["body"] == "{}"


async def test_bytes_of_a_path_that_are_not_ascii_are_escaped(front):
    async with backend(seen) as front.backends.transformer:
        answer = await exchange(
            front, "GET /\u00e9?\u00e9=%C3 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        )
    assert json.loads(answer.partition("\r\n\r\n")[2])["path"] == "/%C3%A9?%C3%A9=%C3"


async def test_cookies_of_one_client_are_not_sent_for_another(front, client):
    async def handler(request: web.Request) -> web.Response:
        response = web.json_response(dict(request.cookies))
        response.set_cookie("session", "secret")
        return response

    async with backend(handler) as address:
        front.backends.transformer = address.replace("127.0.0.1", "localhost")
        for _ in range(2):
            async with aiohttp.ClientSession() as session, session.get(front.url) as response:
                assert await response.json() == {}
                assert "secret" in response.headers["set-cookie"]


async def test_a_client_that_waits_for_100_continue_need_not_wait_for_the_backend(front):
    """The backend here does not know `Expect`."""

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(4)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n" + body)
        await writer.drain()

    async with raw_backend(conversation) as front.backends.transformer:
        reader, writer = await front.connect()
        with contextlib.closing(writer):
            writer.write(
                b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4\r\nexpect: 100-continue\r\n\r\n"
            )
            assert (await in_time(reader.readuntil(b"\r\n\r\n"))).startswith(b"HTTP/1.1 100 ")
            writer.write(b"body")
            answer = await in_time(reader.readuntil(b"body"))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")


# What reaches the client


@pytest.mark.parametrize("status", [200, 201, 204, 302, 304, 400, 404, 413, 500, 503])
async def test_status_headers_and_body_reach_the_client(status, front, client):
    async def handler(request: web.Request) -> web.Response:
        headers = [("x-model-version", "v3"), ("x-twice", "a"), ("x-twice", "b"), ("retry-after", "1")]
        headers += [("location", "/elsewhere"), ("etag", '"1"')]
        body = None if status in {204, 304} else b"\x1f\x8b not really gzip"
        return web.Response(status=status, reason="So It Is", body=body, headers=headers)

    async with (
        backend(handler) as front.backends.transformer,
        client.get(front.url, allow_redirects=False) as response,
    ):
        assert (response.status, response.reason) == (status, "So It Is")
        assert response.headers.getall("x-twice") == ["a", "b"]
        assert response.headers["x-model-version"] == "v3"
        assert response.headers["location"] == "/elsewhere"
        assert response.headers.getall("etag") == ['"1"']
        body = b"" if status in {204, 304} else b"\x1f\x8b not really gzip"
        assert await response.read() == body


async def test_the_client_gets_only_the_backends_headers(front):
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Custom: 1\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\n"
            b"Keep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nTrailer: X-T\r\nUpgrade: h2c\r\n\r\nok"
        )
        await writer.drain()

    async with raw_backend(conversation) as front.backends.transformer:
        reader, writer = await front.connect()
        with contextlib.closing(writer):
            writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
            head = await in_time(reader.readuntil(b"\r\n\r\n"))
            assert await in_time(reader.readexactly(2)) == b"ok"
    lines = head.decode().lower().split("\r\n")
    assert lines[0] == "http/1.1 200 ok"
    assert sorted(line for line in lines[1:] if line) == ["content-length: 2", "x-custom: 1"]


async def test_an_empty_response_gets_no_added_etag(front, client):
    async def handler(request: web.Request) -> web.Response:
        return web.Response()

    async with (
        backend(handler) as front.backends.transformer,
        client.get(front.url, headers={"if-none-match": "*"}) as response,
    ):
        assert (response.status, "etag" in response.headers) == (200, False)


async def test_a_head_request_gets_only_the_headers(front, client):
    async with backend(saying("0123456789")) as front.backends.transformer:
        async with client.head(front.url) as response:
            assert (response.status, response.headers["content-length"]) == (200, "10")
            assert await response.read() == b""
        async with client.get(front.url) as response:
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
async def test_every_framing_of_a_response_reaches_the_client(response, front, client):
    async with (
        raw_backend(responding(response)) as front.backends.transformer,
        client.get(front.url) as answer,
    ):
        assert (answer.status, await answer.read()) == (200, b"hello")
        assert "link" not in answer.headers


def responding(response: bytes) -> Conversation:
    """Respond with these bytes, and close."""

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response)
        await writer.drain()

    return conversation


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
@pytest.mark.parametrize("framing", ["content-length: 5", "transfer-encoding: chunked"])
async def test_a_response_that_has_no_body_is_complete_with_its_head(method, status, framing, front, client):
    head = f"HTTP/1.1 {status} Reason\r\n{framing}\r\n\r\n".encode()
    async with (
        raw_backend(responding(head)) as front.backends.transformer,
        client.request(method, front.url) as response,
    ):
        assert (response.status, await response.read()) == (status, b"")


async def test_a_connection_is_reused_for_many_requests(front):
    async with backend(saying("ok")) as front.backends.transformer:
        reader, writer = await front.connect()
        with contextlib.closing(writer):
            for _ in range(3):
                writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
                head = await in_time(reader.readuntil(b"\r\n\r\n"))
                assert b"200 OK" in head
                assert await in_time(reader.readexactly(2)) == b"ok"


async def test_a_client_of_http_1_0_is_answered(front):
    async def chunked(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"in parts")
        return response

    async with backend(chunked) as front.backends.transformer:
        answer = await exchange(front, "GET / HTTP/1.0\r\nhost: localhost\r\n\r\n")
    assert answer.endswith("\r\n\r\nin parts")


# Streaming


async def test_a_response_is_streamed_to_the_client(front, client):
    arrived = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await arrived.wait()
        await response.write(b"second")
        return response

    async with backend(handler) as front.backends.transformer, client.get(front.url) as response:
        assert await response.content.readexactly(5) == b"first"
        arrived.set()
        assert await response.read() == b"second"


async def test_headers_arrive_before_the_first_byte_of_the_body(front, client):
    arrived = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await arrived.wait()
        return response

    async with backend(handler) as front.backends.transformer, client.get(front.url) as response:
        assert response.status == 200
        arrived.set()
        assert await response.read() == b""


async def test_a_body_of_50_mb_is_not_held_in_memory(front, client):
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

    async with backend(handler) as front.backends.transformer:
        headers = {"content-length": str(len(chunk) * count)}
        async with client.post(front.url, data=body(), headers=headers) as response:
            assert await response.text() == str(len(chunk) * count)
    # The buffers of the kernel and of the ingress.
    assert most < 24 * 2**20


async def test_an_early_response_reaches_a_client_that_is_still_sending(front):
    """The transformer refuses a body that is too large before it has read it."""

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig")
        await writer.drain()

    async with raw_backend(conversation) as front.backends.transformer:
        reader, writer = await front.connect()
        with contextlib.closing(writer):
            writer.write(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50000000\r\n\r\n")
            writer.write(bytes(1000))
            head = await in_time(reader.readuntil(b"\r\n\r\n"))
            assert head.startswith(b"HTTP/1.1 413 Too Large\r\n")
            assert await in_time(reader.readexactly(3)) == b"big"


async def test_an_early_response_is_kept_while_the_rest_of_the_body_arrives(front, client):
    """A client that reads only after it has sent all must not lose the answer to a reset connection."""

    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"error": "too large"}, status=413)

    async with backend(handler) as front.backends.transformer:
        for size in (10**5, 10**6, 10**7):
            async with client.post(front.url, data=io.BytesIO(bytes(size))) as response:
                assert (response.status, await response.json()) == (413, {"error": "too large"})


# Backends that fail


async def test_a_backend_that_is_down_gives_503_with_retry_after(front, client):
    for body in (None, bytes(10**6)):
        async with client.post(front.url, data=body) as response:
            assert (response.status, response.headers["retry-after"]) == (503, "1")
            assert await response.json() == {"error": "the service cannot be reached"}
    async with client.head(front.url) as response:
        assert (response.status, response.headers["retry-after"]) == (503, "1")


async def test_a_starting_service_gives_503(front, client):
    front.ingress.transformer = front.ingress.transformer_grpc.backends = ()
    async with client.get(front.url) as response:
        assert (response.status, response.headers["retry-after"]) == (503, "1")
    async with grpc.aio.insecure_channel(front.grpc_address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await echo(channel)(b"hello", timeout=TIMEOUT_S)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_backend_that_hangs_up_gives_503_with_retry_after(front, client):
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    async with (
        raw_backend(conversation) as front.backends.transformer,
        client.post(front.url, data=b"x") as response,
    ):
        assert (response.status, response.headers["retry-after"]) == (503, "1")


@pytest.mark.parametrize("framing", ["content-length: 100", "transfer-encoding: chunked"])
async def test_a_response_that_breaks_off_breaks_off_for_the_client_too(framing, front, client):
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n5\r\nshort\r\n".encode())
        await writer.drain()

    async with (
        raw_backend(conversation) as front.backends.transformer,
        client.get(front.url) as response,
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
async def test_a_response_that_is_not_http_gives_503(response, front, client):
    async with raw_backend(responding(response)) as front.backends.transformer:
        for method in ("GET", "POST"):
            async with client.request(method, front.url) as answer:
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
async def test_a_body_that_is_not_http_breaks_off(response, front, client):
    async with (
        raw_backend(responding(response)) as front.backends.transformer,
        client.get(front.url) as answer,
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
async def test_a_client_that_disconnects_ends_the_backends_request(request_, front, client):
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

    async with raw_backend(conversation) as front.backends.transformer:
        reader, writer = await front.connect()
        writer.write(request_)
        await in_time(begun.wait())
        if b"/stream" in request_:
            await in_time(reader.readuntil(b"first"))
        writer.close()
        await in_time(left.wait())
    async with backend(saying("ok")) as front.backends.transformer, client.get(front.url) as response:
        assert response.status == 200


# gRPC


def echo(channel: grpc.aio.Channel) -> grpc.aio.UnaryUnaryMultiCallable:
    return channel.unary_unary("/test.Echo/Echo")


@contextlib.asynccontextmanager
async def grpc_backend(behaviour) -> AsyncIterator[str]:
    handlers = {"Echo": grpc.unary_unary_rpc_method_handler(behaviour)}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def test_grpc_calls_metadata_and_status_pass_through(front):
    async def behaviour(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        metadata = dict(context.invocation_metadata())
        context.set_trailing_metadata([("x-model-version", "v3")])
        if request == b"bad":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "is bad")
        return metadata["x-request-id"].encode() + request

    async with grpc_backend(behaviour) as front.backends.transformer_grpc:
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(front.grpc_address, options) as channel:
            call = echo(channel)(b"hello", metadata=[("x-request-id", "7")], timeout=TIMEOUT_S)
            assert await call == b"7hello"
            assert dict(await call.trailing_metadata()) == {"x-model-version": "v3"}
            large = bytes(3 * 2**20)
            assert await echo(channel)(large, metadata=[("x-request-id", "7")]) == b"7" + large
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await echo(channel)(b"bad", metadata=[("x-request-id", "7")])
    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "is bad")


async def test_a_cancelled_grpc_call_is_cancelled_at_the_backend(front):
    begun, left = asyncio.Event(), asyncio.Event()

    async def behaviour(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        return b""

    async with (
        grpc_backend(behaviour) as front.backends.transformer_grpc,
        grpc.aio.insecure_channel(front.grpc_address) as channel,
    ):
        call = echo(channel)(b"")
        await in_time(begun.wait())
        call.cancel()
        await in_time(left.wait())


async def test_a_grpc_backend_that_is_down_is_unavailable(front):
    async with grpc.aio.insecure_channel(front.grpc_address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await echo(channel)(b"hello", timeout=TIMEOUT_S)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_backend_that_stops_ends_its_grpc_connections(front):
    """The client then reconnects, to the current backend."""

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        await writer.drain()

    async with raw_backend(conversation) as front.backends.transformer_grpc:
        reader, writer = await asyncio.open_connection("127.0.0.1", front.grpc_port)
        with contextlib.closing(writer):
            assert await in_time(reader.read()) == b"bye"


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


async def test_only_this_machine_can_connect(front):
    listening = {sock.getsockname()[0] for sock in front.ingress.transformer_grpc._server.sockets}
    assert listening == {"127.0.0.1"}
    for port in (front.port, front.grpc_port):
        with socket.socket() as other:
            other.bind(("127.0.0.2", port))  # free because no server listens on all addresses


async def test_closing_ends_open_requests_and_frees_the_ports(front):
    begun = asyncio.Event()

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun.set()
        await reader.read()

    async with raw_backend(conversation) as address:
        front.backends.transformer = front.backends.transformer_grpc = address
        for port in (front.port, front.grpc_port):
            begun.clear()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.closing(writer):
                writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
                await in_time(begun.wait())
                await in_time(front.ingress.close())
                assert await in_time(reader.read()) == b""
            again = Ingress("placement", "default")
            await again.start(front.port, front.grpc_port)
            front.ingress, front.backends = again, Backends(again)
            front.backends.transformer = front.backends.transformer_grpc = address


@pytest.mark.parametrize("side", ["request", "response"])
async def test_closing_does_not_wait_for_a_client_that_does_not_read(side, front):
    begun = asyncio.Event()

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if side == "response":
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 50000000\r\n\r\n" + bytes(5 * 10**7))
        begun.set()
        await asyncio.Event().wait()

    async with raw_backend(conversation) as front.backends.transformer:
        _, writer = await front.connect()
        with contextlib.closing(writer):
            writer.write(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50000000\r\n\r\n")
            if side == "request":
                writer.write(bytes(5 * 10**7))
            await in_time(begun.wait())
            await asyncio.sleep(0.1)  # until the buffers are full
            await in_time(front.ingress.close())
