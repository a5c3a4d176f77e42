"""Scores candidates through a running service, for `placement score --engine service`."""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from placement.client import Answer, ClientError, InvalidInput, connect_rest, until_accepted
from scoring.errors import ScoringError
from scoring.predictor import Answers
from transformer.bundle.candidates import Candidates
from transformer.errors import InvalidRequest


class ServicePredictor:
    """A running service, as a predictor of scoring jobs; each worker has one request in flight.

    Raises
    ------
    ScoringError
        If the service does not answer.
    """

    #: Candidates per request, as in `placement predict`.
    batch_rows = 1000

    def __init__(self, url: str, model: str | None) -> None:
        self._loop = asyncio.new_event_loop()
        self._url, self._model = url, model
        try:
            self._loop.run_until_complete(self._connect())
        except ClientError as error:
            raise ScoringError(str(error)) from error

    async def _connect(self) -> None:
        self._client = connect_rest(self._url, self._model)
        self.fields: Mapping[str, str] = await self._client.fields()

    def predict(self, candidates: Candidates) -> Answers:
        """See `scoring.predictor.Predictor`."""
        instances = [_as_json(candidate) for candidate in candidates.dicts()]
        try:
            answer = self._loop.run_until_complete(until_accepted(lambda: self._client.predict(instances)))
        except InvalidInput as error:
            raise InvalidRequest(str(error)) from error
        except ClientError as error:
            raise ScoringError(str(error)) from error
        return _answers(answer)


def _as_json(candidate: Any) -> Any:  # noqa: ANN401 (a line of JSON may be no object)
    """Return a candidate that JSON can express: NaN would become null, and so the field's default."""
    if not isinstance(candidate, dict):
        return candidate
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in candidate.items()
    }


def _answers(answer: Answer) -> Answers:
    rows = [tuple(prediction.values()) for prediction in answer.predictions]
    positive, probabilities = zip(*rows, strict=True)
    return Answers(np.array(positive, np.bool_), np.array(probabilities, np.float64), answer.version)


@dataclass(frozen=True, slots=True)
class ServiceSource:
    """The address of a service."""

    url: str
    model: str | None

    @property
    def identity(self) -> dict[str, str]:
        """See `scoring.predictor.Source`. The version may change; each row has its own."""
        return {"service": self.url, "model": self.model or ""}

    def open(self) -> ServicePredictor:
        """See `scoring.predictor.Source`."""
        return ServicePredictor(self.url, self.model)
