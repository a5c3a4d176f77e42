"""The fast path for predictions gives the same status, body and headers as KServe's route."""

import asyncio
import json
import random
import re
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from tests.support.endpoints import V1_PREDICT, V2_INFER
from tests.support.fake_mlserver import FakeMLServer
from tests.support.in_process_transformer import in_process_transformer, listening_transformer
from tests.support.raw_http import parse_responses, post_request, raw_connection
from tests.support.sklearn_reference import SklearnReference
from tests.support.version_pairs import VersionPair
from transformer.server import client_connection
from transformer.server.fast_connection import FastConnection
from transformer.server.request_head import HeaderDict

REQUESTS = 1200
#: Generated ids and times in responses.
MADE_UP = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d{4}-\d\d-\d\dT[0-9:.+]+")
#: Values that a mutation inserts.
STRANGE: list[Any] = [
    None, True, False, 0, -1, 7, 1e400, float("nan"), 2**70, "", "M", "x" * 200, "\x00", "é", [], [1], {},
    {"a": 1},
]  # fmt: skip
CONTENT_TYPES = [
    "application/json", "application/json; charset=utf-8", "text/plain", "application/octet-stream",
    "application/cloudevents+json", "",
]  # fmt: skip


@pytest.fixture(scope="module")
def pair(version_pair) -> VersionPair:
    return version_pair("retrained")


@pytest.fixture
async def routes(pair) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """A client of the server, and one of the application without the fast path."""
    async with AsyncExitStack() as stack:
        predictor = await stack.enter_async_context(FakeMLServer(SklearnReference(pair.new)).running())
        transformer = await stack.enter_async_context(
            in_process_transformer(
                pair.new, predictor.address, "--predictor_protocol=v2", "--max_request_bytes=20000"
            )
        )
        long_way = httpx.ASGITransport(transformer.application)
        long = await stack.enter_async_context(
            httpx.AsyncClient(transport=long_way, base_url="http://transformer")
        )
        yield transformer.http, long


async def ask_both(routes, **request: Any) -> httpx.Response:
    """Send a request to both routes, and return the response if they answer alike."""
    short, long = routes
    one, other = await asyncio.gather(short.request(**request), long.request(**request))
    assert comparable(one) == comparable(other), request
    return one


def comparable(response: httpx.Response) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
    """Return status, body and headers without generated ids and times, and without those of uvicorn."""
    headers = [
        (name, MADE_UP.sub(b"", value))
        for name, value in response.headers.raw
        # A connection ends by its age, too.
        if name not in {b"date", b"server", b"connection"}
    ]
    return response.status_code, MADE_UP.sub(b"", response.content), sorted(headers)


def value_paths(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Yield the path of every value in nested JSON."""
    yield path
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, child in children:
        yield from value_paths(child, (*path, key))


def mutate(value: Any, dice: random.Random) -> Any:
    """Return a copy with one value removed or replaced."""
    *parents, last = dice.choice([path for path in value_paths(value) if path] or [(None,)])
    if last is None:
        return dice.choice(STRANGE)
    value = json.loads(json.dumps(value))
    place = value
    for key in parents:
        place = place[key]
    if dice.random() < 0.3:
        del place[last]
    else:
        place[last] = dice.choice(STRANGE)
    return value


def v1_content(rows: list[dict], _: random.Random) -> Any:
    return {"instances": rows}


def v2_content(rows: list[dict], dice: random.Random) -> Any:
    inputs = [
        {
            "name": name,
            "datatype": "BYTES" if isinstance(rows[0][name], str) else "FP64",
            "shape": dice.choice([[len(rows)], [len(rows), 1]]),
            "data": [row[name] for row in rows],
        }
        for name in rows[0]
    ]
    content: dict[str, Any] = {"id": "one", "inputs": inputs}
    if dice.random() < 0.3:
        content["outputs"] = [{"name": "placement", "parameters": {"binary_data": dice.random() < 0.5}}]
    return content


def v2_objects(rows: list[dict], _: random.Random) -> Any:
    data = [json.dumps(row) for row in rows]
    return {
        "id": "two",
        "inputs": [{"name": "candidates", "datatype": "BYTES", "shape": [len(rows)], "data": data}],
    }


def binary(content: Any, dice: random.Random) -> tuple[bytes, dict[str, str]]:
    """Return a V2 request with binary data, sometimes with a wrong length."""
    raw = b""
    for tensor in content["inputs"]:
        values = tensor.pop("data")
        if tensor["datatype"] == "FP64":
            part = struct.pack(f"<{len(values)}d", *values)
        else:
            part = b"".join(struct.pack("<I", len(value.encode())) + value.encode() for value in values)
        lie = dice.choice([0, 0, 0, 0, -1, 1])
        tensor["parameters"] = {"binary_data_size": len(part) + lie}
        raw += part
    head = json.dumps(content).encode()
    length = str(len(head) + dice.choice([0, 0, 0, 0, 0, -1, 7, 10**9]))
    return head + raw, {
        "content-type": "application/octet-stream",
        "inference-header-content-length": length,
    }


def random_request(rows: list[dict], dice: random.Random) -> dict[str, Any]:
    """Return a request, valid or not."""
    make: Callable[[list[dict], random.Random], Any] = dice.choice([v1_content, v2_content, v2_objects])
    content = make(dice.sample(rows, dice.choice([1, 1, 2, 9])), dice)
    headers = {"content-type": "application/json"}
    if make is v2_content and dice.random() < 0.3:
        body, headers = binary(content, dice)
    else:
        for _ in range(dice.choice([0, 0, 1, 1, 2])):
            content = mutate(content, dice)
        body = json.dumps(content).encode()
    if dice.random() < 0.1:
        body = body[: dice.randrange(len(body))] if dice.random() < 0.7 else body + b"\xff"
    if dice.random() < 0.15:
        headers["content-type"] = dice.choice(CONTENT_TYPES)
    if dice.random() < 0.05:
        headers |= {"ce-id": "1", "ce-specversion": "1.0", "ce-type": "t", "ce-source": "s"}
    if dice.random() < 0.03:
        headers["content-encoding"] = "gzip"
    own = V1_PREDICT if make is v1_content else V2_INFER
    return {
        "method": dice.choice(["POST"] * 15 + ["GET", "PUT"]),
        "url": dice.choice([own] * 12 + [V1_PREDICT, V2_INFER, "/v1/models/other:predict", "/nowhere"]),
        "content": body,
        "headers": headers,
    }


async def test_the_fast_path_and_kserves_route_answer_alike(routes, pair):
    dice = random.Random(0)
    statuses: Counter[int] = Counter()
    for _ in range(REQUESTS):
        statuses[(await ask_both(routes, **random_request(pair.candidates, dice))).status_code] += 1
    assert statuses[200] > REQUESTS / 5
    assert statuses[400] > REQUESTS / 8
    assert {404, 405, 415} <= set(statuses)
    assert not {status for status in statuses if status >= 500}


async def test_plain_predictions_take_the_fast_path(routes, pair, monkeypatch):
    """Otherwise the comparison would show nothing."""
    short, _ = routes
    through_asgi: list[bytes] = []
    start = FastConnection._start_through_asgi

    def record(self: FastConnection, by_name: HeaderDict) -> None:
        through_asgi.append(self.url)
        start(self, by_name)

    monkeypatch.setattr(FastConnection, "_start_through_asgi", record)
    dice = random.Random(1)
    for url, content in ((V1_PREDICT, v1_content), (V2_INFER, v2_content), (V2_INFER, v2_objects)):
        response = await short.post(url, json=content(pair.candidates[:2], dice))
        assert response.status_code == 200, response.text
    assert through_asgi == []
    await short.get("/v2/health/live")
    assert through_asgi == [b"/v2/health/live"]


@pytest.fixture
async def port(pair, monkeypatch) -> AsyncIterator[int]:
    """Port of a server that does not end connections because of their age."""
    monkeypatch.setattr(client_connection, "CONNECTION_AGE_S", 600)
    async with AsyncExitStack() as stack:
        predictor = await stack.enter_async_context(FakeMLServer(SklearnReference(pair.new)).running())
        listening = await stack.enter_async_context(
            listening_transformer(pair.new, predictor.address, "--predictor_protocol=v2")
        )
        yield listening.port


async def responses_to(port: int, pieces: list[bytes], count: int) -> list[tuple[int, bytes]]:
    """Send pieces over one connection, each when the server may have read the one before."""
    async with raw_connection(port) as connection:
        content = b""
        for piece in pieces:
            connection.send(piece)
            await connection.writer.drain()
            await asyncio.sleep(0.001)
        while len(found := parse_responses(content)) < count:
            content += await asyncio.wait_for(connection.reader.read(2**16), 20)
    return [(status, MADE_UP.sub(b"", body)) for status, body in found]


def some_requests(rows: list[dict], dice: random.Random) -> list[tuple[bytes, bytes]]:
    """Return requests, and the same with a tracing header, so that their heads are always parsed."""
    event = {"specversion": "1.0", "id": "7", "source": "a", "type": "b", "data": v1_content(rows[:1], dice)}
    bodies = [
        *((V1_PREDICT, json.dumps(v1_content([row], dice)).encode()) for row in rows[:6]),
        (V1_PREDICT, json.dumps({"instances": [{**rows[0], "ssc_p": "x"}]}).encode()),
        (V1_PREDICT, b"{" * 40),
        (V1_PREDICT, json.dumps(event).encode()),
        (V2_INFER, json.dumps(v2_objects(rows[:2], dice)).encode()),
    ]
    return [
        (post_request(body, path=path), post_request(body, "x-request-id: 7", path=path))
        for path, body in bodies
    ]


async def test_a_head_that_is_known_is_not_parsed_again(port, pair, monkeypatch):
    parsed = 0
    parse = FastConnection.on_headers_complete

    def count(self: FastConnection) -> None:
        nonlocal parsed
        parsed += 1
        parse(self)

    monkeypatch.setattr(FastConnection, "on_headers_complete", count)
    request = post_request(json.dumps(v1_content(pair.candidates[:1], random.Random(0))).encode())
    for _ in range(3):
        ((status, _),) = await responses_to(port, [request], 1)
        assert status == 200
    assert parsed == 1


async def test_known_heads_change_no_response_however_the_requests_arrive(port, pair):
    dice = random.Random(2)
    requests = some_requests(pair.candidates, dice)
    expected = [(await responses_to(port, [parsed], 1))[0] for _, parsed in requests]
    assert {status for status, _ in expected} == {200, 400}
    for _ in range(40):
        chosen = [dice.randrange(len(requests)) for _ in range(6)]
        sent = [requests[number][0] for number in chosen]
        content = b"".join(sent)
        # One by one, all at once, or cut anywhere.
        cuts = sorted(dice.sample(range(1, len(content)), dice.choice([1, 3, 9])))
        anywhere = [content[i:j] for i, j in zip([0, *cuts], [*cuts, len(content)], strict=True)]
        pieces = dice.choice([sent, [content], anywhere])
        assert await responses_to(port, pieces, len(sent)) == [expected[number] for number in chosen]


async def test_a_cloudevent_takes_kserves_route_and_gets_a_cloudevent(routes, pair):
    event = {
        "specversion": "1.0", "id": "7", "source": "here", "type": "candidate",
        "time": "2026-01-01T00:00:00Z",
        "data": {"instances": pair.candidates[:1]},
    }  # fmt: skip
    for content_type in ("application/json", "application/cloudevents+json"):
        short, _ = routes
        response = await short.post(
            V1_PREDICT, content=json.dumps(event), headers={"content-type": content_type}
        )
        assert response.status_code == 200, response.text
        assert "placement_probability" in response.text


async def test_both_routes_refuse_a_body_that_is_too_large(routes):
    for url in (V1_PREDICT, V2_INFER):
        response = await ask_both(routes, method="POST", url=url, content=bytes(30_000))
        assert response.status_code == 413
