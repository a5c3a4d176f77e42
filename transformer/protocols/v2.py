"""The V2 inference protocol over REST: JSON, and JSON followed by binary tensor data."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NotRequired

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import FailFast, TypeAdapter, ValidationError
from typing_extensions import TypeAliasType, TypedDict

from transformer.bundle.candidates import Candidates
from transformer.bundle.prediction import Prediction
from transformer.bundle.signature import Signature
from transformer.errors import InvalidRequest, quoted
from transformer.protocols.json_body import parse_json
from transformer.protocols.tensors import Tensor, check_heads, from_raw, from_values, to_candidates

#: Request and response header of the binary extension: bytes of JSON before the binary data.
JSON_LENGTH_HEADER = "inference-header-content-length"
#: Platform in model metadata, in the protocol's form ``<project>_<format>``: scikit-learn, in a joblib file.
PLATFORM = "sklearn_joblib"

# Others than ours are passed over, whatever they are: MLServer's types write out null and objects.
_Parameters = dict[str, Any] | None


# The protocol lets clients add fields of their own; they are passed over. One problem is told, so a list is
# given up at the first: a million wrong items in 8 MB of JSON would take gigabytes to describe.
class _Input(TypedDict):
    name: str
    datatype: str
    shape: Annotated[list[int], FailFast()]
    data: NotRequired[list[Any] | None]
    parameters: NotRequired[_Parameters]


class _Output(TypedDict):
    name: str
    parameters: NotRequired[_Parameters]


# An alias because an annotated type with this annotation cannot be part of a union.
_Outputs = TypeAliasType("_Outputs", Annotated[list[_Output], FailFast()])


class _Body(TypedDict):
    id: NotRequired[str | None]
    inputs: Annotated[list[_Input], FailFast()]
    outputs: NotRequired[_Outputs | None]
    parameters: NotRequired[_Parameters]


_BODY = TypeAdapter(_Body)


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One output of an answer: a vector over the candidates."""

    name: str
    datatype: str
    values: npt.NDArray[Any]
    binary: bool = False


@dataclass(frozen=True, slots=True)
class V2Answer:
    """An answer of the V2 protocol, not yet in a wire format."""

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
        The caller's own, or a new one.
    model_name
        Name under which the model is served.
    version
        Model version that must answer; None or empty for any.
    output_name
        Name of the bundle, and so of the answer's outputs.
    outputs
        Requested outputs, each with True for binary data; empty for all.
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

    def answer(self, prediction: Prediction) -> V2Answer:
        """The prediction as V2's output tensors."""
        values = dict(
            zip(output_types(self.output_name), (prediction.positive, prediction.probabilities), strict=True)
        )
        wanted = self.outputs or dict.fromkeys(values, self.binary)
        outputs = tuple(
            OutputTensor(name, output_types(self.output_name)[name], values[name], binary)
            for name, binary in wanted.items()
        )
        return V2Answer(self.id, self.model_name, prediction.version, outputs)


def output_types(name: str) -> dict[str, str]:
    """Outputs of a bundle with this name and their datatypes."""
    return {name: "BOOL", f"{name}_probability": "FP64"}


def input_metadata(signature: Signature) -> list[dict[str, Any]]:
    """Inputs of the model metadata endpoint: one tensor for each raw field, -1 candidates long."""
    return [{"name": field.name, "datatype": field.datatype, "shape": [-1]} for field in signature.fields]


def output_metadata(name: str) -> list[dict[str, Any]]:
    """Outputs of the model metadata endpoint."""
    return [
        {"name": output, "datatype": datatype, "shape": [-1]}
        for output, datatype in output_types(name).items()
    ]


def model_metadata(
    model_name: str, versions: Sequence[str], signature: Signature, output_name: str
) -> dict[str, Any]:
    """Model metadata, for REST and gRPC.

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
    """
    return {
        "name": model_name,
        "versions": list(versions),
        "platform": PLATFORM,
        "inputs": input_metadata(signature),
        "outputs": output_metadata(output_name),
    }


def requested_outputs(name: str, wanted: Mapping[str, bool]) -> Mapping[str, bool]:
    """The requested outputs, if the model has them.

    Raises
    ------
    InvalidRequest
        If it does not.
    """
    for output in wanted:
        if output not in output_types(name):
            raise InvalidRequest(
                f"outputs: must be among {', '.join(output_types(name))}, got {quoted(output)}"
            )
    return wanted


def decode(
    body: bytes,
    json_length: str | None,
    *,
    model_name: str,
    output_name: str,
    fields: tuple[str, ...],
    max_candidates: int,
    version: str | None = None,
) -> V2Request:
    """Read a V2 REST request.

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
    version
        Model version in the request's path, if there is one.

    Raises
    ------
    InvalidRequest
        If the JSON or the binary data is not a V2 request for this model.
    TooLarge
        If there are more than `max_candidates`.
    """
    length = len(body) if json_length is None else _json_length(json_length, len(body))
    wire = _parse(body[:length])
    heads = ((tensor["name"], tensor["datatype"], tensor["shape"]) for tensor in wire["inputs"])
    check_heads(heads, fields, max_candidates)
    raw = _BinaryData(body, length)
    tensors = [_tensor(tensor, raw.take) for tensor in wire["inputs"]]
    raw.finish()
    binary = _parameter(wire, "binary_data_output", False) is True
    wanted = {
        output["name"]: _parameter(output, "binary_data", binary) is True
        for output in wire.get("outputs") or ()
    }
    return V2Request(
        id=wire.get("id") or str(uuid.uuid4()),
        model_name=model_name,
        version=version,
        output_name=output_name,
        candidates=to_candidates(tensors, fields),
        outputs=requested_outputs(output_name, wanted),
        binary=binary,
    )


def encode(answer: V2Answer) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a REST answer: plain JSON, or JSON and binary data where that was asked for."""
    outputs: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for output in answer.outputs:
        tensor: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": [len(output.values)],
        }
        if output.binary:
            binary.append(raw_bytes(output.values))
            tensor["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            tensor["data"] = output.values
        outputs.append(tensor)
    content = {
        "model_name": answer.model_name,
        "model_version": answer.model_version,
        "id": answer.id,
        "outputs": outputs,
    }
    text = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    if not binary:
        return text, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", JSON_LENGTH_HEADER: str(len(text))}
    return b"".join([text, *binary]), headers


def raw_bytes(values: npt.NDArray[Any]) -> bytes:
    """A vector as little-endian binary data."""
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes()


def _json_length(header: str, available: int) -> int:
    digits = header.isascii() and header.isdigit() and len(header) < 20
    if not digits or int(header) > available:
        raise InvalidRequest(f"{JSON_LENGTH_HEADER}: must be 0 to {available}, got {quoted(header)}")
    return int(header)


def _parse(text: bytes) -> _Body:
    parsed = parse_json(text)
    try:
        return _BODY.validate_python(parsed, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(map(str, first["loc"])) or "body"
        raise InvalidRequest(f"{path}: {first['msg']}") from error


class _BinaryData:
    """The bytes after the JSON, which the tensors take in turn."""

    def __init__(self, body: bytes, start: int) -> None:
        self._body = body
        self._position = start

    def take(self, name: str, size: object) -> bytes:
        left = len(self._body) - self._position
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= left:
            raise InvalidRequest(
                f"inputs.{name}: binary_data_size must be 0 to {left}, what is left of the body"
            )
        start, self._position = self._position, self._position + size
        return self._body[start : self._position]

    def finish(self) -> None:
        left = len(self._body) - self._position
        if left:
            raise InvalidRequest(f"body: {left} bytes are left after the last tensor's binary data")


def _parameter(wire: _Body | _Input | _Output, name: str, default: object) -> object:
    parameters = wire.get("parameters")
    return parameters.get(name, default) if parameters else default


def _tensor(wire: _Input, take: Callable[[str, object], bytes]) -> Tensor:
    name, datatype, shape, data = wire["name"], wire["datatype"], wire["shape"], wire.get("data")
    size = _parameter(wire, "binary_data_size", None)
    if size is not None:
        if data is not None:
            raise InvalidRequest(f"inputs.{name}: must have data or binary_data_size, not both")
        return from_raw(name, datatype, shape, take(name, size))
    if data is None:
        raise InvalidRequest(f"inputs.{name}: has no data")
    # JSON data of shape [n, 1] may be nested.
    if len(shape) == 2 and len(data) == shape[0] and all(_is_row(row) for row in data):
        data = [value for (value,) in data]
    return from_values(name, datatype, shape, data)


def _is_row(value: object) -> bool:
    return isinstance(value, list) and len(value) == 1
