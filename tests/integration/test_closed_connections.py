"""Closed connections of clients leave no reference cycles: they are freed without the garbage collector."""

import asyncio
import gc
import json
import ssl
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop
from starlette.requests import Request
from starlette.responses import Response

from tests.support.endpoints import SERVER_LIVE, V1_PREDICT
from tests.support.fake_mlserver import FakeMLServer
from tests.support.in_process_transformer import ListeningTransformer, listening_transformer
from tests.support.raw_http import post_request
from tests.support.sklearn_reference import SklearnReference
from tests.support.waiting import wait_until
from training.candidates import SAMPLE
from transformer.server.client_connection import ClientConnection
from transformer.server.client_transport import CoalescingTransport
from transformer.server.uvicorn_internals import FlowControl, RequestResponseCycle

#: Objects of a connection and its requests.
SERVERS = (ClientConnection, RequestResponseCycle, CoalescingTransport, FlowControl, Request, Response)
BODY = json.dumps({"instances": [SAMPLE]}).encode()
REQUEST = post_request(BODY)
OTHER_ROUTE = post_request(BODY, content_type="application/json; charset=utf-8")
GET = f"GET {SERVER_LIVE} HTTP/1.1\r\nhost: a\r\n\r\n".encode()
#: Bytes that a client sends before it closes the connection, and the number of responses that it waits for.
SENT = {
    "nothing": (b"", 0),
    "a blank line": (b"\r\n", 0),
    "half a head": (REQUEST[:40], 0),
    "half a body": (REQUEST[:-5], 0),
    "half a body on KServe's route": (OTHER_ROUTE[:-5], 0),
    "half a chunk": (
        f"POST {V1_PREDICT} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n9\r\n{{".encode(),
        0,
    ),
    "a prediction": (REQUEST, 1),
    "a prediction on KServe's route": (OTHER_ROUTE, 1),
    "a health check": (GET, 1),
    "two predictions": (REQUEST * 2, 2),
    "a prediction and half a head": (REQUEST + REQUEST[:40], 1),
    "a prediction and half a body": (REQUEST + REQUEST[:-5], 1),
    "an error": (post_request(b"{}"), 1),
    "an error on KServe's route": (post_request(b"{}", content_type="text/plain"), 1),
    "a path that is not found": (post_request(b"{}", path="/nowhere"), 1),
    "no HTTP": (b"HELO\r\n\r\n", 1),
    "a refused head": (GET.replace(b"host", b"most"), 1),
    "a body that is too large": (post_request(b"{}").replace(b": 2\r", b": %d\r" % 2**40), 1),
    "an offer to upgrade": (
        post_request(BODY, "connection: upgrade", "upgrade: h2c"),
        1,
    ),
    "an expectation": (post_request(BODY, "expect: 100-continue")[: -len(BODY)], 0),
    "a last request": (post_request(BODY, "connection: close"), 1),
}


#: Of these, the ones after which the server closes the connection when the client's time is up.
CLOSED_BY_SERVER = ["nothing", "half a head", "half a body", "half a body on KServe's route", "no HTTP"]
#: Event loops that the transformer can run on.
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
CLIENTS = 3


@contextmanager
def without_garbage_collector() -> Iterator[None]:
    gc.collect()
    # Objects that exist already are not looked at again.
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def send_and_close(port: int, sent: bytes, responses: int, context: ssl.SSLContext | None) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(sent)
    for _ in range(responses):
        await reader.readuntil(b"\r\n\r\n")
    # Time for the server to read what was sent.
    await asyncio.sleep(0.02)
    writer.transport.abort()


async def send_and_wait(port: int, sent: bytes, context: ssl.SSLContext | None) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(sent)
    await reader.read()
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def types_left(
    transformer: ListeningTransformer, ask: Callable[[], Coroutine[Any, Any, None]]
) -> set[str]:
    """Return the types of objects of which each of some clients leaves at least one in memory."""
    await ask()
    with without_garbage_collector():
        for _ in range(CLIENTS):
            await ask()
        await wait_until(lambda: not (transformer.state.connections or transformer.state.tasks))
        # The timer for timeouts has a list of connections until the event loop's next turn.
        await asyncio.sleep(0)
        left = Counter(type(one).__name__ for one in gc.get_objects() if isinstance(one, SERVERS))
    return {name for name, count in left.items() if count >= CLIENTS}


async def leftovers(bundle: Path, certificate: Path | None) -> dict[str, set[str]]:
    """Return what the connections of each kind leave in memory, if anything."""
    arguments = ["--predictor_protocol=v2", "--client_timeout_seconds=0.2"]
    context = None
    if certificate:
        arguments += [f"--ssl_certfile={certificate}", f"--ssl_keyfile={certificate}"]
        context = ssl.create_default_context(cafile=certificate)
    found = {}
    async with (
        FakeMLServer(SklearnReference(bundle)).running() as predictor,
        listening_transformer(bundle, predictor.address, *arguments) as transformer,
    ):
        port = transformer.port
        for name, (sent, responses) in SENT.items():
            found[name] = await types_left(
                transformer, partial(send_and_close, port, sent, responses, context)
            )
        for name in CLOSED_BY_SERVER:
            found[f"{name}, closed by the server"] = await types_left(
                transformer, partial(send_and_wait, port, SENT[name][0], context)
            )
    return {name: left for name, left in found.items() if left}


@pytest.mark.parametrize("with_tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("new_loop", LOOPS.values(), ids=LOOPS)
def test_closed_connections_are_freed_without_the_garbage_collector(
    new_loop, with_tls, version_pair, certificate
):
    with asyncio.Runner(loop_factory=new_loop) as runner:
        bundle = version_pair("retrained").new
        assert runner.run(leftovers(bundle, certificate if with_tls else None)) == {}
