"""The local ingress: one HTTP port, and one for gRPC, in front of the InferenceService.

Requests are routed by `Host` as KServe's ingress does it; bodies are streamed through in both directions.
"""

import asyncio
import contextlib
import errno
import socket
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass

import aiohttp
from tornado import httputil
from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer

from inferenceservice.exchange import Exchange

#: KServe's default domain; `<name>-<namespace>.<domain>` is the InferenceService's host.
DOMAIN = "example.com"
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
        return Exchange(request_conn, self._route, self._session, self._run)

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
