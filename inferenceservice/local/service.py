"""One InferenceService on this machine: storage, model server, transformer and an ingress in front.

New processes are started beside the old ones, take over when they are ready, and the old ones are drained: no
request fails. The transformer reaches its predictor through one address, as it does through a Service.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from inferenceservice.local.forwarder import Backend, Forwarder
from inferenceservice.local.ingress import Ingress
from inferenceservice.local.processes import LocalServiceError, Processes, Running
from inferenceservice.rollout import Canary, Scored, State
from inferenceservice.spec import InferenceService
from transformer.bundle import Bundle

Progress = Callable[[str], None]

#: Seconds in which the requests that an old transformer has must be answered.
DRAIN_TIMEOUT_S = 30
#: Seconds in which connections must have left an old process before it is stopped, as in the spec.
PRE_STOP_S = 10
_POLL_S = 0.1


class LocalService:
    """Runs an InferenceService until it is closed.

    Parameters
    ----------
    service
        What to run.
    port, grpc_port
        Where the ingress listens, on loopback.
    logs
        Directory for the components' logs.
    progress
        Gets a line for each step.
    """

    def __init__(
        self, service: InferenceService, *, port: int, grpc_port: int, logs: Path, progress: Progress
    ) -> None:
        self.service = service
        self.url = f"http://127.0.0.1:{port}"
        self.grpc_address = f"127.0.0.1:{grpc_port}"
        self._ports = (port, grpc_port)
        self._progress = progress
        self._processes = Processes(service, logs)
        self._ingress = Ingress(service.name, service.namespace)
        #: The predictor's Service, once for REST and once for gRPC.
        self._predictor_service = (Forwarder(), Forwarder())
        self._predictor_ports = (0, 0)
        self._transformer: Running | None = None
        self._predictor: Running | None = None
        self._canary: tuple[Running, Running, int] | None = None
        #: Bundles that the predictor served before, the last one last; going back takes from it.
        self._history: list[str] = []
        self._one_change_at_a_time = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> Bundle:
        """Start everything, and return the bundle once a prediction through the ingress succeeds.

        Raises
        ------
        LocalServiceError, IngressError, SpecError, PredictorError, StorageError, BundleError, InstallError
            Whichever says why it cannot be run.
        """
        self._session = aiohttp.ClientSession()
        await self._ingress.start(*self._ports)
        http, grpc = self._predictor_service
        self._predictor_ports = (await http.start(), await grpc.start())
        uri = self.service.storage_uri
        await self._together(uri, self._progress, (0.0, 0.0))
        await self._check(self._current(self._transformer).bundle)
        return self._current(self._transformer).bundle

    # What a rollout is made of; see inferenceservice.rollout.Target.

    async def state(self) -> State:
        """What is served now."""
        canary = None
        if self._canary is not None:
            canary = Canary(self._canary[1].uri, self._canary[2])
        return State(
            self._current(self._transformer).uri,
            self._current(self._predictor).uri,
            self._history[-1] if self._history else None,
            canary,
            self.service.collocated,
        )

    async def read_bundle(self, uri: str) -> Bundle:
        """The bundle at a URI, its model held against its digest.

        Raises
        ------
        TargetError
            If there is none that can be served.
        """
        return await self._processes.read_bundle(uri)

    async def set_transformer(self, uri: str, progress: Progress) -> None:
        """Start a transformer with another bundle, shift new requests to it, drain the old one."""
        async with self._one_change_at_a_time:
            await self._replace_transformer(
                await self._processes.transformer(uri, self._predictor_ports, progress)
            )

    async def set_predictor(self, uri: str, progress: Progress) -> None:
        """Start a predictor with another bundle, shift new connections to it, stop the old one."""
        async with self._one_change_at_a_time:
            if self._canary is not None and self._canary[1].uri == uri:
                await self._promote()
                return
            new = await self._processes.predictor(uri, progress)
            await self._stop_canary()
            await self._replace_predictor(new)

    async def check_canary(self) -> None:
        """Nothing to refuse: the ingress splits requests."""

    async def set_canary(self, canary: Canary, progress: Progress) -> None:
        """Start a second predictor, with a transformer of its own, and give it a part of the requests."""
        async with self._one_change_at_a_time:
            if self._canary is None:
                predictor = await self._processes.predictor(canary.uri, progress)
                ports = (predictor.process.http_port, predictor.process.grpc_port)
                try:
                    transformer = await self._processes.transformer(canary.uri, ports, progress)
                except BaseException:
                    await self._processes.stop(predictor)
                    raise
            else:
                transformer, predictor, _ = self._canary
            self._canary = (transformer, predictor, canary.percent)
            self._shift()

    async def end_canary(self, progress: Progress) -> None:
        """Give all requests to the predictor that is no canary."""
        async with self._one_change_at_a_time:
            progress("draining the canary")
            await self._stop_canary()

    async def apply(
        self, service: InferenceService, progress: Progress, *, late_s: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        """Change both components at once, each as soon as it is ready, as `kubectl apply` does.

        Parameters
        ----------
        late_s
            Seconds by which the transformer and the predictor come up late: the order is the cluster's.
        """
        async with self._one_change_at_a_time:
            self.service = self._processes.service = service
            await self._stop_canary()
            await self._together(service.storage_uri, progress, late_s)

    async def score(self, candidates: Sequence[dict[str, Any]], name: str) -> Scored:
        """Score candidates through the ingress.

        Raises
        ------
        LocalServiceError
            If there is no prediction.
        """
        answer, version = await self._ask(candidates)
        key = f"{name}_probability"
        return Scored(tuple(one[key] for one in answer["predictions"]), version)

    # What `placement up` needs beside that.

    async def predict(self, candidates: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Answer of a V1 request through the ingress.

        Raises
        ------
        LocalServiceError
            If there is no prediction.
        """
        answer, _ = await self._ask(candidates)
        return answer

    async def metrics(self) -> dict[str, str]:
        """Metrics as Prometheus reads them, of the `transformer` and of a `canary`'s."""
        transformers = {"transformer": self._current(self._transformer)}
        if self._canary is not None:
            transformers["canary"] = self._canary[0]
        return {name: await self._metrics_of(one) for name, one in transformers.items()}

    async def _metrics_of(self, transformer: Running) -> str:
        assert self._session is not None  # noqa: S101 (made by start)
        try:
            async with self._session.get(f"http://{transformer.address}/metrics") as response:
                return await response.text()
        except aiohttp.ClientError as error:
            raise LocalServiceError(f"a transformer does not tell its metrics: {error}") from error

    async def watch(self) -> None:
        """Return only by raising.

        Raises
        ------
        LocalServiceError
            As soon as a component has ended by itself.
        """
        while True:
            await asyncio.sleep(_POLL_S)
            self._processes.check()

    async def close(self) -> None:
        """Stop every process: first the transformers, which answer what they have accepted."""
        await self._processes.close()
        await self._ingress.close()
        for forwarder in self._predictor_service:
            await forwarder.close()
        if self._session is not None:
            await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(self, candidates: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], str]:
        """Answer of a V1 request, and the version that gave it."""
        url = f"{self.url}/v1/models/{self.service.name}:predict"
        assert self._session is not None  # noqa: S101 (made by start)
        try:
            async with self._session.post(url, json={"instances": list(candidates)}) as response:
                if response.status != 200:
                    text = await response.text()
                    raise LocalServiceError(f"a prediction failed with {response.status}: {text}")
                return await response.json(), response.headers["x-model-version"]
        except aiohttp.ClientError as error:
            raise LocalServiceError(f"a prediction failed: {error}") from error

    async def _together(self, uri: str, progress: Progress, late_s: tuple[float, float]) -> None:
        """Start both components, and shift to each as soon as it is ready, whichever comes first."""

        async def transformer() -> None:
            await asyncio.sleep(late_s[0])
            await self._replace_transformer(
                await self._processes.transformer(uri, self._predictor_ports, progress)
            )

        async def predictor() -> None:
            await asyncio.sleep(late_s[1])
            await self._replace_predictor(await self._processes.predictor(uri, progress))

        starting = [asyncio.create_task(work) for work in (transformer(), predictor())]
        try:
            await asyncio.gather(*starting)
        finally:
            # One that has failed will not be waited for by the other.
            for task in starting:
                task.cancel()
            await asyncio.gather(*starting, return_exceptions=True)

    async def _replace_transformer(self, new: Running) -> None:
        old, self._transformer = self._transformer, new
        self._shift()
        if old is not None:
            await self._drain(old)

    async def _replace_predictor(self, new: Running) -> None:
        old, self._predictor = self._predictor, new
        self._shift()
        if old is not None:
            if self._history[-1:] == [new.uri]:
                self._history.pop()
            elif old.uri != new.uri:
                self._history.append(old.uri)
            await self._leave(old)

    async def _promote(self) -> None:
        """Make the canary's predictor the one and only; its transformer is not needed any more."""
        assert self._canary is not None  # noqa: S101 (asked by the caller)
        transformer, predictor, _ = self._canary
        self._canary = None
        await self._replace_predictor(predictor)
        await self._drain(transformer)

    async def _stop_canary(self) -> None:
        if self._canary is None:
            return
        transformer, predictor, _ = self._canary
        self._canary = None
        self._shift()
        await self._drain(transformer)
        await self._leave(predictor)

    def _shift(self) -> None:
        """Let new requests and connections go where they should go now."""
        if self._transformer is not None:
            shares = [(self._transformer, 100)]
            if self._canary is not None:
                canary, _, percent = self._canary
                shares = [(self._transformer, 100 - percent), (canary, percent)]
            self._ingress.transformer = [Backend(one.address, share) for one, share in shares]
            self._ingress.transformer_grpc.backends = [
                Backend(one.grpc_address, share) for one, share in shares
            ]
        if self._predictor is not None:
            http, grpc = self._predictor_service
            self._ingress.predictor = http.backends = [Backend(self._predictor.address)]
            grpc.backends = [Backend(self._predictor.grpc_address)]

    async def _drain(self, old: Running) -> None:
        """Stop a transformer when it has answered what the ingress gave it, and gRPC clients have left it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                await self._ingress.drained(old.address)
                await self._left((self._ingress.transformer_grpc, old.grpc_address))
        await self._processes.stop(old)

    async def _leave(self, old: Running) -> None:
        """Stop a predictor when its connections have been renewed: the preStop pause of a pod."""
        http, grpc = self._predictor_service
        await self._left((http, old.address), (grpc, old.grpc_address))
        await self._processes.stop(old)

    async def _left(self, *ways: tuple[Forwarder, str]) -> None:
        """Wait until nobody is connected to an address any more, for as long as a preStop pause lasts."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PRE_STOP_S):
                while any(forwarder.connections[address] for forwarder, address in ways):
                    await asyncio.sleep(_POLL_S)

    def _current(self, one: Running | None) -> Running:
        if one is None:
            raise LocalServiceError("the service is not running")
        return one

    async def _check(self, bundle: Bundle) -> None:
        """Score the bundle's reference rows the whole way; they must come out as the bundle says."""
        reference = bundle.reference
        scored = await self.score([dict(candidate) for candidate in reference.candidates], bundle.name)
        if not reference.is_matched_by(scored.probabilities):
            raise LocalServiceError("the served probabilities are not those of the bundle's reference rows")


@contextlib.asynccontextmanager
async def running(
    service: InferenceService,
    *,
    model: str | None = None,
    port: int,
    grpc_port: int,
    logs: Path,
    progress: Progress,
) -> AsyncIterator[tuple[LocalService, Bundle]]:
    """Run an InferenceService, with another bundle than its spec names if `model` is given."""
    if model is not None:
        service = dataclasses.replace(service, storage_uri=model)
    async with LocalService(service, port=port, grpc_port=grpc_port, logs=logs, progress=progress) as local:
        yield local, await local.start()
