"""`kserve.ModelServer` with our REST and gRPC sides."""

import asyncio
from argparse import Namespace

from kserve.constants.constants import FASTAPI_APP_IMPORT_STRING
from kserve.model_server import ModelServer

from transformer.server.dataplane import FixedRepository, TransformerDataPlane
from transformer.server.grpc import GrpcServer
from transformer.server.kserve_model import TransformerModel
from transformer.server.rest import RestServer
from transformer.server.workers import Workers, collect_seldom

#: Seconds in which requests that were accepted before a SIGTERM are answered; KServe's own.
GRACE_PERIOD_S = 30


class TransformerServer(ModelServer):  # type: ignore[misc]
    """Serves one model over REST and gRPC.

    Parameters
    ----------
    options
        As `transformer.options.parse` gives them.
    """

    def __init__(self, options: Namespace) -> None:
        super().__init__(
            http_port=options.http_port,
            grpc_port=options.grpc_port,
            workers=options.workers,
            max_threads=options.max_threads,
            max_asyncio_workers=options.max_asyncio_workers,
            enable_grpc=options.enable_grpc,
            enable_latency_logging=options.enable_latency_logging,
            access_log_format=options.access_log_format,
            event_loop=options.event_loop,
            timeout_keep_alive=options.timeout_keep_alive,
            grace_period=GRACE_PERIOD_S,
            ssl_certfile=options.ssl_certfile,
            ssl_keyfile=options.ssl_keyfile,
        )
        self._options = options
        self.dataplane = TransformerDataPlane(model_registry=self.registered_models)
        self.model_repository_extension = FixedRepository(model_registry=self.registered_models)

    def rest_server(self) -> RestServer:
        """The REST side, not yet started."""
        return RestServer(
            FASTAPI_APP_IMPORT_STRING,
            self.dataplane,
            self.model_repository_extension,
            self.http_port,
            access_log_format=self.access_log_format,
            workers=self.workers,
            grace_period=self.grace_period,
            event_loop=self.event_loop,
            timeout_keep_alive=self.timeout_keep_alive,
            ssl_certfile=self.ssl_certfile,
            ssl_keyfile=self.ssl_keyfile,
            host=self._options.host,
            max_request_bytes=self._options.max_request_bytes,
            client_timeout_s=self._options.client_timeout_seconds,
            docs=self._options.enable_docs_url,
            timings=self._options.enable_latency_logging,
            access_log=self._options.log_config_file is not None,
        )

    def grpc_server(self) -> GrpcServer:
        """The gRPC side, not yet started."""
        return GrpcServer(
            self.grpc_port,
            self.dataplane,
            self.model_repository_extension,
            host=self._options.host,
            max_request_bytes=self._options.max_request_bytes,
            grace_period=self.grace_period,
        )

    def start(self, models: list[TransformerModel]) -> None:
        """Serve until SIGTERM or SIGINT; what was accepted by then is answered.

        With several workers, each is a process that serves REST; gRPC is served by the first process.
        """
        self._register_and_check_atleast_one_model_is_ready(models)
        rest = self.rest_server()
        if self.workers > 1:
            self._rest_multiprocess_server = Workers(rest, self._options.log_config_file)
            self.servers.append(self._rest_multiprocess_server.start())
        else:
            self._rest_server = rest
            self.servers.append(rest.start())
        if self.enable_grpc:
            self._grpc_server = self.grpc_server()
            self.servers.append(self._grpc_server.start(self.max_threads))
        self.register_signal_handler()
        with asyncio.Runner(loop_factory=rest.config.get_loop_factory()) as runner:
            runner.run(self._serve_and_close(models))

    def stop(self, sig: int) -> None:
        """Stop accepting, and answer what was accepted; KServe's own would first forget the model."""

        async def drain() -> None:
            if self._rest_server:
                self._rest_server.stop(sig)
            if self._rest_multiprocess_server:
                await self._rest_multiprocess_server.stop(sig)
            if self._grpc_server:
                await self._grpc_server.stop(sig)

        self._draining = asyncio.create_task(drain())

    async def _serve_and_close(self, models: list[TransformerModel]) -> None:
        collect_seldom()
        try:
            for model in models:
                model.scorer.start()
            await self._serve()
        finally:
            if self._rest_multiprocess_server is not None:
                self._rest_multiprocess_server.kill()
            for model in models:
                await model.scorer.close()
