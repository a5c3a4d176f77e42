"""One request through the ingress: its body and the response's are passed on while they arrive."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AbstractContextManager, suppress
from http import HTTPStatus

from tornado import httputil
from tornado.http1connection import HTTP1Connection
from tornado.iostream import StreamClosedError
from tornado.tcpclient import TCPClient

from inferenceservice.local.backend_connection import BackendConnection, BackendError

#: Headers that belong to one connection and are not passed on (RFC 9110, section 7.6.1). `expect` is among
#: them because the ingress itself answers `100-continue`.
HOP_BY_HOP = frozenset(
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


class UnknownHostError(Exception):
    """A `Host` that belongs to no component of the InferenceService."""


class ProxiedRequest(httputil.HTTPMessageDelegate):
    """Receives one request from tornado, and forwards it and its response.

    Parameters
    ----------
    connection
        Connection to the client.
    choose_backend
        Gives the address of a backend for a `Host`, and counts the request as in flight there while the
        context is open. Raises UnknownHostError or BackendError.
    backends
        Opens connections to backends.
    start_task
        Starts a task that is cancelled when the ingress closes.
    """

    def __init__(
        self,
        connection: HTTP1Connection,
        choose_backend: Callable[[str], AbstractContextManager[str]],
        backends: TCPClient,
        start_task: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
    ) -> None:
        self._connection = connection
        self._choose_backend = choose_backend
        self._backends = backends
        self._start_task = start_task
        self._task: asyncio.Task[None] | None = None
        #: The chunk of the request's body that the backend has not taken yet; None is the end of the body.
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._chunk_taken = asyncio.Event()
        self._chunk_taken.set()
        self._request_received = asyncio.Event()
        self._head_sent = self._response_sent = False

    def headers_received(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
    ) -> None:
        """Start to forward the request."""
        assert isinstance(start_line, httputil.RequestStartLine)  # noqa: S101 (we are a server)
        self._connection.set_close_callback(self.on_connection_close)
        self._task = self._start_task(self._serve(start_line, headers))

    async def data_received(self, chunk: bytes) -> None:
        """Queue a chunk of the body when the previous one is sent; drop it after the response."""
        await self._chunk_taken.wait()
        if not self._response_sent:
            self._chunk_taken.clear()
            self._chunks.put_nowait(chunk)

    def finish(self) -> None:
        """Note the end of the request."""
        self._chunks.put_nowait(None)
        self._request_received.set()

    def on_connection_close(self) -> None:
        """Stop, because the client has disconnected."""
        if self._task is not None:
            self._task.cancel()

    async def _serve(self, start: httputil.RequestStartLine, headers: httputil.HTTPHeaders) -> None:
        finished = False
        try:
            await self._respond(start, headers)
            self._response_sent = True
            self._chunk_taken.set()
            # Closing while the client still sends would reset the connection and lose the response.
            await self._request_received.wait()
            self._connection.finish()
            finished = True
        except (BackendError, StreamClosedError):
            pass  # the client sees an incomplete response and the end of the connection
        finally:
            if not finished:
                self._connection.close()

    async def _respond(self, start: httputil.RequestStartLine, headers: httputil.HTTPHeaders) -> None:
        if not start.path.startswith("/"):
            await self._send_error(HTTPStatus.BAD_REQUEST, "the request's target must be a path")
            return
        try:
            with self._choose_backend(headers.get("host", "")) as address:
                backend = await BackendConnection.open(self._backends, address)
                try:
                    await self._forward(backend, start, headers)
                finally:
                    backend.close()
        except UnknownHostError as error:
            await self._send_error(HTTPStatus.NOT_FOUND, str(error))
        except BackendError:
            if self._head_sent:
                raise
            await self._send_error(
                HTTPStatus.SERVICE_UNAVAILABLE, "the service cannot be reached", retry_after_s=1
            )

    async def _forward(
        self, backend: BackendConnection, start: httputil.RequestStartLine, headers: httputil.HTTPHeaders
    ) -> None:
        sending = self._start_task(self._send_request(backend, start, headers))
        try:
            head, response_headers = await backend.read_head()
            await self._send_head(head.code, head.reason, _end_to_end(response_headers.get_all()))
            async for chunk in backend.read_body(head, response_headers):
                await self._connection.write(chunk)
        finally:
            sending.cancel()

    async def _send_request(
        self, backend: BackendConnection, start: httputil.RequestStartLine, headers: httputil.HTTPHeaders
    ) -> None:
        forwarded = [*_end_to_end(headers.get_all()), ("Connection", "close")]
        if "transfer-encoding" in headers:
            forwarded.append(("Transfer-Encoding", "chunked"))
        # A backend may respond and close before it has read the request; the response decides.
        with suppress(BackendError):
            await backend.send_head(start.method, start.path, forwarded)
            while (chunk := await self._chunks.get()) is not None:
                self._chunk_taken.set()
                await backend.send(chunk)
            await backend.send_end()

    async def _send_error(self, status: HTTPStatus, error: str, retry_after_s: int | None = None) -> None:
        body = json.dumps({"error": error}).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
        if retry_after_s is not None:
            headers.append(("retry-after", str(retry_after_s)))
        await self._send_head(status, status.phrase, headers)
        await self._connection.write(body)

    async def _send_head(self, status: int, reason: str, headers: list[tuple[str, str]]) -> None:
        self._head_sent = True
        head = httputil.HTTPHeaders()
        for name, value in headers:
            head.add(name, value)
        await self._connection.write_headers(httputil.ResponseStartLine("HTTP/1.1", status, reason), head)


def _end_to_end(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the headers without those that belong to one connection."""
    pairs = list(headers)
    named = {
        token.strip().lower()
        for name, value in pairs
        if name.lower() == "connection"
        for token in value.split(",")
    }
    return [(name, value) for name, value in pairs if name.lower() not in HOP_BY_HOP | named]
