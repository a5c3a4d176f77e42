"""Scores candidates through a running service, for `placement score --engine service`."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from placement.client import (
    LIST,
    Answer,
    ClientError,
    InvalidInput,
    RestClient,
    connect_rest,
    until_accepted,
)
from scoring.batch import as_json
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
        try:
            self._client, fields = self._loop.run_until_complete(_connected(url, model))
        except ClientError as error:
            self._loop.close()
            raise ScoringError(str(error)) from error
        self.fields: Mapping[str, str] = {
            name: "BYTES" if datatype == LIST else datatype for name, datatype in fields.items()
        }

    def predict(self, candidates: Candidates) -> Answers:
        """See `scoring.predictor.Predictor`."""
        instances = as_json(candidates)
        try:
            answer = self._loop.run_until_complete(until_accepted(lambda: self._client.predict(instances)))
        except InvalidInput as error:
            raise InvalidRequest(str(error)) from error
        except ClientError as error:
            raise ScoringError(str(error)) from error
        return _answers(answer)

    def close(self) -> None:
        """Close the connection."""
        self._loop.run_until_complete(self._client.close())
        self._loop.close()


async def _connected(url: str, model: str | None) -> tuple[RestClient, dict[str, str]]:
    """Return a client, which must be made inside its event loop, and the fields of the model."""
    client = connect_rest(url, model)
    try:
        return client, await client.fields()
    except ClientError:
        await client.close()
        raise


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
