"""A running InferenceService on this machine: model server, transformer and ingress.

A change starts new processes beside the old ones, sends the traffic to them when they are ready, and drains
the old ones, so that no request fails.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from inferenceservice.local.restarts import Restarter
from inferenceservice.local.rolled_out import THE_SPEC, RolledOut, RolledOutFile, choose_version
from inferenceservice.local.running_process import LocalServiceError, RunningProcess
from inferenceservice.local.service_client import ServiceClient
from inferenceservice.local.supervisor import ProcessSupervisor
from inferenceservice.local.tracks import TrackRouter
from inferenceservice.local.version_switch import VersionSwitch
from inferenceservice.rollout_target import Canary, Progress, Scores, State
from inferenceservice.spec import InferenceService
from storage.uris import canonical, shown
from transformer.bundle.format import Bundle


class LocalService:
    """Runs an InferenceService until it is closed; its steps are those of a `RolloutTarget`.

    A step that is cancelled is either complete or has no effect: processes that it started are stopped, and
    processes that it replaced are drained and stopped.

    Parameters
    ----------
    service
        The spec.
    port, grpc_port
        Ports of the ingress on loopback.
    logs
        Directory for the components' logs.
    progress
        Gets a line for each step of `start`, and for each restart of a process.
    rolled_out
        File that remembers which versions were rolled out.
    transformer_args
        Arguments of the transformer in addition to each spec's.
    """

    def __init__(
        self,
        service: InferenceService,
        *,
        port: int,
        grpc_port: int,
        logs: Path,
        progress: Progress,
        rolled_out: RolledOutFile | None = None,
        transformer_args: Sequence[str] = (),
    ) -> None:
        self._transformer_args = tuple(transformer_args)
        self.service = self._adapted(service)
        self.url = f"http://127.0.0.1:{port}"
        self.grpc_address = f"127.0.0.1:{grpc_port}"
        self._ports = (port, grpc_port)
        self._progress = progress
        self._supervisor = ProcessSupervisor(self.service, logs)
        self._router = TrackRouter(service.name, service.namespace)
        self._versions = VersionSwitch(self._supervisor, self._router, self._remember)
        self._restarter = Restarter(self._supervisor, self._versions, progress)
        self._watching: asyncio.Task[None] | None = None
        self._rolled_out = rolled_out
        self._one_change_at_a_time = asyncio.Lock()
        self._exclusive_change: str | None = None
        self._client = ServiceClient(self.url, service.name)

    async def start(self, last: RolledOut | None = None) -> Bundle:
        """Start everything, and return the bundle once a prediction through the ingress succeeds.

        From then on, processes that end are restarted.

        Parameters
        ----------
        last
            A rollout to serve again, instead of the spec's bundle.

        Raises
        ------
        LocalServiceError, IngressError, SpecError
            If it cannot run; the message says why.
        """
        await self._router.start(*self._ports)
        try:
            await self._versions.start(last.uri if last else self.service.storage_uri, self._progress)
            bundle = self._transformer.bundle
            await self._client.check_reference_rows(bundle)
        except LocalServiceError as error:
            if last is None:
                raise
            raise LocalServiceError(
                f"{error}; {shown(last.uri)} was rolled out on {last.at:%d %B at %H:%M}: to start another "
                "version, name it with --model URI"
            ) from error
        if last is not None:
            await self._restore(last)
        self._watching = asyncio.create_task(self._restarter.run())
        return bundle

    # The steps of a rollout; see `RolloutTarget`.

    async def state(self) -> State:
        """Return the bundles that are served now."""
        history, canary = self._versions.history, self._versions.canary
        return State(
            self._transformer.uri,
            self._predictor.uri,
            history[-1] if history else None,
            Canary(canary.predictor.uri, canary.percent) if canary else None,
            self.service.collocated,
        )

    async def read_bundle(self, uri: str) -> Bundle:
        """Read the bundle at a URI, and check the digest of its model.

        Raises
        ------
        LocalServiceError
            If it cannot be read.
        """
        return await self._supervisor.read_bundle(uri)

    @contextlib.asynccontextmanager
    async def exclusive(self, change: str) -> AsyncIterator[None]:
        """Reserve the service for a change of several steps; see `RolloutTarget`."""
        if self._exclusive_change is not None:
            raise LocalServiceError(
                f"{self._exclusive_change} is in progress; wait until it ends, then see `placement status`"
            )
        self._exclusive_change = change
        try:
            yield
        finally:
            self._exclusive_change = None

    async def set_transformer(self, uri: str, progress: Progress) -> None:
        """Start a transformer with another bundle, send new requests to it, and stop the old one."""
        async with self._one_change_at_a_time:
            await self._versions.change_transformer(uri, progress)

    async def set_predictor(self, uri: str, progress: Progress) -> None:
        """Start a predictor with another bundle, send new connections to it, and stop the old one."""
        async with self._one_change_at_a_time:
            await self._versions.change_predictor(uri, progress)

    async def set_both(self, uri: str, progress: Progress) -> None:
        """Start both with another bundle, send new requests to them, and stop the old ones."""
        async with self._one_change_at_a_time:
            await self._versions.change_both(uri, progress)

    async def require_canary_support(self) -> None:
        """Do nothing: the ingress splits the traffic."""

    async def set_canary(self, canary: Canary, progress: Progress) -> None:
        """Start a second predictor with its own transformer, and send them a share of the requests."""
        async with self._one_change_at_a_time:
            await self._versions.change_canary(canary, progress)

    async def end_canary(self, progress: Progress) -> None:
        """Send all requests to the stable predictor, and stop the canary."""
        async with self._one_change_at_a_time:
            progress("draining the canary")
            await self._versions.end_canary()

    async def wait_until_idle(self) -> None:
        """Wait until no step is running and all replaced processes have stopped."""
        async with self._one_change_at_a_time:
            await self._versions.wait_until_drained()

    async def apply(
        self, service: InferenceService, progress: Progress, *, late_s: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        """Change both components to a spec, each as soon as it is ready, as `kubectl apply` does.

        Parameters
        ----------
        late_s
            Seconds by which the start of the transformer and of the predictor is delayed: in a cluster either
            may be first. Collocated components start together, in one pod, without delay.

        Raises
        ------
        LocalServiceError
            If the spec is that of another service, or a component does not become ready.
        """
        if service.name != self.service.name:
            raise LocalServiceError(
                f"the spec is that of {service.name}, but the service that runs here is {self.service.name}"
            )
        service = self._adapted(service)
        async with self._one_change_at_a_time:
            self.service = self._supervisor.service = service
            if self._rolled_out is not None:
                self._rolled_out.spec_uri = service.storage_uri
            await self._versions.end_canary()
            if service.collocated:
                await self._versions.change_both(service.storage_uri, progress)
            else:
                await self._versions.change_each(service.storage_uri, progress, late_s)

    async def score(self, candidates: Sequence[dict[str, Any]], name: str) -> Scores:
        """Score candidates through the ingress; `name` is that of the model, which its outputs carry.

        Raises
        ------
        LocalServiceError
            If the prediction fails.
        """
        return await self._client.score(candidates, name)

    # Operations of `placement up` and `placement status`.

    async def predict(self, candidates: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Send a V1 request through the ingress, and return the content of the response.

        Raises
        ------
        LocalServiceError
            If the prediction fails.
        """
        content, _ = await self._client.predict(candidates)
        return content

    async def metrics(self) -> dict[str, str]:
        """Read the metrics of the `transformer`, and of a `canary`'s, in Prometheus' text format."""
        transformers = {"transformer": self._transformer}
        if self._versions.canary is not None:
            transformers["canary"] = self._versions.canary.transformer
        return {name: await self._client.metrics_of(one.address) for name, one in transformers.items()}

    async def processes(self) -> list[dict[str, Any]]:
        """Return the state of each process that should run: its restarts, and its last end."""
        return [
            {
                "component": one.component,
                "canary": canary,
                "version": one.bundle.version,
                "ready": one.running and one.ready,
                "restarts": one.restarts,
                "last_end": one.last_end and {"at": one.last_end.at.isoformat(), "why": str(one.last_end)},
                "log": str(one.log),
            }
            for track, canary in ((self._versions.stable, False), (self._versions.canary, True))
            if track is not None
            for one in track.processes
        ]

    async def watch(self) -> None:
        """Wait until the restarts end, which only an unexpected error does."""
        assert self._watching is not None  # noqa: S101 (made by start)
        await asyncio.shield(self._watching)

    async def close(self) -> None:
        """Stop all processes, then the ingress."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        await self._versions.close()
        await self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def _transformer(self) -> RunningProcess:
        return self._versions.stable.transformer

    @property
    def _predictor(self) -> RunningProcess:
        return self._versions.stable.predictor

    def _adapted(self, service: InferenceService) -> InferenceService:
        """Return a spec with this service's own arguments, and with the canonical form of its URI."""
        return dataclasses.replace(
            service,
            storage_uri=canonical(service.storage_uri),
            transformer_args=(*service.transformer_args, *self._transformer_args),
        )

    async def _restore(self, last: RolledOut) -> None:
        """Restore the history and the canary of a rollout."""
        self._versions.history = list(last.history)
        if last.canary is None:
            return
        try:
            await self._versions.change_canary(last.canary, self._progress)
            if not self.service.collocated:
                await self._versions.change_transformer(last.canary.uri, self._progress)
        except LocalServiceError as error:
            self._progress(
                f"the canary of {shown(last.canary.uri)} does not start: {error}; all requests go to "
                f"{shown(last.uri)}"
            )

    def _remember(self) -> None:
        """Record which versions serve, once the service has started."""
        if self._rolled_out is None or self._watching is None:
            return
        versions = self._versions
        canary = Canary(versions.canary.predictor.uri, versions.canary.percent) if versions.canary else None
        try:
            self._rolled_out.record(versions.stable.predictor.uri, versions.history, canary)
        except OSError as error:
            self._progress(
                f"what serves now cannot be recorded: {error}; after a stop, start it with --model "
                f"{shown(versions.stable.predictor.uri)}"
            )


@contextlib.asynccontextmanager
async def run_local_service(
    service: InferenceService,
    *,
    model: str | None = None,
    port: int,
    grpc_port: int,
    logs: Path,
    progress: Progress,
    rolled_out: Path | None = None,
    source: str = THE_SPEC,
    transformer_args: Sequence[str] = (),
) -> AsyncIterator[tuple[LocalService, Bundle]]:
    """Run an InferenceService.

    Parameters
    ----------
    model
        Bundle to serve instead of the spec's, and instead of the one that was rolled out last.
    rolled_out
        File that remembers what was rolled out.
    source
        Where the spec's URI comes from; see `choose_version`.
    transformer_args
        Arguments of the transformer in addition to the spec's.
    """
    file = last = None
    if rolled_out is not None:
        file = RolledOutFile(rolled_out, f"{service.namespace}/{service.name}", service.storage_uri)
        last = choose_version(model, file, progress, source=source)
    if model is not None:
        service = dataclasses.replace(service, storage_uri=model)
    async with LocalService(
        service,
        port=port,
        grpc_port=grpc_port,
        logs=logs,
        progress=progress,
        rolled_out=file,
        transformer_args=transformer_args,
    ) as local:
        yield local, await local.start(last)
