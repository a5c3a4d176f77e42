"""One InferenceService on this machine: storage, model server, transformer and an ingress in front.

New processes are started beside the old ones, take over when they are ready, and the old ones are drained: no
request fails.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from inferenceservice.local.supervisor import LocalServiceError, Processes, Running
from inferenceservice.local.tracks import Traffic
from inferenceservice.local.version_switch import Serving
from inferenceservice.rollout_target import Canary, Progress, Scored, State
from inferenceservice.spec import InferenceService
from transformer.bundle.format import Bundle

_POLL_S = 0.1


class LocalService:
    """Runs an InferenceService until it is closed.

    A step that is cancelled has either happened or not: what it has started is stopped, and what it has
    replaced is drained all the same.

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
        self._traffic = Traffic(service.name, service.namespace)
        self._serving = Serving(self._processes, self._traffic)
        self._one_change_at_a_time = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> Bundle:
        """Start everything, and return the bundle once a prediction through the ingress succeeds.

        Raises
        ------
        LocalServiceError, IngressError, SpecError
            Whichever says why it cannot be run.
        """
        self._session = aiohttp.ClientSession()
        await self._traffic.start(*self._ports)
        await self._serving.start(self.service.storage_uri, self._progress)
        bundle = self._transformer.bundle
        await self._check(bundle)
        return bundle

    # What a rollout is made of; see inferenceservice.target.RolloutTarget.

    async def state(self) -> State:
        """What is served now."""
        serving, canary = self._serving, self._serving.canary
        return State(
            self._transformer.uri,
            self._predictor.uri,
            serving.history[-1] if serving.history else None,
            Canary(canary.predictor.uri, canary.percent) if canary else None,
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
            await self._serving.change_transformer(uri, progress)

    async def set_predictor(self, uri: str, progress: Progress) -> None:
        """Start a predictor with another bundle, shift new connections to it, stop the old one."""
        async with self._one_change_at_a_time:
            await self._serving.change_predictor(uri, progress)

    async def set_both(self, uri: str, progress: Progress) -> None:
        """Start both with another bundle, shift all requests to them at once, drain and stop the old ones."""
        async with self._one_change_at_a_time:
            await self._serving.change_both(uri, progress)

    async def check_canary(self) -> None:
        """Nothing to refuse: the ingress splits requests."""

    async def set_canary(self, canary: Canary, progress: Progress) -> None:
        """Start a second predictor, with a transformer of its own, and give it a part of the requests."""
        async with self._one_change_at_a_time:
            await self._serving.change_canary(canary, progress)

    async def end_canary(self, progress: Progress) -> None:
        """Give all requests to the predictor that is no canary."""
        async with self._one_change_at_a_time:
            progress("draining the canary")
            await self._serving.end_canary()

    async def settle(self) -> None:
        """Wait until no step is under way any more, nor what is left of one that was interrupted."""
        async with self._one_change_at_a_time:
            await self._serving.settle()

    async def apply(
        self, service: InferenceService, progress: Progress, *, late_s: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        """Change both components at once, each as soon as it is ready, as `kubectl apply` does.

        Parameters
        ----------
        late_s
            Seconds by which the transformer and the predictor come up late: the order is the cluster's.
            Collocated ones come up together, in one pod.

        Raises
        ------
        LocalServiceError
            If it is the spec of another service, or a component does not come up.
        """
        if service.name != self.service.name:
            raise LocalServiceError(f"{self.service.name} runs here: the spec is that of {service.name}")
        async with self._one_change_at_a_time:
            self.service = self._processes.service = service
            await self._serving.end_canary()
            if service.collocated:
                await self._serving.change_both(service.storage_uri, progress)
            else:
                await self._serving.change_each(service.storage_uri, progress, late_s)

    async def score(self, candidates: Sequence[dict[str, Any]], name: str) -> Scored:
        """Score candidates through the ingress, by the name of their model.

        Raises
        ------
        LocalServiceError
            If there is no prediction.
        """
        answer, version = await self._ask(candidates)
        try:
            return Scored(tuple(one[f"{name}_probability"] for one in answer["predictions"]), version)
        except KeyError as error:
            raise LocalServiceError(f"what answers is not the service of {name}: no {error}") from error

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
        transformers = {"transformer": self._transformer}
        if self._serving.canary is not None:
            transformers["canary"] = self._serving.canary.transformer
        return {name: await self._metrics_of(one) for name, one in transformers.items()}

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
        await self._serving.close()
        if self._session is not None:
            await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def _transformer(self) -> Running:
        return self._serving.stable.transformer

    @property
    def _predictor(self) -> Running:
        return self._serving.stable.predictor

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

    async def _metrics_of(self, transformer: Running) -> str:
        assert self._session is not None  # noqa: S101 (made by start)
        try:
            async with self._session.get(f"http://{transformer.address}/metrics") as response:
                return await response.text()
        except aiohttp.ClientError as error:
            raise LocalServiceError(f"a transformer does not tell its metrics: {error}") from error

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
