"""An HTTP connection never reconnects; each response belongs to its request, whatever the server sends."""

import asyncio
import contextlib
import datetime
import inspect
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.waiting import wait_until
from transformer.errors import InvalidPredictorResponse, PredictorUnavailable
from transformer.upstream import http_connection
from transformer.upstream.client import PredictorAddress, Reconnected, RestClient, connect
from transformer.upstream.http_connection import BadResponse, HttpConnection

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"content-length: 5\r\n\r\nhello"
OTHER = OK + b"content-length: 5\r\n\r\nother"

#: The action of a server after a request: it gets the number of the request and the writer.
Turn = Callable[[int, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """A server that reads requests and runs an action after each.

    Attributes
    ----------
    requests
        Requests with their bodies.
    connections
        Number of connections.
    left
        Set when a client has closed a connection.
    """

    def __init__(self, turn: Turn) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self.left = asyncio.Event()
        self.port = 0
        self._turn = turn
        self._writers: list[asyncio.StreamWriter] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while head := await self._head(reader):
                (length,) = [
                    int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"content-length: ")
                ] or [0]
                self.requests.append(head + await reader.readexactly(length))
                await self._turn(len(self.requests), writer)
        self.left.set()
        writer.close()

    async def _head(self, reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""

    def hang_up(self) -> None:
        for writer in self._writers:
            writer.close()


@contextlib.asynccontextmanager
async def served(
    turn: Turn | bytes, *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    """Run a server with one action, or with the same bytes, for each request."""
    server = Server(sends(turn) if isinstance(turn, bytes) else turn)
    listening = await asyncio.start_server(server.handle, host, port, ssl=tls)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        server.hang_up()


def sends(*answers: bytes, hangs_up: bool = False) -> Turn:
    """Return an action that sends the responses in order, and then repeats the last one."""

    async def turn(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(answers[min(number, len(answers)) - 1])
        if hangs_up:
            writer.close()

    return turn


def says_byte_by_byte(answer: bytes, *, hangs_up: bool = False) -> Turn:
    async def turn(number: int, writer: asyncio.StreamWriter) -> None:
        for byte in answer:
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        if hangs_up:
            writer.close()

    return turn


@contextlib.asynccontextmanager
async def connected(server: Server, *how: Any) -> AsyncIterator[HttpConnection]:
    connection = await HttpConnection.open("127.0.0.1", server.port, *how)
    try:
        yield connection
    finally:
        connection.close()


async def get(connection: HttpConnection) -> tuple[int, bytes]:
    async with asyncio.timeout(10):
        return await connection.request("GET", "/", {})


# Requests


async def test_a_request_is_sent_unchanged():
    async with served(HELLO) as server, connected(server) as connection:
        await connection.request("GET", "/v2/health/live", {})
        headers = {"content-type": "application/json", "X-Request-ID": "\xe9\t7", "x-b3-flags": ""}
        await connection.request("POST", "/v1/models/a:predict", headers, b'{"instances": []}')
        await connection.request("POST", "/", {}, b"")
        host = f"host: 127.0.0.1:{server.port}\r\naccept-encoding: identity\r\n".encode()
    assert server.requests == [
        b"GET /v2/health/live HTTP/1.1\r\n" + host + b"\r\n",
        b"POST /v1/models/a:predict HTTP/1.1\r\n"
        + host
        + b"content-type: application/json\r\nX-Request-ID: \xe9\t7\r\nx-b3-flags: \r\n"
        + b'content-length: 17\r\n\r\n{"instances": []}',
        b"POST / HTTP/1.1\r\n" + host + b"content-length: 0\r\n\r\n",
    ]
    assert server.connections == 1


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"x-request-id": "7\r\nx-admin: 1"}, id="CR LF"),
        pytest.param({"x-request-id": "7\nx-admin: 1"}, id="LF"),
        pytest.param({"x-request-id": "7\r"}, id="CR at the end"),
        pytest.param({"x-request-id": "7\n"}, id="LF at the end"),
        pytest.param({"x-request-id": "7\0"}, id="NUL"),
        pytest.param({"x-request-id": "\u20ac"}, id="no byte"),
        pytest.param({"x-b3-a\r\nx-admin": "1"}, id="CR LF in a name"),
        pytest.param({"x-b3-a\n": "1"}, id="LF at the end of a name"),
        pytest.param({"x-b3-a: 1": "1"}, id="colon in a name"),
        pytest.param({"x-b3-\xe9": "1"}, id="letter in a name"),
        pytest.param({"": "1"}, id="no name"),
    ],
)
async def test_a_header_with_invalid_characters_is_not_sent(headers):
    async with served(HELLO) as server, connected(server) as connection:
        with pytest.raises(ValueError, match="invalid characters"):
            await connection.request("POST", "/", headers, b"{}")
        assert server.requests == []
        assert await get(connection) == (200, b"hello")
    assert len(server.requests) == server.connections == 1


@pytest.mark.parametrize(
    ("name", "port", "default_port", "header"),
    [
        ("predictor.default.svc", 80, 80, "predictor.default.svc"),
        ("predictor.default.svc", 443, 443, "predictor.default.svc"),
        ("predictor.default.svc", 80, 443, "predictor.default.svc:80"),
        ("predictor.default.svc", 8080, 80, "predictor.default.svc:8080"),
        ("::1", 8080, 80, "[::1]:8080"),
        ("::1", 80, 80, "[::1]"),
    ],
)
def test_the_host_header_has_the_port_unless_it_is_the_default(name, port, default_port, header):
    assert http_connection._host_header(name, port, default_port) == header


async def test_large_requests_and_responses_arrive_complete():
    body = bytes(range(256)) * 2**15
    async with (
        served(OK + b"content-length: %d\r\n\r\n" % len(body) + body) as server,
        connected(server) as connection,
    ):
        assert await connection.request("POST", "/", {}, body) == (200, body)
    assert server.requests[0].endswith(b"\r\n\r\n" + body)


async def test_small_requests_do_not_wait_for_others():
    async with served(HELLO) as server, connected(server) as connection:
        raw = connection._transport.get_extra_info("socket")
        assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# Responses

ANSWERS = [
    pytest.param(HELLO, b"hello", id="known length"),
    pytest.param(OK + b"Content-Length: 0\r\n\r\n", b"", id="nothing"),
    pytest.param(
        OK + b"Transfer-Encoding: Chunked\r\n\r\n3\r\nhel\r\n2;a=b\r\nlo\r\n0\r\nx-checksum: 7\r\n\r\n",
        b"hello",
        id="chunks",
    ),
    pytest.param(OK + b"content-encoding: identity\r\ncontent-length: 5\r\n\r\nhello", b"hello", id="plain"),
    pytest.param(
        OK + b"connection: upgrade\r\nupgrade: h2c\r\ncontent-length: 5\r\n\r\nhello",
        b"hello",
        id="an upgrade that nobody asked for",
    ),
    pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + HELLO, b"hello", id="100 first"),
    pytest.param(
        b"HTTP/1.1 102 Processing\r\na: b\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: <a>\r\n\r\n" + HELLO,
        b"hello",
        id="102 and 103 first",
    ),
    pytest.param(
        b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 5\r\n\r\nhello",
        b"hello",
        id="HTTP/1.0",
    ),
]


@pytest.mark.parametrize("how", [sends, says_byte_by_byte])
@pytest.mark.parametrize(("answer", "body"), ANSWERS)
async def test_responses_are_read_one_after_another(how, answer, body):
    async with served(how(answer)) as server, connected(server) as connection:
        assert [await get(connection) for _ in range(3)] == [(200, body)] * 3
        assert not connection.closed
    assert server.connections == 1


@pytest.mark.parametrize("status", [204, 304, 307, 404, 503])
async def test_every_status_is_returned_and_no_redirect_is_followed(status):
    answer = b"HTTP/1.1 %d X\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n" % status
    async with served(answer) as server, connected(server) as connection:
        assert [await get(connection) for _ in range(2)] == [(status, b"")] * 2
    assert len(server.requests) == 2


LAST_ANSWERS = [
    pytest.param(OK + b"connection: close\r\ncontent-length: 5\r\n\r\nhello", False, id="connection: close"),
    pytest.param(
        OK + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        False,
        id="chunks",
    ),
    pytest.param(b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello", False, id="HTTP/1.0"),
    pytest.param(OK + b"\r\nhello", True, id="until it closes"),
    pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"\r\nhello", True, id="100, and until it closes"),
    pytest.param(b"HTTP/1.0 200 OK\r\n\r\nhello", True, id="HTTP/1.0 until it closes"),
]


@pytest.mark.parametrize("how", [sends, says_byte_by_byte])
@pytest.mark.parametrize(("answer", "hangs_up"), LAST_ANSWERS)
async def test_a_response_with_connection_close_closes_the_connection(how, answer, hangs_up):
    async with served(how(answer, hangs_up=hangs_up)) as server, connected(server) as connection:
        assert await get(connection) == (200, b"hello")
        assert connection.closed
        with pytest.raises(ConnectionError):
            await get(connection)
        await asyncio.wait_for(server.left.wait(), 10)
    assert len(server.requests) == server.connections == 1


NONSENSE = [
    pytest.param(b"SSH-2.0-OpenSSH_9.2p1\r\n", id="another protocol"),
    pytest.param(b"\x15\x03\x01\x00\x02\x02F", id="TLS alert"),
    pytest.param(b"HTTP/1.1 OK\r\n\r\n", id="no status"),
    pytest.param(OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello", id="two lengths"),
    pytest.param(
        OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", id="length and chunks"
    ),
    pytest.param(OK + b"content-length: -5\r\n\r\n", id="negative length"),
    pytest.param(OK + b"transfer-encoding: chunked\r\n\r\nfive\r\nhello", id="no chunk"),
    pytest.param(OK + b"no header\r\n\r\n", id="no header"),
    pytest.param(
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
        id="another from now",
    ),
    pytest.param(OK + b"Content-Encoding: gzip\r\ncontent-length: 5\r\n\r\nhello", id="compressed"),
    pytest.param(OK + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", id="compressed on the way"),
    pytest.param(OK + b"a: " + b"b" * 100_000, id="a head without an end"),
    pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000, id="informational without an end"),
]


@pytest.mark.parametrize("answer", NONSENSE)
async def test_a_malformed_response_is_an_error_and_closes_the_connection(answer):
    async with served(answer) as server, connected(server) as connection:
        with pytest.raises(BadResponse):
            await get(connection)
        assert connection.closed
        await asyncio.wait_for(server.left.wait(), 10)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"HTTP/1.1 2", id="a part of the status"),
        pytest.param(OK + b"content-length: 5\r\n", id="a part of the head"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n", id="100 alone"),
        pytest.param(OK + b"Content-Length: 5\r\n\r\nhell", id="a part of the body"),
        pytest.param(OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", id="no last chunk"),
    ],
)
async def test_a_response_that_breaks_off_is_an_error(answer):
    async with served(sends(answer, hangs_up=True)) as server, connected(server) as connection:
        with pytest.raises(ConnectionError):
            await get(connection)
        assert connection.closed


FRAMES = {
    "known length": lambda body: OK + b"content-length: %d\r\n\r\n" % len(body) + body,
    "chunks": lambda body: OK + b"transfer-encoding: chunked\r\n\r\n%x\r\n" % len(body) + body,
    "until it closes": lambda body: OK + b"\r\n" + body,
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
async def test_a_response_that_is_too_large_is_not_read_to_its_end(frame, monkeypatch):
    monkeypatch.setattr(http_connection, "MAX_RESPONSE", 2**20)
    async with served(frame(bytes(2**20))) as server, connected(server) as connection:
        with pytest.raises(BadResponse, match="limit 1048576 bytes, got more"):
            await get(connection)
        assert connection.closed
    async with served(FRAMES["known length"](bytes(2**20 - 100))) as server, connected(server) as connection:
        assert [await get(connection) for _ in range(2)] == [(200, bytes(2**20 - 100))] * 2


# Responses belong to their requests


@pytest.mark.parametrize("some", [b"", b"HTTP/1.1 100 Continue\r\n\r\n", HELLO[:-1]])
async def test_a_cancelled_call_closes_the_connection_so_that_its_response_reaches_no_other(some):
    on = asyncio.Event()

    async def turn(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(some)
        await on.wait()
        writer.write(HELLO)

    async with served(turn) as server, connected(server) as connection:
        pending = asyncio.create_task(get(connection))
        await wait_until(lambda: server.requests)
        pending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pending
        assert connection.closed
        on.set()
        with pytest.raises(ConnectionError):
            await get(connection)
        await asyncio.wait_for(server.left.wait(), 10)
    assert len(server.requests) == server.connections == 1


async def test_a_timeout_while_sending_closes_the_connection():
    stuck = asyncio.Event()

    async def never_reads(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await stuck.wait()
        writer.close()

    listening = await asyncio.start_server(never_reads, "127.0.0.1", 0)
    connection = await HttpConnection.open("127.0.0.1", listening.sockets[0].getsockname()[1])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await connection.request("POST", "/", {}, bytes(2**26))
    assert connection.closed
    # At once, and not only after the rest was sent.
    await wait_until(lambda: connection._transport.get_write_buffer_size() == 0)
    stuck.set()
    listening.close()


@pytest.mark.parametrize("more", [OTHER, OTHER[:10], b"garbage", b"\0"])
async def test_bytes_after_a_response_close_the_connection(more):
    async with served(HELLO + more) as server, connected(server) as connection:
        assert await get(connection) == (200, b"hello")
        await wait_until(lambda: connection.closed)
        with pytest.raises(ConnectionError):
            await get(connection)


@pytest.mark.parametrize("more", [OTHER, b"HTTP/1.1 408 Request Timeout\r\n\r\n", b"\r\n"])
async def test_bytes_without_a_request_close_the_connection(more):
    later = asyncio.Event()

    async def turn(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO)
        await later.wait()
        writer.write(more)

    async with served(turn) as server, connected(server) as connection:
        assert await get(connection) == (200, b"hello")
        later.set()
        await wait_until(lambda: connection.closed)
        with pytest.raises(ConnectionError):
            await get(connection)
    assert len(server.requests) == server.connections == 1


async def test_bytes_before_the_first_request_close_the_connection():
    async def greets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO)
        await reader.read()
        writer.close()

    listening = await asyncio.start_server(greets, "127.0.0.1", 0)
    connection = await HttpConnection.open("127.0.0.1", listening.sockets[0].getsockname()[1])
    await wait_until(lambda: connection.closed)
    listening.close()


async def test_a_second_request_at_the_same_time_is_a_programming_error():
    async with served(HELLO) as server, connected(server) as connection:
        pending = asyncio.create_task(get(connection))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError):
            await get(connection)
        assert await pending == (200, b"hello")
        assert await get(connection) == (200, b"hello")


async def test_a_waiting_call_fails_when_the_connection_is_closed():
    """A partial response is an error, although a closed connection may end a response."""
    async with served(OK + b"\r\nhello") as server, connected(server) as connection:
        pending = asyncio.create_task(get(connection))
        await wait_until(lambda: connection._body)
        connection.close()
        with pytest.raises(ConnectionError):
            await pending
        connection.close()


# Addresses


async def test_a_missing_or_invalid_host_is_an_os_error():
    for host in ("127.0.0.1", "a..b"):
        with pytest.raises(OSError, match=r"(?i)connect|not a valid host name"):
            await HttpConnection.open(host, 1)


async def test_all_addresses_of_a_host_are_tried(monkeypatch):
    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.2", "127.0.0.3", "127.0.0.1"]

    monkeypatch.setattr(http_connection, "_addresses", resolve)
    async with served(HELLO) as server:
        connection = await HttpConnection.open("predictor", server.port)
        assert await get(connection) == (200, b"hello")
        connection.close()
    assert f"host: predictor:{server.port}\r\n".encode() in server.requests[0]


def test_the_first_address_is_chosen_at_random_within_the_preferred_ip_version():
    found = [(6, "::1"), (6, "::2"), (6, "::3"), (4, "10.0.0.1"), (4, "10.0.0.2")]
    tried = [http_connection._shuffled(found) for _ in range(200)]
    assert {addresses[0] for addresses in tried} == {"::1", "::2", "::3"}
    assert all(set(addresses[3:]) == {"10.0.0.1", "10.0.0.2"} for addresses in tried)


def make_certificate(directory: Path, *names: str) -> Path:
    """Create a self-signed certificate for names and loopback, in one file with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    alternatives = [
        *(x509.DNSName(name) for name in names),
        *([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))] if "localhost" in names else []),
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = directory / f"{names[0]}.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


def server_side(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"), "localhost")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_requests_over_tls_are_the_same(host, certificate, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    async with served(ANSWER_V2, tls=server_side(certificate)) as server:
        client = rest_client(f"{host}:{server.port}", use_ssl=True)
        for _ in range(3):
            assert await call(client) == GOOD
        await client.close()
        await asyncio.wait_for(server.left.wait(), 10)
    assert server.connections == 1
    assert f"host: {host}:{server.port}\r\n".encode() in server.requests[0]


async def test_tls_uses_the_host_name_as_server_name(certificate):
    sent = []
    context = server_side(certificate)
    context.sni_callback = lambda _, name, __: sent.append(name)
    ours = ssl.create_default_context(cafile=certificate)
    async with served(HELLO, tls=context) as server:
        connection = await HttpConnection.open("localhost", server.port, ours)
        assert await get(connection) == (200, b"hello")
        connection.close()
    assert sent == ["localhost"]


async def test_a_trailing_dot_of_a_host_name_is_used_only_for_resolution(certificate, monkeypatch):
    resolved = []

    async def resolve(host: str, port: int) -> list[str]:
        resolved.append(host)
        return ["127.0.0.1"]

    monkeypatch.setattr(http_connection, "_addresses", resolve)
    ours = ssl.create_default_context(cafile=certificate)
    async with served(HELLO, tls=server_side(certificate)) as server:
        connection = await HttpConnection.open("localhost.", server.port, ours)
        assert await get(connection) == (200, b"hello")
        connection.close()
    assert resolved == ["localhost."]
    assert f"host: localhost:{server.port}\r\n".encode() in server.requests[0]


async def test_a_server_that_hangs_up_over_tls_has_closed_the_connection(certificate):
    ours = ssl.create_default_context(cafile=certificate)
    async with (
        served(HELLO, tls=server_side(certificate)) as server,
        connected(server, ours) as connection,
    ):
        assert await get(connection) == (200, b"hello")
        server.hang_up()
        await wait_until(lambda: connection.closed)
        with pytest.raises(ConnectionError):
            await get(connection)
    async with (
        served(sends(HELLO[:-1], hangs_up=True), tls=server_side(certificate)) as server,
        connected(server, ours) as connection,
    ):
        with pytest.raises(ConnectionError):
            await get(connection)


@pytest.mark.parametrize("trusted", ["its authority", "another authority"])
async def test_a_certificate_of_another_host_is_refused(trusted, certificate, tmp_path, monkeypatch):
    others = make_certificate(tmp_path, "elsewhere")
    shown, known = (others, others) if trusted == "its authority" else (certificate, others)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(known))
    async with served(ANSWER_V2, tls=server_side(shown)) as server:
        client = rest_client(f"localhost:{server.port}", use_ssl=True)
        with pytest.raises(PredictorUnavailable):
            await call(client)
        await client.close()
    assert server.requests == []


# The predictor's client

GOOD = [[0.25, 0.75]]
BODY_V2 = b'{"outputs": [{"name": "predict_proba", "shape": [1, 2], "data": [0.25, 0.75]}]}'
ANSWER_V2 = OK + b"content-length: %d\r\n\r\n" % len(BODY_V2) + BODY_V2


def rest_client(host: str, *, reconnects: bool = False, name: str = "placement", **more: Any) -> RestClient:
    address = PredictorAddress(host, "v2", name, "predict_proba", **more)
    client = connect(address, reconnects=reconnects)
    assert isinstance(client, RestClient)
    return client


async def call(client: RestClient, headers: dict[str, str] | None = None) -> list[list[float]]:
    async with asyncio.timeout(10):
        return (await client.call(np.zeros((1, 3)), None, 2, headers or {})).tolist()


async def test_a_client_connects_at_its_first_call_and_never_reconnects():
    async with served(ANSWER_V2) as server:
        client = rest_client(f"127.0.0.1:{server.port}")
        await asyncio.sleep(0.01)
        assert server.connections == 0
        await client.ping()
        assert [await call(client) for _ in range(3)] == [GOOD] * 3
        server.hang_up()
        await asyncio.wait_for(server.left.wait(), 10)
        for _ in range(2):
            with pytest.raises(Reconnected):
                await call(client)
        with pytest.raises(Reconnected):
            await client.ping()
        await client.close()
    assert server.connections == 1
    assert server.requests[0].startswith(b"GET /v2/health/live HTTP/1.1\r\n")
    assert server.requests[1].startswith(b"POST /v2/models/placement/infer HTTP/1.1\r\n")


async def test_a_client_that_may_reconnect_does():
    async with served(ANSWER_V2) as server:
        client = rest_client(f"127.0.0.1:{server.port}", reconnects=True)
        for number in range(1, 4):
            assert await call(client) == GOOD
            assert server.connections == number
            server.left.clear()
            server.hang_up()
            await asyncio.wait_for(server.left.wait(), 10)
        await client.close()


@pytest.mark.parametrize("reconnects", [False, True])
async def test_a_call_that_breaks_off_is_not_resent(reconnects):
    async with served(sends(ANSWER_V2[:-1], hangs_up=True)) as server:
        client = rest_client(f"127.0.0.1:{server.port}", reconnects=reconnects)
        with pytest.raises(PredictorUnavailable, match=r"127\.0\.0\.1:\d+ cannot be reached") as raised:
            await call(client)
        assert not isinstance(raised.value, Reconnected)
        await client.close()
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("answer", "error_text"),
    [
        (b"garbage", "invalid response from the predictor: not HTTP"),
        (
            OK + b"content-encoding: gzip\r\n\r\n",
            "invalid response from the predictor: an encoding",
        ),
        (b"HTTP/1.1 307 X\r\nlocation: /\r\ncontent-length: 0\r\n\r\n", "answered with status 307"),
    ],
)
async def test_an_invalid_response_is_reported_as_the_predictors(answer, error_text):
    async with served(answer) as server:
        client = rest_client(f"127.0.0.1:{server.port}")
        with pytest.raises(InvalidPredictorResponse, match=error_text):
            await call(client)
        await client.close()


async def test_a_request_with_invalid_headers_fails_and_the_next_one_succeeds():
    async with served(ANSWER_V2) as server:
        client = rest_client(f"127.0.0.1:{server.port}")
        with pytest.raises(InvalidPredictorResponse, match="'x-request-id' has invalid characters"):
            await call(client, {"x-request-id": "1\r\nx-admin: 1"})
        assert await call(client, {"x-request-id": "1"}) == GOOD
        await client.close()
    assert len(server.requests) == server.connections == 1


async def test_the_models_name_is_quoted_in_the_path():
    async with served(ANSWER_V2) as server:
        client = rest_client(f"127.0.0.1:{server.port}", name="a b?c\r\nd")
        assert await call(client) == GOOD
        await client.close()
    assert server.requests[0].startswith(b"POST /v2/models/a%20b%3Fc%0D%0Ad/infer HTTP/1.1\r\n")


async def test_a_predictor_may_have_an_ipv6_address():
    try:
        async with served(ANSWER_V2, host="::1") as server:
            client = rest_client(f"[::1]:{server.port}")
            assert await call(client) == GOOD
            await client.close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    assert f"host: [::1]:{server.port}\r\n".encode() in server.requests[0]


@pytest.mark.parametrize("host", ["", ":8080", "predictor:http", "predictor:99999"])
def test_an_invalid_address_is_refused(host):
    with pytest.raises(ValueError, match=r"(?i)port"):
        rest_client(host)


def test_a_grpc_client_cannot_promise_never_to_reconnect():
    with pytest.raises(ValueError, match="every call must be verified"):
        connect(PredictorAddress("127.0.0.1:1", "grpc-v2", "placement", "predict_proba"), reconnects=False)


# uvloop


@pytest.mark.parametrize(
    "promise",
    [
        test_a_request_is_sent_unchanged,
        test_large_requests_and_responses_arrive_complete,
        test_small_requests_do_not_wait_for_others,
        test_a_timeout_while_sending_closes_the_connection,
        test_bytes_before_the_first_request_close_the_connection,
        test_a_second_request_at_the_same_time_is_a_programming_error,
        test_a_waiting_call_fails_when_the_connection_is_closed,
        test_a_missing_or_invalid_host_is_an_os_error,
        test_a_server_that_hangs_up_over_tls_has_closed_the_connection,
        test_tls_uses_the_host_name_as_server_name,
        test_a_client_connects_at_its_first_call_and_never_reconnects,
        test_a_client_that_may_reconnect_does,
    ],
)
def test_a_connection_behaves_the_same_on_uvloop(promise, certificate):
    needs_certificate = "certificate" in inspect.signature(promise).parameters
    uvloop.run(promise(certificate) if needs_certificate else promise())
