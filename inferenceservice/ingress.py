"""The local ingress: one HTTP port, and one for gRPC, in front of the InferenceService.

Requests are routed by `Host` as KServe's ingress does it; bodies are streamed through in both directions.
"""

import asyncio
import contextlib
import errno
import json
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus

import aiohttp
from tornado import httputil
from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from yarl import URL

#: KServe's default domain; `<name>-<namespace>.<domain>` is the InferenceService's host.
DOMAIN = "example.com"
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
#: The ingress itself sets no limit on a body; the transformer does.
_MAX_BODY = 2**40
_GRPC_CHUNK = 2**16
_BACKLOG = 128


class IngressError(Exception):
    """The ingress cannot listen; the message says what to do."""


@dataclass(slots=True)
class Backends:
    """Where requests go now, as ``host:port`` of each component; set a field to shift new requests."""

    transformer: str
    predictor: str
    transformer_grpc: str


def hosts(name: str, namespace: str) -> dict[str, str]:
    """Component behind each host name of an InferenceService, beside the loopback names of this machine."""
    return {
        f"{name}-{namespace}.{DOMAIN}": "transformer",
        f"{name}-transformer-{namespace}.{DOMAIN}": "transformer",
        f"{name}-predictor-{namespace}.{DOMAIN}": "predictor",
        **dict.fromkeys(("localhost", "127.0.0.1", "::1"), "transformer"),
    }


class Ingress(httputil.HTTPServerConnectionDelegate):
    """Listens on loopback and forwards.

    Parameters
    ----------
    name, namespace
        Of the InferenceService, for its host names.
    backends
        Where requests go; read at each request.
    """

    def __init__(self, name: str, namespace: str, backends: Backends) -> None:
        self._hosts = hosts(name, namespace)
        self._backends = backends
        self._http: HTTPServer | None = None
        self._grpc: asyncio.Server | None = None
        self._session: aiohttp.ClientSession | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def start(self, port: int, grpc_port: int) -> None:
        """Listen.

        Raises
        ------
        IngressError
            If a port is in use.
        """
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
            # What one client's answer sets is not to be sent with another's request.
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )
        with _told(port, "--port"):
            listener = socket.create_server(("127.0.0.1", port), backlog=_BACKLOG)
        listener.setblocking(False)
        self._http = HTTPServer(self, max_body_size=_MAX_BODY, max_buffer_size=2**20)
        self._http.add_socket(listener)
        with _told(grpc_port, "--grpc-port"):
            self._grpc = await asyncio.start_server(
                lambda reader, writer: self._run(self._forward(reader, writer)), "127.0.0.1", grpc_port
            )

    async def close(self) -> None:
        """Stop listening and close what is open."""
        if self._grpc is not None:
            self._grpc.close()
        if self._http is not None:
            self._http.stop()
            await self._http.close_all_connections()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def start_request(
        self, server_conn: object, request_conn: httputil.HTTPConnection
    ) -> httputil.HTTPMessageDelegate:
        """Take a request that comes in; see `tornado.httputil.HTTPServerConnectionDelegate`."""
        assert isinstance(request_conn, HTTP1Connection)  # noqa: S101 (what HTTPServer makes)
        assert self._session is not None  # noqa: S101 (made before it listened)
        return _Exchange(request_conn, self._route, self._session, self._run)

    def _route(self, host: str) -> str | None:
        """Address of the backend for a `Host`, if there is one."""
        component = self._hosts.get(httputil.split_host_and_port(host.lower())[0].strip("[]"))
        return None if component is None else getattr(self._backends, component)

    def _run(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Do it until it ends or we close."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one gRPC connection, byte by byte, to the transformer that was current when it came."""
        with contextlib.closing(writer):
            host, _, port = self._backends.transformer_grpc.rpartition(":")
            try:
                upstream_reader, upstream_writer = await asyncio.open_connection(host, port)
            except OSError:
                return
            with contextlib.closing(upstream_writer):
                await asyncio.gather(_copy(reader, upstream_writer), _copy(upstream_reader, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_GRPC_CHUNK):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError, RuntimeError):
        writer.write_eof()


@contextlib.contextmanager
def _told(port: int, option: str) -> Iterator[None]:
    """Say what to do about a port that cannot be listened to."""
    if not 0 < port < 2**16:
        raise IngressError(f"port {port}: must be 1 to 65535; choose another with {option}")
    try:
        yield
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            text = f"port {port} is in use; free it, or choose another with {option}"
        else:
            text = f"port {port}: {error.strerror}; choose another with {option}"
        raise IngressError(text) from error


class _Exchange(httputil.HTTPMessageDelegate):
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
        route: Callable[[str], str | None],
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
        backend = self._route(host)
        if backend is None:
            await self._refuse(HTTPStatus.NOT_FOUND, f"no InferenceService has the host {host[:80]!a}")
        elif not start.path.startswith("/"):
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
