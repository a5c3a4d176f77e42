"""Well-formed and malformed requests with the same content over V1, V2 JSON, V2 binary, and gRPC."""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import grpc
import httpx
import numpy as np
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from tests.support.endpoints import GRPC_INFER, V1_PREDICT, V2_INFER
from transformer.protocols.grpc_messages import CONTENTS
from transformer.protocols.tensors import NUMPY_DTYPES

#: One name for each status of both protocols. Errors of a client have no other status.
OVER_REST = {
    200: "answered",
    400: "invalid",
    404: "not found",
    405: "not found",
    413: "too large",
    415: "invalid",
    501: "not implemented",
}
OVER_GRPC = {
    grpc.StatusCode.OK: "answered",
    grpc.StatusCode.INVALID_ARGUMENT: "invalid",
    grpc.StatusCode.NOT_FOUND: "not found",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "too large",
    grpc.StatusCode.UNIMPLEMENTED: "not implemented",
}


class Outcome(NamedTuple):
    """The outcome of a request: the name of its status, and the probabilities or the error."""

    status: str
    content: Any


@dataclass(frozen=True)
class Tensor:
    """One input tensor, valid or not.

    Attributes
    ----------
    values
        Numbers or booleans; bytes for BYTES and for invalid datatypes.
    garbage
        Binary data to send instead of the values; None to send the values.
    both
        True to send the tensor as data and as binary data at the same time.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: tuple[Any, ...]
    garbage: bytes | None = None
    both: bool = False

    @property
    def data(self) -> list[Any]:
        """Return the values for JSON. Raise `ValueError` if JSON cannot express them."""
        return [value.decode() if isinstance(value, bytes) else value for value in self.values]

    @property
    def raw(self) -> bytes:
        """Return the values as binary data. Raise `OverflowError` if the datatype cannot hold them."""
        if self.garbage is not None:
            return self.garbage
        if self.datatype not in NUMPY_DTYPES:
            return b"".join(struct.pack("<I", len(value)) + value for value in self.values)
        with np.errstate(over="ignore"):
            return np.array(self.values, NUMPY_DTYPES[self.datatype]).tobytes()


class MalformedRequestClient:
    """Sends requests, and checks that each status is a success or an error of the client."""

    def __init__(self, http: httpx.Client, channel: grpc.Channel) -> None:
        self._http = http
        self._infer = channel.unary_unary(GRPC_INFER)

    def rest(self, path: str, body: bytes, headers: Mapping[str, str | bytes] | None = None) -> Outcome:
        """Post a body. Return the response, or its error."""
        given = {"content-type": "application/json", **(headers or {})}
        encoded = [
            (name.encode(), value if isinstance(value, bytes) else value.encode("ascii"))
            for name, value in given.items()
        ]
        response = self._http.post(path, content=body, headers=encoded)
        assert response.status_code in OVER_REST, (response.status_code, response.text)
        if response.status_code == 200:
            assert response.headers["x-model-version"]
            return Outcome("answered", response)
        assert set(response.json()) == {"error"}
        return Outcome(OVER_REST[response.status_code], response.json()["error"])

    def grpc(self, message: bytes, compression: grpc.Compression | None = None) -> Outcome:
        """Send the bytes of a message. Return the response, or its error."""
        try:
            answer = self._infer(message, timeout=20, compression=compression)
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
        else:
            return Outcome("answered", pb.ModelInferResponse.FromString(answer))
        assert code in OVER_GRPC, (code, details)
        return Outcome(OVER_GRPC[code], details)

    def v1(self, rows: Sequence[Any]) -> Outcome:
        """Send candidates over V1."""
        outcome = self.rest(V1_PREDICT, json.dumps({"instances": rows}).encode())
        if outcome.status != "answered":
            return outcome
        predictions = outcome.content.json()["predictions"]
        return Outcome("answered", [one["placement_probability"] for one in predictions])

    def v2_json(self, tensors: Sequence[Tensor]) -> Outcome | None:
        """Send tensors as JSON. Return None if JSON cannot express the values."""
        try:
            inputs = [{**_head(tensor), "data": tensor.data} for tensor in tensors]
            body = json.dumps({"inputs": inputs}, allow_nan=False)
        except ValueError:
            return None
        return _of_rest(self.rest(V2_INFER, body.encode()))

    def v2_binary(self, tensors: Sequence[Tensor]) -> Outcome | None:
        """Send tensors as binary data. Return None if a datatype or JSON cannot express the values."""
        try:
            raw = [tensor.raw for tensor in tensors]
            inputs = [
                _head(tensor)
                | {"parameters": {"binary_data_size": len(data)}}
                | ({"data": tensor.data} if tensor.both else {})
                for tensor, data in zip(tensors, raw, strict=True)
            ]
            head = json.dumps({"inputs": inputs}, allow_nan=False).encode()
        except (OverflowError, ValueError):
            return None
        headers = {"inference-header-content-length": str(len(head))}
        return _of_rest(self.rest(V2_INFER, b"".join([head, *raw]), headers))

    def grpc_typed(self, tensors: Sequence[Tensor]) -> Outcome | None:
        """Send tensors as typed contents. Return None if a message cannot express the values."""
        message = pb.ModelInferRequest(model_name="placement")
        try:
            for tensor in tensors:
                _fill(message.inputs.add(**_head(tensor)), tensor)
        except (KeyError, ValueError):
            return None
        return _of_grpc(self.grpc(message.SerializeToString()))

    def grpc_raw(self, tensors: Sequence[Tensor]) -> Outcome | None:
        """Send tensors as raw contents. Return None if a datatype or a message cannot express the values."""
        message = pb.ModelInferRequest(model_name="placement")
        try:
            message.raw_input_contents.extend(tensor.raw for tensor in tensors)
            for tensor in tensors:
                added = message.inputs.add(**_head(tensor))
                if tensor.both:
                    _fill(added, tensor)
        except (KeyError, OverflowError, ValueError):
            return None
        return _of_grpc(self.grpc(message.SerializeToString()))


@contextmanager
def connect_client(http_port: int, grpc_port: int) -> Iterator[MalformedRequestClient]:
    """Connect to the transformer on these ports."""
    with (
        httpx.Client(base_url=f"http://127.0.0.1:{http_port}", timeout=20) as http,
        grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel,
    ):
        yield MalformedRequestClient(http, channel)


def _head(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}


def _fill(message: pb.ModelInferRequest.InferInputTensor, tensor: Tensor) -> None:
    # Values of an invalid datatype are bytes.
    field = CONTENTS[tensor.datatype] if tensor.datatype in NUMPY_DTYPES else "bytes_contents"
    getattr(message.contents, field).extend(tensor.values)
    message.contents.SetInParent()


def _of_rest(outcome: Outcome) -> Outcome:
    if outcome.status != "answered":
        return outcome
    outputs = {output["name"]: output["data"] for output in outcome.content.json()["outputs"]}
    return Outcome("answered", outputs["placement_probability"])


def _of_grpc(outcome: Outcome) -> Outcome:
    if outcome.status != "answered":
        return outcome
    answer = outcome.content
    place = [output.name for output in answer.outputs].index("placement_probability")
    if answer.raw_output_contents:
        return Outcome("answered", np.frombuffer(answer.raw_output_contents[place], "<f8").tolist())
    return Outcome("answered", list(answer.outputs[place].contents.fp64_contents))
