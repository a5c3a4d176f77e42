"""The gRPC side: KServe's service with our decoding, our status codes and the version in the metadata."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as services
from kserve.protocol.grpc.interceptors import ExceptionToStatusInterceptor
from kserve.protocol.grpc.server import GRPCServer
from kserve.protocol.grpc.servicer import InferenceServicer
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.utils.utils import to_headers

from transformer.errors import InvalidRequest, PredictorUnavailable, ServiceError
from transformer.headers import check_sent_once
from transformer.protocols import grpc_messages
from transformer.protocols.protobuf_limits import check_fields
from transformer.server.failure_log import FailureLog
from transformer.server.kserve_model import VERSION_HEADER, TransformerModel

#: Seconds after which gRPC clients are asked to reconnect; no call is lost by it.
CONNECTION_AGE_S = 5
#: Seconds in which a call that comes while we stop is told so. gRPC would cancel it without a word, which no
#: client takes for a reason to ask elsewhere.
LATE_S = 1.0

logger = logging.getLogger("kserve.transformer")


class GrpcServer(GRPCServer):  # type: ignore[misc]
    """Serves one model over gRPC.

    Parameters
    ----------
    port
        Port to listen to.
    data_plane, model_repository_extension, grace_period
        As `kserve.protocol.grpc.server.GRPCServer`.
    host
        Address to listen to; every one if None.
    max_request_bytes
        Bytes that a message may have.
    """

    def __init__(
        self,
        port: int,
        data_plane: DataPlane,
        model_repository_extension: ModelRepositoryExtension,
        *,
        host: str | None = None,
        max_request_bytes: int,
        grace_period: int,
    ) -> None:
        super().__init__(port, data_plane, model_repository_extension, {}, grace_period)
        self._host = host or "::"
        self._max_request_bytes = max_request_bytes
        self._interceptor = StatusInterceptor()

    async def start(self, max_workers: int) -> None:
        """Serve until `stop`.

        Raises
        ------
        RuntimeError
            If the port cannot be bound.
        """
        self._server = grpc.aio.server(
            ThreadPoolExecutor(max_workers=max_workers),
            interceptors=(self._interceptor,),
            options=[
                ("grpc.max_receive_message_length", self._max_request_bytes),
                ("grpc.so_reuseport", 0),
                # Clients are asked to come back on a new connection, and so find other replicas; and they
                # have left a pod that is taken out of its Service before its preStop pause ends.
                ("grpc.max_connection_age_ms", int(CONNECTION_AGE_S * 1000)),
                ("grpc.max_connection_age_grace_ms", self._grace_period * 1000),
            ],
        )
        services.add_GRPCInferenceServiceServicer_to_server(
            Servicer(self._data_plane, self._model_repository_extension), self._server
        )
        host = f"[{self._host}]" if ":" in self._host else self._host
        self._server.add_insecure_port(f"{host}:{self._port}")
        await self._server.start()
        logger.info("gRPC on port %d", self._port)
        await self._server.wait_for_termination()

    async def stop(self, sig: int | None = None) -> None:
        """Take no further call, and answer those that are under way within the grace period.

        Parameters
        ----------
        sig
            The signal that asks for it, if one does: then clients may still be sending.
        """
        self._interceptor.stopping = True
        if sig is not None:
            await asyncio.sleep(LATE_S)
        await super().stop(sig)


class Servicer(InferenceServicer):  # type: ignore[misc]
    """KServe's servicer, with inference of our own."""

    async def ModelInfer(  # noqa: N802 (the service's own name)
        self, request: pb.ModelInferRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelInferResponse:
        """Score the candidates of one message."""
        check_sent_once(key for key, _ in context.invocation_metadata())
        model: TransformerModel = self._data_plane.get_model_from_registry(request.model_name)
        taken = model.room.take(request.ByteSize())
        try:
            decoded = model.decode_message(request)
            answer, headers = await self._data_plane.infer(request.model_name, decoded, to_headers(context))
        finally:
            model.room.give_back(taken)
        context.set_trailing_metadata([(VERSION_HEADER, headers[VERSION_HEADER])])
        return grpc_messages.encode(answer)


class StatusInterceptor(ExceptionToStatusInterceptor):  # type: ignore[misc]
    """Turns our errors into their status codes, and leaves KServe's to KServe.

    Attributes
    ----------
    stopping
        Whether every call is refused from now on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stopping = False
        self._failures = FailureLog()

    async def intercept_service(
        self,
        continuation: Callable[..., Any],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """Let what is wrong with a message's bytes reach `intercept`; gRPC itself would answer UNKNOWN."""
        handler = await super().intercept_service(continuation, handler_call_details)
        return handler and handler._replace(request_deserializer=_or_error(handler.request_deserializer))

    async def intercept(
        self,
        method: Callable[..., Any],
        request_or_iterator: Any,  # noqa: ANN401
        context: grpc.aio.ServicerContext,
        method_name: str,
    ) -> Any:  # noqa: ANN401
        """Answer a call, or refuse it."""
        if isinstance(request_or_iterator, ServiceError):
            self._refuse(request_or_iterator, context)
            return None
        if self.stopping:
            _end(PredictorUnavailable("the transformer is being stopped, ask another one"), context)
            return None

        async def answered(request: Any, context: grpc.aio.ServicerContext) -> Any:  # noqa: ANN401
            try:
                return await method(request, context)
            except ServiceError as error:
                self._refuse(error, context)

        return await super().intercept(answered, request_or_iterator, context, method_name)

    def _refuse(self, error: ServiceError, context: grpc.aio.ServicerContext) -> None:
        self._failures.tell(error.grpc_code, error)
        _end(error, context)


def _end(error: ServiceError, context: grpc.aio.ServicerContext) -> None:
    """Give a call the error's status; what its method returns is not sent then.

    `context.abort` would raise an error that the call keeps, and with it all that its traceback holds: the
    request, for as long as no garbage is looked for.
    """
    context.set_trailing_metadata(tuple(error.headers.items()))
    context.set_code(grpc.StatusCode[error.grpc_code])
    context.set_details(str(error))


def _or_error(deserialize: Callable[[bytes], Message]) -> Callable[[bytes], Message | ServiceError]:
    """Gives an error instead of raising it."""

    def deserialized(data: bytes) -> Message | ServiceError:
        try:
            check_fields(data)
            return deserialize(data)
        except ServiceError as error:
            return error
        except DecodeError:
            return InvalidRequest("the message is none of its method's")

    return deserialized
