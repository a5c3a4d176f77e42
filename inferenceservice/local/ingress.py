"""Local ingress: one HTTP port and one gRPC port in front of the InferenceService.

It routes requests by `Host`, like KServe's ingress, and streams bodies in both directions.
"""

import asyncio
import contextlib
import errno
import re
import socket
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping, Sequence

from tornado import httputil
from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.tcpclient import TCPClient

from inferenceservice.local.forwarder import DOWN, Backend, Forwarder, choose_backend
from inferenceservice.local.proxied_request import (
    MAX_BODY_BYTES,
    MAX_BUFFER_BYTES,
    NoBackendError,
    ProxiedRequest,
    UnknownHostError,
)

#: KServe's default domain; the InferenceService's host is `<name>-<namespace>.<domain>`.
DOMAIN = "example.com"
_BACKLOG = 128


class IngressError(Exception):
    """The ingress cannot listen; the message says what to do."""


def components_by_host(name: str, namespace: str) -> dict[str, str]:
    """Return the component for each host name of an InferenceService and each loopback name."""
    return {
        f"{name}-{namespace}.{DOMAIN}": "transformer",
        f"{name}-transformer-{namespace}.{DOMAIN}": "transformer",
        f"{name}-predictor-{namespace}.{DOMAIN}": "predictor",
        **dict.fromkeys(("localhost", "127.0.0.1", "::1"), "transformer"),
    }


#: Paths of the V2 protocol that name a model version.
_VERSION = re.compile(r"/v2/models/[^/]+/versions/(?P<version>[^/?]+)")


class Ingress(httputil.HTTPServerConnectionDelegate):
    """Listens on loopback and forwards requests to the components.

    Parameters
    ----------
    name, namespace
        Name and namespace of the InferenceService, for its host names.

    Attributes
    ----------
    transformer, predictor
        Backends of each component. Set them at any time: new requests use the new value.
    transformer_by_version
        Transformers in front of a predictor of each version. REST requests for one version go there.
    transformer_grpc
        Forwarder for gRPC; set its `backends` likewise. It chooses a backend per connection.
    """

    def __init__(self, name: str, namespace: str) -> None:
        self.transformer: Sequence[Backend] = ()
        self.transformer_by_version: Mapping[str, Sequence[Backend]] = {}
        self.predictor: Sequence[Backend] = ()
        self.transformer_grpc = Forwarder()
        self._components = components_by_host(name, namespace)
        self._http: HTTPServer | None = None
        self._backends: TCPClient | None = None
        self._in_flight: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, port: int, grpc_port: int) -> None:
        """Listen on both ports.

        Raises
        ------
        IngressError
            If a port is in use.
        """
        with _explain_bind_error(port, "--port"):
            listener = socket.create_server(("127.0.0.1", port), backlog=_BACKLOG)
        listener.setblocking(False)
        self._backends = TCPClient()
        self._http = HTTPServer(self, max_body_size=MAX_BODY_BYTES, max_buffer_size=MAX_BUFFER_BYTES)
        self._http.add_socket(listener)
        with _explain_bind_error(grpc_port, "--grpc-port"):
            await self.transformer_grpc.start(grpc_port)

    def requests_in_flight(self, address: str) -> int:
        """Return the number of requests that a backend is processing."""
        return self._in_flight[address]

    async def close(self) -> None:
        """Stop listening and close all connections."""
        await self.transformer_grpc.close()
        # Before the connections: each waits until a backend has taken its request's body.
        for task in self._tasks:
            task.cancel()
        if self._http is not None:
            self._http.stop()
            await self._http.close_all_connections()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._backends is not None:
            self._backends.close()

    def start_request(
        self, server_conn: object, request_conn: httputil.HTTPConnection
    ) -> httputil.HTTPMessageDelegate:
        """Return the receiver of a new request; see `tornado.httputil.HTTPServerConnectionDelegate`."""
        assert isinstance(request_conn, HTTP1Connection)  # noqa: S101 (HTTPServer makes no other)
        assert self._backends is not None  # noqa: S101 (made before it listens)
        return ProxiedRequest(request_conn, self._choose_backend, self._backends, self._start_task)

    @contextlib.contextmanager
    def _choose_backend(self, host: str, target: str) -> Iterator[str]:
        """Choose a backend for a `Host` and a path, and count the request as in flight while this is open."""
        component = self._components.get(httputil.split_host_and_port(host.lower())[0].strip("[]"))
        if component is None:
            raise UnknownHostError(f"no InferenceService has the host {host[:80]!a}")
        backends: Sequence[Backend] = getattr(self, component)
        if component == "transformer" and (named := _VERSION.match(target)):
            backends = self.transformer_by_version.get(named["version"], backends)
        address = choose_backend(backends).address if backends else DOWN
        if address == DOWN:
            raise NoBackendError(f"the {component} has no backend now")
        self._in_flight[address] += 1
        try:
            yield address
        finally:
            self._in_flight[address] -= 1

    def _start_task(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Start a task that is cancelled when the ingress closes."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


@contextlib.contextmanager
def _explain_bind_error(port: int, option: str) -> Iterator[None]:
    """Raise IngressError with advice if a port cannot be bound."""
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
