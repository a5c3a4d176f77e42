"""HTTP over a plain socket: a test decides on every byte that it sends."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httptools

from tests.support.endpoints import V1_PREDICT


def parse_responses(content: bytes) -> list[tuple[int, bytes]]:
    """Return statuses and bodies of responses that follow each other."""
    found: list[tuple[int, bytes]] = []

    class Reader:
        def on_message_begin(self) -> None:
            self.body = b""

        def on_body(self, body: bytes) -> None:
            self.body += body

        def on_message_complete(self) -> None:
            found.append((parser.get_status_code(), self.body))

    parser = httptools.HttpResponseParser(Reader())
    parser.feed_data(content)
    return found


def post_request(
    body: bytes, *headers: str, path: str = V1_PREDICT, content_type: str = "application/json"
) -> bytes:
    """Return the bytes of a POST request."""
    lines = ["host: a", f"content-type: {content_type}", f"content-length: {len(body)}", *headers]
    return "\r\n".join([f"POST {path} HTTP/1.1", *lines, "", ""]).encode() + body


class RawConnection:
    """A client's connection to a server on this machine."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def responses(self) -> list[tuple[int, Any]]:
        """Return statuses and JSON contents of all responses until the server closes the connection."""
        content = await asyncio.wait_for(self.reader.read(), 20)
        return [(status, json.loads(body)) for status, body in parse_responses(content)] if content else []


@contextlib.asynccontextmanager
async def raw_connection(port: int) -> AsyncIterator[RawConnection]:
    """Connect to a port of this machine."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield RawConnection(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
