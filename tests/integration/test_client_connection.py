"""A client's connection: responses in order and in one write, and limits on size and time of requests."""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvicorn import Config, Server
from uvicorn.server import ServerState

from tests.support.raw_http import parse_responses
from tests.support.waiting import wait_until
from transformer.server import unread_responses
from transformer.server.client_connection import CONNECTION, MAX_HEAD, ClientConnection
from transformer.server.client_limit import MAX_PIPELINED, ClientLimit
from transformer.server.client_timeouts import ClientTimeouts
from transformer.server.client_transport import CoalescingTransport
from transformer.server.descriptors import ClientLimits
from transformer.server.unfinished_bodies import BUDGET_IN_MAX_BODIES, UnfinishedBodies

#: More bytes than the socket buffers between a client and a server hold.
LARGE = 64 * 2**20
#: A limit on connections that few tests reach.
LIMITS = ClientLimits(rest=1000, refused=10, grpc=0)
#: Maximum bytes of a body.
MAX_BODY = 1000
#: A timeout in seconds that no client reaches.
LONG = 60.0
HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"


class Recorder:
    """A transport that records what it is told to do."""

    def __init__(self) -> None:
        self.done: list[bytes | str] = []

    def write(self, data: bytes) -> None:
        self.done.append(data)

    def close(self) -> None:
        self.done.append("closed")

    def is_closing(self) -> bool:
        return "closed" in self.done


@pytest.fixture
async def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def transport(recorder) -> CoalescingTransport:
    return CoalescingTransport(recorder, asyncio.get_running_loop())


async def _never(served):
    served.began.set()
    await asyncio.sleep(60)


async def _answer(scope, receive, send):
    """Respond in two pieces; the path can ask for a pause."""
    path = scope["path"]
    if path == "/long":
        served = scope["state"]["served"]
        try:
            await scope["extensions"][CONNECTION].needed(_never(served))
        except ConnectionResetError:
            served.given_up.set()
            return
    body = b"-" * LARGE if path == "/large" else path.encode()
    if path.startswith("/echo"):
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                scope["state"]["served"].given_up.set()
                return
            body += message["body"]
            more = message["more_body"]
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if "slow" in path:
        await asyncio.sleep(0.2)
    await send({"type": "http.response.body", "body": body})


@dataclass
class Served:
    """A server with our connections, and the events of a request for /long."""

    port: int = 0
    state: ServerState = field(default_factory=ServerState)
    timeouts: ClientTimeouts = field(default_factory=lambda: ClientTimeouts(LONG))
    limit: ClientLimit = field(default_factory=lambda: ClientLimit(LIMITS))
    unfinished: UnfinishedBodies = field(default_factory=lambda: UnfinishedBodies(MAX_BODY))
    began: asyncio.Event = field(default_factory=asyncio.Event)
    given_up: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def connections(self) -> list[ClientConnection]:
        return ours(self.state)


def ours(state: ServerState) -> list[ClientConnection]:
    return [connection for connection in state.connections if isinstance(connection, ClientConnection)]


@asynccontextmanager
async def running_server(
    timeout_s: float = LONG, limits: ClientLimits = LIMITS, **settings: Any
) -> AsyncIterator[Served]:
    config = Config(_answer, log_config=None, lifespan="off", **settings)
    config.load()
    served = Served(timeouts=ClientTimeouts(timeout_s), limit=ClientLimit(limits))
    server = await asyncio.get_running_loop().create_server(
        lambda: ClientConnection(
            config,
            served.state,
            {"served": served},
            timeouts=served.timeouts,
            limit=served.limit,
            unfinished=served.unfinished,
        ),
        "127.0.0.1",
        0,
    )
    async with server:
        served.port = server.sockets[0].getsockname()[1]
        yield served


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with running_server() as served:
        yield served


async def answers(port: int, requests: bytes) -> bytes:
    """Return all bytes until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(requests)
    try:
        return await asyncio.wait_for(reader.read(), 5)
    finally:
        writer.close()
        await writer.wait_closed()


def request_bytes(method: str, path: str, *, last: bool = False) -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\nhost: a\r\n{'connection: close' if last else 'a: b'}\r\n\r\n".encode()
    )


async def test_head_and_body_are_one_write(transport, recorder):
    transport.write(HEAD)
    transport.write(b"hello")
    await asyncio.sleep(0)
    assert recorder.done == [HEAD + b"hello"]


async def test_a_head_waits_for_its_body_at_most_one_turn_of_the_event_loop(transport, recorder):
    transport.write(HEAD)
    await asyncio.sleep(0)
    transport.write(b"hel")
    transport.write(b"lo")
    assert recorder.done == [HEAD, b"hel", b"lo"]


async def test_a_held_head_is_written_before_the_connection_closes(transport, recorder):
    transport.write(HEAD)
    transport.close()
    await asyncio.sleep(0)
    assert recorder.done == [HEAD, "closed"]
    assert transport.is_closing()


@pytest.mark.parametrize("path", ["/quick", "/slow"])
async def test_a_response_without_a_body_is_sent(served, path):
    content = await answers(served.port, request_bytes("HEAD", path, last=True))
    assert content.startswith(b"HTTP/1.1 200 OK\r\n")
    assert content.endswith(b"\r\n\r\n")


async def test_pipelined_requests_are_answered_in_order(served):
    requests = [("GET", "/1"), ("HEAD", "/2"), ("GET", "/slow/3"), ("HEAD", "/slow/4"), ("POST", "/5")]
    sent = b"".join(request_bytes(*request, last=request[1] == "/5") for request in requests)
    heads_and_bodies = (await answers(served.port, sent)).split(b"\r\n\r\n")
    bodies = [part.split(b"HTTP/1.1")[0] for part in heads_and_bodies[1:]]
    assert bodies == [b"/1", b"", b"/slow/3", b"", b"/5"]


async def test_a_request_is_cancelled_when_its_client_disconnects(served):
    _, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(request_bytes("GET", "/long"))
    await asyncio.wait_for(served.began.wait(), 5)
    assert not served.given_up.is_set()
    writer.close()
    await asyncio.wait_for(served.given_up.wait(), 5)
    assert (await answers(served.port, request_bytes("GET", "/1", last=True))).endswith(b"/1")


def error_of(answer: bytes) -> tuple[int, str]:
    """Return status and text of the error that ends a connection."""
    head, body = answer.split(b"\r\n\r\n")
    assert b"\r\nconnection: close" in head
    return int(head.split()[1]), json.loads(body)["error"]


# Many requests on one connection.

OFFER = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAAB\r\n"
WEBSOCKET = (
    b"connection: Upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
words = st.binary(max_size=30)


@st.composite
def requests(draw, number: int) -> tuple[bytes, tuple[int, bytes]]:
    """Draw a valid request and its response."""
    path = draw(st.sampled_from(["/quick", "/echo"])) + f"/{number}"
    head = b"POST %s HTTP/1.1\r\nHost: a\r\n%s" % (
        path.encode(),
        draw(st.sampled_from([b"", b"A: b\r\n", OFFER, WEBSOCKET])),
    )
    pieces = draw(st.lists(words, max_size=3))
    body = b"".join(pieces)
    if draw(st.booleans()):
        sent = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces if piece)
        trailer = draw(st.sampled_from([b"", b"T: 1\r\n"]))
        request = head + b"transfer-encoding: chunked\r\n\r\n" + sent + b"0\r\n" + trailer + b"\r\n"
    else:
        request = head + b"content-length: %d\r\n\r\n%s" % (len(body), body)
    blank = draw(st.sampled_from([b"", b"\r\n"]))
    return blank + request, (200, path.encode() + (body if path.startswith("/echo") else b""))


@st.composite
def pipelines(draw) -> tuple[list[bytes], list[tuple[int, bytes]]]:
    """Draw requests in fragments, and their responses."""
    made = [draw(requests(number)) for number in range(draw(st.integers(1, 5)))]
    sent = b"".join(request for request, _ in made) + request_bytes("GET", "/last", last=True)
    cuts = sorted({0, *draw(st.lists(st.integers(1, len(sent) - 1), max_size=12)), len(sent)})
    pieces = [sent[start:stop] for start, stop in itertools.pairwise(cuts)]
    return pieces, [*(answer for _, answer in made), (200, b"/last")]


async def answers_to_pieces(pieces: Iterable[bytes]) -> bytes:
    async with running_server() as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        while not served.connections:
            await asyncio.sleep(0)
        (connection,) = served.connections
        for piece in pieces:
            # A socket would join the fragments.
            connection.data_received(piece)
            await asyncio.sleep(0)
            while connection.flow.read_paused and not connection.transport.is_closing():
                await asyncio.sleep(0)
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        await writer.wait_closed()
        return answer


@given(pipelines())
def test_requests_in_any_fragments_are_answered_in_order(pipeline):
    pieces, expected = pipeline
    assert parse_responses(asyncio.run(answers_to_pieces(pieces))) == expected


@pytest.mark.parametrize("lengths", [b"content-length: 5\r\n\r\nhello", b"\r\n"], ids=["body", "none"])
async def test_an_upgrade_offer_does_not_lose_the_body(served, lengths, caplog):
    """By default, Java's client makes the offer with its first request."""
    body = lengths.split(b"\r\n\r\n")[-1] if b"hello" in lengths else b""
    offered = b"POST /echo HTTP/1.1\r\nhost: a\r\n" + OFFER + lengths
    answer = await answers(served.port, offered * 3 + request_bytes("GET", "/last", last=True))
    assert parse_responses(answer) == [(200, b"/echo" + body)] * 3 + [(200, b"/last")]
    assert not caplog.records


# Requests that are refused while they are read.

#: Beginning of a request, its endless part, and the status of the response.
ENDLESS = [
    pytest.param(b"", b"\r\n", 431, id="blank lines"),
    pytest.param(b"GET /", b"a", 414, id="path"),
    pytest.param(b"GET / HTTP/1.1\r\n", b"a: b\r\n", 431, id="headers"),
    pytest.param(b"GET / HTTP/1.1\r\n", b":\r\n", 400, id="headers without names"),
    pytest.param(b"GET / HTTP/1.1\r\n", b"a", 431, id="a header's name"),
    pytest.param(b"GET / HTTP/1.1\r\na: ", b"b", 431, id="a header's value"),
]
CHUNKED = b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
ENDLESS_BODY = [
    pytest.param(b"0", 431, id="size of a chunk"),
    pytest.param(b"1;" + b"a" * 99, 431, id="a chunk's extension"),
    pytest.param(b"1\r\na\r\n0\r\nT: ", 431, id="a trailer's value"),
    pytest.param(b"1\r\na\r\n0\r\nT", 431, id="a trailer's name"),
]


async def until_answered(port: int, start: bytes, endless: bytes) -> tuple[bytes, int]:
    """Send an endless part until the server closes; return the response and the number of bytes sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    reading = asyncio.create_task(reader.read())
    writer.write(start)
    piece = endless * (2**16 // len(endless))
    sent = 0
    with suppress(ConnectionError):
        while not reading.done():
            writer.write(piece)
            sent += len(piece)
            await writer.drain()
            await asyncio.sleep(0)
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    return await reading, sent


@pytest.mark.parametrize(("start", "endless", "status"), ENDLESS)
async def test_an_endless_head_is_refused_before_it_fills_the_memory(served, start, endless, status):
    answer, sent = await asyncio.wait_for(until_answered(served.port, start, endless), 10)
    assert error_of(answer)[0] == status
    assert sent < 16 * 2**20


@pytest.mark.parametrize(("endless", "status"), ENDLESS_BODY)
async def test_chunk_sizes_extensions_and_trailers_are_limited(served, endless, status, caplog):
    start, last = CHUNKED + endless[:-1], endless[-1:]
    answer, sent = await asyncio.wait_for(until_answered(served.port, start, last), 10)
    assert error_of(answer)[0] == status
    assert sent < 16 * 2**20
    await asyncio.wait_for(served.given_up.wait(), 5)
    assert not caplog.records


async def test_endless_trailers_are_refused(served):
    trailers = b"T: 1\r\n"
    answer, _ = await asyncio.wait_for(until_answered(served.port, CHUNKED + b"0\r\n", trailers), 10)
    assert error_of(answer)[0] == 431


async def test_trailers_are_not_added_to_the_headers(served):
    request = CHUNKED + b"1\r\na\r\n0\r\nAuthorization: x\r\n\r\n"
    _, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(request)
    while not (served.connections and served.connections[0].cycle):
        await asyncio.sleep(0)
    (connection,) = served.connections
    while not connection.cycle.response_complete:
        await asyncio.sleep(0)
    assert [name for name, _ in connection.cycle.scope["headers"]] == [b"host", b"transfer-encoding"]
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(("bytes_", "status"), [(MAX_HEAD - 500, 200), (MAX_HEAD + 1, 431)])
async def test_a_head_may_have_bytes_up_to_the_limit(served, bytes_, status):
    request = request_bytes("GET", "/1", last=True).replace(b"host: a", b"host: a\r\nlong: " + b"b" * bytes_)
    answer = await answers(served.port, request)
    assert parse_responses(answer)[0][0] == status


@pytest.mark.parametrize(("bytes_", "status"), [(MAX_HEAD - 500, 200), (MAX_HEAD + 1, 431)])
@pytest.mark.parametrize("cut", [0, 10, 500, MAX_HEAD - 500])
async def test_the_limit_of_a_head_does_not_depend_on_fragments(served, bytes_, status, cut):
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    while not served.connections:
        await asyncio.sleep(0)
    long = request_bytes("GET", "/2", last=True).replace(b"host: a", b"host: a\r\nlong: " + b"b" * bytes_)
    served.connections[0].data_received(request_bytes("GET", "/1") + long[:cut])
    served.connections[0].data_received(long[cut:])
    assert [status for status, _ in parse_responses(await asyncio.wait_for(reader.read(), 5))] == [
        200,
        status,
    ]
    writer.close()
    await writer.wait_closed()


async def test_an_error_response_follows_the_responses_of_earlier_requests(served):
    """Otherwise a client would take it for the response to an earlier request."""
    sent = (
        request_bytes("GET", "/slow/1")
        + request_bytes("GET", "/slow/2")
        + b"GET /3 HTTP/1.1\r\nno header\r\n\r\n"
    )
    found = parse_responses(await answers(served.port, sent))
    assert [status for status, _ in found] == [200, 200, 400]
    assert [body for _, body in found[:2]] == [b"/slow/1", b"/slow/2"]


async def test_an_error_in_a_body_follows_the_responses_of_earlier_requests(served):
    found = parse_responses(
        await answers(served.port, request_bytes("GET", "/slow/1") + CHUNKED + b"no size\r\n")
    )
    assert [status for status, _ in found] == [200, 400]


async def test_a_request_with_a_refused_body_is_cancelled_although_its_client_stays(served):
    _, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(CHUNKED)
    while not served.state.tasks:
        await asyncio.sleep(0)
    # The request waits for its body now.
    await asyncio.sleep(0.01)
    writer.write(b"no size\r\n")
    await asyncio.wait_for(served.given_up.wait(), 5)
    writer.close()
    await writer.wait_closed()


async def test_too_many_pipelined_requests_are_refused(served):
    for _ in range(2):
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        await wait_until(lambda: len(served.connections) == 1)
        served.connections[0].data_received(request_bytes("GET", "/1") * MAX_PIPELINED)
        found = parse_responses(await asyncio.wait_for(reader.read(), 10))
        assert [status for status, _ in found] == [200] * (MAX_PIPELINED // 2 + 1) + [429]
        writer.close()
        await writer.wait_closed()
        await wait_until(lambda: not served.connections)


async def test_pipelined_requests_of_all_connections_are_limited(served):
    """Those of closed connections do not count."""
    for _ in range(2):
        clients = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(20)]
        await wait_until(lambda: len(served.connections) == 20)
        for connection in served.connections:
            connection.data_received(
                request_bytes("GET", "/long") + request_bytes("GET", "/1") * MAX_PIPELINED
            )
        waiting = sorted(len(connection.pipeline) for connection in served.connections)
        assert sum(waiting) <= MAX_PIPELINED
        assert waiting[-1] == MAX_PIPELINED // 2
        for connection in served.connections:
            connection.transport.abort()
        await wait_until(lambda: not served.connections)
        for _, writer in clients:
            writer.close()


async def test_requests_are_not_read_faster_than_they_are_answered(served):
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    # Blank lines keep the number of requests per read below the limit.
    request = request_bytes("GET", "/1") + b"\r\n" * 200
    writer.write(request * 5_000 + request_bytes("GET", "/1", last=True))
    waited = 0
    reading = asyncio.create_task(reader.read())
    while not reading.done():
        waited = max([waited, *(len(connection.pipeline) for connection in served.connections)])
        await asyncio.sleep(0)
    found = parse_responses(reading.result())
    assert Counter(found) == {(200, b"/1"): 5_001}
    assert 1 < waited <= MAX_PIPELINED
    writer.close()
    await writer.wait_closed()


# Slow clients.


async def test_a_response_that_the_client_does_not_read_is_dropped():
    async with running_server(timeout_s=0.4) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=1024)
        writer.write(request_bytes("GET", "/large"))
        await wait_until(lambda: served.connections)
        await wait_until(lambda: not (served.connections or served.state.tasks))
        with suppress(ConnectionError):
            assert len(await reader.read()) < LARGE
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def test_a_response_that_the_client_reads_slowly_is_delivered():
    async with running_server(timeout_s=0.4) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=2**16)
        writer.write(request_bytes("GET", "/large", last=True))
        for _ in range(15):
            await reader.readexactly(LARGE // 16)
            await asyncio.sleep(0.1)
        rest = await reader.read()
        assert len(rest) > LARGE // 16
        assert rest.endswith(b"-")
        writer.close()
        await writer.wait_closed()


async def test_beyond_the_limit_of_unread_responses_the_longest_unread_one_is_dropped(served, monkeypatch):
    monkeypatch.setattr(unread_responses, "MAX_UNREAD_BYTES", LARGE + LARGE // 2)

    async def ask() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=1024)
        writer.write(request_bytes("GET", "/large"))
        await reader.readexactly(1)
        return reader, writer

    first = await ask()
    await wait_until(lambda: any(one.flow.write_paused for one in served.connections))
    second = await ask()
    with suppress(ConnectionError):
        assert len(await first[0].read()) < LARGE
    assert len(await second[0].readuntil(b"-" * LARGE)) > LARGE
    # Read responses are no longer counted.
    third = await ask()
    assert len(await third[0].readuntil(b"-" * LARGE)) > LARGE
    for _, writer in (first, second, third):
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def test_a_client_that_does_not_read_does_not_delay_a_shutdown():
    config: Any = Config(_answer, log_config=None, lifespan="off", host="127.0.0.1", port=0)
    config.http = partial(
        ClientConnection,
        timeouts=ClientTimeouts(0.4),
        limit=ClientLimit(LIMITS),
        unfinished=UnfinishedBodies(MAX_BODY),
    )
    server = Server(config)
    running_server = asyncio.create_task(server.serve())
    await wait_until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(request_bytes("GET", "/large", last=True))
    await wait_until(lambda: any(one.flow.write_paused for one in ours(server.server_state)))
    server.should_exit = True
    await asyncio.wait_for(running_server, 10)
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def test_a_connection_without_a_request_is_closed():
    async with running_server(timeout_s=0.2) as served:
        assert await answers(served.port, b"") == b""
        assert await answers(served.port, b"\r\n") == b""


async def test_a_blank_line_does_not_keep_a_connection_open():
    async with running_server(timeout_s=0.2, timeout_keep_alive=1) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(request_bytes("GET", "/1"))
        await reader.readuntil(b"\r\n\r\n/1")
        writer.write(b"\r\n")
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        await writer.wait_closed()


async def test_an_idle_connection_is_closed_once_it_has_been_idle_for_long_enough():
    async with running_server(timeout_keep_alive=1) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        for number in range(4):
            writer.write(request_bytes("GET", f"/{number}"))
            assert (await reader.readuntil(b"\r\n\r\n/%d" % number)).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(0.6)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        await writer.wait_closed()


async def test_a_body_that_the_response_does_not_need_is_not_waited_for():
    async with running_server(timeout_s=0.2, timeout_keep_alive=60) as served:
        answer = await answers(
            served.port, b"POST /1 HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nhello"
        )
        assert parse_responses(answer) == [(200, b"/1")]


async def test_a_request_is_cancelled_when_its_client_closes_its_sending_side(served, caplog):
    """As in uvicorn, closing one side closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(request_bytes("GET", "/long"))
    await asyncio.wait_for(served.began.wait(), 5)
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), 5) == b""
    await asyncio.wait_for(served.given_up.wait(), 5)
    assert not caplog.records
    writer.close()
    await writer.wait_closed()


async def test_the_timer_for_timeouts_ends_with_the_last_connection():
    async with running_server(timeout_s=0.2) as served:
        for _ in range(2):
            assert await answers(served.port, request_bytes("GET", "/1", last=True))
            await wait_until(lambda: not (served.connections or served.timeouts._timer))


# Many connections.

FEW = ClientLimits(rest=4, refused=2, grpc=0)


async def connect(served: Served, sent: bytes = b"", until: bytes = b"") -> asyncio.StreamReader:
    """Connect and send; return when the response is read."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(sent)
    if until:
        await asyncio.wait_for(reader.readuntil(until), 5)
    else:
        # Time for the server to read what was sent.
        await asyncio.sleep(0.05)
    # The reader has no reference to its writer, which closes the connection when it is freed.
    reader.writer = writer  # type: ignore[attr-defined]
    return reader


async def close_all(readers: Iterable[asyncio.StreamReader]) -> None:
    for reader in readers:
        reader.writer.close()  # type: ignore[attr-defined]
        with suppress(ConnectionError):
            await reader.writer.wait_closed()  # type: ignore[attr-defined]


async def test_a_new_connection_replaces_the_longest_idle_one():
    async with running_server(limits=FEW) as served:
        clients = [await connect(served, request_bytes("GET", f"/{n}"), b"\r\n\r\n/%d" % n) for n in range(4)]
        # The first one is the least idle one now.
        clients[0].writer.write(request_bytes("GET", "/again"))  # type: ignore[attr-defined]
        await clients[0].readuntil(b"/again")
        clients += [await connect(served, request_bytes("GET", f"/{n}"), b"/%d" % n) for n in (4, 5)]
        assert await clients[1].read() == await clients[2].read() == b""
        assert len(served.connections) == 4
        for client in (clients[0], *clients[3:]):
            client.writer.write(request_bytes("GET", "/end"))  # type: ignore[attr-defined]
            assert (await client.readuntil(b"/end")).startswith(b"HTTP/1.1 200")
        await close_all(clients)


async def test_a_connection_without_a_request_is_replaced_too():
    async with running_server(limits=FEW) as served:
        clients = [await connect(served) for _ in range(6)]
        assert await clients[0].read() == await clients[1].read() == b""
        assert len(served.connections) == 4
        await close_all(clients)


@pytest.mark.parametrize(
    "busy",
    [request_bytes("GET", "/long"), request_bytes("GET", "/1")[:-5], CHUNKED],
    ids=["answering", "head", "body"],
)
async def test_a_connection_is_refused_while_all_others_are_busy(busy):
    async with running_server(limits=FEW) as served:
        clients = [await connect(served, busy) for _ in range(4)]
        refused = [await connect(served, request_bytes("GET", "/2")) for _ in range(2)]
        for client in refused:
            answer = await asyncio.wait_for(client.read(), 5)
            assert error_of(answer) == (503, "too many connections: limit 4; try again later")
            assert b"\r\nretry-after: 1\r\n" in answer
        # More refusals than descriptors are left for them get no response.
        another = await connect(served)
        with suppress(ConnectionError):
            assert await asyncio.wait_for(another.read(), 5) == b""
        assert len(served.connections) == 6
        await close_all([*refused, another])
        await wait_until(lambda: len(served.connections) == 4)
        await close_all(clients[:1])
        await wait_until(lambda: len(served.connections) == 3)
        assert (await answers(served.port, request_bytes("GET", "/3", last=True))).endswith(b"/3")
        await close_all(clients[1:])


# Bodies that do not end.


def half_body(size: int) -> bytes:
    return b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % (size + 1) + b"-" * size


async def test_bodies_that_are_not_complete_share_a_budget(served):
    held = [await connect(served, half_body(MAX_BODY - 1)) for _ in range(BUDGET_IN_MAX_BODIES)]
    refused = await connect(served, half_body(MAX_BODY - 1))
    status, text = error_of(await asyncio.wait_for(refused.read(), 5))
    assert status == 503
    assert text.startswith(f"too many bytes in flight: limit {BUDGET_IN_MAX_BODIES * MAX_BODY}, ")
    # A body that arrives in one piece needs none of the budget.
    whole = half_body(MAX_BODY - 1).replace(b"host: a", b"host: a\r\nconnection: close") + b"-"
    assert parse_responses(await answers(served.port, whole))[0][0] == 200
    for reader in held:
        reader.writer.write(b"-")  # type: ignore[attr-defined]
        assert (await reader.readuntil(b"-" * MAX_BODY)).startswith(b"HTTP/1.1 200")
    # The budget is free again.
    again = [await connect(served, half_body(MAX_BODY - 1)) for _ in range(BUDGET_IN_MAX_BODIES)]
    await close_all([*again, *held, refused])


@pytest.mark.parametrize("sent", [half_body(2 * MAX_BODY), half_body(MAX_BODY).replace(b"/echo", b"/1")])
async def test_bytes_that_are_discarded_need_no_budget(served, sent):
    """They are beyond the maximum of a body, or the request has its response already."""
    clients = [await connect(served, sent) for _ in range(2 * BUDGET_IN_MAX_BODIES)]
    another = await connect(served, half_body(MAX_BODY - 1))
    another.writer.write(b"-")  # type: ignore[attr-defined]
    assert (await another.readuntil(b"-" * MAX_BODY)).startswith(b"HTTP/1.1 200")
    await close_all([*clients, another])


@pytest.mark.parametrize("end", [b"", b"no size\r\n"], ids=["closed", "refused"])
async def test_a_dropped_body_releases_its_budget(served, end):
    chunk = CHUNKED + b"%x\r\n%s\r\n" % (MAX_BODY - 1, b"-" * (MAX_BODY - 1))
    for _ in range(2 * BUDGET_IN_MAX_BODIES):
        client = await connect(served, chunk)
        if end:
            client.writer.write(end)  # type: ignore[attr-defined]
            assert error_of(await client.read())[0] == 400
        await close_all([client])
    another = await connect(served, half_body(MAX_BODY - 1))
    another.writer.write(b"-")  # type: ignore[attr-defined]
    assert (await another.readuntil(b"-" * MAX_BODY)).startswith(b"HTTP/1.1 200")
    await close_all([another])
