"""HTTP/1.1 connection from the ingress to a backend, for one request and its response.

It is built on tornado's streams and header types. Tornado's own client connection does not fit: it rejects
responses with trailers, and it logs an error when a request is cancelled while its response arrives.
"""

from collections.abc import AsyncIterator
from typing import Self

from tornado import httputil
from tornado.http1connection import is_transfer_encoding_chunked, parse_hex_int, parse_int
from tornado.iostream import IOStream, StreamClosedError, UnsatisfiableReadError
from tornado.tcpclient import TCPClient

_CONNECT_TIMEOUT_S = 5
_CHUNK_BYTES = 2**16
_MAX_HEAD_BYTES = 2**16
_MAX_BUFFER_BYTES = 2**20
_HEAD_END = rb"\r?\n\r?\n"


class BackendError(Exception):
    """A backend that cannot be reached, or that broke off its response or sent an invalid one."""


class BackendConnection:
    """Connection for one request. The request's body may be sent while the response is read."""

    def __init__(self, stream: IOStream) -> None:
        self._stream = stream
        self._chunked_request = False
        self._method = ""

    @classmethod
    async def open(cls, client: TCPClient, address: str) -> Self:
        """Connect to ``host:port``.

        Raises
        ------
        BackendError
            If nothing listens there, or not within the timeout.
        """
        host, _, port = address.rpartition(":")
        try:
            stream = await client.connect(
                host, int(port), max_buffer_size=_MAX_BUFFER_BYTES, timeout=_CONNECT_TIMEOUT_S
            )
        except (OSError, TimeoutError) as error:
            raise BackendError(f"{address} cannot be reached") from error
        return cls(stream)

    def close(self) -> None:
        """Close the connection; reads and writes that are waiting raise an error."""
        self._stream.close()

    async def send_head(self, method: str, target: str, headers: list[tuple[str, str]]) -> None:
        """Send the start line and the headers, which must include the framing of a body.

        Raises
        ------
        BackendError
            If the backend has closed the connection.
        """
        self._method = method
        self._chunked_request = any(name.lower() == "transfer-encoding" for name, _ in headers)
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "", ""]
        await self._write("\r\n".join(lines).encode("latin-1"))

    async def send(self, chunk: bytes) -> None:
        """Send a part of the body, and wait until the kernel has taken it.

        Raises
        ------
        BackendError
            If the backend has closed the connection.
        """
        await self._write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if self._chunked_request else chunk)

    async def send_end(self) -> None:
        """Send the end of the body.

        Raises
        ------
        BackendError
            If the backend has closed the connection.
        """
        if self._chunked_request:
            await self._write(b"0\r\n\r\n")

    async def read_head(self) -> tuple[httputil.ResponseStartLine, httputil.HTTPHeaders]:
        """Read the start line and the headers of the response; skip informational ones (1xx).

        Raises
        ------
        BackendError
            If the connection ends before that, or the response is not HTTP.
        """
        while True:
            head = (await self._read_line(_HEAD_END)).decode("latin-1")
            start, _, fields = head.partition("\n")
            try:
                start_line = httputil.parse_response_start_line(start.rstrip("\r"))
                headers = httputil.HTTPHeaders.parse(fields)
            except httputil.HTTPInputError as error:
                raise BackendError(f"the response is not valid HTTP: {error}") from error
            if start_line.code >= 200:
                return start_line, headers

    async def read_body(
        self, start_line: httputil.ResponseStartLine, headers: httputil.HTTPHeaders
    ) -> AsyncIterator[bytes]:
        """Read the body of the response in parts, as they arrive. Trailers are dropped.

        Raises
        ------
        BackendError
            If the connection ends before the body does.
        """
        if self._method == "HEAD" or start_line.code in (204, 304):
            return
        async for part in self._body_parts(headers):
            yield part

    def _body_parts(self, headers: httputil.HTTPHeaders) -> AsyncIterator[bytes]:
        try:
            if is_transfer_encoding_chunked(headers):
                return self._read_chunks()
            if "content-length" in headers:
                return self._read_exactly(parse_int(headers["content-length"]))
        except (httputil.HTTPInputError, ValueError) as error:
            raise BackendError(f"the length of the response is not valid: {error}") from error
        return self._read_until_close()

    async def _read_chunks(self) -> AsyncIterator[bytes]:
        while size := await self._read_chunk_size():
            async for part in self._read_exactly(size):
                yield part
            await self._read_line()
        while (await self._read_line()).strip():
            pass  # a trailer

    async def _read_chunk_size(self) -> int:
        size = (await self._read_line()).partition(b";")[0].strip()
        try:
            return parse_hex_int(size.decode("latin-1"))
        except ValueError as error:
            raise BackendError(f"the size of a chunk is not valid: {error}") from error

    async def _read_exactly(self, length: int) -> AsyncIterator[bytes]:
        while length:
            try:
                part = await self._stream.read_bytes(min(length, _CHUNK_BYTES), partial=True)
            except StreamClosedError as error:
                raise BackendError("the response ended early") from error
            length -= len(part)
            yield part

    async def _read_until_close(self) -> AsyncIterator[bytes]:
        while True:
            try:
                part = await self._stream.read_bytes(_CHUNK_BYTES, partial=True)
            except StreamClosedError as error:
                if error.real_error is not None:
                    raise BackendError("the response ended early") from error
                return
            yield part

    async def _read_line(self, end: bytes = rb"\r?\n") -> bytes:
        try:
            return await self._stream.read_until_regex(end, max_bytes=_MAX_HEAD_BYTES)
        except (StreamClosedError, UnsatisfiableReadError) as error:
            raise BackendError("the response ended early, or a line of it is too long") from error

    async def _write(self, data: bytes) -> None:
        try:
            await self._stream.write(data)
        except StreamClosedError as error:
            raise BackendError("the backend has closed the connection") from error
