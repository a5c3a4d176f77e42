"""Clients of the stock predictor over V1, V2 or gRPC.

KServe's own client is not used: a call takes 2-3 ms instead of 0.04-0.12 ms, every failure becomes status
500, and a call cannot have a deadline.
"""

import os
import re
import ssl
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

import grpc
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as services

from transformer.bundle.encoder import Matrix
from transformer.errors import InvalidPredictorResponse, PredictorUnavailable
from transformer.headers import grpc_metadata
from transformer.settings import PredictorProtocol, Settings
from transformer.tracing.operation import Operation
from transformer.upstream import messages
from transformer.upstream.http_connection import MAX_RESPONSE, BadResponse, HttpConnection

if TYPE_CHECKING:
    from transformer.tracing.spans import RequestTrace

_HOST = re.compile(
    r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>[^\s\x00-\x1f\x7f\[\]/?#@:,\\]+))(?::(?P<port>[0-9]{1,5}))?"
)


@dataclass(frozen=True, slots=True)
class PredictorAddress:
    """Address and protocol of the predictor.

    Attributes
    ----------
    host
        Host name, with ``:port`` if it is not the scheme's own.
    protocol
        The inference protocol of the hop.
    model_name
        Name of the model there.
    output
        Name of the V2 output that holds `predict_proba`.
    use_ssl
        Speak TLS. Trusted authorities are those of `REQUESTS_CA_BUNDLE`, or the system's.
    headers
        Headers (gRPC: metadata) of every call, names in lower case.
    """

    host: str
    protocol: PredictorProtocol
    model_name: str
    output: str
    use_ssl: bool = False
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, settings: Settings, model_name: str) -> Self:
        """Return the predictor that the settings name."""
        return cls(
            settings.predictor_host,
            settings.predictor_protocol,
            model_name,
            settings.predictor_output,
            settings.predictor_use_ssl,
            settings.predictor_headers,
        )


class PredictorClient(ABC):
    """A client of the predictor. Made, used and closed inside one event loop.

    Attributes
    ----------
    reconnects
        True if each call may go over another connection.
    """

    #: The calls, in traces.
    _operation: Operation

    def __init__(self, address: PredictorAddress, *, reconnects: bool) -> None:
        self.address = address
        self.reconnects = reconnects

    async def call(
        self,
        matrix: Matrix,
        feature_names: Sequence[str] | None,
        classes: int,
        headers: Mapping[str, str],
        traces: "Sequence[RequestTrace]" = (),
    ) -> Matrix:
        """Return the probabilities of each class for each row. Deadlines and retries are the caller's.

        Parameters
        ----------
        matrix : ndarray of float64, shape (rows, features)
        feature_names
            Names of the columns, or None for a plain array.
        classes
            Number of the model's classes.
        headers
            Headers (gRPC: metadata) of the call.
        traces
            Traces of the requests that the call serves; none if tracing is off.

        Returns
        -------
        ndarray of float64, shape (rows, classes)

        Raises
        ------
        PredictorUnavailable
            If the predictor cannot be reached, or its model takes other columns (`EncodingRefused`, or
            `UnexplainedError` if it does not say so).
        InvalidPredictorResponse
            If the response is not the probabilities of these rows.
        """
        if not traces:
            return await self._call(matrix, feature_names, classes, headers)
        with traces[0].tracing.call(traces, self._operation, len(matrix), headers) as traced:
            return await self._call(matrix, feature_names, classes, traced)

    @abstractmethod
    async def _call(
        self, matrix: Matrix, feature_names: Sequence[str] | None, classes: int, headers: Mapping[str, str]
    ) -> Matrix:
        """Make a call; see `call`."""

    @abstractmethod
    def disconnect(self) -> None:
        """Close a connection that is not verified; the next call opens another."""

    @abstractmethod
    async def ping(self) -> None:
        """Check the predictor's health.

        Raises
        ------
        PredictorUnavailable
            If it does not answer, or says that it is not alive.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close the connections."""


class Reconnected(PredictorUnavailable):
    """The verified connection is closed, and the call was not sent: another one is not verified."""


class RestClient(PredictorClient):
    """A predictor that speaks V1 or V2 over REST. Connects at the first call.

    Parameters
    ----------
    reconnects
        Use another connection when one is closed. If False, every call goes over the connection that was
        verified, or fails.
    """

    def __init__(self, address: PredictorAddress, *, reconnects: bool) -> None:
        super().__init__(address, reconnects=reconnects)
        self._host, self._port = host_and_port(address.host, use_ssl=address.use_ssl)
        name = quote(address.model_name)
        self._path = f"/v2/models/{name}/infer" if address.protocol == "v2" else f"/v1/models/{name}:predict"
        self._headers = {**dict(address.headers), "content-type": "application/json"}
        scheme = "https" if address.use_ssl else "http"
        self._operation = Operation.of_http(
            self._path,
            {
                "server.address": self._host,
                "server.port": self._port,
                "url.full": f"{scheme}://{address.host}{self._path}",
            },
        )
        self._context = _ssl_context() if address.use_ssl else None
        self._connection: HttpConnection | None = None

    def disconnect(self) -> None:
        """See `PredictorClient`."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def ping(self) -> None:
        """See `PredictorClient`."""
        status, _ = await self._request("GET", "/v2/health/live", None, dict(self.address.headers))
        if status != 200:
            raise PredictorUnavailable(f"the predictor is not alive: it answered with status {status}")

    async def _call(
        self, matrix: Matrix, feature_names: Sequence[str] | None, classes: int, headers: Mapping[str, str]
    ) -> Matrix:
        """See `PredictorClient`."""
        body = self._body(matrix, feature_names)
        status, body = await self._request("POST", self._path, body, {**headers, **self._headers})
        if status != 200:
            raise messages.failure(status, body)
        if self.address.protocol == "v1":
            return messages.v1_probabilities(body, len(matrix), classes)
        return messages.v2_probabilities(body, len(matrix), classes, self.address.output)

    def _body(self, matrix: Matrix, feature_names: Sequence[str] | None) -> bytes:
        if self.address.protocol == "v1":
            return messages.v1_body(matrix, feature_names)
        return messages.v2_body(matrix, feature_names, self.address.output)

    async def _request(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, bytes]:
        try:
            connection = await self._connected()
            return await connection.request(method, path, headers, body)
        except BadResponse as error:
            raise InvalidPredictorResponse(f"invalid response from the predictor: {error}") from error
        except OSError as error:
            # A certificate's problem. Other system messages may name another address each time, and the log
            # would not recognise them as equal.
            detail = str(error) if isinstance(error, ssl.SSLError) else ""
            message = f"the predictor at {self.address.host} cannot be reached"
            raise PredictorUnavailable(message, detail=detail) from error
        except ValueError as error:
            raise InvalidPredictorResponse(f"the call to the predictor was not sent: {error}") from error

    async def _connected(self) -> HttpConnection:
        if self._connection is None or (self.reconnects and self._connection.closed):
            self._connection = await HttpConnection.open(self._host, self._port, self._context)
        elif self._connection.closed:
            raise Reconnected("the predictor closed the connection")
        return self._connection

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()


class GrpcClient(PredictorClient):
    """A predictor that speaks V2 over gRPC."""

    def __init__(self, address: PredictorAddress) -> None:
        super().__init__(address, reconnects=True)
        options = [
            ("grpc.max_send_message_length", MAX_RESPONSE),
            ("grpc.max_receive_message_length", MAX_RESPONSE),
            # Retries are made by the batching, inside the deadline.
            ("grpc.enable_retries", 0),
            # Each channel has its own connection.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
        ]
        host, port = host_and_port(address.host, use_ssl=address.use_ssl)
        self._operation = Operation.of_grpc({"server.address": host, "server.port": port})
        # gRPC's default port is 443, with TLS or without.
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if address.use_ssl:
            credentials = grpc.ssl_channel_credentials(_ca_bundle())
            self._channel = grpc.aio.secure_channel(target, credentials, options)
        else:
            self._channel = grpc.aio.insecure_channel(target, options)
        self._stub = services.GRPCInferenceServiceStub(self._channel)

    async def _call(
        self, matrix: Matrix, feature_names: Sequence[str] | None, classes: int, headers: Mapping[str, str]
    ) -> Matrix:
        """See `PredictorClient`."""
        request = messages.v2_message(self.address.model_name, matrix, feature_names, self.address.output)
        try:
            metadata = (*grpc_metadata(headers), *self.address.headers)
            answer = await self._stub.ModelInfer(request, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise messages.grpc_failure(error.code(), error.details() or "") from error
        return messages.message_probabilities(answer, len(matrix), classes, self.address.output)

    def disconnect(self) -> None:
        """See `PredictorClient`: a channel opens connections by itself."""

    async def ping(self) -> None:
        """See `PredictorClient`."""
        try:
            await self._stub.ServerLive(pb.ServerLiveRequest(), metadata=self.address.headers)
        except grpc.aio.AioRpcError as error:
            raise messages.grpc_failure(error.code(), error.details() or "") from error

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


def host_and_port(text: str, *, use_ssl: bool) -> tuple[str, int]:
    """Read ``host[:port]``, with an IPv6 address in brackets. The default port is the scheme's.

    Raises
    ------
    ValueError
        If the text is anything else, such as a URL.
    """
    found = _HOST.fullmatch(text)
    port = int(found["port"] or (443 if use_ssl else 80)) if found else 0
    if found is None or not 0 < port < 2**16:
        raise ValueError(f"must be the predictor's host[:port], got {text!r}")
    return (found["address"] or found["name"]).lower(), port


def connect(address: PredictorAddress, *, reconnects: bool) -> PredictorClient:
    """Make a client for the address's protocol. It connects at the first call.

    Parameters
    ----------
    reconnects
        Each call may go over another connection. Over gRPC that is always so.
    """
    if address.protocol != "grpc-v2":
        return RestClient(address, reconnects=reconnects)
    if not reconnects:
        raise ValueError("grpc-v2: a channel may use any connection, so every call must be verified")
    return GrpcClient(address)


def _ca_bundle() -> bytes | None:
    """Return the authorities' certificates that KServe's controller mounts for TLS to the predictor."""
    path = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    if not path:
        return None
    with open(path, "rb") as file:  # noqa: PTH123
        return file.read()


def _ssl_context() -> ssl.SSLContext:
    bundle = _ca_bundle()
    return ssl.create_default_context(cadata=bundle.decode() if bundle else None)
