"""Calls to the stock predictor over V1, V2 or gRPC, each with a deadline.

KServe's own client is not used: it costs 2-3 ms a call where aiohttp costs 0.15-0.5 ms, turns every failure
into status 500 and has no deadline that a request could bring along.
"""

import os
import ssl
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import aiohttp
import grpc
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as services

from transformer import wire
from transformer.errors import PredictorAnswer, PredictorUnavailable
from transformer.wire import Matrix

Protocol = Literal["v1", "v2", "grpc-v2"]

#: Largest answer that is read from a predictor, in bytes: 10,000 candidates' probabilities are 400 KB.
_MAX_ANSWER = 64 * 2**20
#: Idle connections are kept for as long as the predictor keeps them.
_KEEP_ALIVE_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class PredictorAddress:
    """Where the predictor is and how it is spoken to.

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
        Whether to speak TLS; its authorities are those of `REQUESTS_CA_BUNDLE`, else the system's.
    """

    host: str
    protocol: Protocol
    model_name: str
    output: str
    use_ssl: bool = False


class PredictorClient(ABC):
    """One way to a predictor. Made, used and closed inside one event loop."""

    def __init__(self, address: PredictorAddress) -> None:
        self.address = address

    #: Connections that were made so far, where the client can tell.
    connects = 0
    #: Whether another one must not be made: what is behind it has not been verified.
    sealed = False

    @abstractmethod
    async def call(
        self, matrix: Matrix, feature_names: Sequence[str] | None, classes: int, headers: Mapping[str, str]
    ) -> Matrix:
        """Probabilities of each class for each row; sent once. Deadlines and retries are the caller's.

        Parameters
        ----------
        matrix : ndarray of float64, shape (rows, features)
        feature_names
            Names of the columns, or None for a plain array.
        classes
            Number of the model's classes.
        headers
            Headers (gRPC: metadata) to send along.

        Returns
        -------
        ndarray of float64, shape (rows, classes)

        Raises
        ------
        PredictorUnavailable
            If no predictor can be reached, or (`EncodingRefused`) its model takes other columns.
        PredictorAnswer
            If the answer is not what was asked for.
        """

    @abstractmethod
    async def ping(self) -> None:
        """Ask for a sign of life.

        Raises
        ------
        PredictorUnavailable
            If there is none.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close the connections."""


class Reconnected(PredictorUnavailable):
    """A call would go, or went, over another connection than the verified one."""


class RestClient(PredictorClient):
    """A predictor that speaks V1 or V2 over REST."""

    def __init__(self, address: PredictorAddress) -> None:
        super().__init__(address)
        base = f"{'https' if address.use_ssl else 'http'}://{address.host}"
        self._ping_url = f"{base}/v2/health/live"
        path = f"v1/models/{address.model_name}:predict"
        if address.protocol == "v2":
            path = f"v2/models/{address.model_name}/infer"
        self._url = f"{base}/{path}"
        trace = aiohttp.TraceConfig()
        trace.on_connection_create_start.append(self._connecting)
        trace.on_connection_create_end.append(self._connected)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                # One session is one connection, so that what was verified is what is used.
                limit=1,
                keepalive_timeout=_KEEP_ALIVE_S,
                ssl=_ssl_context() if address.use_ssl else True,
            ),
            # The deadline is the request's own.
            timeout=aiohttp.ClientTimeout(total=None),
            # A proxy or a redirect would lead candidates elsewhere.
            trust_env=False,
            trace_configs=[trace],
            # What an answer to one caller sets is not to be sent with another's request.
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def _connecting(self, *_: object) -> None:
        if self.sealed:
            raise Reconnected("the predictor closed the connection")

    async def _connected(self, *_: object) -> None:
        self.connects += 1

    async def ping(self) -> None:
        """See `PredictorClient`."""
        status, _ = await self._request("GET", self._ping_url, None, {})
        if status != 200:
            raise PredictorUnavailable(f"the predictor is not alive: it answered with status {status}")

    async def call(
        self, matrix: Matrix, feature_names: Sequence[str] | None, classes: int, headers: Mapping[str, str]
    ) -> Matrix:
        """See `PredictorClient`."""
        headers = {**headers, "content-type": "application/json"}
        status, body = await self._request("POST", self._url, self._body(matrix, feature_names), headers)
        if status != 200:
            raise wire.failure(status, body)
        if self.address.protocol == "v1":
            return wire.v1_probabilities(body, len(matrix), classes)
        return wire.v2_probabilities(body, len(matrix), classes, self.address.output)

    def _body(self, matrix: Matrix, feature_names: Sequence[str] | None) -> bytes:
        if self.address.protocol == "v1":
            return wire.v1_body(matrix, feature_names)
        return wire.v2_body(matrix, feature_names, self.address.output)

    async def _request(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, bytes]:
        try:
            async with self._session.request(
                method, url, data=body, headers=headers, allow_redirects=False
            ) as response:
                content = bytearray()
                async for chunk in response.content.iter_any():
                    content += chunk
                    if len(content) > _MAX_ANSWER:
                        raise PredictorAnswer(f"the predictor answered with more than {_MAX_ANSWER} bytes")
                return response.status, bytes(content)
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
            raise PredictorUnavailable(f"the predictor at {self.address.host} cannot be reached") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise PredictorAnswer("the predictor's answer is not HTTP") from error

    async def close(self) -> None:
        """Close the session and its connections."""
        await self._session.close()


class GrpcClient(PredictorClient):
    """A predictor that speaks V2 over gRPC."""

    def __init__(self, address: PredictorAddress) -> None:
        super().__init__(address)
        options = [
            ("grpc.max_send_message_length", _MAX_ANSWER),
            ("grpc.max_receive_message_length", _MAX_ANSWER),
            # The retry is ours, so that it stays inside the deadline.
            ("grpc.enable_retries", 0),
            # A channel of its own is a connection of its own.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
        ]
        if address.use_ssl:
            credentials = grpc.ssl_channel_credentials(_ca_bundle())
            self._channel = grpc.aio.secure_channel(address.host, credentials, options)
        else:
            self._channel = grpc.aio.insecure_channel(address.host, options)
        self._stub = services.GRPCInferenceServiceStub(self._channel)

    async def call(
        self, matrix: Matrix, feature_names: Sequence[str] | None, classes: int, headers: Mapping[str, str]
    ) -> Matrix:
        """See `PredictorClient`."""
        request = wire.v2_message(self.address.model_name, matrix, feature_names, self.address.output)
        try:
            answer = await self._stub.ModelInfer(request, metadata=wire.metadata(headers))
        except grpc.aio.AioRpcError as error:
            raise wire.grpc_failure(error.code(), error.details() or "") from error
        return wire.message_probabilities(answer, len(matrix), classes, self.address.output)

    async def ping(self) -> None:
        """See `PredictorClient`."""
        try:
            await self._stub.ServerLive(pb.ServerLiveRequest())
        except grpc.aio.AioRpcError as error:
            raise wire.grpc_failure(error.code(), error.details() or "") from error

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


def connect(address: PredictorAddress) -> PredictorClient:
    """A client for the address's protocol. Nothing is sent yet."""
    return GrpcClient(address) if address.protocol == "grpc-v2" else RestClient(address)


def _ca_bundle() -> bytes | None:
    """Certificates of the authorities that KServe's controller mounts for TLS to the predictor."""
    path = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    if not path:
        return None
    with open(path, "rb") as file:  # noqa: PTH123
        return file.read()


def _ssl_context() -> ssl.SSLContext:
    bundle = _ca_bundle()
    return ssl.create_default_context(cadata=bundle.decode() if bundle else None)
