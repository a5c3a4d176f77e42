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
        return {"predictions": answers(self.output_name, prediction)}

    def encode(self, prediction: Prediction) -> tuple[bytes, dict[str, str]]:
        """Return body and headers of a response with it."""
        return orjson.dumps(self.answer(prediction)), JSON_HEADERS


def answers(name: str, prediction: Prediction) -> list[dict[str, Any]]:
    """Return V1's object for each candidate.

    The output `name` holds the answer: a boolean, a class or a number. ``<name>_probability`` holds the
    probability of the positive class, or ``<name>_probabilities`` that of each class.
    """
    labels = prediction.target.labels(prediction.values)
    if prediction.probabilities is None:
        return [{name: label} for label in labels]
    found = prediction.probabilities.tolist()
    if prediction.target.kind == "binary":
        probability = f"{name}_probability"
        return [{name: label, probability: value} for label, value in zip(labels, found, strict=True)]
    classes = prediction.target.class_names
    return [
        {name: label, f"{name}_probabilities": dict(zip(classes, values, strict=True))}
        for label, values in zip(labels, found, strict=True)
    ]


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
        answer to a question of yes or no.
        """
        explanation = prediction.explanation
        assert explanation is not None  # noqa: S101 (asked for)
        assert explanation.contributions is not None  # noqa: S101
        explanations = answers(self.output_name, prediction)
        for row, one in enumerate(explanations):
            one |= _contributions(explanation.contributions, row)
            if explanation.changes is not None and not one[self.output_name]:
                one["changes"] = explanation.changes[row]
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
    *,
    only_lists: bool = False,
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
    only_lists
        True if each field of a candidate is a list of categories. An object of lists is then a candidate, not
        a table.

    Raises
    ------
    InvalidRequest
        If it is not JSON or not of the form ``{"instances": [{candidate}, …]}``. As in KServe's servers, the
        key can be ``inputs``, and an instance an object with a list for each field, or a list of candidates.
    TooLarge
        If there are more than `max_candidates`, or the JSON has too many values.
    """
    if isinstance(payload, (bytes, str)):
        payload = parse_json(payload)
    # KServe's servers take "inputs", too, and prefer it.
    key = "inputs" if isinstance(payload, dict) and "inputs" in payload else INSTANCES
    instances = payload.get(key) if isinstance(payload, dict) else None
    if isinstance(instances, list) and instances and not only_lists and _has_several_rows(instances[0]):
        instances = [row for number, part in enumerate(instances) for row in _rows(part, f"{key}[{number}]")]
    if not isinstance(instances, list) or not instances:
        raise InvalidRequest(
            f'body: must be {{"instances": [{{{row_name}}}, …]}} with at least one {row_name}'
        )
    check_count(len(instances), max_candidates, row_name)
    return request(output_name, Rows(instances, key))


def _has_several_rows(instance: object) -> bool:
    """Return True for an instance that KServe's servers read as a table.

    That is a list of objects, or an object of lists.
    """
    if isinstance(instance, dict):
        return bool(instance) and all(isinstance(values, list) and values for values in instance.values())
    return isinstance(instance, list) and bool(instance) and isinstance(instance[0], dict)


def _rows(instance: Any, path: str) -> list[Any]:  # noqa: ANN401 (JSON)
    """Return the candidates of an instance, as KServe's servers read it."""
    if not _has_several_rows(instance):
        return [instance]
    if isinstance(instance, list):
        return instance
    lengths = set(map(len, instance.values()))
    if len(lengths) > 1:
        raise InvalidRequest(f"{path}: must have lists of one length, got {min(lengths)} to {max(lengths)}")
    return [dict(zip(instance, values, strict=True)) for values in zip(*instance.values(), strict=True)]
