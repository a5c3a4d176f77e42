"""The ways to ask for predictions: every protocol, each read back as the same kind of answer."""

import json
import struct
from collections.abc import Sequence
from typing import Any

import grpc
import httpx
import numpy as np
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from tests.support.endpoints import V1_PREDICT, V2_INFER
from tests.support.sklearn_reference import SklearnReference
from transformer.bundle.signature import Number

#: Decisions, probabilities and the version that gave them.
Answer = tuple[list[bool], list[float], str]


def over_v1(url: str, rows: Sequence[dict[str, Any]], _: SklearnReference, **how: Any) -> Answer:
    """V1; `how` is httpx's."""
    response = httpx.post(url + V1_PREDICT, timeout=60, json={"instances": rows}, **how)
    assert response.status_code == 200, response.text
    predictions = response.json()["predictions"]
    return (
        [one["placement"] for one in predictions],
        [one["placement_probability"] for one in predictions],
        response.headers["x-model-version"],
    )


def over_v2(url: str, rows: Sequence[dict[str, Any]], sklearn_reference: SklearnReference) -> Answer:
    """V2, one tensor for each field."""
    inputs = [
        {"name": f.name, "datatype": f.datatype, "shape": [len(rows)], "data": [row[f.name] for row in rows]}
        for f in sklearn_reference.bundle.signature.fields
    ]
    response = httpx.post(url + V2_INFER, timeout=60, json={"inputs": inputs})
    assert response.status_code == 200, response.text
    content = response.json()
    placed, probability = (tensor["data"] for tensor in content["outputs"])
    return placed, probability, content["model_version"]


def column(field: Any, rows: Sequence[dict[str, Any]]) -> bytes:
    """A field of the candidates as V2's binary data."""
    if isinstance(field, Number):
        return np.array([row[field.name] for row in rows], "<f8").tobytes()
    return b"".join(struct.pack("<I", len(v)) + v for v in (row[field.name].encode() for row in rows))


def over_v2_binary(url: str, rows: Sequence[dict[str, Any]], sklearn_reference: SklearnReference) -> Answer:
    """V2 with the binary extension, both ways."""
    data = {field: column(field, rows) for field in sklearn_reference.bundle.signature.fields}
    inputs = [
        {
            "name": field.name,
            "datatype": field.datatype,
            "shape": [len(rows)],
            "parameters": {"binary_data_size": len(part)},
        }
        for field, part in data.items()
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    headers = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
    body = b"".join([head, *data.values()])
    response = httpx.post(url + V2_INFER, timeout=60, content=body, headers=headers)
    assert response.status_code == 200, response.text
    length = int(response.headers["inference-header-content-length"])
    content, raw = json.loads(response.content[:length]), response.content[length:]
    placed, probability = raw[: len(rows)], raw[len(rows) :]
    return np.frombuffer(placed, "?").tolist(), np.frombuffer(probability).tolist(), content["model_version"]


def grpc_message(
    rows: Sequence[dict[str, Any]], sklearn_reference: SklearnReference, *, raw: bool = False
) -> pb.ModelInferRequest:
    """V2 over gRPC, one tensor for each field, with typed or with raw contents."""
    message = pb.ModelInferRequest(model_name="placement")
    for field in sklearn_reference.bundle.signature.fields:
        tensor = message.inputs.add(name=field.name, datatype=field.datatype, shape=[len(rows)])
        if raw:
            message.raw_input_contents.append(column(field, rows))
        elif isinstance(field, Number):
            tensor.contents.fp64_contents.extend(row[field.name] for row in rows)
        else:
            tensor.contents.bytes_contents.extend(row[field.name].encode() for row in rows)
    return message


def over_grpc(
    address: str, rows: Sequence[dict[str, Any]], sklearn_reference: SklearnReference, *, raw: bool = False
) -> Answer:
    """The same, sent over a channel of its own."""
    with grpc.insecure_channel(address) as channel:
        answer = GRPCInferenceServiceStub(channel).ModelInfer(
            grpc_message(rows, sklearn_reference, raw=raw), timeout=30
        )
    if raw:
        placed, probability = answer.raw_output_contents
        return np.frombuffer(placed, "?").tolist(), np.frombuffer(probability).tolist(), answer.model_version
    placed, probability = answer.outputs
    return list(placed.contents.bool_contents), list(probability.contents.fp64_contents), answer.model_version
