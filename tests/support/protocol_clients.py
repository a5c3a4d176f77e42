"""Blocking clients of each protocol, whose answers all have one form."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
import httpx
import numpy as np
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from tests.support.endpoints import V1_PREDICT, V2_INFER
from tests.support.request_bodies import Candidates, binary_request, field_tensors, grpc_tensors, v1_request
from transformer.bundle.signature import Signature


class Answer(NamedTuple):
    """Decisions, probabilities and the version that gave them."""

    positive: list[bool]
    probabilities: list[float]
    version: str


def over_v1(url: str, rows: Candidates, **options: Any) -> Answer:
    """Ask over V1, with further options of httpx."""
    response = httpx.post(url + V1_PREDICT, timeout=60, json=v1_request(rows), **options)
    assert response.status_code == 200, response.text
    predictions = response.json()["predictions"]
    return Answer(
        [one["placement"] for one in predictions],
        [one["placement_probability"] for one in predictions],
        response.headers["x-model-version"],
    )


def over_v2(url: str, rows: Candidates, signature: Signature) -> Answer:
    """Ask over V2 with one JSON tensor for each field."""
    response = httpx.post(url + V2_INFER, timeout=60, json={"inputs": field_tensors(signature, rows)})
    assert response.status_code == 200, response.text
    content = response.json()
    placed, probability = (tensor["data"] for tensor in content["outputs"])
    return Answer(placed, probability, content["model_version"])


def over_v2_binary(url: str, rows: Candidates, signature: Signature) -> Answer:
    """Ask over V2 with the binary extension, for input and output."""
    body, headers = binary_request(signature, rows)
    response = httpx.post(url + V2_INFER, timeout=60, content=body, headers=headers)
    assert response.status_code == 200, response.text
    length = int(response.headers["inference-header-content-length"])
    content, raw = json.loads(response.content[:length]), response.content[length:]
    return _of_raw(raw[: len(rows)], raw[len(rows) :], content["model_version"])


def over_grpc(address: str, rows: Candidates, signature: Signature, *, raw: bool = False) -> Answer:
    """Ask over gRPC with one tensor for each field, with typed or with raw contents."""
    message = grpc_tensors(signature, rows, raw=raw)
    with grpc.insecure_channel(address) as channel:
        answer = GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=30)
    if raw:
        placed, probability = answer.raw_output_contents
        return _of_raw(placed, probability, answer.model_version)
    placed, probability = (output.contents for output in answer.outputs)
    return Answer(list(placed.bool_contents), list(probability.fp64_contents), answer.model_version)


#: Clients by protocol; each gets the REST URL, the gRPC address, the candidates and the signature.
CLIENTS: dict[str, Callable[[str, str, Candidates, Signature], Answer]] = {
    "V1": lambda url, _, rows, signature: over_v1(url, rows),
    "V2": lambda url, _, rows, signature: over_v2(url, rows, signature),
    "V2 binary": lambda url, _, rows, signature: over_v2_binary(url, rows, signature),
    "gRPC": lambda _, address, rows, signature: over_grpc(address, rows, signature),
    "gRPC raw": lambda _, address, rows, signature: over_grpc(address, rows, signature, raw=True),
}


def _of_raw(placed: bytes, probability: bytes, version: str) -> Answer:
    return Answer(np.frombuffer(placed, "?").tolist(), np.frombuffer(probability).tolist(), version)
