"""The forms of the requests to each kind of system, and of the answers."""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.answer_check import Request
from benchmarks.models import ServedModel
from benchmarks.stub_predictor import PROBABILITY
from training.candidates import Candidate


def _candidates(candidates: Sequence[Candidate]) -> object:
    return {"candidates": candidates}


def _instances(candidates: Sequence[Candidate]) -> object:
    return {"instances": candidates}


def _predictions(content: Any) -> list[float]:  # noqa: ANN401 (JSON)
    return [one["placement_probability"] for one in content["predictions"]]


def tutorial(_: ServedModel) -> Request:
    """Return the tutorial's form: a candidate, or a list of them."""
    return Request(
        "/predict",
        lambda candidates: candidates if len(candidates) > 1 else candidates[0],
        lambda content: [
            one["placement_probability"] for one in (content if isinstance(content, list) else [content])
        ],
    )


def candidates_to_predictions(_: ServedModel) -> Request:
    """Return the form of the peers that answer with an object."""
    return Request("/predict", _candidates, _predictions)


def bentoml(_: ServedModel) -> Request:
    """Return BentoML's form: the answer is a list."""
    return Request("/predict", _candidates, lambda content: [one["placement_probability"] for one in content])


def v1(_: ServedModel) -> Request:
    """Return the form of the V1 protocol, with candidates."""
    return Request("/v1/models/placement:predict", _instances, _predictions)


def echo(_: ServedModel) -> Request:
    """Return a form whose answer is the request."""
    return Request("/", _instances, lambda content: [PROBABILITY for _ in content["instances"]])


def encoded_v1(model: ServedModel) -> Request:
    """Return the form of the V1 protocol, with encoded rows."""
    return Request(
        "/v1/models/placement:predict",
        lambda candidates: {"instances": model.encode(candidates).tolist()},
        lambda content: model.positive_probabilities(content["predictions"]),
    )


def encoded_v2(output: str) -> Callable[[ServedModel], Request]:
    """Return the form of the V2 protocol, with encoded rows; `output` has the probabilities."""

    def request(model: ServedModel) -> Request:
        def body(candidates: Sequence[Candidate]) -> object:
            matrix = model.encode(candidates)
            tensor = {"name": "features", "datatype": "FP64", "shape": matrix.shape}
            return {
                "inputs": [{**tensor, "data": matrix.ravel().tolist()}],
                "outputs": [{"name": output}],
            }

        def read(content: Any) -> list[float]:  # noqa: ANN401 (JSON)
            (tensor,) = (one for one in content["outputs"] if one["name"] == output)
            width = tensor["shape"][1]
            data = tensor["data"]
            return model.positive_probabilities(
                [data[start : start + width] for start in range(0, len(data), width)]
            )

        return Request("/v2/models/placement/infer", body, read)

    return request
