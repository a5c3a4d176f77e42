"""The REST server: KServe's application with this project's routes, errors, fast path and client limits."""

import asyncio
import contextlib
import logging
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from http import HTTPStatus
from socket import socket
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from kserve.constants.constants import FASTAPI_APP_IMPORT_STRING
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.server import RESTServer
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from transformer.errors import PredictorUnavailable, ServiceError, printable
from transformer.server.body_limit import BodyLimit
from transformer.server.client_connection import ClientConnection
from transformer.server.client_limit import ClientLimit
from transformer.server.client_timeouts import ClientTimeouts, linger_s
from transformer.server.dataplane import TransformerDataPlane
from transformer.server.descriptors import client_limits
from transformer.server.failure_log import FailureLog
from transformer.server.fast_connection import FastConnection
from transformer.server.fast_path import FastPath
from transformer.server.freed_memory import releasing_memory
from transformer.server.known_heads import KnownHeads
from transformer.server.rest_routes import RestRoutes
from transformer.server.unfinished_bodies import UnfinishedBodies
from transformer.settings import Settings

#: Signal at which a worker process leaves; SIGTERM stops it.
LEAVE = signal.SIGUSR1


class RestServer(RESTServer):  # type: ignore[misc]
    """Serves one model over REST.

    Parameters
    ----------
    settings
        The settings of the process.
    dataplane, model_repository_extension
        As `kserve.protocol.rest.server.RESTServer`.
    http_port
        Port to listen on.
    grace_period
        Seconds in which accepted requests are answered after `stop`.
    """

    def __init__(
        self,
        settings: Settings,
        dataplane: TransformerDataPlane,
        model_repository_extension: ModelRepositoryExtension,
        *,
        http_port: int,
        grace_period: int,
    ) -> None:
        super().__init__(
            FASTAPI_APP_IMPORT_STRING,
            dataplane,
            model_repository_extension,
            http_port,
            access_log_format=settings.access_log_format,
            workers=settings.workers,
            grace_period=grace_period,
            event_loop=settings.event_loop,
            timeout_keep_alive=settings.timeout_keep_alive,
            ssl_certfile=settings.ssl_certfile,
            ssl_keyfile=settings.ssl_keyfile,
        )
        if settings.host is not None:
            self.config.host = settings.host
        self._settings = settings
        self._failures = FailureLog()
        self._leaving = False

    def create_application(self) -> None:
        """Build the ASGI application and configure uvicorn for it."""
        settings, handler = self._settings, self.dataplane.handler
        app = _application(handler.name, docs=settings.enable_docs_url)
        if settings.log_config_file is None:
            # KServe gives this logger a handler, and uvicorn logs each request if there is any.
            logging.getLogger("uvicorn.access").handlers = []
            # The address of a client behind a proxy is only needed for that log.
            self.config.proxy_headers = False
        has_middleware = settings.enable_latency_logging or bool(settings.access_log_format)
        if has_middleware:
            self._add_middlewares(app)
        RestRoutes(self.dataplane).add_to(app)
        self._add_exception_handlers(app)
        self.dataplane.stopping = self._is_stopping
        # Prometheus then sees the model's series before its first request.
        _ = handler.monitor, handler.tracing
        app.openapi = cache(handler.openapi)  # type: ignore[method-assign]
        limit = settings.max_request_bytes
        self.config.app = BodyLimit(app, handler.reader, limit, linger_s(settings.client_timeout_seconds))
        # Websockets are not offered, so their library need not be loaded.
        self.config.ws = "none"
        connection = ClientConnection
        if not has_middleware:
            fast_path = FastPath(handler, self._error_response, limit)
            connection = partial(  # type: ignore[assignment]
                FastConnection, fast_path=fast_path, known_heads=KnownHeads()
            )
        self.config.http = partial(
            connection,
            timeouts=ClientTimeouts(settings.client_timeout_seconds),
            limit=ClientLimit(client_limits(settings)),
            unfinished=UnfinishedBodies(limit),
            is_leaving=self._is_leaving,
            is_stopping=self._is_stopping,
        )

    def _is_leaving(self) -> bool:
        return self._leaving

    def _is_stopping(self) -> bool:
        return bool(self._server.should_exit)

    def _add_exception_handlers(self, app: FastAPI) -> None:
        super()._add_exception_handlers(app)
        app.add_exception_handler(ServiceError, self._service_error)
        app.add_exception_handler(HTTPException, _http_error)

    async def _service_error(self, _: Request, error: Exception) -> Response:
        assert isinstance(error, ServiceError)  # noqa: S101 (registered for it)
        response = self._error_response(error)
        if isinstance(error, PredictorUnavailable):
            # Another transformer may have the predictor that this one lacks.
            response.headers["connection"] = "close"
        return response

    def _error_response(self, error: ServiceError) -> Response:
        self._failures.record(str(error.status.value), error)
        return JSONResponse({"error": str(error)}, error.status, headers=error.headers)

    async def start(self) -> None:
        """Serve until `stop`. The process handles signals, because gRPC stops at the same ones."""
        self._server.capture_signals = contextlib.nullcontext
        await super().start()

    def leave(self) -> None:
        """Serve on, and end each connection with a response, so that clients reconnect to another replica."""
        self._leaving = True
        for connection in list(self._server.server_state.connections):
            connection.end()

    def stop(self, sig: int) -> None:
        """Stop accepting requests, and answer those accepted; a second SIGINT stops at once."""
        self._server.handle_exit(sig, None)

    def run(self, sockets: list[socket] | None = None) -> None:
        """Serve in a worker process until it is stopped."""
        self.create_application()
        with asyncio.Runner(loop_factory=self.config.get_loop_factory()) as runner:
            runner.run(self._serve_and_close(sockets))

    async def _serve_and_close(self, sockets: list[socket] | None) -> None:
        handler = self.dataplane.handler
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(LEAVE, self.leave)
        # uvicorn would raise the signal again, which ends the process before it has closed anything.
        self._server.capture_signals = contextlib.nullcontext
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_number, self.stop, signal_number)
        limit_threads(self._settings.max_asyncio_workers)
        try:
            handler.scorer.start()
            async with releasing_memory(), handler.flushing_metrics():
                await self._server.serve(sockets=sockets)
        finally:
            await handler.close()


def limit_threads(threads: int | None) -> None:
    """Limit the threads of the running event loop; None keeps Python's default."""
    if threads is not None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(threads))


def _application(title: str, *, docs: bool) -> FastAPI:
    """Return an application without routes, or with those of ``/docs`` and its assets."""
    options: dict[str, Any] = {
        "title": title,
        "redoc_url": None,
        # A redirect would repeat the Host that the client names, over plain http.
        "redirect_slashes": False,
    }
    if not docs:
        return FastAPI(docs_url=None, **options)
    from fastapi_offline import FastAPIOffline

    return FastAPIOffline(docs_url="/docs", **options)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 (registered for it)
    text = f"{request.method} {printable(request.url.path)}: {error.detail}"
    allowed = Headers(error.headers).get("allow")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and allowed:
        text += f"; use {allowed}"
    return JSONResponse({"error": text}, error.status_code, headers=error.headers)
