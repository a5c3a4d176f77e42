"""The tests' faulty proxy passes responses on unchanged, and replaces them when a test asks for it."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support import faulty_proxy as proxy
from tests.support.faulty_proxy import FaultyProxy

BODY = json.dumps({"outputs": [{"shape": [2, 2], "data": [0.25, 0.75, 0.5, 0.5]}]}).encode()
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
ASKED = b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}"
VERIFIES = b'POST / HTTP/1.1\r\ncontent-length: 16\r\n\r\n{"parameters":1}'


@pytest.fixture
async def faulty() -> AsyncIterator[FaultyProxy]:
    """A proxy in front of a server with one response to all requests."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(EOFError, ConnectionResetError):
            while True:
                await proxy.read_message(reader)
                writer.write(ANSWER)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    faulty = FaultyProxy(server.sockets[0].getsockname()[1])
    await faulty.start()
    yield faulty
    await faulty.stop()
    server.close()


async def ask(faulty: FaultyProxy, request: bytes = ASKED) -> bytes:
    """Return all bytes of the response, which has ended when no more come for a while."""
    reader, writer = await asyncio.open_connection("127.0.0.1", faulty.port)
    writer.write(request)
    came = b""
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        while data := await asyncio.wait_for(reader.read(2**16), 0.2 if came else 20):
            came += data
    writer.close()
    return came


def body_of(came: bytes) -> Any:
    """Return the body of a response whose head has the right length."""
    head, _, body = came.partition(b"\r\n\r\n")
    assert int(head.lower().rpartition(b"content-length: ")[2]) == len(body)
    return json.loads(body)


async def test_the_proxy_passes_responses_on_unchanged_and_counts_calls(faulty):
    assert await ask(faulty) == ANSWER
    assert await ask(faulty, VERIFIES) == ANSWER
    assert (faulty.calls, faulty.spoiled) == (1, 0)


async def test_the_proxy_replaces_responses_of_scoring_calls_and_others_on_request(faulty):
    faulty.spoil = proxy.hangs_up
    assert await ask(faulty) == b""
    assert await ask(faulty, VERIFIES) == ANSWER
    faulty.verifications = True
    assert await ask(faulty, VERIFIES) == b""
    faulty.part = 0.0
    assert await ask(faulty) == ANSWER
    assert faulty.spoiled == 2


@pytest.mark.parametrize(
    ("spoil", "came"),
    [
        (proxy.resets, b""),
        (proxy.breaks_off, ANSWER[: len(ANSWER) // 2]),
        (proxy.never_ends, ANSWER[: len(ANSWER) // 2]),
        (proxy.comes_twice, ANSWER * 2),
        (proxy.is_late(0.01), ANSWER),
    ],
    ids=["resets", "breaks off", "never ends", "twice", "late"],
)
async def test_the_proxy_replaces_a_response_as_its_fault_says(spoil, came, faulty):
    faulty.spoil = spoil
    assert await ask(faulty) == came


async def test_a_changed_content_is_a_complete_response(faulty):
    faulty.spoil = proxy.of_another_length(-1)
    assert body_of(await ask(faulty)) == {"outputs": [{"shape": [1, 2], "data": [0.25, 0.75]}]}
    faulty.spoil = proxy.of_another_length(1)
    assert body_of(await ask(faulty))["outputs"][0]["data"] == [0.25, 0.75, 0.5, 0.5, 0.25, 0.75]
    faulty.spoil = proxy.has_nan
    assert b'"data": [NaN, 0.75' in await ask(faulty)
    faulty.spoil = proxy.has_status(503, "busy")
    assert (await ask(faulty)).startswith(b"HTTP/1.1 503 ")
    faulty.spoil = proxy.is_garbage
    assert len(await ask(faulty)) == len(ANSWER)


async def test_the_proxy_refuses_connections_until_it_is_started_again(faulty):
    await faulty.stop()
    with pytest.raises(ConnectionRefusedError):
        await ask(faulty)
    await faulty.start()
    assert await ask(faulty) == ANSWER
