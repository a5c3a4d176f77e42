"""A proxy in front of a real predictor, which passes its answers on byte by byte, or spoils them."""

import asyncio
import json
import random
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from inferenceservice.local.forwarder import LoopbackServer

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
#: What MLServer 1.7 writes before an output's first number.
_FIRST_NUMBER = re.compile(rb'("data": *\[)[^,\]]+')


@dataclass(frozen=True)
class HttpMessage:
    """A request or an answer as it came."""

    head: bytes
    body: bytes

    @property
    def scores(self) -> bool:
        """Whether it is a request for a prediction, and not one that verifies or asks for a sign of life."""
        return self.head.startswith(b"POST ") and b'"parameters"' not in self.body

    @property
    def whole(self) -> bytes:
        """All of its bytes."""
        return self.head + self.body

    def with_body(self, body: bytes) -> bytes:
        """The same with another body, whose length it tells."""
        return _LENGTH.sub(b"\r\ncontent-length: %d" % len(body), self.head) + body


class HangUp(Exception):
    """Nothing more goes over this connection."""


#: Sends something in the place of an answer; raises `HangUp` to close the connection after it.
Spoil = Callable[[HttpMessage, asyncio.StreamWriter], Awaitable[None]]


class FaultyProxy:
    """Listens on loopback; each connection is one connection to the predictor.

    Parameters
    ----------
    predictor_port
        Where the predictor listens, or will.

    Attributes
    ----------
    port
        Where this one listens.
    spoil
        What is done to answers; None while they are passed on.
    part
        Which part of them, 0 to 1.
    verifications
        Whether it is done to all answers, or only to those to requests that score.
    spoiled, calls
        How many answers it was done to, and how many requests that score have come.
    """

    def __init__(self, predictor_port: int) -> None:
        self.port = 0
        self.spoil: Spoil | None = None
        self.part = 1.0
        self.verifications = False
        self.spoiled = 0
        self.calls = 0
        self._predictor_port = predictor_port
        self._server = LoopbackServer(self._carry)
        self._surprises: list[Exception] = []

    async def start(self) -> None:
        """Listen, after the first time where it did before."""
        self.port = await self._server.start(self.port)

    async def stop(self) -> None:
        """Refuse connections, and reset those that are open.

        Raises
        ------
        ExceptionGroup
            If it has met something that it does not know how to handle.
        """
        await self._server.close()
        if self._surprises:
            raise ExceptionGroup("the proxy failed", self._surprises)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answers, requests = await asyncio.open_connection("127.0.0.1", self._predictor_port)
        except OSError:
            return
        asked: asyncio.Queue[HttpMessage] = asyncio.Queue()
        ways = [
            asyncio.create_task(self._pass_requests(reader, requests, asked)),
            asyncio.create_task(self._pass_answers(answers, writer, asked)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            requests.close()
            ended = await asyncio.gather(*ways, return_exceptions=True)
            self._surprises += [
                one
                for one in ended
                if isinstance(one, Exception) and not isinstance(one, HangUp | OSError | EOFError)
            ]

    async def _pass_requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: asyncio.Queue[HttpMessage]
    ) -> None:
        while True:
            request = await read_message(reader)
            self.calls += request.scores
            asked.put_nowait(request)
            writer.write(request.whole)
            await writer.drain()

    async def _pass_answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: asyncio.Queue[HttpMessage]
    ) -> None:
        while True:
            answer = await read_message(reader)
            request = await asked.get()
            spoil = self.spoil
            if spoil and (request.scores or self.verifications) and random.random() < self.part:
                self.spoiled += 1
                await spoil(answer, writer)
            else:
                writer.write(answer.whole)
            await writer.drain()


async def read_message(reader: asyncio.StreamReader) -> HttpMessage:
    """One message; the stock servers say its length beforehand.

    Raises
    ------
    EOFError
        If the connection has ended before it.
    """
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    return HttpMessage(head, await reader.readexactly(int(length[1])) if length else b"")


# What can be done to an answer


async def hangs_up(_: HttpMessage, writer: asyncio.StreamWriter) -> None:
    """Closes the connection instead."""
    raise HangUp


async def resets(_: HttpMessage, writer: asyncio.StreamWriter) -> None:
    """Resets the connection instead."""
    writer.transport.abort()
    raise HangUp


async def breaks_off(answer: HttpMessage, writer: asyncio.StreamWriter) -> None:
    """Closes the connection in the middle."""
    writer.write(answer.whole[: len(answer.whole) // 2])
    raise HangUp


async def never_ends(answer: HttpMessage, writer: asyncio.StreamWriter) -> None:
    """Sends one half, and nothing after it."""
    writer.write(answer.whole[: len(answer.whole) // 2])
    await asyncio.Event().wait()


async def is_garbage(answer: HttpMessage, writer: asyncio.StreamWriter) -> None:
    """Sends as many random bytes."""
    writer.write(random.randbytes(len(answer.whole)))


async def comes_twice(answer: HttpMessage, writer: asyncio.StreamWriter) -> None:
    """Sends it once more behind itself, where the next one would be."""
    writer.write(answer.whole * 2)


async def is_cut_short(answer: HttpMessage, writer: asyncio.StreamWriter) -> None:
    """Sends half of the body as if it were all."""
    writer.write(answer.with_body(answer.body[: len(answer.body) // 2]))


async def has_nan(answer: HttpMessage, writer: asyncio.StreamWriter) -> None:
    """Sends NaN for the first number."""
    writer.write(answer.with_body(_FIRST_NUMBER.sub(rb"\1NaN", answer.body)))


def is_late(seconds: float) -> Spoil:
    """Sends it so many seconds later."""

    async def spoil(answer: HttpMessage, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(seconds)
        writer.write(answer.whole)

    return spoil


def has_status(status: int, body: object) -> Spoil:
    """Sends a status and a text, or JSON, instead."""
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    kind = "text/plain" if isinstance(body, str) else "application/json"
    head = f"HTTP/1.1 {status} Fault\r\ncontent-type: {kind}\r\ncontent-length: {len(content)}\r\n\r\n"

    async def spoil(_: HttpMessage, writer: asyncio.StreamWriter) -> None:
        writer.write(head.encode() + content)

    return spoil


def has_output(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """Sends its only output changed."""

    async def spoil(answer: HttpMessage, writer: asyncio.StreamWriter) -> None:
        content = json.loads(answer.body)
        (output,) = content["outputs"]
        change(output)
        writer.write(answer.with_body(json.dumps(content).encode()))

    return spoil


def of_another_length(rows: int) -> Spoil:
    """Sends the first candidate's probabilities so many times more, or fewer candidates'."""

    def change(output: dict[str, Any]) -> None:
        count, classes = output["shape"]
        output["shape"] = [count + rows, classes]
        longer = output["data"] + output["data"][:classes] * max(0, rows)
        output["data"] = longer[: (count + rows) * classes]

    return has_output(change)
