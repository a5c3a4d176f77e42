"""A connection to an HTTP/1.1 server: one request at a time, and no silent reconnect.

HTTP libraries reconnect silently, and then a call may reach a version that was not verified. Here the
connection closes after anything that could put one response in the place of another: a cancelled call, an
invalid response, unexpected bytes.
"""

import asyncio
import contextlib
import random
import re
import socket
import ssl
from collections.abc import Mapping
from typing import Self

import httptools

#: Maximum bytes of a response, with its head: the probabilities of 10,000 candidates are 400 KB.
MAX_RESPONSE = 64 * 2**20
#: Maximum bytes of its head, with the informational responses before it.
MAX_HEAD = 64 * 2**10
#: Seconds to connect to one of several addresses before the next one is tried.
OTHERS_S = 1
# Valid names and values of headers (RFC 9110, 5.1 and 5.5): without CR, LF and NUL, one cannot become two.
_NAME = re.compile(r"[0-9A-Za-z!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
# The encodings that a response may have.
_ENCODINGS = {b"content-encoding": b"identity", b"transfer-encoding": b"chunked"}


class BadResponse(Exception):
    """A response that cannot be read; the message says why."""


class HttpConnection(asyncio.Protocol):
    """One TCP or TLS connection, made by `open`. No redirects, proxies, cookies or compression.

    Parameters
    ----------
    host
        Value of the Host header.

    Attributes
    ----------
    closed
        True if the connection carries no further request.
    """

    def __init__(self, host: str) -> None:
        self.closed = False
        self._host = host
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        #: Status and body of the response, while a request is in flight.
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._received = 0
        self._begin()

    @classmethod
    async def open(cls, host: str, port: int, context: ssl.SSLContext | None = None) -> Self:
        """Connect to a host, over TLS if there is a `context`.

        Raises
        ------
        OSError
            If the host cannot be reached, or its certificate is not valid for it.
        """
        # A dot at the end is only for the resolver.
        name = host.rstrip(".")
        shown = _host_header(name, port, 443 if context else 80)

        async def connect(address: str) -> Self:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: cls(shown), address, port, ssl=context, server_hostname=name if context else None
            )
            return connection

        *others, last = await _addresses(host, port)
        for address in others:
            with contextlib.suppress(OSError):
                async with asyncio.timeout(OTHERS_S):
                    return await connect(address)
        return await connect(last)

    async def request(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> tuple[int, bytes]:
        """Send a request, and return status and body of the response. Cancelling closes the connection.

        Parameters
        ----------
        path
            The request's target, already quoted.
        headers
            Headers besides Host and those that describe the body's length.

        Raises
        ------
        ValueError
            If a header is not valid. Nothing was sent.
        OSError
            If the connection is closed, or closes before the response is complete.
        BadResponse
            If the response cannot be read.
        """
        if self._answer is not None:
            raise RuntimeError("a connection carries one request at a time")
        head = self._head(method, path, headers, body)
        if self.closed:
            raise ConnectionResetError("the connection is closed")
        self._received = 0
        self._begin()
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(head + body if body else head)
        try:
            return await self._answer
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self._answer = None

    def _head(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", f"host: {self._host}", "accept-encoding: identity"]
        for name, value in headers.items():
            if not (_NAME.fullmatch(name) and _VALUE.fullmatch(value)):
                raise ValueError(f"header {name!r} has invalid characters")
            lines.append(f"{name}: {value}")
        if body is not None:
            lines.append(f"content-length: {len(body)}")
        # The same bytes as an ASGI server has read.
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def close(self) -> None:
        """Close at once. A request in flight fails."""
        self.closed = True
        self._transport.abort()

    # Callbacks of the transport.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._answer is None or self._answer.done():
            self.close()
            return
        self._received += len(data)
        if self._received > MAX_RESPONSE:
            self._fail(BadResponse(f"limit {MAX_RESPONSE} bytes, got more"))
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(BadResponse("not HTTP"), error)
        if self._received > MAX_HEAD and not self._in_body:
            self._fail(BadResponse(f"head limit {MAX_HEAD} bytes, got more"))

    def eof_received(self) -> None:
        """See `asyncio.Protocol`; the transport closes next."""
        self.connection_lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        if exc is None and not self.closed and self._until_close and self._in_body:
            self._complete()
        self._fail(ConnectionResetError("the connection was closed before the response was complete"), exc)

    # Callbacks of the parser.

    def on_message_begin(self) -> None:
        """Close if a message follows the response."""
        if self._answer is not None and self._answer.done():
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Read how the body is sent."""
        name, value = name.lower(), value.strip().lower()
        if name in {b"content-length", b"transfer-encoding"}:
            self._until_close = False
        if _ENCODINGS.get(name, value) != value:
            self._fail(BadResponse("an encoding that was not requested"))

    def on_headers_complete(self) -> None:
        """Note that the body is next."""
        self._in_body = True

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Complete the response, unless it was informational."""
        if 100 <= self._parser.get_status_code() < 200:
            self._begin()
        else:
            self._complete()

    def _begin(self) -> None:
        self._in_body = False
        self._until_close = True
        self._body: list[bytes] = []

    def _complete(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), b"".join(self._body)))
        if not self._parser.should_keep_alive():
            self.close()

    def _fail(self, error: Exception, cause: Exception | None = None) -> None:
        if self._answer is not None and not self._answer.done():
            error.__cause__ = cause
            self._answer.set_exception(error)
        self.close()


def _host_header(name: str, port: int, default_port: int) -> str:
    name = f"[{name}]" if ":" in name else name
    return name if port == default_port else f"{name}:{port}"


async def _addresses(host: str, port: int) -> list[str]:
    """Return a host's present addresses, in the order in which to try them."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"{host!r} is not a valid host name") from error
    return _shuffled([(family, str(address[0])) for family, _, _, _, address in found])


def _shuffled(found: list[tuple[int, str]]) -> list[str]:
    """Shuffle addresses, so that a headless Service's replicas share the connections.

    The family that the resolver prefers, IPv4 or IPv6, still comes first.
    """
    preferred = found[0][0]
    shuffled = random.sample(found, len(found))
    return [address for _, address in sorted(shuffled, key=lambda one: one[0] != preferred)]
