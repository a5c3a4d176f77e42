"""One request through the ingress, and its answer: HTTP from a client to a backend, passed on as it comes."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AbstractContextManager
from http import HTTPStatus

import aiohttp
from tornado import httputil
from tornado.http1connection import HTTP1Connection
from tornado.iostream import StreamClosedError
from yarl import URL

#: Headers that belong to one connection and are not passed on (RFC 9110, section 7.6.1), and the question
#: whether a body may be sent, to which the ingress has said yes itself by then.
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


class ProxiedRequest(httputil.HTTPMessageDelegate):
    """One request and its answer: sent on while it comes in, answered while the answer comes in.

    Parameters
    ----------
    connection
        The client's.
    route
        Gives the backend's address for a `Host`.
    session
        Connections to the backends.
    run
        Starts a task that ends with the ingress.
    """

    def __init__(
        self,
        connection: HTTP1Connection,
        route: Callable[[str], AbstractContextManager[str | None]],
        session: aiohttp.ClientSession,
        run: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
    ) -> None:
        self._connection = connection
        self._route = route
        self._session = session
        self._run = run
        self._task: asyncio.Task[None] | None = None
        #: The request's body: a part that the backend has yet to take, and None at the end.
        self._parts: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._room = asyncio.Event()
        self._room.set()
        self._received = asyncio.Event()
        self._answering = self._answered = False

    def headers_received(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
    ) -> None:
        """Begin."""
        assert isinstance(start_line, httputil.RequestStartLine)  # noqa: S101 (we are a server)
        self._connection.set_close_callback(self.on_connection_close)
        self._task = self._run(self._exchange(start_line, headers))

    async def data_received(self, chunk: bytes) -> None:
        """Pass on a part of the body; one that comes after the answer is of no use to anyone."""
        await self._room.wait()
        if not self._answered:
            self._room.clear()
            self._parts.put_nowait(chunk)

    def finish(self) -> None:
        """Note the end of the request."""
        self._parts.put_nowait(None)
        self._received.set()

    def on_connection_close(self) -> None:
        """Give up, since the client has."""
        if self._task is not None:
            self._task.cancel()

    async def _exchange(self, start: httputil.RequestStartLine, headers: httputil.HTTPHeaders) -> None:
        finished = False
        try:
            await self._answer(start, headers)
            self._answered = True
            self._room.set()
            # To close while the client is still sending would take the answer away from it.
            await self._received.wait()
            self._connection.finish()
            finished = True
        except (aiohttp.ClientError, StreamClosedError):
            pass  # the client has part of an answer, and learns from the connection's end that it is no more
        finally:
            if not finished:
                self._connection.close()

    async def _answer(self, start: httputil.RequestStartLine, headers: httputil.HTTPHeaders) -> None:
        host = headers.get("host", "")
        with self._route(host) as backend:
            if backend is None:
                await self._refuse(HTTPStatus.NOT_FOUND, f"no InferenceService has the host {host[:80]!a}")
            else:
                await self._answer_by(backend, start, headers)

    async def _answer_by(
        self, backend: str, start: httputil.RequestStartLine, headers: httputil.HTTPHeaders
    ) -> None:
        if not start.path.startswith("/"):
            await self._refuse(HTTPStatus.BAD_REQUEST, "the request's target must be a path")
        else:
            try:
                await self._pass_on(start.method, URL(f"http://{backend}{start.path}", encoded=True), headers)
            except aiohttp.ClientError:
                if self._answering:
                    raise
                await self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "the service cannot be reached", retry=1)

    async def _pass_on(self, method: str, url: URL, headers: httputil.HTTPHeaders) -> None:
        has_body = "content-length" in headers or "transfer-encoding" in headers
        async with self._session.request(
            method,
            url,
            headers=_end_to_end(headers.get_all()),
            data=self._body() if has_body else None,
            allow_redirects=False,
            skip_auto_headers=("user-agent", "accept", "accept-encoding", "content-type"),
        ) as response:
            raw = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in response.raw_headers)
            await self._write_head(response.status, response.reason or "", _end_to_end(raw))
            async for chunk in response.content.iter_any():
                await self._connection.write(chunk)

    async def _body(self) -> AsyncIterator[bytes]:
        while (part := await self._parts.get()) is not None:
            self._room.set()
            yield part

    async def _refuse(self, status: HTTPStatus, error: str, retry: int | None = None) -> None:
        body = json.dumps({"error": error}).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
        if retry is not None:
            headers.append(("retry-after", str(retry)))
        await self._write_head(status, status.phrase, headers)
        await self._connection.write(body)

    async def _write_head(self, status: int, reason: str, headers: list[tuple[str, str]]) -> None:
        self._answering = True
        head = httputil.HTTPHeaders()
        for name, value in headers:
            head.add(name, value)
        await self._connection.write_headers(httputil.ResponseStartLine("HTTP/1.1", status, reason), head)


def _end_to_end(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Headers without those that belong to one connection."""
    pairs = list(headers)
    named = {
        token.strip().lower()
        for name, value in pairs
        if name.lower() == "connection"
        for token in value.split(",")
    }
    return [(name, value) for name, value in pairs if name.lower() not in HOP_BY_HOP | named]
