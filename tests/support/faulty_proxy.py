"""A proxy in front of a real predictor that passes its responses on, or replaces them with faulty ones."""

import asyncio
import json
import random
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from inferenceservice.local.forwarder import LoopbackServer
from predictor.process import free_ports

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
#: The text that MLServer 1.7 writes before the first number of an output.
_FIRST_NUMBER = re.compile(rb'("data": *\[)[^,\]]+')


@dataclass(frozen=True)
class HttpMessage:
    """A request or a response as it was received."""

    head: bytes
    body: bytes

    @property
    def scores(self) -> bool:
        """Return True if it is a scoring call, and neither a verification nor a health check."""
        return self.head.startswith(b"POST ") and b'"parameters"' not in self.body

    @property
    def whole(self) -> bytes:
        """Return all bytes."""
        return self.head + self.body

    def with_body(self, body: bytes) -> bytes:
        """Return the message with another body and its length."""
        return _LENGTH.sub(b"\r\ncontent-length: %d" % len(body), self.head) + body


class HangUp(Exception):
    """Raised to close the connection."""


#: A fault: sends something in place of a response, and raises `HangUp` to close the connection.
Spoil = Callable[[HttpMessage, asyncio.StreamWriter], Awaitable[None]]


class FaultyProxy:
    """Listens on loopback; each connection is one connection to the predictor.

    Parameters
    ----------
    predictor_port
        Port of the predictor, which need not listen yet.

    Attributes
    ----------
    port
        Port of this proxy.
    spoil
        The fault of responses. None: responses are passed on.
    part
        Fraction of the responses that get the fault, 0 to 1.
    verifications
        True if responses to verifications get the fault too, and not only those to scoring calls.
    spoiled, calls
        Number of responses with the fault, and of scoring calls.
    """

    def __init__(self, predictor_port: int) -> None:
        # Not a port that the kernel chooses: while the proxy is stopped, it could choose it again.
        (self.port,) = free_ports(1)
        self.spoil: Spoil | None = None
        self.part = 1.0
        self.verifications = False
        self.spoiled = 0
        self.calls = 0
        self._predictor_port = predictor_port
        self._server = LoopbackServer(self._carry)
        self._surprises: list[Exception] = []

    async def start(self) -> None:
        """Listen, on the same port each time."""
        await self._server.start(self.port)

    async def stop(self) -> None:
        """Refuse new connections, and reset open ones.

        Raises
        ------
        ExceptionGroup
            If an exception was raised that the proxy does not expect.
        """
        await self._server.close()
        if self._surprises:
            raise ExceptionGroup("the proxy failed", self._surprises)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answers, requests = await asyncio.open_connection("127.0.0.1", self._predictor_port)
        except OSError:
            return
        pending: asyncio.Queue[HttpMessage] = asyncio.Queue()
        directions = [
            asyncio.create_task(self._pass_requests(reader, requests, pending)),
            asyncio.create_task(self._pass_answers(answers, writer, pending)),
        ]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            requests.close()
            ended = await asyncio.gather(*directions, return_exceptions=True)
            self._surprises += [
                one
                for one in ended
                if isinstance(one, Exception) and not isinstance(one, HangUp | OSError | EOFError)
            ]

    async def _pass_requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pending: asyncio.Queue[HttpMessage]
    ) -> None:
        while True:
            request = await read_message(reader)
            self.calls += request.scores
            pending.put_nowait(request)
            writer.write(request.whole)
            await writer.drain()

    async def _pass_answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pending: asyncio.Queue[HttpMessage]
    ) -> None:
        while True:
            answer = await read_message(reader)
            request = await pending.get()
            spoil = self.spoil
            if spoil and (request.scores or self.verifications) and random.random() < self.part:
                self.spoiled += 1
                await spoil(answer, writer)
            else:
                writer.write(answer.whole)
            await writer.drain()


async def read_message(reader: asyncio.StreamReader) -> HttpMessage:
    """Read one message. The stock servers send its length.

    Raises
    ------
    EOFError
        If the connection ends before the message.
    """
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    return HttpMessage(head, await reader.readexactly(int(length[1])) if length else b"")


# Faults


async def hangs_up(_: HttpMessage, writer: asyncio.StreamWriter) -> None:
    """Close the connection instead."""
    raise HangUp


async def resets(_: HttpMessage, writer: asyncio.StreamWriter) -> None:
    """Reset the connection instead."""
    writer.transport.abort()
    raise HangUp


async def breaks_off(answer: HttpMessage, writer: asyncio.StreamWriter) -> None:
    """Close the connection in the middle of the response."""
    writer.write(answer.whole[: len(answer.whole) // 2])
    raise HangUp


async def never_ends(answer: HttpMessage, writer: asyncio.StreamWriter) -> None:
    """Send one half of the response, and then nothing."""
    writer.write(answer.whole[: len(answer.whole) // 2])
    await asyncio.Event().wait()


async def is_garbage(answer: HttpMessage, writer: asyncio.StreamWriter) -> None:
    """Send the same number of random bytes."""
    writer.write(random.randbytes(len(answer.whole)))


async def comes_twice(answer: HttpMessage, writer: asyncio.StreamWriter) -> None:
    """Send the response twice."""
    writer.write(answer.whole * 2)


async def is_cut_short(answer: HttpMessage, writer: asyncio.StreamWriter) -> None:
    """Send half of the body as a complete response."""
    writer.write(answer.with_body(answer.body[: len(answer.body) // 2]))


async def has_nan(answer: HttpMessage, writer: asyncio.StreamWriter) -> None:
    """Send NaN for the first number."""
    writer.write(answer.with_body(_FIRST_NUMBER.sub(rb"\1NaN", answer.body)))


def is_late(seconds: float) -> Spoil:
    """Return a fault that sends the response so many seconds later."""

    async def spoil(answer: HttpMessage, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(seconds)
        writer.write(answer.whole)

    return spoil


def has_status(status: int, body: object) -> Spoil:
    """Return a fault that sends a status and a text, or JSON, instead."""
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    kind = "text/plain" if isinstance(body, str) else "application/json"
    head = f"HTTP/1.1 {status} Fault\r\ncontent-type: {kind}\r\ncontent-length: {len(content)}\r\n\r\n"

    async def spoil(_: HttpMessage, writer: asyncio.StreamWriter) -> None:
        writer.write(head.encode() + content)

    return spoil


def has_output(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """Return a fault that sends the response with its output changed."""

    async def spoil(answer: HttpMessage, writer: asyncio.StreamWriter) -> None:
        content = json.loads(answer.body)
        (output,) = content["outputs"]
        change(output)
        writer.write(answer.with_body(json.dumps(content).encode()))

    return spoil


def of_another_length(rows: int) -> Spoil:
    """Return a fault that adds so many rows to the response, or removes them."""

    def change(output: dict[str, Any]) -> None:
        count, classes = output["shape"]
        output["shape"] = [count + rows, classes]
        longer = output["data"] + output["data"][:classes] * max(0, rows)
        output["data"] = longer[: (count + rows) * classes]

    return has_output(change)
