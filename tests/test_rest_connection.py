"""A client's connection: answers in one piece, in their order, and none held back."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from transformer.rest_connection import CONNECTION, InOnePiece, RestConnection

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"


class Recorder:
    """What a transport was told to do."""

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
async def transport(recorder) -> InOnePiece:
    return InOnePiece(recorder, asyncio.get_running_loop())


async def _never(served):
    served.began.set()
    await asyncio.sleep(60)


async def _answer(scope, receive, send):
    """Answers in two pieces, with a pause before them, or between them, where the path says so."""
    if scope["path"] == "/long":
        served = scope["state"]["served"]
        try:
            await scope["extensions"][CONNECTION].needed(_never(served))
        except ConnectionResetError:
            served.given_up.set()
            return
    body = scope["path"].encode()
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if "slow" in scope["path"]:
        await asyncio.sleep(0.2)
    await send({"type": "http.response.body", "body": body})


@dataclass
class Served:
    """A server whose connections are ours; what becomes of a request for /long."""

    port: int = 0
    began: asyncio.Event = field(default_factory=asyncio.Event)
    given_up: asyncio.Event = field(default_factory=asyncio.Event)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    config = Config(_answer, log_config=None, lifespan="off")
    config.load()
    state = ServerState()
    served = Served()
    server = await asyncio.get_running_loop().create_server(
        lambda: RestConnection(config, state, {"served": served}), "127.0.0.1", 0
    )
    async with server:
        served.port = server.sockets[0].getsockname()[1]
        yield served


async def answers(port: int, requests: bytes) -> bytes:
    """What comes back until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(requests)
    try:
        return await asyncio.wait_for(reader.read(), 5)
    finally:
        writer.close()
        await writer.wait_closed()


def asked(method: str, path: str, *, last: bool = False) -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\nhost: a\r\n{'connection: close' if last else 'a: b'}\r\n\r\n".encode()
    )


async def test_head_and_body_are_written_together(transport, recorder):
    transport.write(HEAD)
    transport.write(b"hello")
    await asyncio.sleep(0)
    assert recorder.done == [HEAD + b"hello"]


async def test_a_head_waits_for_its_body_no_longer_than_a_turn_of_the_loop(transport, recorder):
    transport.write(HEAD)
    await asyncio.sleep(0)
    transport.write(b"hel")
    transport.write(b"lo")
    assert recorder.done == [HEAD, b"hel", b"lo"]


async def test_what_is_held_is_written_before_the_connection_closes(transport, recorder):
    transport.write(HEAD)
    transport.close()
    await asyncio.sleep(0)
    assert recorder.done == [HEAD, "closed"]
    assert transport.is_closing()


@pytest.mark.parametrize("path", ["/quick", "/slow"])
async def test_an_answer_without_a_body_comes(served, path):
    content = await answers(served.port, asked("HEAD", path, last=True))
    assert content.startswith(b"HTTP/1.1 200 OK\r\n")
    assert content.endswith(b"\r\n\r\n")


async def test_requests_sent_together_are_answered_in_their_order(served):
    requests = [("GET", "/1"), ("HEAD", "/2"), ("GET", "/slow/3"), ("HEAD", "/slow/4"), ("POST", "/5")]
    sent = b"".join(asked(*request, last=request[1] == "/5") for request in requests)
    heads_and_bodies = (await answers(served.port, sent)).split(b"\r\n\r\n")
    bodies = [part.split(b"HTTP/1.1")[0] for part in heads_and_bodies[1:]]
    assert bodies == [b"/1", b"", b"/slow/3", b"", b"/5"]


async def test_a_request_is_given_up_when_its_client_goes(served):
    _, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(asked("GET", "/long"))
    await asyncio.wait_for(served.began.wait(), 5)
    assert not served.given_up.is_set()
    writer.close()
    await asyncio.wait_for(served.given_up.wait(), 5)
    assert (await answers(served.port, asked("GET", "/1", last=True))).endswith(b"/1")
