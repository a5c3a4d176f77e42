"""The V2 protocol without a server: decoded requests and model metadata."""

import json
from typing import Any

import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from training.candidates import SAMPLE, SIGNATURE
from transformer.protocols import grpc_messages, v2


def _decode_rest(**options):
    tensor = {"name": "candidates", "datatype": "BYTES", "shape": [1], "data": [json.dumps(SAMPLE)]}
    return v2.decode(
        json.dumps({"inputs": [tensor]}).encode(),
        None,
        model_name="served",
        output_name="placement",
        fields=SIGNATURE.names,
        max_candidates=1,
        **options,
    )


def _decode_grpc(version):
    message = pb.ModelInferRequest(model_name="served", model_version=version)
    tensor = message.inputs.add(name="candidates", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(json.dumps(SAMPLE).encode())
    return grpc_messages.decode(message, output_name="placement", fields=SIGNATURE.names, max_candidates=1)


def test_a_rest_request_carries_the_version_of_its_path():
    assert _decode_rest().version is None
    assert _decode_rest(version="v2").version == "v2"


def test_the_names_of_tensors_that_are_no_field_are_kept():
    """A misspelled name among them is refused, see test_validation."""
    tensors = [
        {"name": name, "datatype": "FP64", "shape": [1], "data": [1]} for name in ("ssc_p", "Hsc_P", "other")
    ]
    body = json.dumps({"inputs": tensors}).encode()
    named: dict[str, Any] = {"model_name": "served", "output_name": "placement", "fields": SIGNATURE.names}
    candidates = v2.decode(body, None, **named, max_candidates=1).candidates
    assert candidates.names() == {"ssc_p", "Hsc_P", "other"}
    assert [block.names() for block in candidates.blocks(1)] == [candidates.names()]


@pytest.mark.parametrize(("sent", "decoded"), [("", None), ("v2", "v2")])
def test_a_grpc_request_carries_the_version_of_its_message(sent, decoded):
    assert _decode_grpc(sent).version == decoded


def test_model_metadata_lists_versions_platform_fields_and_outputs():
    metadata = v2.model_metadata("served", ("v2", "v1"), SIGNATURE, "placement")
    assert (metadata["name"], metadata["versions"]) == ("served", ["v2", "v1"])
    assert metadata["platform"] == "sklearn_joblib"
    assert [tensor["name"] for tensor in metadata["inputs"]] == list(SIGNATURE.names)
    assert {tensor["datatype"] for tensor in metadata["inputs"]} == {"FP64", "BYTES"}
    assert metadata["outputs"] == [
        {"name": "placement", "datatype": "BOOL", "shape": [-1]},
        {"name": "placement_probability", "datatype": "FP64", "shape": [-1]},
    ]
    # gRPC's message has the same fields.
    assert pb.ModelMetadataResponse(**metadata).platform == metadata["platform"]
