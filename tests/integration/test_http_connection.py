"""An HTTP connection never reconnects; each response belongs to its request, whatever the server sends."""

import asyncio
import socket

import pytest

from tests.support.raw_http_server import (
    HELLO,
    OK,
    OTHER,
    connection_to,
    get,
    raw_http_server,
    sends,
    sends_byte_by_byte,
)
from tests.support.waiting import wait_until
from transformer.upstream import http_connection
from transformer.upstream.http_connection import BadResponse, HttpConnection

# Requests


async def test_a_request_is_sent_unchanged():
    async with raw_http_server(HELLO) as server, connection_to(server) as connection:
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
    async with raw_http_server(HELLO) as server, connection_to(server) as connection:
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
        raw_http_server(OK + b"content-length: %d\r\n\r\n" % len(body) + body) as server,
        connection_to(server) as connection,
    ):
        assert await connection.request("POST", "/", {}, body) == (200, body)
    assert server.requests[0].endswith(b"\r\n\r\n" + body)


async def test_small_requests_do_not_wait_for_others():
    async with raw_http_server(HELLO) as server, connection_to(server) as connection:
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


@pytest.mark.parametrize("how", [sends, sends_byte_by_byte])
@pytest.mark.parametrize(("answer", "body"), ANSWERS)
async def test_responses_are_read_one_after_another(how, answer, body):
    async with raw_http_server(how(answer)) as server, connection_to(server) as connection:
        assert [await get(connection) for _ in range(3)] == [(200, body)] * 3
        assert not connection.closed
    assert server.connections == 1


@pytest.mark.parametrize("status", [204, 304, 307, 404, 503])
async def test_every_status_is_returned_and_no_redirect_is_followed(status):
    answer = b"HTTP/1.1 %d X\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n" % status
    async with raw_http_server(answer) as server, connection_to(server) as connection:
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


@pytest.mark.parametrize("how", [sends, sends_byte_by_byte])
@pytest.mark.parametrize(("answer", "hangs_up"), LAST_ANSWERS)
async def test_a_response_with_connection_close_closes_the_connection(how, answer, hangs_up):
    async with raw_http_server(how(answer, hangs_up=hangs_up)) as server, connection_to(server) as connection:
        assert await get(connection) == (200, b"hello")
        assert connection.closed
        with pytest.raises(ConnectionError):
            await get(connection)
        await asyncio.wait_for(server.left.wait(), 10)
    assert len(server.requests) == server.connections == 1


MALFORMED = [
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


@pytest.mark.parametrize("answer", MALFORMED)
async def test_a_malformed_response_is_an_error_and_closes_the_connection(answer):
    async with raw_http_server(answer) as server, connection_to(server) as connection:
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
    async with raw_http_server(sends(answer, hangs_up=True)) as server, connection_to(server) as connection:
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
    async with raw_http_server(frame(bytes(2**20))) as server, connection_to(server) as connection:
        with pytest.raises(BadResponse, match="limit 1048576 bytes, got more"):
            await get(connection)
        assert connection.closed
    async with (
        raw_http_server(FRAMES["known length"](bytes(2**20 - 100))) as server,
        connection_to(server) as connection,
    ):
        assert [await get(connection) for _ in range(2)] == [(200, bytes(2**20 - 100))] * 2


# Responses belong to their requests


@pytest.mark.parametrize("some", [b"", b"HTTP/1.1 100 Continue\r\n\r\n", HELLO[:-1]])
async def test_a_cancelled_call_closes_the_connection_so_that_its_response_reaches_no_other(some):
    on = asyncio.Event()

    async def turn(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(some)
        await on.wait()
        writer.write(HELLO)

    async with raw_http_server(turn) as server, connection_to(server) as connection:
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
    async with raw_http_server(HELLO + more) as server, connection_to(server) as connection:
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

    async with raw_http_server(turn) as server, connection_to(server) as connection:
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
    async with raw_http_server(HELLO) as server, connection_to(server) as connection:
        pending = asyncio.create_task(get(connection))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError):
            await get(connection)
        assert await pending == (200, b"hello")
        assert await get(connection) == (200, b"hello")


async def test_a_waiting_call_fails_when_the_connection_is_closed():
    """A partial response is an error, although a closed connection may end a response."""
    async with raw_http_server(OK + b"\r\nhello") as server, connection_to(server) as connection:
        pending = asyncio.create_task(get(connection))
        await wait_until(lambda: connection._body)
        connection.close()
        with pytest.raises(ConnectionError):
            await pending
        connection.close()
