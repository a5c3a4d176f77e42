"""Slow, greedy and half-hearted clients of the whole REST side, over plain sockets.

Every one gets the status that says what is wrong, in its turn, or is let go; nothing is logged about it.
"""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from uvicorn.server import ServerState

from tests.integration.test_client_connection import parsed
from tests.support.async_processes import running_transformer
from tests.support.endpoints import V1_PREDICT
from tests.support.fake_mlserver import FakeMLServer
from tests.support.sklearn_reference import SklearnReference
from tests.support.version_pairs import VersionPair
from tests.support.waiting import wait_until
from transformer.bundle.format import load_bundle
from transformer.options import parse
from transformer.server.kserve_server import TransformerServer

#: What makes a request go through KServe's own handlers, and what does not.
LONG_WAY, SHORT_WAY = "application/json; charset=utf-8", "application/json"
#: Seconds that clients have here.
TIMEOUT_S = 0.4


@dataclass
class Front:
    """A transformer on a port, and its predictor."""

    port: int
    state: ServerState
    predictor: FakeMLServer
    candidates: list[dict[str, Any]]

    def request(self, row: int = 0, content_type: str = SHORT_WAY, *headers: str) -> bytes:
        """A request for a prediction."""
        return post(json.dumps({"instances": [self.candidates[row]]}).encode(), content_type, *headers)


def post(body: bytes, content_type: str = SHORT_WAY, *headers: str) -> bytes:
    lines = ["host: a", f"content-type: {content_type}", f"content-length: {len(body)}", *headers]
    return "\r\n".join([f"POST {V1_PREDICT} HTTP/1.1", *lines, "", ""]).encode() + body


@pytest.fixture(scope="module")
def pair(version_pair) -> VersionPair:
    return version_pair("retrained")


@contextlib.asynccontextmanager
async def serving(pair: VersionPair, *arguments: str) -> AsyncIterator[Front]:
    """The transformer's REST side, listening, in front of a stock server that can be held up."""
    async with FakeMLServer(SklearnReference(pair.new)).running() as predictor:
        settings = parse([
            f"--predictor_host={predictor.address}", "--predictor_protocol=v2",
            f"--client_timeout_seconds={TIMEOUT_S}", *arguments,
        ])  # fmt: skip
        server = TransformerServer(load_bundle(pair.new), settings)
        rest = server.rest_server()
        rest.create_application()
        rest.config.load()
        state = ServerState()
        listening = await asyncio.get_running_loop().create_server(
            lambda: rest.config.http_protocol_class(config=rest.config, server_state=state, app_state={}),
            "127.0.0.1",
        )
        try:
            await wait_until(server.dataplane.ready)
            port = listening.sockets[0].getsockname()[1]
            yield Front(port, state, predictor, pair.candidates)
        finally:
            predictor.may_answer.set()
            listening.close()
            await server.dataplane.handler.scorer.close()


@pytest.fixture
async def transformer(pair) -> AsyncIterator[Front]:
    async with serving(pair) as transformer:
        yield transformer


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog) -> Any:
    yield
    assert not [record for record in caplog.records if record.levelname in {"WARNING", "ERROR"}]


class Client:
    """A connection whose bytes the test sends one by one, if it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.reader = reader

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answers(self) -> list[tuple[int, Any]]:
        """Statuses and contents until the server closes."""
        answered = await asyncio.wait_for(self.reader.read(), 20)
        return [(status, json.loads(body)) for status, body in parsed(answered)] if answered else []


@pytest.fixture
async def client(transformer) -> AsyncIterator[Client]:
    async with connected(transformer) as client:
        yield client


@contextlib.asynccontextmanager
async def connected(transformer: Front) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", transformer.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def dribble(client: Client, data: bytes) -> None:
    """Send byte by byte, until nobody listens any more."""
    with contextlib.suppress(ConnectionError):
        for place in range(len(data)):
            client.send(data[place : place + 1])
            await client.writer.drain()
            await asyncio.sleep(TIMEOUT_S / 8)


async def idle(transformer: Front) -> None:
    """Wait until no request is being answered."""
    await wait_until(lambda: not (transformer.state.tasks))


def error(answers: list[tuple[int, Any]]) -> tuple[int, str]:
    ((status, content),) = answers
    return status, content["error"]


async def test_a_head_that_stops_is_408(transformer, client):
    client.send(transformer.request()[:30])
    assert error(await client.answers()) == (408, f"the request's head did not come within {TIMEOUT_S} s")


async def test_a_head_that_comes_byte_by_byte_is_408(transformer, client):
    sending = asyncio.create_task(dribble(client, transformer.request()))
    assert error(await client.answers())[0] == 408
    sending.cancel()


WAYS = {
    "short": lambda transformer: transformer.request(),
    "long": lambda transformer: transformer.request(0, LONG_WAY),
    "V2": lambda transformer: transformer.request().replace(
        V1_PREDICT.encode(), b"/v2/models/placement/infer"
    ),
    "in chunks": lambda transformer: (
        f"POST {V1_PREDICT} HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n10\r\n".encode()
        + b'{"instances": []}'
    ),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_a_body_that_stops_is_408(transformer, client, way: Callable[[Front], bytes]):
    client.send(way(transformer)[:-5])
    assert error(await client.answers())[0] == 408
    await idle(transformer)
    assert transformer.predictor.plain_calls == []


async def test_a_body_that_comes_byte_by_byte_is_408(transformer, client):
    request = transformer.request()
    head = request.index(b"{")
    client.send(request[:head])
    sending = asyncio.create_task(dribble(client, request[head:]))
    assert error(await client.answers())[0] == 408
    sending.cancel()


async def test_a_body_that_stops_is_408_where_requests_are_timed(pair):
    """KServe's middleware stands around its handlers then, and there is no short way."""
    async with (
        serving(pair, "--enable_latency_logging=true") as transformer,
        connected(transformer) as client,
    ):
        client.send(transformer.request()[:-5])
        assert error(await client.answers())[0] == 408
        await idle(transformer)


async def test_a_body_that_keeps_coming_may_take_its_time(transformer, client):
    body = json.dumps({"instances": transformer.candidates[:1]}).encode() + b" " * 200_000
    request = post(body, SHORT_WAY, "connection: close")
    for start in range(0, len(request), 20_000):
        client.send(request[start : start + 20_000])
        await asyncio.sleep(TIMEOUT_S / 5)
    ((status, _),) = await client.answers()
    assert status == 200


async def test_who_waits_for_100_continue_is_told_so_and_then_has_time(transformer, client):
    request = transformer.request(0, SHORT_WAY, "expect: 100-continue", "connection: close")
    head = request.index(b"{")
    client.send(request[:head])
    assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(request[head:])
    ((status, _),) = await client.answers()
    assert status == 200


async def test_a_body_that_is_announced_too_long_is_refused_before_it_is_sent(client):
    head = f"POST {V1_PREDICT} HTTP/1.1\r\nhost: a\r\ncontent-length: {2**40}\r\nexpect: 100-continue\r\n\r\n"
    client.send(head.encode())
    answer = await client.reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nconnection: close\r\n" in answer


async def test_a_length_may_have_more_zeros_in_front_than_python_reads_digits(transformer, client):
    request = transformer.request(0, SHORT_WAY, "connection: close")
    client.send(request.replace(b"content-length: ", b"content-length: " + b"0" * 5000))
    ((status, _),) = await client.answers()
    assert status == 200


@pytest.mark.parametrize("kept", [40, -5], ids=["head", "body"])
async def test_nobody_is_slow_while_an_answer_is_due(transformer, client, kept):
    """What was sent of the next request has its time from then on."""
    transformer.predictor.may_answer.clear()
    second = transformer.request(1, SHORT_WAY, "connection: close")
    client.send(transformer.request(0) + second[:kept])
    await asyncio.sleep(3 * TIMEOUT_S)
    transformer.predictor.may_answer.set()
    client.send(second[kept:])
    (first, other) = await client.answers()
    alone = []
    for row in (0, 1):
        async with connected(transformer) as another:
            another.send(transformer.request(row, SHORT_WAY, "connection: close"))
            alone += await another.answers()
    assert [first, other] == alone
    assert first[0] == other[0] == 200
    assert first != other


@pytest.mark.parametrize("kept", [40, -5], ids=["head", "body"])
async def test_a_second_request_that_stops_is_refused_behind_the_first_answer(transformer, client, kept):
    transformer.predictor.may_answer.clear()
    client.send(transformer.request(0) + transformer.request(1)[:kept])
    await asyncio.sleep(2 * TIMEOUT_S)
    transformer.predictor.may_answer.set()
    (first, second) = await client.answers()
    assert (first[0], second[0]) == (200, 408)


async def test_requests_with_pauses_between_them_are_all_answered(transformer, client):
    for row in range(4):
        client.send(transformer.request(row))
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await client.reader.readexactly(length)
        await asyncio.sleep(2 * TIMEOUT_S)


async def test_what_is_not_http_is_told_so_as_everything_is(client):
    client.send(b"HELO there\r\n\r\n")
    assert error(await client.answers()) == (400, "the request is not HTTP/1.1")


@pytest.mark.parametrize("content_type", [LONG_WAY, SHORT_WAY])
async def test_who_goes_gives_up_the_place_in_the_queue(pair, content_type):
    """On both ways; what nobody waits for is not sent to the predictor."""
    async with serving(pair, "--predictor_connections=1") as transformer:
        transformer.predictor.may_answer.clear()
        async with connected(transformer) as first:
            first.send(transformer.request(0))
            await wait_until(lambda: transformer.predictor.plain_calls)
            async with connected(transformer) as second:
                second.send(transformer.request(1, content_type))
                await wait_until(lambda: len(transformer.state.tasks) >= 2)
            await wait_until(lambda: len(transformer.state.tasks) <= 1)
        transformer.predictor.may_answer.set()
        async with connected(transformer) as third:
            third.send(transformer.request(2, SHORT_WAY, "connection: close"))
            assert (await third.answers())[0][0] == 200
        assert len(transformer.predictor.plain_calls) == 2


M = 2**20
HOSTILE = {
    "brackets": b"[" * 8 * M,
    "objects": b'{"a":' * (8 * M // 5),
    "instances in instances": b'{"instances": ' + b"[" * 7 * M,
    "a number beyond all": b'{"instances": [{"ssc_p": 1e999999999}]}',
    "a million digits": b'{"instances": [{"ssc_p": ' + b"9" * M + b"}]}",
    "a million digits behind the point": b'{"instances": [{"ssc_p": 0.' + b"9" * M + b"}]}",
    "a string that does not end": b'{"instances": [{"gender": "' + b"a" * 7 * M,
    "a long string": b'{"instances": [{"gender": "' + b"a" * 7 * M + b'"}]}',
    "a long name": b'{"instances": [{"' + b"a" * 7 * M + b'": 1}]}',
    "half a character": b'{"instances": [{"gender": "\\ud800"}]}',
    "not UTF-8": b'{"instances": [{"gender": "\xff"}]}',
}
EVENT = (b'{"specversion": "1.0", "id": "7", "source": "here", "type": "candidate", "data": ', b"}")


@pytest.mark.parametrize("way", ["short", "long", "event", "binary event", "V2", "V2 object"])
@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
async def test_whatever_the_json_is_the_answer_is_short_and_says_why(transformer, client, content, way):
    match way:
        case "short" | "V2":
            request = post(content, SHORT_WAY, "connection: close")
        case "long":
            request = post(content, LONG_WAY, "connection: close")
        case "event":
            request = post(content.join(EVENT), "application/cloudevents+json", "connection: close")
        case "binary event":
            ce = ["ce-specversion: 1.0", "ce-id: 7", "ce-source: here", "ce-type: candidate"]
            request = post(content, SHORT_WAY, "connection: close", *ce)
        case "V2 object":
            tensor = {"name": "candidates", "datatype": "BYTES", "shape": [1], "data": [""]}
            text = json.dumps(content.decode("latin-1"))[1:-1].encode()
            made = json.dumps({"inputs": [tensor]}).encode().replace(b'""', b'"%s"' % text)
            request = post(made[: 8 * M], SHORT_WAY, "connection: close")
    if way.startswith("V2"):
        request = request.replace(V1_PREDICT.encode(), b"/v2/models/placement/infer")
    client.send(request)
    ((status, told),) = await client.answers()
    body = request.partition(b"\r\n\r\n")[2]
    too_many = body.count(b"[") + body.count(b"{") > 8 * M // 8
    assert status == (413 if len(body) > 8 * M or too_many else 400)
    assert len(json.dumps(told)) < 2500


async def test_the_process_ends_although_clients_stop_in_the_middle(pair, tmp_path):
    """Of a head, of a body, and while they read; and says nothing of it."""
    async with FakeMLServer(SklearnReference(pair.new)).running() as predictor:
        port = int(predictor.address.rpartition(":")[2])
        arguments = ("--client_timeout_seconds=0.5", "--predictor_protocol=v2")
        log = tmp_path / "transformer.log"
        async with running_transformer(pair.new, port, log, *arguments) as process:
            transformer = Front(process.http_port, ServerState(), predictor, pair.candidates)
            async with contextlib.AsyncExitStack() as stack:
                clients = [await stack.enter_async_context(connected(transformer)) for _ in range(3)]
                clients[0].send(transformer.request()[:40])
                clients[1].send(transformer.request()[:-5])
                clients[2].send(transformer.request(0, LONG_WAY)[:-5])
                for one in clients:
                    assert error(await one.answers())[0] == 408
                one = await stack.enter_async_context(connected(transformer))
                one.send(transformer.request()[:-5])
                await asyncio.sleep(0.1)
                os.kill(process.pid, signal.SIGTERM)
                assert error(await one.answers())[0] == 408
            await wait_until(lambda: process.poll() is not None)
        assert "Traceback" not in log.read_text()
        assert " ERROR " not in log.read_text()
