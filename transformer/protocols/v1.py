"""The V1 inference protocol: a JSON object of instances in, one of predictions or explanations out."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from transformer.bundle.candidates import Candidates, Rows
from transformer.bundle.explanation import Contributions, ExplanationPart
from transformer.bundle.prediction import Prediction
from transformer.bundle.signature import DEFAULT_ROW_NAME
from transformer.errors import InvalidRequest
from transformer.protocols.json_body import JSON_HEADERS, check_count, parse_json

INSTANCES = "instances"


# Not frozen, because that takes five times as long for each request.
@dataclass(slots=True)
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

    @property
    def explains(self) -> Collection[ExplanationPart]:
        """Nothing: this is a request for predictions."""
        return ()

    def answer(self, prediction: Prediction) -> dict[str, Any]:
        """Return V1's object of predictions, one per instance."""
        return {"predictions": self._predictions(prediction)}

    def _predictions(self, prediction: Prediction) -> list[dict[str, Any]]:
        probability = f"{self.output_name}_probability"
        return [
            {self.output_name: positive, probability: value}
            for positive, value in zip(
                prediction.positive.tolist(), prediction.probabilities.tolist(), strict=True
            )
        ]

    def encode(self, prediction: Prediction) -> tuple[bytes, dict[str, str]]:
        """Return body and headers of a response with it."""
        return orjson.dumps(self.answer(prediction)), JSON_HEADERS


class V1ExplainRequest(V1Request):
    """A decoded V1 request for explanations."""

    __slots__ = ()

    @property
    def explains(self) -> Collection[ExplanationPart]:
        """All parts of an explanation."""
        return ("contributions", "changes")

    def answer(self, prediction: Prediction) -> dict[str, Any]:
        """Return V1's object of explanations, one per instance, each with the prediction.

        ``standard_errors`` are only there if the contributions are not exact, ``changes`` only for a negative
        answer.
        """
        explanation = prediction.explanation
        assert explanation is not None  # noqa: S101 (asked for)
        assert explanation.contributions is not None and explanation.changes is not None  # noqa: S101, PT018
        explanations = self._predictions(prediction)
        for row, (one, changes) in enumerate(zip(explanations, explanation.changes, strict=True)):
            one |= _contributions(explanation.contributions, row)
            if not one[self.output_name]:
                one["changes"] = changes
        return {"explanations": explanations}


def _contributions(contributions: Contributions, row: int) -> dict[str, Any]:
    def by_field(values: npt.NDArray[np.float64]) -> dict[str, float]:
        return dict(zip(contributions.fields, values[row].tolist(), strict=True))

    exact = bool(contributions.exact[row])
    errors = {} if exact else {"standard_errors": by_field(contributions.standard_errors)}
    return {
        "baseline": float(contributions.baseline[row]),
        "contributions": by_field(contributions.values),
        **errors,
        "exact": exact,
    }


def decode(
    payload: object,
    output_name: str,
    max_candidates: int,
    row_name: str = DEFAULT_ROW_NAME,
    request: type[V1Request] = V1Request,
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
    request
        The kind of request: `V1Request` or `V1ExplainRequest`.

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
    return request(output_name, Rows(instances, INSTANCES))
