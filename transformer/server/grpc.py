"""The gRPC server: KServe's service with this project's decoding and errors, health checks and reflection."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Never

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as services
from kserve.protocol.grpc.server import GRPCServer
from kserve.protocol.grpc.servicer import InferenceServicer
from kserve.protocol.model_repository_extension import ModelRepositoryExtension

from transformer.errors import InvalidRequest, PredictorUnavailable, QueueFull, ServiceError, grpc_details
from transformer.headers import VERSION_HEADER
from transformer.monitoring.monitor import GRPC_INFER
from transformer.protocols import grpc_messages
from transformer.protocols.protobuf_limits import check_fields
from transformer.protocols.v2 import V2Request
from transformer.server.client_timeouts import CONNECTION_AGE_S
from transformer.server.dataplane import TransformerDataPlane
from transformer.server.descriptors import client_limits
from transformer.server.failure_log import FailureLog
from transformer.server.fair_reader import FairLimit, FairReader
from transformer.settings import Settings

logger = logging.getLogger("kserve.transformer")

#: For this many seconds of a shutdown, new calls get UNAVAILABLE, which clients retry on another replica.
#: After that gRPC cancels new calls, and clients do not retry those.
LATE_S = 1.0
#: Interval in which a client that watches the health learns of a change.
HEALTH_INTERVAL_S = 0.5
#: Maximum calls in flight.
MAX_CALLS = 16_384
#: Maximum calls that arrived faster than they are accepted and counted.
MAX_WAITING_CALLS = 16_384
#: Maximum bytes of a call's metadata.
METADATA_BYTES = 8192
#: Bytes of a message that a client can send before the message is read: about 30 candidates.
UNREAD_BYTES = 8192
#: Name of the inference service, and the prefix of its methods.
SERVICE: str = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
_METHODS = f"/{SERVICE}/"
_Status = health_pb2.HealthCheckResponse
_Parse = Callable[[bytes], Message]


class GrpcServer(GRPCServer):  # type: ignore[misc]
    """Serves one model over gRPC.

    Parameters
    ----------
    settings
        The settings of the process.
    data_plane, model_repository_extension, grace_period
        As `kserve.protocol.grpc.server.GRPCServer`.
    """

    def __init__(
        self,
        settings: Settings,
        data_plane: TransformerDataPlane,
        model_repository_extension: ModelRepositoryExtension,
        *,
        grace_period: int,
    ) -> None:
        super().__init__(settings.grpc_port, data_plane, model_repository_extension, {}, grace_period)
        self._settings = settings
        self._interceptor = CallInterceptor(data_plane.handler.reader, settings.client_timeout_seconds)
        self._health = HealthServicer(data_plane)

    async def start(self) -> None:
        """Serve until `stop`.

        Raises
        ------
        RuntimeError
            If the port cannot be bound.
        """
        self._server = grpc.aio.server(
            interceptors=(self._interceptor,),
            options=[
                ("grpc.max_receive_message_length", self._settings.max_request_bytes),
                ("grpc.so_reuseport", 0),
                # Calls that arrive faster than they are counted wait in core, which cancels more.
                ("grpc.server.max_pending_requests", MAX_WAITING_CALLS),
                ("grpc.server.max_pending_requests_hard_limit", MAX_WAITING_CALLS),
                # Between these two, core would refuse at random.
                ("grpc.max_metadata_size", METADATA_BYTES),
                ("grpc.absolute_max_metadata_size", METADATA_BYTES),
                # Identity only, as over REST: 8 KB can unpack to 8 MiB.
                ("grpc.compression_enabled_algorithms_bitset", 1),
                ("grpc.http2.lookahead_bytes", UNREAD_BYTES),
                # Otherwise core raises that limit for fast connections.
                ("grpc.http2.bdp_probe", 0),
                ("grpc.max_allowed_incoming_connections", client_limits(self._settings).grpc),
                ("grpc.max_connection_age_ms", int(CONNECTION_AGE_S * 1000)),
                ("grpc.max_connection_age_grace_ms", self._grace_period * 1000),
            ],
        )
        services.add_GRPCInferenceServiceServicer_to_server(
            Servicer(self._data_plane, self._model_repository_extension), self._server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        _ = self._data_plane.handler.monitor, self._data_plane.handler.tracing
        host = self._settings.host or "::"
        self._server.add_insecure_port(f"{f'[{host}]' if ':' in host else host}:{self._port}")
        await self._server.start()
        logger.info("gRPC on port %d", self._port)
        await self._server.wait_for_termination()

    async def stop(self, sig: int | None = None) -> None:
        """Refuse new calls, and answer those in flight within the grace period.

        Parameters
        ----------
        sig
            The signal that asks for it, if there is one: then clients may still send calls.
        """
        self._interceptor.stopping = True
        self._health.stopping = True
        if sig is not None:
            await asyncio.sleep(LATE_S)
        await super().stop(sig)


class Servicer(InferenceServicer):  # type: ignore[misc]
    """KServe's servicer, with inference and model versions of this project."""

    async def ModelInfer(  # noqa: N802 (the service's own name)
        self, request: pb.ModelInferRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelInferResponse:
        """Score the candidates of one message."""
        handler = self._data_plane.handler_of(request.model_name)
        answer, version = await handler.predict(
            GRPC_INFER,
            lambda: handler.decode_message(request),
            V2Request.answer,
            _text_metadata(context),
            request.ByteSize(),
        )
        context.set_trailing_metadata([(VERSION_HEADER, version)])
        return grpc_messages.encode(answer)

    async def ModelReady(  # noqa: N802
        self, request: pb.ModelReadyRequest, _: grpc.aio.ServicerContext
    ) -> pb.ModelReadyResponse:
        """Say if a prediction of the model, or of one version, would succeed."""
        handler = self._data_plane.handler_of(request.name)
        return pb.ModelReadyResponse(ready=handler.ready(request.version or None))

    async def ModelMetadata(  # noqa: N802
        self, request: pb.ModelMetadataRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelMetadataResponse:
        """Return inputs, outputs and versions of the model."""
        handler = self._data_plane.handler_of(request.name)
        context.set_trailing_metadata(tuple(handler.metadata_headers.items()))
        return pb.ModelMetadataResponse(**handler.metadata(request.version or None))


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """The standard health service ``grpc.health.v1.Health``: serving while a prediction would succeed.

    The server as a whole (``""``) and the inference service by its name have the same status. grpcio's own
    servicer is not used: when one of several watchers leaves, the others get no further status (1.81).

    Attributes
    ----------
    stopping
        True while the server is shutting down.
    """

    def __init__(self, data_plane: TransformerDataPlane) -> None:
        self._data_plane = data_plane
        self.stopping = False

    async def Check(  # noqa: N802 (the service's own name)
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        """Return the present status."""
        status = await self._status(request.service)
        if status == _Status.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service; known: {SERVICE}")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, _: grpc.aio.ServicerContext
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Send the status now and whenever it changes, until the server shuts down or the connection is old.

        A connection lives for `CONNECTION_AGE_S` and the grace period; clients then watch again.
        """
        last = None
        while True:
            stopping, status = self.stopping, await self._status(request.service)
            if status != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status)
            if stopping:
                return
            await asyncio.sleep(HEALTH_INTERVAL_S)

    async def _status(self, service: str) -> int:
        if service not in {"", SERVICE}:
            return int(_Status.SERVICE_UNKNOWN)
        ready = not self.stopping and await self._data_plane.ready()
        return int(_Status.SERVING if ready else _Status.NOT_SERVING)


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Limits calls and the reading of their messages, and turns this project's errors into gRPC status codes.

    gRPC's core reads the message of a unary method before it calls the method, but that of a stream only when
    the method asks for it. So all methods are served as methods with a stream of requests; clients see no
    difference.

    Parameters
    ----------
    reader
        Reads the messages.
    timeout_s
        Seconds in which a message must be complete.

    Attributes
    ----------
    stopping
        True while every call of the inference service is refused.
    """

    def __init__(self, reader: FairReader, timeout_s: float) -> None:
        self.stopping = False
        self._reader = reader
        self._timeout_s = timeout_s
        self._calls = FairLimit(MAX_CALLS)
        self._failures = FailureLog()
        self._handlers: dict[str, grpc.RpcMethodHandler] = {}

    async def intercept_service(
        self,
        continuation: Callable[..., Any],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """Return the handler of a method."""
        method = handler_call_details.method
        handler = self._handlers.get(method)
        if handler is None:
            found = await continuation(handler_call_details)
            if found is None:
                return None
            handler = self._handlers[method] = self._limited(found, infers=method.startswith(_METHODS))
        return handler

    def _limited(self, handler: grpc.RpcMethodHandler, *, infers: bool) -> grpc.RpcMethodHandler:
        parse, serialize = handler.request_deserializer, handler.response_serializer
        if not handler.response_streaming:

            async def answer(_: object, context: grpc.aio.ServicerContext) -> Any:  # noqa: ANN401
                if not self._count(context.peer()):
                    refusal = self._refusal_of_call(context)
                    # Otherwise the error's traceback would refer to the call, and so to itself.
                    del _, context
                    await refusal
                try:
                    if infers and self.stopping:
                        raise PredictorUnavailable("shutting down; retry on another replica")
                    return await handler.unary_unary(await self._message(parse, context), context)
                except ServiceError as error:
                    self._refuse(error, context)

            return grpc.stream_unary_rpc_method_handler(answer, None, serialize)

        async def stream(_: object, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            if not self._count(context.peer()):
                refusal = self._refusal_of_call(context)
                del _, context
                await refusal
            try:
                responses = (
                    handler.stream_stream(self._messages(parse, context), context)
                    if handler.request_streaming
                    else handler.unary_stream(await self._message(parse, context), context)
                )
                async for response in responses:
                    yield response
            except ServiceError as error:
                self._refuse(error, context)

        return grpc.stream_stream_rpc_method_handler(stream, None, serialize)

    async def _messages(self, parse: _Parse, context: grpc.aio.ServicerContext) -> AsyncIterator[Message]:
        while (data := await self._read(context)) is not grpc.aio.EOF:
            yield _parsed(parse, data)

    async def _message(self, parse: _Parse, context: grpc.aio.ServicerContext) -> Message:
        data = await self._read(context)
        if data is grpc.aio.EOF:
            raise InvalidRequest("the call has no message")
        return _parsed(parse, data)

    async def _read(self, context: grpc.aio.ServicerContext) -> Any:  # noqa: ANN401
        data = await self._reader.read(context.peer(), context.read, self._timeout_s)
        if data is not grpc.aio.EOF:
            await self._reader.may_decode(len(data))
        return data

    def _count(self, connection: str) -> bool:
        """Count a call until its client has its status, if the limit allows it.

        The call's task ends then. Its method ends before, when the response may still wait for a client that
        does not read; such a call takes 20 KB.
        """
        if not self._calls.allows(connection):
            return False
        self._calls.add(connection)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (gRPC makes one for each call)
        task.add_done_callback(lambda _: self._calls.remove(connection))
        return True

    def _refusal_of_call(self, context: grpc.aio.ServicerContext) -> Coroutine[Any, Any, Never]:
        """End a call that is not counted. Its status comes without a message, so no flow control holds it."""
        error = QueueFull(
            f"too many gRPC calls in flight: limit {MAX_CALLS}, half of it for one connection; "
            "try again later",
            limit="grpc calls",
        )
        self._failures.record(error.grpc_code, error)
        refusal: Coroutine[Any, Any, Never] = context.abort(
            grpc.StatusCode[error.grpc_code], grpc_details(error), tuple(error.headers.items())
        )
        return refusal

    def _refuse(self, error: ServiceError, context: grpc.aio.ServicerContext) -> None:
        self._failures.record(error.grpc_code, error)
        _end(error, context)


def _end(error: ServiceError, context: grpc.aio.ServicerContext) -> None:
    """Give a call the error's status. The return value of its method is then not sent.

    `context.abort` is not used: the traceback of its error would keep the request in memory until the next
    garbage collection.
    """
    context.set_trailing_metadata(tuple(error.headers.items()))
    context.set_code(grpc.StatusCode[error.grpc_code])
    context.set_details(grpc_details(error))


def _text_metadata(context: grpc.aio.ServicerContext) -> list[tuple[str, str]]:
    """Return a call's metadata without binary values."""
    return [(key, value) for key, value in context.invocation_metadata() if isinstance(value, str)]


def _parsed(parse: _Parse, data: bytes) -> Message:
    """Parse a message. gRPC itself would answer UNKNOWN to bytes that cannot be parsed."""
    check_fields(data)
    try:
        return parse(data)
    except DecodeError as error:
        raise InvalidRequest("cannot parse the request message for this method") from error
