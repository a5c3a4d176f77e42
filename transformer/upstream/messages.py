"""What is said to a stock predictor, and what its answer means: messages without a connection.

The forms are those that both stock servers understand; see the table of runtimes in ``predictor/``. A named
message carries the feature names: scikit-learn, fitted on a DataFrame, refuses other names or another order.
"""

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import orjson
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from transformer.errors import (
    EncodingRefused,
    InvalidPredictorResponse,
    PredictorTooSlow,
    PredictorUnavailable,
    ServiceError,
    printable,
)

Matrix = npt.NDArray[np.float64]

#: What scikit-learn 1.5 says of a frame or an array that its model was not fitted on.
_REFUSALS = ("feature names should match", "features as input")
#: Statuses of a predictor that is not there yet, or not any more.
_UNAVAILABLE = {404, 429, 502, 503}
_UNAVAILABLE_CODES = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
#: What MLServer 1.7 says of a model that it has not loaded yet.
_LOADING = "is not ready yet"
#: How far from 1 the classes' probabilities of one row may add up to.
_SUM_TOLERANCE = 1e-3
#: Longest part of a predictor's own words that is kept, and most feature names of its refusal.
MAX_DETAIL = 200
MAX_NAMES = 5


def v1_body(matrix: Matrix, feature_names: Sequence[str] | None) -> bytes:
    """A V1 request: a plain array, or one dict of named columns where `feature_names` are given."""
    if feature_names is None:
        return orjson.dumps({"instances": matrix}, option=orjson.OPT_SERIALIZE_NUMPY)
    columns = {name: matrix[:, column].tolist() for column, name in enumerate(feature_names)}
    return orjson.dumps({"instances": [columns]})


def v2_body(matrix: Matrix, feature_names: Sequence[str] | None, output: str) -> bytes:
    """A V2 REST request: one tensor, or one for each named column with the content type ``pd``."""
    request: dict[str, Any] = {"outputs": [{"name": output}]}
    if feature_names is None:
        request["inputs"] = [
            {
                "name": "features",
                "datatype": "FP64",
                "shape": list(matrix.shape),
                "data": np.ravel(matrix),
            }
        ]
    else:
        request["parameters"] = {"content_type": "pd"}
        request["inputs"] = [
            {
                "name": name,
                "datatype": "FP64",
                "shape": [len(matrix)],
                "data": np.ascontiguousarray(matrix[:, column]),
            }
            for column, name in enumerate(feature_names)
        ]
    return orjson.dumps(request, option=orjson.OPT_SERIALIZE_NUMPY)


def v2_message(
    model_name: str, matrix: Matrix, feature_names: Sequence[str] | None, output: str
) -> pb.ModelInferRequest:
    """The same over gRPC, with typed contents: kserve-sklearnserver reads no raw ones with names."""
    message = pb.ModelInferRequest(model_name=model_name)
    message.outputs.add(name=output)
    if feature_names is None:
        tensor = message.inputs.add(name="features", datatype="FP64", shape=matrix.shape)
        tensor.contents.fp64_contents.extend(np.ravel(matrix).tolist())
        return message
    message.parameters["content_type"].string_param = "pd"
    for column, name in enumerate(feature_names):
        tensor = message.inputs.add(name=name, datatype="FP64", shape=[len(matrix)])
        tensor.contents.fp64_contents.extend(matrix[:, column].tolist())
    return message


def v1_probabilities(body: bytes, rows: int, classes: int) -> Matrix:
    """Read `predict_proba` out of a V1 answer.

    Returns
    -------
    ndarray of float64, shape (rows, classes)

    Raises
    ------
    InvalidPredictorResponse
        If it is anything else.
    """
    return _probabilities(lambda: _json(body)["predictions"], rows, classes)


def v2_probabilities(body: bytes, rows: int, classes: int, output: str) -> Matrix:
    """Read `predict_proba` out of a V2 REST answer; see `v1_probabilities`."""

    def read() -> Any:  # noqa: ANN401 (whatever the predictor sent)
        tensor = next(tensor for tensor in _json(body)["outputs"] if tensor["name"] == output)
        return np.reshape(tensor["data"], tensor["shape"])

    return _probabilities(read, rows, classes)


def message_probabilities(message: pb.ModelInferResponse, rows: int, classes: int, output: str) -> Matrix:
    """Read `predict_proba` out of a gRPC answer; see `v1_probabilities`."""

    def read() -> Any:  # noqa: ANN401 (whatever the predictor sent)
        number = next(number for number, tensor in enumerate(message.outputs) if tensor.name == output)
        tensor = message.outputs[number]
        if tensor.datatype != "FP64":
            raise ValueError(tensor.datatype)
        if message.raw_output_contents:
            values = np.frombuffer(message.raw_output_contents[number], "<f8")
        else:
            values = np.array(tensor.contents.fp64_contents)
        return values.reshape(tuple(tensor.shape))

    return _probabilities(read, rows, classes)


def _json(body: bytes) -> Any:  # noqa: ANN401 (whatever the predictor sent)
    return orjson.loads(body)


def _probabilities(read: Callable[[], object], rows: int, classes: int) -> Matrix:
    # Not how many rows: they may be other callers', too.
    expected = f"expected the probabilities of {classes} classes for each candidate"
    try:
        matrix = np.asarray(read())
    except (ArithmeticError, LookupError, TypeError, ValueError, StopIteration, AttributeError) as error:
        raise InvalidPredictorResponse(f"the predictor's answer cannot be read, {expected}") from error
    if matrix.shape != (rows, classes):
        raise InvalidPredictorResponse(f"the predictor's answer has another shape, {expected}")
    if matrix.dtype.kind not in "fi":
        raise InvalidPredictorResponse(f"the predictor answered with other things than numbers, {expected}")
    matrix = matrix.astype(np.float64, copy=False)
    in_range = np.all(matrix >= 0) and np.all(matrix <= 1)
    if not (in_range and np.all(abs(matrix.sum(axis=1) - 1) <= _SUM_TOLERANCE)):
        raise InvalidPredictorResponse(
            f"the predictor answered with other numbers than probabilities, {expected}"
        )
    return matrix


def failure(status: int, body: bytes) -> ServiceError:
    """What an HTTP answer other than 200 means for the request."""
    text = body.decode(errors="replace")
    if any(refusal in text for refusal in _REFUSALS):
        return EncodingRefused(_differences(text))
    # MLServer says 400 while it loads its model, and 500 with a traceback as plain text while it stops.
    stopping = status == HTTPStatus.INTERNAL_SERVER_ERROR and not text.startswith("{")
    detail = _said(text)
    if status in _UNAVAILABLE or stopping or _LOADING in text:
        message = f"the predictor is not ready: it answered with status {status}"
        return PredictorUnavailable(message, detail=detail)
    if status == HTTPStatus.GATEWAY_TIMEOUT:
        return PredictorTooSlow("the predictor did not answer in time", detail=detail)
    return InvalidPredictorResponse(f"the predictor answered with status {status}", detail=detail)


def _said(text: str) -> str:
    """A predictor's own words; of many the first and the last, which in gRPC's are the cause."""
    if len(text) > MAX_DETAIL:
        half = MAX_DETAIL // 2 - 1
        text = f"{printable(text[:half], half)}…{printable(text[-half:], half)}"
    return printable(text, MAX_DETAIL)


def _differences(text: str) -> str:
    """Feature names that only one side has, out of scikit-learn's refusal, which lists no more than these."""
    lines = text.replace("\\n", "\n").split("\n")
    found: dict[str, list[str]] = {}
    section = ""
    for line in lines:
        if line.startswith("- ") and section:
            found[section].append(printable(line[2:]))
        elif line.startswith("Feature names "):
            section = line
            found[section] = []
    unknown = next((names for line, names in found.items() if "unseen at fit time" in line), [])
    missing = next((names for line, names in found.items() if "now missing" in line), [])
    parts = [
        f"its model does not know {', '.join(unknown[:MAX_NAMES])}" if unknown else "",
        f"its model needs {', '.join(missing[:MAX_NAMES])}" if missing else "",
    ]
    return " and ".join(filter(None, parts)) or "its model takes other features, or in another order"


def grpc_failure(code: grpc.StatusCode, details: str) -> ServiceError:
    """What a gRPC status other than OK means for the request."""
    if any(refusal in details for refusal in _REFUSALS):
        return EncodingRefused(_differences(details))
    # MLServer says INVALID_ARGUMENT while it loads its model, and INTERNAL with a bare number while it stops.
    stopping = code is grpc.StatusCode.INTERNAL and details.isdigit()
    detail = _said(details)
    if code in _UNAVAILABLE_CODES or stopping or _LOADING in details:
        message = f"the predictor is not ready: it answered with {code.name}"
        return PredictorUnavailable(message, detail=detail)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return PredictorTooSlow("the predictor did not answer in time", detail=detail)
    return InvalidPredictorResponse(f"the predictor answered with {code.name}", detail=detail)
