"""The local ingress: one HTTP port, and one for gRPC, in front of the InferenceService.

Requests are routed by `Host` as KServe's ingress does it; bodies are streamed through in both directions.
"""

import asyncio
import contextlib
import errno
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus

import aiohttp
from tornado import httputil
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler, stream_request_body
from yarl import URL

#: KServe's default domain; `<name>-<namespace>.<domain>` is the InferenceService's host.
DOMAIN = "example.com"
#: Headers that belong to one connection and are not passed on (RFC 9110, section 7.6.1).
HOP_BY_HOP = frozenset(
    {
        "connection",
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
_CHUNKS_IN_FLIGHT = 16
_GRPC_CHUNK = 2**16


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


class Ingress:
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
            auto_decompress=False,
            trust_env=False,
        )
        application = Application(
            [(r".*", _Proxy, {"hosts": self._hosts, "backends": self._backends, "session": self._session})]
        )
        application.settings["log_function"] = lambda _handler: None
        try:
            sockets = bind_sockets(port, "127.0.0.1")
        except OSError as error:
            raise _in_use(error, port, "--port") from error
        self._http = HTTPServer(application, max_body_size=_MAX_BODY, max_buffer_size=2**20)
        self._http.add_sockets(sockets)
        try:
            self._grpc = await asyncio.start_server(self._forward, "127.0.0.1", grpc_port)
        except OSError as error:
            raise _in_use(error, grpc_port, "--grpc-port") from error

    async def close(self) -> None:
        """Stop listening and close what is open."""
        if self._http is not None:
            self._http.stop()
            await self._http.close_all_connections()
        if self._grpc is not None:
            self._grpc.close()
        if self._session is not None:
            await self._session.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one gRPC connection, byte by byte, to the transformer that was current when it came."""
        host, _, port = self._backends.transformer_grpc.rpartition(":")
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
            return
        try:
            await asyncio.gather(_copy(reader, upstream_writer), _copy(upstream_reader, writer))
        finally:
            writer.close()
            upstream_writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_GRPC_CHUNK):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError, RuntimeError):
        writer.write_eof()


def _in_use(error: OSError, port: int, option: str) -> IngressError:
    if error.errno == errno.EADDRINUSE:
        return IngressError(f"port {port} is in use; free it, or choose another with {option}")
    return IngressError(f"port {port}: {error.strerror}; choose another with {option}")


@stream_request_body
class _Proxy(RequestHandler):
    """One request: sent on while it comes in, answered while the answer comes in."""

    def initialize(
        self, hosts: Mapping[str, str], backends: Backends, session: aiohttp.ClientSession
    ) -> None:
        self._hosts = hosts
        self._backends = backends
        self._session = session
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue(_CHUNKS_IN_FLIGHT)
        self._answer: asyncio.Task[None] | None = None

    def prepare(self) -> None:
        component = self._hosts.get(_host_name(self.request.host))
        if component is None:
            self._refuse(HTTPStatus.NOT_FOUND, f"no InferenceService has the host {self.request.host[:80]!a}")
            return
        backend = getattr(self._backends, component)
        self._answer = asyncio.create_task(self._exchange(f"http://{backend}{self.request.uri}"))

    async def data_received(self, chunk: bytes) -> None:
        await self._put(chunk)

    async def _any_method(self) -> None:
        if self._answer is not None:
            await self._put(None)
            await self._answer

    get = head = post = put = delete = patch = options = _any_method

    def on_connection_close(self) -> None:
        if self._answer is not None:
            self._answer.cancel()

    async def _put(self, chunk: bytes | None) -> None:
        """Queue a part of the body, unless the answer is complete without it."""
        if self._answer is None:
            return
        putting = asyncio.ensure_future(self._chunks.put(chunk))
        await asyncio.wait({putting, self._answer}, return_when=asyncio.FIRST_COMPLETED)
        putting.cancel()

    async def _body(self) -> AsyncIterator[bytes]:
        while (chunk := await self._chunks.get()) is not None:
            yield chunk

    async def _exchange(self, url: str) -> None:
        has_body = "content-length" in self.request.headers or "transfer-encoding" in self.request.headers
        try:
            async with self._session.request(
                self.request.method or "GET",
                URL(url, encoded=True),
                headers=_end_to_end(self.request.headers.get_all()),
                data=self._body() if has_body else None,
                allow_redirects=False,
                skip_auto_headers=("user-agent", "accept", "accept-encoding", "content-type"),
            ) as response:
                await self._relay(response)
        except aiohttp.ClientError:
            if self._headers_written:
                self.request.connection.close()  # type: ignore[union-attr]
            else:
                self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "the service cannot be reached", retry_after=1)

    async def _relay(self, response: aiohttp.ClientResponse) -> None:
        self.clear()
        for name in ("Server", "Content-Type", "Date"):
            self.clear_header(name)
        self.set_status(response.status, response.reason)
        for name, value in _end_to_end(response.headers.items()):
            self.add_header(name, value)
        async for chunk in response.content.iter_any():
            self.write(chunk)
            await self.flush()
        await self.finish()

    def _refuse(self, status: HTTPStatus, error: str, retry_after: int | None = None) -> None:
        self.set_status(status)
        self.set_header("content-type", "application/json")
        if retry_after is not None:
            self.set_header("retry-after", str(retry_after))
        self.finish(json.dumps({"error": error}))


def _host_name(host: str) -> str:
    return httputil.split_host_and_port(host.lower())[0].strip("[]")


def _end_to_end(headers: object) -> list[tuple[str, str]]:
    pairs = list(headers)  # type: ignore[call-overload]
    named = {
        token.strip().lower()
        for name, value in pairs
        if name.lower() == "connection"
        for token in value.split(",")
    }
    return [(name, value) for name, value in pairs if name.lower() not in HOP_BY_HOP | named]
