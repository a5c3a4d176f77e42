"""A V1 prediction by a running service, as a client asks for it."""

import json
from collections.abc import Mapping
from typing import NamedTuple

import aiohttp

from inferenceservice.rollout_target import Scored, TargetError

_TIMEOUT_S = 60


class Answer(NamedTuple):
    """A service's answer, good or bad."""

    status: int
    headers: Mapping[str, str]
    body: bytes


async def post(url: str, content: object) -> Answer:
    """Send JSON to a service.

    Raises
    ------
    TargetError
        If it does not answer.
    """
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=True) as session,
            session.post(url, json=content) as response,
        ):
            return Answer(response.status, response.headers, await response.read())
    except (aiohttp.ClientError, TimeoutError) as error:
        raise TargetError(f"{url} does not answer: {error or type(error).__name__}") from error


def scored(answer: Answer, name: str) -> Scored:
    """Probabilities and version of an answer.

    Raises
    ------
    TargetError
        If it is no prediction.
    """
    if answer.status != 200:
        raise TargetError(f"a prediction failed with {answer.status}: {_said(answer.body)}")
    try:
        predictions = json.loads(answer.body)["predictions"]
        probabilities = tuple(one[f"{name}_probability"] for one in predictions)
        return Scored(probabilities, answer.headers["x-model-version"])
    except (ValueError, KeyError, TypeError) as error:
        raise TargetError(f"what answers is not the service of {name}: {error!r}") from error


def _said(body: bytes) -> str:
    """The service's own error, or that of the API server before it."""
    try:
        content = json.loads(body)
        return str(content["error"] if "error" in content else content["message"])
    except (ValueError, KeyError, TypeError):
        return " ".join(body.decode(errors="replace").split())
