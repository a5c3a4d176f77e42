"""One response through the ingress: it is passed on to the client while it arrives."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from tornado import httputil
from tornado.http1connection import HTTP1Connection
from tornado.iostream import StreamClosedError

#: Headers that belong to one connection and are not passed on (RFC 9110, section 7.6.1). `expect` is among
#: them because the ingress itself answers `100-continue`.
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "expect",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


class ProxiedResponse(httputil.HTTPMessageDelegate):
    """Receives one response from tornado, and sends it to the client.

    Tornado rejects a response with trailers or chunk extensions; the client then sees an incomplete response.
    It takes the end of the connection, even a reset, as the end of a body without length. The stock model
    servers and the transformer send none of these.

    Parameters
    ----------
    client
        Connection to the client.

    Attributes
    ----------
    started, complete
        True when the head, and the whole response, has been passed on.
    """

    def __init__(self, client: HTTP1Connection) -> None:
        self.started = self.complete = False
        self._client = client
        self._backend: HTTP1Connection

    async def read_from(self, backend: HTTP1Connection) -> None:
        """Read the response until it is complete or breaks off.

        Raises
        ------
        OSError
            If the backend closes the connection early.
        """
        self._backend = backend
        await backend.read_response(self)

    async def headers_received(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
    ) -> None:
        """Send the head to the client, unless it is informational (1xx)."""
        assert isinstance(start_line, httputil.ResponseStartLine)  # noqa: S101 (we are a client)
        if start_line.code >= 200:
            with self._close_backend_on_error():
                sent = self._client.write_headers(start_line, end_to_end(headers))
                self.started = True
                await sent

    async def data_received(self, chunk: bytes) -> None:
        """Send a chunk of the body, and wait until the kernel has taken it."""
        with self._close_backend_on_error():
            await self._client.write(chunk)

    def finish(self) -> None:
        """Close the connection: tornado would wait until the whole request is sent."""
        self.complete = True
        self._backend.close()

    @contextmanager
    def _close_backend_on_error(self) -> Iterator[None]:
        """Stop reading on a disconnect, a cancellation or a Content-Length that is not a number.

        Tornado logs each exception of a delegate as an error, even CancelledError.
        """
        try:
            yield
        except (asyncio.CancelledError, StreamClosedError, ValueError):
            self._backend.close()


def end_to_end(headers: httputil.HTTPHeaders) -> httputil.HTTPHeaders:
    """Return a copy without the headers that belong to one connection."""
    named = {token.strip().lower() for token in headers.get("Connection", "").split(",")}
    # A connection option must not remove the length of the body.
    dropped = _HOP_BY_HOP | (named - {"content-length"})
    copy = httputil.HTTPHeaders()
    for name, value in headers.get_all():
        if name.lower() not in dropped:
            copy.add(name, value)
    return copy
