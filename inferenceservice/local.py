"""One InferenceService on this machine: storage, model server, transformer and an ingress in front."""

import asyncio
import contextlib
import dataclasses
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from inferenceservice.components import TransformerProcess, start_predictor
from inferenceservice.ingress import Backends, Ingress
from inferenceservice.spec import InferenceService
from predictor.process import PredictorProcess
from storage import bundles
from transformer.bundle import Bundle

Progress = Callable[[str], None]

#: Seconds until both components must serve; a stock server takes 3 to 8.
READY_TIMEOUT_S = 120
_POLL_S = 0.1
#: How far a served probability may be from the bundle's own: the model is the same, the arithmetic too.
TOLERANCE = 1e-6


class LocalServiceError(Exception):
    """The InferenceService does not run; the message says which part of it and why."""


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
        self._logs = logs
        self._progress = progress
        self._work = Path(tempfile.mkdtemp(prefix="inferenceservice-"))
        self._predictor: PredictorProcess | None = None
        self._transformer: TransformerProcess | None = None
        self._backends = Backends("", "", "")
        self._ingress = Ingress(service.name, service.namespace, self._backends)

    async def start(self) -> Bundle:
        """Start everything, and return the bundle once a prediction through the ingress succeeds.

        Raises
        ------
        LocalServiceError, IngressError, SpecError, PredictorError, StorageError, BundleError, InstallError
            Whichever says why it cannot be run.
        """
        self._logs.mkdir(parents=True, exist_ok=True)
        await self._ingress.start(*self._ports)
        self._progress(f"storage: {self.service.storage_uri}")
        directory = self._work / "models"
        bundle = await asyncio.to_thread(bundles.fetch, self.service.storage_uri, directory)
        self._predictor = await asyncio.to_thread(
            start_predictor, self.service, directory, self._log("predictor"), self._progress
        )
        self._progress(f"predictor: {self.service.runtime} loads {bundle.name} {bundle.version}")
        self._transformer = await asyncio.to_thread(
            TransformerProcess, self.service, directory, self._predictor, self._log("transformer")
        )
        self._backends.predictor = f"127.0.0.1:{self._predictor.http_port}"
        self._backends.transformer = f"127.0.0.1:{self._transformer.http_port}"
        self._backends.transformer_grpc = f"127.0.0.1:{self._transformer.grpc_port}"
        await asyncio.to_thread(self._predictor.wait_ready, READY_TIMEOUT_S)
        self._progress("transformer: reads the bundle")
        await self._transformer_ready()
        await self._check(bundle)
        return bundle

    async def watch(self) -> None:
        """Return only by raising.

        Raises
        ------
        LocalServiceError
            As soon as a component has ended by itself.
        """
        while True:
            await asyncio.sleep(_POLL_S)
            self._alive()

    async def predict(self, candidates: list[dict[str, Any]]) -> dict[str, Any]:
        """Answer of a V1 request through the ingress.

        Raises
        ------
        LocalServiceError
            If it is not a prediction.
        """
        url = f"{self.url}/v1/models/{self.service.name}:predict"
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, json={"instances": candidates}) as response,
        ):
            if response.status != 200:
                raise LocalServiceError(
                    f"a prediction failed with {response.status}: {await response.text()}"
                )
            answer: dict[str, Any] = await response.json()
            return answer

    async def close(self) -> None:
        """Stop every process: first the transformer, which answers what it has accepted."""
        for process in (self._transformer, self._predictor):
            if process is not None:
                await asyncio.to_thread(process.stop)
        await self._ingress.close()
        shutil.rmtree(self._work, ignore_errors=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _log(self, component: str) -> Path:
        path = self._logs / f"{component}.log"
        path.unlink(missing_ok=True)
        return path

    def _alive(self) -> None:
        for component in ("predictor", "transformer"):
            process: PredictorProcess | TransformerProcess | None = getattr(self, f"_{component}")
            if process is not None and process.poll() is not None:
                last = "\n  ".join(process.tail())
                raise LocalServiceError(
                    f"the {component} ended with status {process.poll()}; "
                    f"its last lines ({self._logs / component}.log):\n  {last}"
                )

    async def _transformer_ready(self) -> None:
        end = time.monotonic() + READY_TIMEOUT_S
        async with aiohttp.ClientSession() as session:
            while time.monotonic() < end:
                self._alive()
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"{self.url}/v2/models/{self.service.name}/ready") as response:
                        if response.status == 200:
                            return
                await asyncio.sleep(_POLL_S)
        raise LocalServiceError(f"the transformer is not ready after {READY_TIMEOUT_S} s")

    async def _check(self, bundle: Bundle) -> None:
        """Score the bundle's reference rows the whole way; they must come out as the bundle says."""
        answer = await self.predict([dict(candidate) for candidate in bundle.reference.candidates])
        key = f"{bundle.name}_probability"
        served = [prediction[key] for prediction in answer["predictions"]]
        worst = max(
            abs(got - expected) for got, expected in zip(served, bundle.reference.probabilities, strict=True)
        )
        if worst > TOLERANCE:
            raise LocalServiceError(
                f"the served probabilities differ from the bundle's reference rows by {worst:.3g}"
            )


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
