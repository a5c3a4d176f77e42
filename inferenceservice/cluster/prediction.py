"""Predictions over V1 by a service in a cluster, by which a rollout checks what serves."""

import json
from collections.abc import Mapping
from typing import NamedTuple

import aiohttp

from inferenceservice.gateway import Gateway
from inferenceservice.rollout_target import Scores, TargetError

_TIMEOUT_S = 60


class Response(NamedTuple):
    """Response of a service, with any status."""

    status: int
    headers: Mapping[str, str]
    body: bytes


async def post(url: str, content: object, gateway: Gateway) -> Response:
    """Send JSON to a service.

    Raises
    ------
    TargetError
        If the service does not answer.
    GatewayError
        If the gateway's certificates cannot be used.
    """
    try:
        async with (
            gateway.session(_TIMEOUT_S, trust_env=True) as session,
            session.post(url, json=content, server_hostname=gateway.server_hostname) as response,
        ):
            return Response(response.status, response.headers, await response.read())
    except (aiohttp.ClientError, TimeoutError) as error:
        raise TargetError(f"{url} does not answer: {error or type(error).__name__}; check --url") from error


def read_scores(response: Response, name: str) -> Scores:
    """Read probabilities and version from a response.

    Raises
    ------
    TargetError
        If the response is not a prediction.
    """
    if response.status != 200:
        raise TargetError(f"a prediction failed with status {response.status}: {_error_text(response.body)}")
    try:
        predictions = json.loads(response.body)["predictions"]
        probabilities = tuple(one[f"{name}_probability"] for one in predictions)
        return Scores(probabilities, response.headers["x-model-version"])
    except (ValueError, KeyError, TypeError) as error:
        raise TargetError(f"the response is not a prediction of model {name}: {error!r}") from error


def _error_text(body: bytes) -> str:
    """Return the error of the service, or of the API server in front of it."""
    try:
        content = json.loads(body)
        return str(content["error"] if "error" in content else content["message"])
    except (ValueError, KeyError, TypeError):
        return " ".join(body.decode(errors="replace").split())
