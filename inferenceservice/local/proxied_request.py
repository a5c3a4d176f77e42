"""One request through the ingress: its body and its response are passed on while they arrive."""

import asyncio
import json
import string
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from http import HTTPStatus
from urllib.parse import quote

from tornado import httputil
from tornado.http1connection import HTTP1Connection, HTTP1ConnectionParameters
from tornado.tcpclient import TCPClient

from inferenceservice.local.proxied_response import ProxiedResponse, end_to_end

#: The transformer limits the size of a body; the ingress does not.
MAX_BODY_BYTES = 2**40
MAX_BUFFER_BYTES = 2**20
_CONNECT_TIMEOUT_S = 5
#: For these methods, tornado sends a body without Content-Length in chunks, and announces it even if the
#: request has none. For other methods it does neither.
_CHUNKED_BY_TORNADO = frozenset({"POST", "PUT", "PATCH"})


class UnknownHostError(Exception):
    """A `Host` that belongs to no component of the InferenceService."""


class NoBackendError(Exception):
    """A component that has no backend now."""


class ProxiedRequest(httputil.HTTPMessageDelegate):
    """Receives one request from tornado, and forwards it and its response.

    Parameters
    ----------
    client
        Connection to the client.
    choose_backend
        Gives the address of a backend for a `Host` and a path, and counts the request as in flight there
        while the context is open. Raises UnknownHostError or NoBackendError.
    backends
        Opens connections to backends.
    start_task
        Starts a task that is cancelled when the ingress closes.
    """

    def __init__(
        self,
        client: HTTP1Connection,
        choose_backend: Callable[[str, str], AbstractContextManager[str]],
        backends: TCPClient,
        start_task: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
    ) -> None:
        self._client = client
        self._choose_backend = choose_backend
        self._backends = backends
        self._start_task = start_task
        self._start: httputil.RequestStartLine
        self._headers: httputil.HTTPHeaders
        self._chunked_here = False
        #: Ends when the response is complete or has failed.
        self._exchange: asyncio.Task[None]
        #: Connection to the backend, as soon as the request's body can be written to it.
        self._backend: asyncio.Future[HTTP1Connection] = asyncio.get_running_loop().create_future()

    def headers_received(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
    ) -> None:
        """Start to forward the request."""
        assert isinstance(start_line, httputil.RequestStartLine)  # noqa: S101 (we are a server)
        self._start, self._headers = start_line, headers
        self._chunked_here = "Transfer-Encoding" in headers and start_line.method not in _CHUNKED_BY_TORNADO
        self._client.set_close_callback(self.on_connection_close)
        self._exchange = self._start_task(self._serve())

    async def data_received(self, chunk: bytes) -> None:
        """Send a chunk of the body to the backend; drop it after the response."""
        await asyncio.wait((self._exchange, self._backend), return_when=asyncio.FIRST_COMPLETED)
        if not self._exchange.done():
            data = b"%x\r\n%b\r\n" % (len(chunk), chunk) if self._chunked_here else chunk
            # A backend may respond and close before it has read the request; the response decides.
            sent = self._backend.result().write(data)
            await asyncio.wait((self._exchange, sent), return_when=asyncio.FIRST_COMPLETED)

    def finish(self) -> None:
        """End the request to the backend, and the response to the client after its last chunk."""
        self._backend.add_done_callback(self._finish_request)
        # Closing while the client still sends would reset the connection and lose the response.
        self._exchange.add_done_callback(lambda _: self._client.finish())

    def on_connection_close(self) -> None:
        """Stop, because the client has disconnected."""
        self._exchange.cancel()

    def _finish_request(self, backend: asyncio.Future[HTTP1Connection]) -> None:
        if self._chunked_here:
            backend.result().write(b"0\r\n\r\n")
        backend.result().finish()

    async def _serve(self) -> None:
        complete = False
        try:
            complete = await self._respond()
        finally:
            if not complete:
                self._client.close()

    async def _respond(self) -> bool:
        """Send the backend's response or an error; return True if it is complete."""
        if not self._start.path.startswith("/"):
            return self._send_error(HTTPStatus.BAD_REQUEST, "the request's target must be a path")
        response = ProxiedResponse(self._client)
        try:
            with self._choose_backend(self._headers.get("Host", ""), self._start.path) as address:
                await self._forward(address, response)
        except UnknownHostError as error:
            return self._send_error(HTTPStatus.NOT_FOUND, str(error))
        except (NoBackendError, OSError):
            pass  # `response` is not complete
        if response.started:
            return response.complete
        return self._send_error(
            HTTPStatus.SERVICE_UNAVAILABLE, "the service cannot be reached", {"Retry-After": "1"}
        )

    async def _forward(self, address: str, response: ProxiedResponse) -> None:
        host, _, port = address.rpartition(":")
        stream = await self._backends.connect(
            host, int(port), max_buffer_size=MAX_BUFFER_BYTES, timeout=_CONNECT_TIMEOUT_S
        )
        parameters = HTTP1ConnectionParameters(no_keep_alive=True, max_body_size=MAX_BODY_BYTES)
        backend = HTTP1Connection(stream, is_client=True, params=parameters)
        try:
            # Tornado writes the target as UTF-8, which would change bytes that are not ASCII.
            target = quote(self._start.path.encode("latin-1"), safe=string.punctuation)
            backend.write_headers(self._start._replace(path=target), self._forwarded_headers())
            self._backend.set_result(backend)
            await response.read_from(backend)
        finally:
            backend.close()

    def _forwarded_headers(self) -> httputil.HTTPHeaders:
        headers = end_to_end(self._headers)
        headers["Connection"] = "close"
        if "Transfer-Encoding" in self._headers:
            headers["Transfer-Encoding"] = "chunked"
        elif "Content-Length" not in headers and self._start.method in _CHUNKED_BY_TORNADO:
            headers["Content-Length"] = "0"
        return headers

    def _send_error(self, status: HTTPStatus, error: str, headers: dict[str, str] | None = None) -> bool:
        body = json.dumps({"error": error}).encode()
        self._client.write_headers(
            httputil.ResponseStartLine("HTTP/1.1", status, status.phrase),
            httputil.HTTPHeaders(
                {"Content-Type": "application/json", "Content-Length": str(len(body))} | (headers or {})
            ),
            b"" if self._start.method == "HEAD" else body,
        )
        return True
