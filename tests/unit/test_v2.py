"""The V2 protocol without a server: decoded requests and model metadata."""

import json
from typing import Any

import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from training.candidates import SAMPLE, SIGNATURE
from transformer.errors import InvalidRequest
from transformer.protocols import grpc_messages, v2
from transformer.protocols.tensors import MAX_OTHER_TENSORS


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
    metadata = v2.model_metadata("served", ("v2", "v1"), SIGNATURE, "placement", explains=False)
    assert (metadata["name"], metadata["versions"]) == ("served", ["v2", "v1"])
    assert metadata["platform"] == "sklearn_joblib"
    assert [tensor["name"] for tensor in metadata["inputs"]] == list(SIGNATURE.names)
    assert {tensor["datatype"] for tensor in metadata["inputs"]} == {"FP64", "BYTES"}
    assert metadata["outputs"] == [
        {"name": "placement", "datatype": "BOOL", "shape": [-1]},
        {"name": "placement_probability", "datatype": "FP64", "shape": [-1]},
    ]
    explained = v2.model_metadata("served", ("v2", "v1"), SIGNATURE, "placement", explains=True)
    assert explained["outputs"] == [
        *metadata["outputs"],
        {"name": "placement_baseline", "datatype": "FP64", "shape": [-1]},
        {"name": "placement_contributions", "datatype": "FP64", "shape": [-1, 12]},
        {"name": "placement_standard_errors", "datatype": "FP64", "shape": [-1, 12]},
        {"name": "placement_changes", "datatype": "BYTES", "shape": [-1]},
    ]
    # gRPC's message has the same fields.
    assert pb.ModelMetadataResponse(**metadata).platform == metadata["platform"]


def _tensor(name, values):
    return {"name": name, "datatype": "BYTES", "shape": [2], "data": values}


def _decode_tensors(*tensors, binary=b""):
    text = json.dumps({"inputs": tensors}).encode()
    return v2.decode(
        text + binary,
        str(len(text)),
        model_name="served",
        output_name="placement",
        fields=SIGNATURE.names,
        max_candidates=2,
    )


def test_values_of_an_ignored_tensor_are_not_read():
    """A request has space for hundreds of ignored tensors with 10,000 values each."""
    gender = _tensor("gender", ["M", "F"])
    with pytest.raises(InvalidRequest, match=r"inputs.workex\[0\]: must be a string"):
        _decode_tensors(gender, _tensor("workex", [1, 2]))
    binary = {"name": "other", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 3}}
    for decoded in (
        _decode_tensors(gender, _tensor("other", [1, 2])),
        _decode_tensors(gender, binary, binary=b"abc"),
        _decode_grpc_tensors(datatype="INT8", contents={"int_contents": [1000, 1000]}),
        _decode_grpc_tensors(datatype="BYTES", raw=b"abc"),
    ):
        assert decoded.candidates.rows == 2


def _decode_grpc_tensors(*, raw=None, **other):
    gender = {"name": "gender", "datatype": "BYTES", "shape": [2]}
    message = pb.ModelInferRequest(inputs=[gender, {"name": "other", "shape": [2], **other}])
    if raw is None:
        message.inputs[0].contents.bytes_contents.extend([b"M", b"F"])
    else:
        message.raw_input_contents.extend([b"\1\0\0\0M\1\0\0\0F", raw])
    return grpc_messages.decode(message, output_name="placement", fields=SIGNATURE.names, max_candidates=2)


def test_an_ignored_tensor_has_as_many_values_as_the_others():
    with pytest.raises(InvalidRequest, match=r"inputs.other: shape \[2\] needs 2 values, got 1"):
        _decode_tensors(_tensor("gender", ["M", "F"]), _tensor("other", ["x"]))


def test_too_many_tensors_are_refused_before_any_of_them_is_read():
    limit = MAX_OTHER_TENSORS + len(SIGNATURE.names)
    with pytest.raises(InvalidRequest, match=f"inputs: too many tensors: limit {limit}, got {limit + 1}"):
        _decode_tensors(*([{}] * (limit + 1)))
    with pytest.raises(InvalidRequest, match=f"inputs: too many tensors: limit {limit}, got {limit + 1}"):
        grpc_messages.decode(
            pb.ModelInferRequest(inputs=[{}] * (limit + 1)),
            output_name="placement",
            fields=SIGNATURE.names,
            max_candidates=1,
        )
