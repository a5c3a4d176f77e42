"""Scores candidates through a running service, for `placement score --engine service`."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from placement.client import (
    Answer,
    ClientError,
    InvalidInput,
    RestClient,
    connect_rest,
    until_accepted,
)
from scoring.batch import as_json
from scoring.errors import ScoringError
from scoring.predictor import Answers, AnswerType
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
        try:
            self._client, fields, self.answer_type = self._loop.run_until_complete(_connected(url, model))
        except ClientError as error:
            self._loop.close()
            raise ScoringError(str(error)) from error
        self.fields: Mapping[str, str] = fields

    def predict(self, candidates: Candidates) -> Answers:
        """See `scoring.predictor.Predictor`."""
        instances = as_json(candidates)
        try:
            answer = self._loop.run_until_complete(until_accepted(lambda: self._client.predict(instances)))
        except InvalidInput as error:
            raise InvalidRequest(str(error)) from error
        except ClientError as error:
            raise ScoringError(str(error)) from error
        return _answers(answer, self.answer_type)

    def close(self) -> None:
        """Close the connection."""
        self._loop.run_until_complete(self._client.close())
        self._loop.close()


async def _connected(url: str, model: str | None) -> tuple[RestClient, dict[str, str], AnswerType]:
    """Return a client, which must be made inside its event loop, the model's fields and its answers' type."""
    client = connect_rest(url, model)
    try:
        fields, outputs = await client.fields(), await client.outputs()
    except ClientError:
        await client.close()
        raise
    name, datatype = next(iter(outputs.items()))
    has_probabilities = any(output.startswith(f"{name}_probabilit") for output in outputs)
    return client, fields, AnswerType(datatype, has_probabilities)


def _answers(answer: Answer, answer_type: AnswerType) -> Answers:
    rows = [tuple(prediction.values()) for prediction in answer.predictions]
    probabilities = np.array([_likeliest(row[1]) for row in rows]) if answer_type.has_probabilities else None
    return Answers([row[0] for row in rows], probabilities, answer.version)


def _likeliest(probability: float | Mapping[str, float]) -> float:
    """Return the probability of the positive class, or the highest of many classes."""
    return max(probability.values()) if isinstance(probability, Mapping) else probability


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
