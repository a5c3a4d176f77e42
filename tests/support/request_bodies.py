"""Requests for candidates, in each form that V1, V2 and gRPC have for them."""

import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from transformer.bundle.signature import Number, RawField, Signature

Candidates = Sequence[dict[str, Any]]


def v1_request(rows: Candidates) -> dict[str, Any]:
    return {"instances": rows}


def objects_tensor(rows: Candidates) -> dict[str, Any]:
    """Return one BYTES tensor of JSON objects."""
    data = [json.dumps(row) for row in rows]
    return {"name": "candidates", "datatype": "BYTES", "shape": [len(rows)], "data": data}


def v2_objects(rows: Candidates) -> dict[str, Any]:
    """Return a V2 request with one BYTES tensor of JSON objects."""
    return {"inputs": [objects_tensor(rows)]}


def field_tensors(signature: Signature, rows: Candidates) -> list[dict[str, Any]]:
    """Return one JSON tensor for each field."""
    return [
        {
            "name": field.name,
            "datatype": field.datatype,
            "shape": [len(rows)],
            "data": [row[field.name] for row in rows],
        }
        for field in signature.fields
    ]


def binary_request(signature: Signature, rows: Candidates) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a V2 request with the binary extension, for input and output."""
    data = [binary_column(field, rows) for field in signature.fields]
    inputs = [
        {
            "name": field.name,
            "datatype": field.datatype,
            "shape": [len(rows)],
            "parameters": {"binary_data_size": len(part)},
        }
        for field, part in zip(signature.fields, data, strict=True)
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    headers = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
    return b"".join([head, *data]), headers


def grpc_objects(rows: Candidates) -> pb.ModelInferRequest:
    """Return a gRPC message with one BYTES tensor of JSON objects."""
    message = pb.ModelInferRequest(model_name="placement")
    tensor = message.inputs.add(name="candidates", datatype="BYTES", shape=[len(rows)])
    tensor.contents.bytes_contents.extend(json.dumps(row).encode() for row in rows)
    return message


def grpc_tensors(signature: Signature, rows: Candidates, *, raw: bool = False) -> pb.ModelInferRequest:
    """Return a gRPC message with one tensor for each field, with typed or with raw contents."""
    message = pb.ModelInferRequest(model_name="placement")
    for field in signature.fields:
        tensor = message.inputs.add(name=field.name, datatype=field.datatype, shape=[len(rows)])
        if raw:
            message.raw_input_contents.append(binary_column(field, rows))
        elif isinstance(field, Number):
            tensor.contents.fp64_contents.extend(row[field.name] for row in rows)
        else:
            tensor.contents.bytes_contents.extend(row[field.name].encode() for row in rows)
    return message


def binary_column(field: RawField, rows: Candidates) -> bytes:
    """Return a field's values as V2's binary data."""
    if isinstance(field, Number):
        return np.array([row[field.name] for row in rows], "<f8").tobytes()
    values = [row[field.name].encode() for row in rows]
    return b"".join(struct.pack("<I", len(value)) + value for value in values)
