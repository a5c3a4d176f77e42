"""Messages to and from a stock predictor, without a connection.

All forms are understood by both stock servers; see the table of runtimes in ``predictor/``. A message with
named columns is refused by a model that was fitted on other feature names or another order (scikit-learn,
fitted on a DataFrame).
"""

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

import grpc
import numpy as np
import orjson
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from transformer.bundle.encoder import Matrix
from transformer.bundle.target import Scores, Target
from transformer.errors import (
    EncodingRefused,
    InvalidPredictorResponse,
    PredictorError,
    PredictorTooSlow,
    PredictorUnavailable,
    ServiceError,
    UnexplainedError,
    printable,
)

#: Parts of scikit-learn 1.5's errors about a frame or an array that does not fit the model.
_REFUSALS = ("feature names should match", "features as input")
#: Statuses of a predictor that is starting or stopping.
_UNAVAILABLE = {404, 429, 502, 503}
_UNAVAILABLE_CODES = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
#: Part of MLServer 1.7's error about a model that is still loading.
_LOADING = "is not ready yet"
#: Field of gRPC's contents and numpy's type for each datatype that a scikit-learn model's output may have.
_CONTENTS = {
    "BOOL": ("bool_contents", "?"),
    "INT32": ("int_contents", "<i4"),
    "INT64": ("int64_contents", "<i8"),
    "FP32": ("fp32_contents", "<f4"),
    "FP64": ("fp64_contents", "<f8"),
    "BYTES": ("bytes_contents", "O"),
}
#: Maximum characters of a predictor's error text, and feature names of its refusal, that are kept.
MAX_DETAIL = 200
MAX_NAMES = 5


def v1_body(matrix: Matrix, feature_names: Sequence[str] | None) -> bytes:
    """Return a V1 request: a plain array, or named columns if `feature_names` are given."""
    if feature_names is None:
        return orjson.dumps({"instances": matrix}, option=orjson.OPT_SERIALIZE_NUMPY)
    columns = {name: matrix[:, column].tolist() for column, name in enumerate(feature_names)}
    return orjson.dumps({"instances": [columns]})


def v2_body(matrix: Matrix, feature_names: Sequence[str] | None, output: str) -> bytes:
    """Return a V2 REST request: one tensor, or one per named column with the content type ``pd``."""
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
    """Return a gRPC request, with typed contents: kserve-sklearnserver cannot read raw named columns."""
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


def v1_scores(body: bytes, rows: int, target: Target) -> Scores:
    """Read the scores from a V1 response.

    Returns
    -------
    ndarray of float64, shape (rows, `target.columns`)

    Raises
    ------
    InvalidPredictorResponse
        If the response holds anything else.
    """
    return _scores(lambda: _json(body)["predictions"], rows, target)


def v2_scores(body: bytes, rows: int, target: Target, output: str) -> Scores:
    """Read the scores from a V2 REST response; see `v1_scores`."""

    def read() -> Any:  # noqa: ANN401 (JSON of any shape)
        tensor = next(tensor for tensor in _json(body)["outputs"] if tensor["name"] == output)
        return np.reshape(tensor["data"], tensor["shape"])

    return _scores(read, rows, target)


def message_scores(message: pb.ModelInferResponse, rows: int, target: Target, output: str) -> Scores:
    """Read the scores from a gRPC response; see `v1_scores`."""

    def read() -> Any:  # noqa: ANN401 (an array of any shape)
        number = next(number for number, tensor in enumerate(message.outputs) if tensor.name == output)
        tensor = message.outputs[number]
        field, dtype = _CONTENTS[tensor.datatype]
        if not message.raw_output_contents:
            return np.array(getattr(tensor.contents, field), dtype).reshape(tuple(tensor.shape))
        raw = message.raw_output_contents[number]
        values = np.array(_texts(raw), dtype) if dtype == "O" else np.frombuffer(raw, dtype)
        return values.reshape(tuple(tensor.shape))

    return _scores(read, rows, target)


def _texts(raw: bytes) -> list[bytes]:
    """Split raw BYTES contents, where each element follows its length."""
    texts, position = [], 0
    while position < len(raw):
        start = position + 4
        position = start + int.from_bytes(raw[position:start], "little")
        texts.append(raw[start:position])
    return texts


def _json(body: bytes) -> Any:  # noqa: ANN401 (JSON of any shape)
    return orjson.loads(body)


def _scores(read: Callable[[], object], rows: int, target: Target) -> Scores:
    # Without the number of rows, because some may be other callers'.
    try:
        values = read()
    except (ArithmeticError, LookupError, TypeError, ValueError, StopIteration, AttributeError) as error:
        raise InvalidPredictorResponse(
            f"invalid response from the predictor: cannot be read, expected {target.expected}"
        ) from error
    try:
        return target.read(values, rows)
    except ValueError as error:
        raise InvalidPredictorResponse(
            f"invalid response from the predictor: {error}, expected {target.expected}"
        ) from error


def failure(status: int, body: bytes) -> ServiceError:
    """Return the error that an HTTP response with another status than 200 means for the request."""
    text = body.decode(errors="replace")
    if any(refusal in text for refusal in _REFUSALS):
        return EncodingRefused(_differences(text))
    detail = _shorten(text)
    # MLServer answers 400 while it loads its model.
    if status in _UNAVAILABLE or _LOADING in text:
        message = f"the predictor is not ready: it answered with status {status}"
        return PredictorUnavailable(message, detail=detail)
    # MLServer sends this text, not JSON, while it stops. Without a worker process it does so for any error.
    if status == HTTPStatus.INTERNAL_SERVER_ERROR and not text.startswith("{"):
        return UnexplainedError(f"the predictor answered with status {status}, reason unknown", detail=detail)
    if status == HTTPStatus.GATEWAY_TIMEOUT:
        return PredictorTooSlow("the predictor did not answer in time", detail=detail)
    return PredictorError(f"the predictor answered with status {status}", detail=detail)


def _shorten(text: str) -> str:
    """Shorten a predictor's error text to its beginning and its end, where gRPC has the cause."""
    if len(text) > MAX_DETAIL:
        half = MAX_DETAIL // 2 - 1
        text = f"{printable(text[:half], half)}…{printable(text[-half:], half)}"
    return printable(text, MAX_DETAIL)


def _differences(text: str) -> str:
    """Return the feature names that differ, from scikit-learn's refusal, which lists only these."""
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
    return " and ".join(filter(None, parts)) or "its model takes other features, or another order"


def grpc_failure(code: grpc.StatusCode, details: str) -> ServiceError:
    """Return the error that a gRPC status other than OK means for the request."""
    if any(refusal in details for refusal in _REFUSALS):
        return EncodingRefused(_differences(details))
    # MLServer answers INVALID_ARGUMENT while it loads, and INTERNAL with a bare number while it stops.
    stopping = code is grpc.StatusCode.INTERNAL and details.isdigit()
    detail = _shorten(details)
    if code in _UNAVAILABLE_CODES or stopping or _LOADING in details:
        message = f"the predictor is not ready: it answered with {code.name}"
        return PredictorUnavailable(message, detail=detail)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return PredictorTooSlow("the predictor did not answer in time", detail=detail)
    return PredictorError(f"the predictor answered with {code.name}", detail=detail)
