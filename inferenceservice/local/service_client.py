"""HTTP client of the local service: predictions through its ingress, and the metrics of a transformer."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import aiohttp

from inferenceservice.local.running_process import LocalServiceError
from inferenceservice.rollout_target import Scores
from transformer.bundle.format import Bundle
from transformer.bundle.target import answer_score


class ServiceClient:
    """Sends requests to one InferenceService on this machine.

    Parameters
    ----------
    url
        Address of the ingress.
    service_name
        Name of the InferenceService, under which its model is served.
    """

    def __init__(self, url: str, service_name: str) -> None:
        self._predict_url = f"{url}/v1/models/{service_name}:predict"

    async def predict(self, candidates: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], str]:
        """Send a V1 request, and return the content of the response and the version that it names.

        Raises
        ------
        LocalServiceError
            If the prediction fails.
        """
        try:
            async with self._session.post(
                self._predict_url, json={"instances": list(candidates)}
            ) as response:
                if response.status != 200:
                    text = await response.text()
                    raise LocalServiceError(f"a prediction failed with status {response.status}: {text}")
                return await response.json(), response.headers["x-model-version"]
        except aiohttp.ClientError as error:
            raise LocalServiceError(f"a prediction failed: {error}") from error

    async def score(self, candidates: Sequence[dict[str, Any]], name: str) -> Scores:
        """Score candidates; `name` is that of the model, which its outputs carry.

        Raises
        ------
        LocalServiceError
            If the prediction fails.
        """
        content, version = await self.predict(candidates)
        try:
            return Scores(tuple(answer_score(name, one) for one in content["predictions"]), version)
        except KeyError as error:
            raise LocalServiceError(
                f"the response is not a prediction of model {name}: it has no {error}"
            ) from error

    async def check_reference_rows(self, bundle: Bundle) -> None:
        """Score a bundle's reference rows, and compare the result with the bundle.

        Raises
        ------
        LocalServiceError
            If they differ, or the prediction fails.
        """
        reference = bundle.reference
        scores = await self.score([dict(candidate) for candidate in reference.candidates], bundle.name)
        if not bundle.is_matched_by(scores.answers):
            raise LocalServiceError(
                f"the served model scores the reference rows differently from the bundle {bundle.version}; "
                "write a new version with `placement train`"
            )

    async def metrics_of(self, address: str) -> str:
        """Read the metrics of the transformer at an address, in Prometheus' text format.

        Raises
        ------
        LocalServiceError
            If it does not answer.
        """
        try:
            async with self._session.get(f"http://{address}/metrics") as response:
                return await response.text()
        except aiohttp.ClientError as error:
            raise LocalServiceError(f"cannot read a transformer's metrics: {error}") from error

    async def close(self) -> None:
        """Close all connections."""
        if "_session" in vars(self):
            await self._session.close()

    @cached_property
    def _session(self) -> aiohttp.ClientSession:
        # Made at the first request, because it belongs to the event loop that runs then.
        return aiohttp.ClientSession()
