"""The local ingress: one HTTP port, and one for gRPC, in front of the InferenceService.

Requests are routed by `Host` as KServe's ingress does it; bodies are streamed through in both directions.
"""

import asyncio
import contextlib
import errno
import socket
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence

import aiohttp
from tornado import httputil
from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer

from inferenceservice.local.forwarder import Backend, Forwarder, choose_backend
from inferenceservice.local.proxied_request import ProxiedRequest

#: KServe's default domain; `<name>-<namespace>.<domain>` is the InferenceService's host.
DOMAIN = "example.com"
#: The ingress itself sets no limit on a body; the transformer does.
_MAX_BODY = 2**40
_BACKLOG = 128


class IngressError(Exception):
    """The ingress cannot listen; the message says what to do."""


def components_by_host(name: str, namespace: str) -> dict[str, str]:
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

    Attributes
    ----------
    transformer, predictor
        Where requests go, read at each of them: set it to shift new requests.
    transformer_grpc
        The same for gRPC, connection by connection.
    """

    def __init__(self, name: str, namespace: str) -> None:
        self.transformer: Sequence[Backend] = ()
        self.predictor: Sequence[Backend] = ()
        self.transformer_grpc = Forwarder()
        self._components = components_by_host(name, namespace)
        self._http: HTTPServer | None = None
        self._in_flight: Counter[str] = Counter()
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
            # A connection for each request: one that is kept may be closed just when it is used again.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
            # What one client's answer sets is not to be sent with another's request.
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )
        with _explain_bind_error(port, "--port"):
            listener = socket.create_server(("127.0.0.1", port), backlog=_BACKLOG)
        listener.setblocking(False)
        self._http = HTTPServer(self, max_body_size=_MAX_BODY, max_buffer_size=2**20)
        self._http.add_socket(listener)
        with _explain_bind_error(grpc_port, "--grpc-port"):
            await self.transformer_grpc.start(grpc_port)

    def requests_in_flight(self, address: str) -> int:
        """How many of our requests a backend has."""
        return self._in_flight[address]

    async def close(self) -> None:
        """Stop listening and close what is open."""
        await self.transformer_grpc.close()
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
        return ProxiedRequest(request_conn, self._choose_backend, self._session, self._start_task)

    @contextlib.contextmanager
    def _choose_backend(self, host: str) -> Iterator[str | None]:
        """Address of the backend for a `Host`, if there is one; it has a request while this lasts."""
        component = self._components.get(httputil.split_host_and_port(host.lower())[0].strip("[]"))
        if component is None:
            yield None
            return
        backends: Sequence[Backend] = getattr(self, component)
        # None yet: nobody can be reached there.
        address = choose_backend(backends).address if backends else ""
        self._in_flight[address] += 1
        try:
            yield address
        finally:
            self._in_flight[address] -= 1

    def _start_task(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Do it until it ends or we close."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task


@contextlib.contextmanager
def _explain_bind_error(port: int, option: str) -> Iterator[None]:
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
