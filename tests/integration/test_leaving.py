"""REST connections end with a response: at their age, when the server leaves, and without a predictor."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.endpoints import V1_PREDICT, V2_INFER
from tests.support.fake_mlserver import FakeMLServer
from tests.support.in_process_transformer import (
    ListeningTransformer,
    in_process_transformer,
    listening_transformer,
)
from tests.support.raw_http import RawConnection, post_request, raw_connection
from tests.support.request_bodies import v2_objects
from tests.support.sklearn_reference import SklearnReference
from tests.support.version_pairs import VersionPair
from tests.support.waiting import wait_until
from training.candidates import SAMPLE
from transformer.batching import pool
from transformer.server import client_connection

#: Content types of which the first leads to the application's routes, and the second to the fast path.
ROUTES = ["application/json; charset=utf-8", "application/json"]
BODY = json.dumps({"instances": [SAMPLE]}).encode()


@dataclass
class Served:
    """A transformer, its predictor, and clients that keep their connection."""

    transformer: ListeningTransformer
    predictor: FakeMLServer
    content_type: str

    @property
    def request(self) -> bytes:
        return post_request(BODY, content_type=self.content_type)

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[RawConnection]:
        """A client that has got a response on its connection."""
        async with raw_connection(self.transformer.port) as client:
            assert not await self.ends(client)
            yield client

    async def ends(self, client: RawConnection, request: bytes | None = None) -> bool:
        """Send a request, and return True if its response ends the connection."""
        client.send(request or self.request)
        return ends(await response_head(client))


async def response_head(client: RawConnection) -> bytes:
    """Read a response, and return its head."""
    head = await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), 20)
    assert head.startswith(b"HTTP/1.1 200 "), head
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    await client.reader.readexactly(int(length))
    return head


def ends(head: bytes) -> bool:
    return b"\r\nconnection: close\r\n" in head.lower()


@pytest.fixture(scope="module")
def pair(version_pair) -> VersionPair:
    return version_pair("retrained")


@pytest.fixture(params=ROUTES, ids=["application", "fast path"])
async def served(request, pair) -> AsyncIterator[Served]:
    async with (
        FakeMLServer(SklearnReference(pair.new)).running() as predictor,
        listening_transformer(pair.new, predictor.address, "--predictor_protocol=v2") as transformer,
    ):
        try:
            yield Served(transformer, predictor, request.param)
        finally:
            predictor.may_answer.set()


async def closes(client: RawConnection) -> bool:
    """Return True once the server has closed the connection without another response."""
    return await asyncio.wait_for(client.reader.read(), 20) == b""


async def test_leaving_ends_an_idle_connection_with_its_next_response(served):
    async with served.client() as client, served.client() as other:
        served.transformer.leave()
        assert await served.ends(client)
        assert await closes(client)
        assert len(served.transformer.state.connections) == 1, "the other client has sent no request since"
        assert await served.ends(other)


async def test_leaving_ends_a_new_connection_with_its_first_response(served):
    served.transformer.leave()
    async with raw_connection(served.transformer.port) as client:
        assert await served.ends(client)
        assert await closes(client)


async def test_leaving_ends_a_connection_with_the_response_in_progress(served):
    async with served.client() as client:
        served.predictor.may_answer.clear()
        calls = len(served.predictor.plain_calls)
        client.send(served.request)
        await wait_until(lambda: len(served.predictor.plain_calls) > calls)
        served.transformer.leave()
        served.predictor.may_answer.set()
        assert ends(await response_head(client))
        assert await closes(client)


@pytest.mark.parametrize("sent", [10, -10], ids=["head", "body"])
async def test_leaving_waits_for_the_rest_of_a_request(served, sent):
    async with served.client() as client:
        client.send(served.request[:sent])
        (connection,) = served.transformer.state.connections
        await wait_until(lambda: not connection.is_idle)
        served.transformer.leave()
        assert await served.ends(client, served.request[sent:])
        assert await closes(client)


async def test_leaving_answers_all_requests_that_were_read(served):
    async with served.client() as client:
        served.predictor.may_answer.clear()
        client.send(served.request * 3)
        (connection,) = served.transformer.state.connections
        await wait_until(lambda: len(connection.pipeline) == 2)
        served.transformer.leave()
        served.predictor.may_answer.set()
        assert [ends(await response_head(client)) for _ in range(3)] == [False, False, True]
        assert await closes(client)


async def test_an_old_connection_ends_with_a_response(served, monkeypatch):
    monkeypatch.setattr(client_connection, "CONNECTION_AGE_S", 0.1)
    async with raw_connection(served.transformer.port) as client:
        while not await served.ends(client):
            await asyncio.sleep(0.01)
        assert await closes(client)


async def test_a_connection_is_not_closed_for_its_age_while_it_is_idle(served, monkeypatch):
    monkeypatch.setattr(client_connection, "CONNECTION_AGE_S", 0.01)
    async with raw_connection(served.transformer.port) as client:
        await asyncio.sleep(0.1)
        assert await served.ends(client)


@pytest.mark.parametrize("content_type", ROUTES, ids=["application", "fast path"])
@pytest.mark.parametrize(
    ("path", "body"), [(V1_PREDICT, {"instances": [SAMPLE]}), (V2_INFER, v2_objects([SAMPLE]))]
)
async def test_a_503_for_lack_of_a_predictor_ends_the_connection(path, body, content_type, pair, monkeypatch):
    monkeypatch.setattr(pool, "GRACE_S", 0.01)
    async with in_process_transformer(pair.new, "127.0.0.1:1", ready=False) as transformer:
        response = await transformer.http.post(
            path, content=json.dumps(body), headers={"content-type": content_type}
        )
        assert response.status_code == 503
        assert response.headers.get_list("connection") == ["close"]
        assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize("content_type", ROUTES, ids=["application", "fast path"])
async def test_other_errors_keep_the_connection(content_type, pair):
    """Reconnecting would cost an overloaded server more than the request."""
    async with FakeMLServer(SklearnReference(pair.new)).running() as predictor:
        arguments = ("--predictor_protocol=v2", "--max_waiting_rows=1")
        async with in_process_transformer(pair.new, predictor.address, *arguments) as transformer:
            predictor.may_answer.clear()

            async def ask(content: Any) -> Any:
                headers = {"content-type": content_type}
                return await transformer.http.post(V1_PREDICT, content=json.dumps(content), headers=headers)

            asked = [asyncio.create_task(ask({"instances": [SAMPLE]})) for _ in range(30)]
            full, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            invalid = await ask({"instances": [{}]})
            predictor.may_answer.set()
            await asyncio.gather(*asked)
    for response, status in [*((one.result(), 503) for one in full), (invalid, 400)]:
        assert response.status_code == status
        assert "connection" not in response.headers
