"""The V1 inference protocol: a JSON object of instances in, a JSON object of predictions out."""

from dataclasses import dataclass
from typing import Any

import orjson

from transformer.bundle.candidates import Candidates, Rows
from transformer.bundle.prediction import Prediction
from transformer.bundle.signature import DEFAULT_ROW_NAME
from transformer.errors import InvalidRequest
from transformer.protocols.json_body import check_count, parse_json

INSTANCES = "instances"


@dataclass(frozen=True, slots=True)
class V1Request:
    """A decoded V1 request.

    Attributes
    ----------
    output_name
        Name of the bundle, and so of the response's keys.
    """

    output_name: str
    candidates: Candidates

    @property
    def version(self) -> None:
        """No version: V1 cannot ask for one."""

    def answer(self, prediction: Prediction) -> dict[str, Any]:
        """Return V1's object of predictions, one per instance."""
        probability = f"{self.output_name}_probability"
        return {
            "predictions": [
                {self.output_name: positive, probability: value}
                for positive, value in zip(
                    prediction.positive.tolist(), prediction.probabilities.tolist(), strict=True
                )
            ]
        }

    def encode(self, prediction: Prediction) -> tuple[bytes, dict[str, str]]:
        """Return body and headers of a response with it."""
        return orjson.dumps(self.answer(prediction)), {"content-type": "application/json"}


def decode(
    payload: object, output_name: str, max_candidates: int, row_name: str = DEFAULT_ROW_NAME
) -> V1Request:
    """Decode a V1 request.

    Parameters
    ----------
    payload
        The body, parsed or as bytes of JSON.
    output_name
        Name of the bundle, and so of the response's keys.
    max_candidates
        Maximum candidates per request.
    row_name
        The bundle's word for a candidate.

    Raises
    ------
    InvalidRequest
        If it is not JSON or not of the form ``{"instances": [{candidate}, …]}``.
    TooLarge
        If there are more than `max_candidates`, or the JSON has too many values.
    """
    if isinstance(payload, (bytes, str)):
        payload = parse_json(payload)
    instances = payload.get(INSTANCES) if isinstance(payload, dict) else None
    if not isinstance(instances, list) or not instances:
        raise InvalidRequest(
            f'body: must be {{"instances": [{{{row_name}}}, …]}} with at least one {row_name}'
        )
    check_count(len(instances), max_candidates, row_name)
    return V1Request(output_name, Rows(instances, INSTANCES))
