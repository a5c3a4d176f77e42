"""The V1 inference protocol: a JSON object of instances in, one of predictions out."""

from dataclasses import dataclass
from typing import Any

import orjson

from transformer.candidates import Candidates, Rows
from transformer.errors import InvalidRequest, TooLarge
from transformer.prediction import Prediction

INSTANCES = "instances"
#: Values that any request's JSON may have, counted by what stands before them: a comma or a bracket.
MAX_VALUES = 1_000_000


@dataclass(frozen=True, slots=True)
class V1Request:
    """A V1 request of a model with the given name."""

    name: str
    candidates: Candidates

    def answer(self, prediction: Prediction) -> dict[str, Any]:
        """The prediction as V1's object of predictions, one for each instance."""
        probability = f"{self.name}_probability"
        return {
            "predictions": [
                {self.name: positive, probability: value}
                for positive, value in zip(
                    prediction.positive.tolist(), prediction.probabilities.tolist(), strict=True
                )
            ]
        }

    def encode(self, prediction: Prediction) -> bytes:
        """The same as the body of a response."""
        return orjson.dumps(self.answer(prediction))


def decode(payload: object, name: str, max_candidates: int) -> V1Request:
    """Read a V1 request.

    Parameters
    ----------
    payload
        The body, parsed or as bytes of JSON.
    name
        Name of the bundle, and so of the answer's keys.

    Raises
    ------
    InvalidRequest
        If it is not JSON or not of the form ``{"instances": [{candidate}, …]}``.
    TooLarge
        If there are more than `max_candidates`.
    """
    if isinstance(payload, (bytes, str)):
        payload = parse_json(payload)
    instances = payload.get(INSTANCES) if isinstance(payload, dict) else None
    if not isinstance(instances, list) or not instances:
        raise InvalidRequest('body: must be {"instances": [{candidate}, …]} with at least one candidate')
    check_count(len(instances), max_candidates)
    return V1Request(name, Rows(instances, INSTANCES))


def check_count(candidates: int, max_candidates: int) -> None:
    """Refuse more candidates than one request may carry.

    Raises
    ------
    TooLarge
        If there are more than `max_candidates`.
    """
    if candidates > max_candidates:
        raise TooLarge(f"a request may carry {max_candidates} candidates, got {candidates}")


def check_values(*texts: bytes) -> None:
    """Refuse JSON of so many values, in all texts together, that these would take thirty times its bytes.

    Raises
    ------
    TooLarge
        If there are more than `MAX_VALUES`, and more than one for every 8 bytes.
    """
    size = sum(map(len, texts))
    limit = max(MAX_VALUES, size // 8)
    if size > limit:
        values = sum(text.count(mark) for text in texts for mark in (b",", b"[", b"{"))
        if values > limit:
            raise TooLarge(f"body: may be JSON of {limit} values, got {values}")


def parse_json(body: bytes | str) -> object:
    """Parse a JSON text.

    Raises
    ------
    InvalidRequest
        If it is none; the message says where.
    TooLarge
        See `check_values`.
    """
    if isinstance(body, bytes):
        # Text was part of something that has been looked at already.
        check_values(body)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"body: is not JSON: {error}") from error
