"""The V2 inference protocol over REST: JSON, or JSON followed by binary tensor data."""

import struct
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from transformer.bundle.candidates import Candidates
from transformer.bundle.explanation import Explanation, ExplanationPart
from transformer.bundle.plain_errors import describe
from transformer.bundle.prediction import Prediction
from transformer.bundle.signature import DEFAULT_ROW_NAME, Signature
from transformer.bundle.target import BINARY, Target
from transformer.errors import InvalidRequest, quoted
from transformer.protocols.json_body import JSON_HEADERS
from transformer.protocols.tensors import (
    BASE64,
    MAX_NAME_LENGTH,
    Tensor,
    check_metadata,
    from_base64,
    from_raw,
    from_values,
    to_candidates,
)
from transformer.protocols.v2_body import Input, parameter, parse_body

#: Request and response header of the binary extension: bytes of JSON before the binary data.
JSON_LENGTH_HEADER = "inference-header-content-length"
#: Platform in model metadata, in the protocol's form ``<project>_<format>``: scikit-learn, in a joblib file.
PLATFORM = "sklearn_joblib"


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One output of a response: one value or one row of values per candidate.

    Attributes
    ----------
    parameters
        Parameters of the tensor, besides those that the encoding adds.
    """

    name: str
    datatype: str
    values: npt.NDArray[Any] | list[str]
    binary: bool = False
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> list[int]:
        """Shape of the tensor."""
        return [len(self.values)] if isinstance(self.values, list) else list(self.values.shape)


@dataclass(frozen=True, slots=True)
class V2Response:
    """A V2 response before it is encoded for REST or gRPC."""

    id: str
    model_name: str
    model_version: str
    outputs: tuple[OutputTensor, ...]


@dataclass(frozen=True, slots=True)
class V2Request:
    """A decoded V2 request.

    Attributes
    ----------
    id
        The caller's id, or a new one.
    model_name
        Name under which the model is served.
    version
        Model version that must answer; None or empty for any.
    output_name
        Name of the bundle, and so of the outputs.
    outputs
        Requested outputs, each with True for binary data; empty for the prediction.
    binary
        Default for outputs that the request does not list.
    """

    id: str
    model_name: str
    version: str | None
    output_name: str
    candidates: Candidates
    outputs: Mapping[str, bool]
    binary: bool

    @property
    def explains(self) -> Collection[ExplanationPart]:
        """The parts of an explanation that the requested outputs need."""
        if not self.outputs:
            return ()
        known = explanation_outputs(self.output_name)
        return {known[name].part for name in self.outputs if name in known}

    def answer(self, prediction: Prediction) -> V2Response:
        """Return the prediction, and what was requested of its explanation, as output tensors."""
        answers = answer_tensors(self.output_name, prediction)
        requested = self.outputs or dict.fromkeys(answers, self.binary)
        outputs = tuple(
            (replace(answers[name], binary=True) if binary else answers[name])
            if name in answers
            else _explanation_tensor(self.output_name, name, binary, prediction.explanation)
            for name, binary in requested.items()
        )
        return V2Response(self.id, self.model_name, prediction.version, outputs)

    def encode(self, prediction: Prediction) -> tuple[bytes, dict[str, str]]:
        """Return body and headers of a REST response with it."""
        return encode(self.answer(prediction))


def output_types(name: str, target: Target = BINARY) -> dict[str, str]:
    """Return the outputs of a bundle with this name and their datatypes."""
    return {f"{name}{suffix}": datatype for suffix, datatype in target.outputs.items()}


def answer_tensors(name: str, prediction: Prediction) -> dict[str, OutputTensor]:
    """Return the output tensors of a prediction by name.

    Of many classes, the probabilities name the classes in the parameter ``classes``.
    """
    target, values = prediction.target, prediction.values
    answers: npt.NDArray[Any] | list[str] = values
    if target.kind == "multiclass":
        labels = target.labels(values)
        answers = labels if target.datatype == "BYTES" else np.array(labels)  # type: ignore[assignment]
    tensors = [answers] if prediction.probabilities is None else [answers, prediction.probabilities]
    return {
        output: OutputTensor(output, datatype, tensor, parameters=output_parameters(output, name, target))
        for (output, datatype), tensor in zip(output_types(name, target).items(), tensors, strict=True)
    }


def output_parameters(output: str, name: str, target: Target) -> dict[str, str]:
    """Return the parameters of an output: the classes, in the order of its columns, as JSON."""
    if output == name or target.kind != "multiclass":
        return {}
    return {"classes": orjson.dumps(target.classes).decode()}


@dataclass(frozen=True, slots=True)
class ExplanationOutput:
    """An output that is only sent if a request names it.

    Attributes
    ----------
    part
        The part of the explanation that it needs.
    by_field
        True if it has one value per candidate and field.
    """

    part: ExplanationPart
    datatype: str
    by_field: bool


def explanation_outputs(name: str, target: Target = BINARY) -> dict[str, ExplanationOutput]:
    """Return the outputs of a bundle with this name that explain predictions.

    Only a negative answer can be turned, so other kinds have no changes.
    """
    outputs = {
        f"{name}_baseline": ExplanationOutput("contributions", "FP64", by_field=False),
        f"{name}_contributions": ExplanationOutput("contributions", "FP64", by_field=True),
        f"{name}_standard_errors": ExplanationOutput("contributions", "FP64", by_field=True),
    }
    if target.kind == "binary":
        outputs[f"{name}_changes"] = ExplanationOutput("changes", "BYTES", by_field=False)
    return outputs


def _explanation_tensor(
    output_name: str, name: str, binary: bool, explanation: Explanation | None
) -> OutputTensor:
    """Return one output of an explanation. Tensors by field name the fields in the parameter ``fields``."""
    output = explanation_outputs(output_name)[name]
    assert explanation is not None  # noqa: S101 (asked for)
    if output.part == "changes":
        assert explanation.changes is not None  # noqa: S101
        return OutputTensor(
            name, output.datatype, [orjson.dumps(one).decode() for one in explanation.changes], binary
        )
    found = explanation.contributions
    assert found is not None  # noqa: S101
    values = {
        "baseline": found.baseline,
        "contributions": found.values,
        "standard_errors": found.standard_errors,
    }
    parameters = {"fields": orjson.dumps(found.fields).decode()} if output.by_field else {}
    return OutputTensor(
        name, output.datatype, values[name.removeprefix(f"{output_name}_")], binary, parameters
    )


def input_metadata(signature: Signature) -> list[dict[str, Any]]:
    """Return the inputs of the model metadata: one tensor per raw field, of any length."""
    return [{"name": field.name, "datatype": field.datatype, "shape": [-1]} for field in signature.fields]


def output_metadata(name: str, explained_fields: int = 0, target: Target = BINARY) -> list[dict[str, Any]]:
    """Return the outputs of the model metadata, and of explanations if there are `explained_fields`."""
    outputs: list[dict[str, Any]] = []
    for output, datatype in output_types(name, target).items():
        parameters = output_parameters(output, name, target)
        columns = [len(target.classes)] if parameters else []
        outputs.append({"name": output, "datatype": datatype, "shape": [-1, *columns]})
    if explained_fields:
        outputs += [
            {
                "name": output,
                "datatype": one.datatype,
                "shape": [-1, explained_fields] if one.by_field else [-1],
            }
            for output, one in explanation_outputs(name, target).items()
        ]
    return outputs


def model_metadata(
    model_name: str,
    versions: Sequence[str],
    signature: Signature,
    output_name: str,
    *,
    explains: bool,
    target: Target = BINARY,
) -> dict[str, Any]:
    """Return the model metadata, for REST and gRPC.

    Parameters
    ----------
    model_name
        Name under which the model is served.
    versions
        Versions that a request may ask for.
    signature
        Fields of a candidate.
    output_name
        Name of the bundle, and so of the outputs.
    explains
        List the outputs of explanations.
    target
        What the model predicts.
    """
    return {
        "name": model_name,
        "versions": list(versions),
        "platform": PLATFORM,
        "inputs": input_metadata(signature),
        "outputs": output_metadata(output_name, len(signature.fields) if explains else 0, target),
    }


def request_id(sent: str | None) -> str:
    """Return the id of a response: the request's, or a new one.

    Raises
    ------
    InvalidRequest
        If it is too long: the memory of a response is not limited by the bytes of requests in flight.
    """
    if sent and len(sent) > MAX_NAME_LENGTH:
        raise InvalidRequest(f"id: limit {MAX_NAME_LENGTH} characters, got {len(sent)}")
    return sent or str(uuid.uuid4())


def check_outputs(name: str, requested: Mapping[str, bool], target: Target = BINARY) -> Mapping[str, bool]:
    """Return the requested outputs.

    Raises
    ------
    InvalidRequest
        If the model does not have one of them.
    """
    if not requested:
        return requested
    known = output_types(name, target) | explanation_outputs(name, target)
    for output in requested:
        if output not in known:
            raise InvalidRequest(f"outputs: must be one of {', '.join(known)}, got {quoted(output)}")
    return requested


def decode(
    body: bytes,
    json_length: str | None,
    *,
    model_name: str,
    output_name: str,
    fields: tuple[str, ...],
    max_candidates: int,
    row_name: str = DEFAULT_ROW_NAME,
    target: Target = BINARY,
    version: str | None = None,
) -> V2Request:
    """Decode a V2 REST request.

    Parameters
    ----------
    body
        JSON, followed by binary tensor data if `json_length` says so.
    json_length
        Value of the header `JSON_LENGTH_HEADER`, if there is one.
    model_name
        Name under which the model is served.
    output_name
        Name of the bundle, and so of the outputs.
    fields
        Names of the signature's fields.
    max_candidates
        Maximum candidates per request.
    row_name
        The bundle's word for a candidate.
    target
        What the model predicts.
    version
        Model version in the request's path, if there is one.

    Raises
    ------
    InvalidRequest
        If the JSON or the binary data is not a valid request for this model.
    TooLarge
        If there are more than `max_candidates`, or the JSON has too many values.
    """
    length = len(body) if json_length is None else _json_length(json_length, len(body))
    request = parse_body(body[:length], fields)
    metadata = ((tensor["name"], tensor["datatype"], tensor["shape"]) for tensor in request["inputs"])
    ignored = check_metadata(metadata, fields, max_candidates, row_name)
    binary_data = _BinaryData(body, length)
    tensors = [
        _decoded(tensor, _tensor(tensor, binary_data, ignored=tensor["name"] in ignored))
        for tensor in request["inputs"]
    ]
    binary_data.check_end()
    binary = parameter(request, "binary_data_output", False) is True
    requested = {
        output["name"]: parameter(output, "binary_data", binary) is True
        for output in request.get("outputs") or ()
    }
    return V2Request(
        id=request_id(request.get("id")),
        model_name=model_name,
        version=version,
        output_name=output_name,
        candidates=to_candidates(tensors, fields),
        outputs=check_outputs(output_name, requested, target),
        binary=binary,
    )


def encode(response: V2Response) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a REST response: JSON, or JSON and binary data if requested."""
    outputs: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for output in response.outputs:
        tensor: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": output.shape}
        parameters: dict[str, Any] = dict(output.parameters)
        if output.binary:
            binary.append(raw_bytes(output.values))
            parameters["binary_data_size"] = len(binary[-1])
        else:
            tensor["data"] = output.values if isinstance(output.values, list) else output.values.ravel()
        if parameters:
            tensor["parameters"] = parameters
        outputs.append(tensor)
    content = {
        "model_name": response.model_name,
        "model_version": response.model_version,
        "id": response.id,
        "outputs": outputs,
    }
    text = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    if not binary:
        return text, JSON_HEADERS
    headers = {"content-type": "application/octet-stream", JSON_LENGTH_HEADER: str(len(text))}
    return b"".join([text, *binary]), headers


def raw_bytes(values: npt.NDArray[Any] | list[str]) -> bytes:
    """Return values as little-endian binary data, row by row; strings each after their length."""
    if isinstance(values, list):
        encoded = [value.encode() for value in values]
        return b"".join([struct.pack("<I", len(value)) + value for value in encoded])
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes()


def _json_length(header: str, body_length: int) -> int:
    digits = header.isascii() and header.isdigit() and len(header) < 20
    if not digits or int(header) > body_length:
        raise InvalidRequest(
            f"{JSON_LENGTH_HEADER}: must be 0 to {body_length}, the body's length, got {quoted(header)}"
        )
    return int(header)


class _BinaryData:
    """The bytes after the JSON, read in the order of the tensors."""

    def __init__(self, body: bytes, start: int) -> None:
        self._body = body
        self._position = start

    def read(self, name: str, size: object) -> bytes:
        left = len(self._body) - self._position
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= left:
            raise InvalidRequest(
                f"inputs.{name}: binary_data_size must be 0 to {left}, the bytes left in the body, "
                f"got {describe(size)}"
            )
        start, self._position = self._position, self._position + size
        return self._body[start : self._position]

    def check_end(self) -> None:
        left = len(self._body) - self._position
        if left:
            raise InvalidRequest(f"body: {left} unused bytes after the last tensor's binary data")


def _tensor(tensor: Input, binary_data: _BinaryData, *, ignored: bool) -> Tensor:
    name, datatype, shape, data = tensor["name"], tensor["datatype"], tensor["shape"], tensor.get("data")
    size = parameter(tensor, "binary_data_size", None)
    if size is not None:
        if data is not None:
            raise InvalidRequest(f"inputs.{name}: must have data or binary_data_size, not both")
        return from_raw(name, datatype, shape, binary_data.read(name, size), ignored=ignored)
    if data is None:
        raise InvalidRequest(f"inputs.{name}: must have data or binary_data_size, got neither")
    # JSON data of shape [n, 1] may be nested.
    if len(shape) == 2 and len(data) == shape[0] and all(_is_row(row) for row in data):
        data = [value for (value,) in data]
    return from_values(name, datatype, shape, data, ignored=ignored)


def _decoded(sent: Input, tensor: Tensor) -> Tensor:
    return from_base64(tensor) if parameter(sent, "content_type", None) == BASE64 else tensor


def _is_row(value: object) -> bool:
    return isinstance(value, list) and len(value) == 1
