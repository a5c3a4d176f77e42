"""The REST side: KServe's application with our V2 endpoint, error answers and limit on request bodies."""

import asyncio
import contextlib
import logging
from functools import cache, partial
from http import HTTPStatus
from socket import socket
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from kserve.errors import ModelNotFound, ModelNotReady, ServerNotReady
from kserve.protocol.rest.server import RESTServer
from starlette.exceptions import HTTPException

from transformer.errors import (
    NotImplementedHere,
    PredictorUnavailable,
    ServiceError,
    printable,
)
from transformer.protocols import v2
from transformer.server.body_limit import BodyLimit
from transformer.server.client_connection import ClientConnection
from transformer.server.client_timeouts import ClientTimeouts, linger_s
from transformer.server.failure_log import FailureLog
from transformer.server.fast_path import App, FastPath
from transformer.server.kserve_model import VERSION_REFUSAL, TransformerModel


class RestServer(RESTServer):  # type: ignore[misc]
    """Serves one model over REST.

    Parameters
    ----------
    *args, **kwargs
        As `kserve.protocol.rest.server.RESTServer`.
    host
        Address to listen to; every IPv4 address if None.
    max_request_bytes
        Bytes that a request's body may have.
    client_timeout_s
        As `transformer.server.kserve_server.client_timeouts.ClientTimeouts`.
    docs
        Whether ``/docs`` is served, which shows ``/openapi.json`` as a page; that one is always there.
    timings
        Whether the time of each request is logged.
    access_log
        Whether each request is logged as uvicorn does it, to where the logging is configured to.
    """

    def __init__(
        self,
        *args: Any,  # noqa: ANN401
        host: str | None = None,
        max_request_bytes: int,
        client_timeout_s: float,
        docs: bool = False,
        timings: bool = False,
        access_log: bool = False,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(*args, **kwargs)
        if host is not None:
            self.config.host = host
        self._max_request_bytes = max_request_bytes
        self._client_timeout_s = client_timeout_s
        self._docs = docs
        self._timings = timings
        self._access_log = access_log
        self._failures = FailureLog()

    def create_application(self) -> None:
        """Build the application: KServe's routes and handlers, in an application of this server's own."""
        app = FastAPI(title="Transformer", docs_url="/docs" if self._docs else None, redoc_url=None)
        if not self._access_log:
            # KServe has given it one, and uvicorn writes a line for each request if there is any.
            logging.getLogger("uvicorn.access").handlers = []
            # Who the client behind a proxy is, nobody asks then.
            self.config.proxy_headers = False
        if self._timings or self.access_log_format:
            self._add_middlewares(app)
        self._register_endpoints(app)
        self._add_exception_handlers(app)
        self.dataplane.stopping = self._is_stopping
        (model,) = self.dataplane.model_registry.get_models().values()
        app.openapi = cache(model.openapi)  # type: ignore[method-assign]
        served: App = BodyLimit(app, self._max_request_bytes, model.room, linger_s(self._client_timeout_s))
        if not (self._timings or self.access_log_format):
            served = FastPath(served, model, self._error_response, self._max_request_bytes)
        # Websockets need not even be loaded.
        self.config.ws = "none"
        self.config.http = partial(
            ClientConnection, watch=ClientTimeouts(self._client_timeout_s), stopping=self._is_stopping
        )
        self.config.app = served

    def _is_stopping(self) -> bool:
        return bool(self._server.should_exit)

    def _register_endpoints(self, app: FastAPI) -> None:
        # First come, first served: KServe's own V2 handler parses twice, and answers 422 or 500 where the
        # request is at fault.
        app.add_api_route(
            "/v2/models/{model_name}/infer", self._infer, methods=["POST"], response_model=None, tags=["V2"]
        )
        app.add_api_route(
            "/v2/models/{model_name}/versions/{model_version}/infer",
            self._infer_version,
            methods=["POST"],
            response_model=None,
            tags=["V2"],
        )
        super()._register_endpoints(app)

    def _add_exception_handlers(self, app: FastAPI) -> None:
        super()._add_exception_handlers(app)
        app.add_exception_handler(ServiceError, self._service_error)
        app.add_exception_handler(ModelNotFound, _not_found)
        app.add_exception_handler(NotImplementedError, self._not_implemented)
        for not_ready in (ModelNotReady, ServerNotReady):
            app.add_exception_handler(not_ready, self._not_ready)
        app.add_exception_handler(HTTPException, _http_error)

    async def _service_error(self, _: Request, error: Exception) -> Response:
        assert isinstance(error, ServiceError)  # noqa: S101 (registered for it)
        return self._error_response(error)

    def _error_response(self, error: ServiceError) -> Response:
        self._failures.tell(str(error.status.value), error)
        return JSONResponse({"error": str(error)}, error.status, headers=error.headers)

    async def _not_implemented(self, _: Request, error: Exception) -> Response:
        return self._error_response(NotImplementedHere(str(error)))

    async def _not_ready(self, _: Request, error: Exception) -> Response:
        return self._error_response(PredictorUnavailable(str(error)))

    async def _infer(self, model_name: str, request: Request) -> Response:
        """V2 inference of a model."""
        model: TransformerModel = self.dataplane.get_model_from_registry(model_name)
        decoded = model.decode_v2(await request.body(), request.headers.get(v2.JSON_LENGTH_HEADER))
        answer, headers = await self.dataplane.infer(model_name, decoded, dict(request.headers))
        body, content_headers = v2.encode(answer)
        return Response(body, headers={**headers, **content_headers})

    async def _infer_version(self, model_name: str, model_version: str) -> None:
        """V2 inference of a model's version, which is not offered."""
        self.dataplane.get_model_from_registry(model_name)
        if model_version:
            raise NotImplementedHere(VERSION_REFUSAL)

    async def start(self) -> None:
        """Serve until `stop`, beside gRPC, which is to stop at the same signal and not when this has."""
        self._server.capture_signals = contextlib.nullcontext
        await super().start()

    def stop(self, sig: int) -> None:
        """Stop accepting, and answer what was accepted; at a second SIGINT no more."""
        self._server.handle_exit(sig, None)

    def run(self, sockets: list[socket] | None = None) -> None:
        """Serve in a worker process of its own until it is told to stop."""
        self.create_application()
        with asyncio.Runner(loop_factory=self.config.get_loop_factory()) as runner:
            runner.run(self._serve_and_close(sockets))

    async def _serve_and_close(self, sockets: list[socket] | None) -> None:
        models = self.dataplane.model_registry.get_models().values()
        try:
            for model in models:
                model.scorer.start()
            await self._server.serve(sockets=sockets)
        finally:
            for model in models:
                await model.scorer.close()


async def _not_found(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, HTTPStatus.NOT_FOUND)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 (registered for it)
    text = f"{request.method} {printable(request.url.path)}: {error.detail}"
    return JSONResponse({"error": text}, error.status_code, headers=error.headers)
