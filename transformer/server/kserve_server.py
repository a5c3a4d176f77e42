"""`kserve.ModelServer` with this project's REST and gRPC servers."""

import asyncio
import contextlib
import signal

from kserve.model_server import ModelServer

from transformer.bundle.format import Bundle
from transformer.server.dataplane import FixedRepository, TransformerDataPlane
from transformer.server.descriptors import raise_limit
from transformer.server.freed_memory import releasing_memory
from transformer.server.grpc import GrpcServer
from transformer.server.handler import Handler
from transformer.server.kserve_model import TransformerModel
from transformer.server.rest import RestServer, limit_threads
from transformer.server.workers import Workers, collect_garbage_less_often
from transformer.settings import Settings

#: Seconds in which requests accepted before a SIGTERM are answered; KServe's own value.
GRACE_PERIOD_S = 30


class TransformerServer(ModelServer):  # type: ignore[misc]
    """Serves a bundle's model over REST and gRPC.

    Parameters
    ----------
    bundle
        The version to serve.
    settings
        The settings of the process.
    """

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        super().__init__(
            http_port=settings.http_port,
            grpc_port=settings.grpc_port,
            workers=settings.workers,
            max_asyncio_workers=settings.max_asyncio_workers,
            enable_grpc=settings.enable_grpc,
            enable_latency_logging=settings.enable_latency_logging,
            access_log_format=settings.access_log_format,
            event_loop=settings.event_loop,
            timeout_keep_alive=settings.timeout_keep_alive,
            grace_period=GRACE_PERIOD_S,
            ssl_certfile=settings.ssl_certfile,
            ssl_keyfile=settings.ssl_keyfile,
        )
        self._settings = settings
        self._handler = Handler(bundle, settings)
        self._draining: list[asyncio.Task[None]] = []
        self._delay_is_over = asyncio.Event()
        self.dataplane = TransformerDataPlane(model_registry=self.registered_models)
        self.model_repository_extension = FixedRepository(model_registry=self.registered_models)
        self.register_model(TransformerModel(self._handler))

    def rest_server(self) -> RestServer:
        """Make the REST server, not yet started."""
        return RestServer(
            self._settings,
            self.dataplane,
            self.model_repository_extension,
            # KServe listens on its port for TLS where there is a certificate and no other port is given.
            http_port=self.http_port,
            grace_period=self.grace_period,
        )

    def grpc_server(self) -> GrpcServer:
        """Make the gRPC server, not yet started."""
        return GrpcServer(
            self._settings, self.dataplane, self.model_repository_extension, grace_period=self.grace_period
        )

    def serve(self) -> None:
        """Serve until SIGTERM or SIGINT, and answer what was accepted by then.

        With several workers, each is a process that serves REST; the first process serves gRPC.
        """
        raise_limit()
        rest = self.rest_server()
        if self.workers > 1:
            self._rest_multiprocess_server = Workers(rest, self._settings.log_config_file)
            self.servers.append(self._rest_multiprocess_server.start())
        else:
            self._rest_server = rest
            self.servers.append(rest.start())
        if self.enable_grpc:
            self._grpc_server = self.grpc_server()
            self.servers.append(self._grpc_server.start())
        self.register_signal_handler()
        with asyncio.Runner(loop_factory=rest.config.get_loop_factory()) as runner:
            runner.run(self._serve_and_close())

    def stop(self, sig: int) -> None:
        """Leave, stop accepting requests after the shutdown delay, and answer those accepted.

        A signal other than SIGTERM ends the delay, and so does a second signal. KServe's own `stop` forgets
        the model first.
        """
        if self._draining or sig != signal.SIGTERM:
            self._delay_is_over.set()

        async def drain() -> None:
            await self._leave()
            if self._rest_server:
                self._rest_server.stop(sig)
            if self._rest_multiprocess_server:
                await self._rest_multiprocess_server.stop(sig)
            if self._grpc_server:
                await self._grpc_server.stop(sig)

        self._draining.append(asyncio.create_task(drain()))

    async def _leave(self) -> None:
        """Serve on until the shutdown delay is over, while clients reconnect to other replicas."""
        delay_s = self._settings.shutdown_delay_seconds
        if not delay_s or self._delay_is_over.is_set():
            return
        for rest in (self._rest_server, self._rest_multiprocess_server):
            if rest:
                rest.leave()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._delay_is_over.wait(), delay_s)

    async def _serve_and_close(self) -> None:
        collect_garbage_less_often()
        limit_threads(self.max_asyncio_workers)
        try:
            self._handler.scorer.start()
            async with releasing_memory(), self._handler.flushing_metrics():
                await self._serve()
        finally:
            if self._rest_multiprocess_server is not None:
                self._rest_multiprocess_server.kill()
            await self._handler.close()
