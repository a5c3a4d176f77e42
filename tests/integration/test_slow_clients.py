"""Slow and malformed REST requests over plain sockets: each gets an error status, and nothing is logged."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from tests.support.endpoints import V1_PREDICT, V2_INFER
from tests.support.fake_mlserver import FakeMLServer
from tests.support.in_process_transformer import ListeningTransformer, listening_transformer
from tests.support.raw_http import RawConnection, post_request, raw_connection
from tests.support.sklearn_reference import SklearnReference
from tests.support.version_pairs import VersionPair
from tests.support.waiting import wait_until

#: Content types of which the first leads to KServe's own route, and the second to the fast path.
KSERVES_ROUTE, FAST_PATH = "application/json; charset=utf-8", "application/json"
#: Seconds that clients have.
TIMEOUT_S = 0.4


@dataclass
class Served:
    """A listening transformer and its predictor."""

    listening: ListeningTransformer
    predictor: FakeMLServer
    candidates: list[dict[str, Any]]

    @property
    def port(self) -> int:
        return self.listening.port

    def request(self, row: int = 0, *headers: str, **how: Any) -> bytes:
        """Return a request for a prediction."""
        return post_request(candidate_body(self.candidates[row]), *headers, **how)


def candidate_body(candidate: dict[str, Any]) -> bytes:
    return json.dumps({"instances": [candidate]}).encode()


@pytest.fixture(scope="module")
def pair(version_pair) -> VersionPair:
    return version_pair("retrained")


@contextlib.asynccontextmanager
async def served_over_rest(pair: VersionPair, *arguments: str) -> AsyncIterator[Served]:
    """Run a transformer in front of a model server that can hold back its answers."""
    arguments = ("--predictor_protocol=v2", f"--client_timeout_seconds={TIMEOUT_S}", *arguments)
    async with (
        FakeMLServer(SklearnReference(pair.new)).running() as predictor,
        listening_transformer(pair.new, predictor.address, *arguments) as listening,
    ):
        try:
            yield Served(listening, predictor, pair.candidates)
        finally:
            predictor.may_answer.set()


@pytest.fixture
async def transformer(pair) -> AsyncIterator[Served]:
    async with served_over_rest(pair) as served:
        yield served


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_transformer(pair) -> AsyncIterator[Served]:
    async with served_over_rest(pair) as served:
        yield served


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog) -> Any:
    yield
    assert not [record for record in caplog.records if record.levelname in {"WARNING", "ERROR"}]


@pytest.fixture
async def client(transformer) -> AsyncIterator[RawConnection]:
    async with raw_connection(transformer.port) as client:
        yield client


async def send_byte_by_byte(client: RawConnection, data: bytes) -> None:
    """Send slowly, until the server closes the connection."""
    with contextlib.suppress(ConnectionError):
        for position in range(len(data)):
            client.send(data[position : position + 1])
            await client.writer.drain()
            await asyncio.sleep(TIMEOUT_S / 8)


async def wait_until_idle(transformer: Served) -> None:
    """Wait until the transformer handles no request."""
    await wait_until(lambda: not transformer.listening.state.tasks)


def error(responses: list[tuple[int, Any]]) -> tuple[int, str]:
    ((status, content),) = responses
    return status, content["error"]


async def test_a_head_that_stops_is_answered_with_408(transformer, client):
    client.send(transformer.request()[:30])
    assert error(await client.responses()) == (
        408,
        f"head too slow: limit {TIMEOUT_S} s for a request's head",
    )


async def test_a_head_that_comes_byte_by_byte_is_answered_with_408(transformer, client):
    sending = asyncio.create_task(send_byte_by_byte(client, transformer.request()))
    assert error(await client.responses())[0] == 408
    sending.cancel()


@pytest.mark.parametrize("route", ["fast path", "KServe's route", "V2", "chunked"])
async def test_a_body_that_stops_is_answered_with_408(transformer, client, route):
    match route:
        case "fast path":
            request = transformer.request()
        case "KServe's route":
            request = transformer.request(content_type=KSERVES_ROUTE)
        case "V2":
            request = transformer.request(path=V2_INFER)
        case "chunked":
            head = f"POST {V1_PREDICT} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n10\r\n"
            request = head.encode() + b'{"instances": []}'
    client.send(request[:-5])
    assert error(await client.responses())[0] == 408
    await wait_until_idle(transformer)
    assert transformer.predictor.plain_calls == []


async def test_a_body_that_comes_byte_by_byte_is_answered_with_408(transformer, client):
    request = transformer.request()
    body = request.index(b"{")
    client.send(request[:body])
    sending = asyncio.create_task(send_byte_by_byte(client, request[body:]))
    assert error(await client.responses())[0] == 408
    sending.cancel()


async def test_a_body_that_stops_is_answered_with_408_with_latency_logging(pair):
    """KServe's middleware wraps its routes then, and there is no fast path."""
    async with (
        served_over_rest(pair, "--enable_latency_logging=true") as transformer,
        raw_connection(transformer.port) as client,
    ):
        client.send(transformer.request()[:-5])
        assert error(await client.responses())[0] == 408
        await wait_until_idle(transformer)


async def test_a_body_that_keeps_coming_may_take_longer_than_the_timeout(transformer, client):
    body = candidate_body(transformer.candidates[0]) + b" " * 200_000
    request = post_request(body, "connection: close")
    for start in range(0, len(request), 20_000):
        client.send(request[start : start + 20_000])
        await asyncio.sleep(TIMEOUT_S / 5)
    ((status, _),) = await client.responses()
    assert status == 200


async def test_a_client_that_waits_for_100_continue_gets_it_and_then_has_time(transformer, client):
    request = transformer.request(0, "expect: 100-continue", "connection: close")
    body = request.index(b"{")
    client.send(request[:body])
    assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(request[body:])
    ((status, _),) = await client.responses()
    assert status == 200


async def test_a_body_whose_announced_length_is_too_large_is_refused_before_it_is_sent(client):
    head = f"POST {V1_PREDICT} HTTP/1.1\r\nhost: a\r\ncontent-length: {2**40}\r\nexpect: 100-continue\r\n\r\n"
    client.send(head.encode())
    answer = await client.reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nconnection: close\r\n" in answer


async def test_a_content_length_may_have_more_leading_zeros_than_python_reads_digits(transformer, client):
    request = transformer.request(0, "connection: close")
    client.send(request.replace(b"content-length: ", b"content-length: " + b"0" * 5000))
    ((status, _),) = await client.responses()
    assert status == 200


@pytest.mark.parametrize("sent", [40, -5], ids=["head", "body"])
async def test_a_request_does_not_time_out_while_the_previous_one_is_answered(transformer, client, sent):
    """Its time starts when the previous response is sent."""
    transformer.predictor.may_answer.clear()
    second = transformer.request(1, "connection: close")
    client.send(transformer.request(0) + second[:sent])
    await asyncio.sleep(3 * TIMEOUT_S)
    transformer.predictor.may_answer.set()
    client.send(second[sent:])
    (first, other) = await client.responses()
    alone = []
    for row in (0, 1):
        async with raw_connection(transformer.port) as another:
            another.send(transformer.request(row, "connection: close"))
            alone += await another.responses()
    assert [first, other] == alone
    assert first[0] == other[0] == 200
    assert first != other


@pytest.mark.parametrize("sent", [40, -5], ids=["head", "body"])
async def test_a_second_request_that_stops_is_refused_after_the_first_response(transformer, client, sent):
    transformer.predictor.may_answer.clear()
    client.send(transformer.request(0) + transformer.request(1)[:sent])
    await asyncio.sleep(2 * TIMEOUT_S)
    transformer.predictor.may_answer.set()
    (first, second) = await client.responses()
    assert (first[0], second[0]) == (200, 408)


async def test_requests_with_pauses_between_them_are_all_answered(transformer, client):
    for row in range(4):
        client.send(transformer.request(row))
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await client.reader.readexactly(length)
        await asyncio.sleep(2 * TIMEOUT_S)


async def test_bytes_that_are_not_http_are_answered_with_400_and_json(client):
    client.send(b"HELO there\r\n\r\n")
    assert error(await client.responses()) == (400, "the request is not HTTP/1.1")


@pytest.mark.parametrize("content_type", [KSERVES_ROUTE, FAST_PATH])
async def test_a_request_whose_client_disconnects_leaves_the_queue(pair, content_type):
    """It is not sent to the predictor."""
    async with served_over_rest(pair, "--predictor_connections=1") as transformer:
        transformer.predictor.may_answer.clear()
        async with raw_connection(transformer.port) as first:
            first.send(transformer.request(0))
            await wait_until(lambda: transformer.predictor.plain_calls)
            async with raw_connection(transformer.port) as second:
                second.send(transformer.request(1, content_type=content_type))
                await wait_until(lambda: transformer.listening.queued == 1)
            await wait_until(lambda: transformer.listening.queued == 0)
        transformer.predictor.may_answer.set()
        async with raw_connection(transformer.port) as third:
            third.send(transformer.request(2, "connection: close"))
            assert (await third.responses())[0][0] == 200
        assert len(transformer.predictor.plain_calls) == 2


M = 2**20
HOSTILE = {
    "brackets": b"[" * 8 * M,
    "objects": b'{"a":' * (8 * M // 5),
    "instances in instances": b'{"instances": ' + b"[" * 7 * M,
    "a number that is too large": b'{"instances": [{"ssc_p": 1e999999999}]}',
    "a million digits": b'{"instances": [{"ssc_p": ' + b"9" * M + b"}]}",
    "a million decimal places": b'{"instances": [{"ssc_p": 0.' + b"9" * M + b"}]}",
    "a string that does not end": b'{"instances": [{"gender": "' + b"a" * 7 * M,
    "a long string": b'{"instances": [{"gender": "' + b"a" * 7 * M + b'"}]}',
    "a long name": b'{"instances": [{"' + b"a" * 7 * M + b'": 1}]}',
    "half a surrogate pair": b'{"instances": [{"gender": "\\ud800"}]}',
    "not UTF-8": b'{"instances": [{"gender": "\xff"}]}',
}
EVENT = (b'{"specversion": "1.0", "id": "7", "source": "here", "type": "candidate", "data": ', b"}")
EVENT_HEADERS = ("ce-specversion: 1.0", "ce-id: 7", "ce-source: here", "ce-type: candidate")


@pytest.mark.parametrize("form", ["fast path", "KServe's route", "event", "binary event", "V2", "V2 object"])
@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.asyncio(loop_scope="module")
async def test_hostile_json_gets_a_short_error(shared_transformer, content, form):
    headers, how = ["connection: close"], {}
    match form:
        case "KServe's route":
            how["content_type"] = KSERVES_ROUTE
        case "event":
            content = content.join(EVENT)
            how["content_type"] = "application/cloudevents+json"
        case "binary event":
            headers += EVENT_HEADERS
        case "V2":
            how["path"] = V2_INFER
        case "V2 object":
            how["path"] = V2_INFER
            tensor = {"name": "candidates", "datatype": "BYTES", "shape": [1], "data": [""]}
            text = json.dumps(content.decode("latin-1"))[1:-1].encode()
            content = json.dumps({"inputs": [tensor]}).encode().replace(b'""', b'"%s"' % text)[: 8 * M]
    async with raw_connection(shared_transformer.port) as client:
        client.send(post_request(content, *headers, **how))
        ((status, told),) = await client.responses()
    too_many_values = content.count(b"[") + content.count(b"{") > 8 * M // 8
    assert status == (413 if len(content) > 8 * M or too_many_values else 400)
    assert len(json.dumps(told)) < 2500
