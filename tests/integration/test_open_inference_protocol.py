"""Real responses match the official schemas of the Open Inference Protocol, over REST and gRPC."""

import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from tests.support.in_process_transformer import InProcessTransformer, in_process_transformer
from tests.support.open_inference_protocol import (
    MISSING,
    MISSING_REASON,
    OfficialGrpc,
    OfficialRest,
    unknown_fields,
)
from training.candidates import SAMPLE, SIGNATURE
from transformer.bundle.format import load_bundle

pytestmark = pytest.mark.skipif(MISSING, reason=MISSING_REASON)

MODEL = "placement"
PINNED = pytest.mark.parametrize("pinned", [True, False], ids=["one version", "any version"])
#: Official schema of each REST operation's response; health has none.
RESPONSES = {
    "get-v2-health-live": None,
    "get-v2-health-ready": None,
    "get-v2-models-$-modelName-versions-$-modelVersion-ready": None,
    "get-v2": "metadata_server_response",
    "get-v2-models-$-modelName-versions-$-modelVersion": "metadata_model_response",
    "post-v2-models-$-MODEL_NAME-versions-$-MODEL_VERSION-infer": "inference_response",
}
METHODS = {"ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer"}


@pytest.fixture(scope="module")
def version(trained_bundle: Path) -> str:
    return load_bundle(trained_bundle).version


@pytest.fixture
async def transformer(trained_bundle: Path, predictor) -> AsyncIterator[InProcessTransformer]:
    async with in_process_transformer(
        trained_bundle, predictor.address, "--predictor_protocol=v2"
    ) as running:
        yield running


@pytest.fixture(scope="module")
def rest() -> OfficialRest:
    return OfficialRest()


def infer_request(**more: Any) -> dict[str, Any]:
    """A candidate as one JSON tensor per field."""
    inputs = [
        {"name": field.name, "datatype": field.datatype, "shape": [1], "data": [SAMPLE[field.name]]}
        for field in SIGNATURE.fields
    ]
    return {"id": "42", "inputs": inputs, **more}


def test_every_official_rest_operation_is_tested(rest):
    assert {operation for _, _, operation in rest.operations()} == RESPONSES.keys()


@PINNED
async def test_every_official_rest_operation_answers_with_its_schema(pinned, rest, transformer, version):
    for method, template, operation in rest.operations():
        # The protocol makes the version's part of a path optional.
        path = template if pinned else template.replace("/versions/${MODEL_VERSION}", "")
        path = path.replace("${MODEL_NAME}", MODEL).replace("${MODEL_VERSION}", version)
        response = await transformer.http.request(
            method, path, json=infer_request() if method == "post" else None, follow_redirects=True
        )
        assert response.status_code == 200, (path, response.text)
        assert response.headers["content-type"] == "application/json"
        if schema := RESPONSES[operation]:
            rest.check(response.json(), schema)


def test_the_request_of_these_tests_is_an_official_one(rest):
    rest.check(infer_request(outputs=[{"name": MODEL}], parameters={"any": 1}), "inference_request")


async def test_rest_metadata_lists_the_versions_that_a_request_may_ask_for(transformer, version):
    metadata = (await transformer.http.get(f"/v2/models/{MODEL}")).json()
    assert metadata["versions"] == [version]
    assert metadata["platform"] == "sklearn_joblib"
    of_version = await transformer.http.get(f"/v2/models/{MODEL}/versions/{version}")
    assert of_version.json() == metadata


async def test_a_rest_response_has_the_official_values(rest, transformer, version):
    request = infer_request(outputs=[{"name": f"{MODEL}_probability"}])
    response = (await transformer.http.post(f"/v2/models/{MODEL}/infer", json=request)).json()
    rest.check(response, "inference_response")
    assert (response["model_name"], response["model_version"], response["id"]) == (MODEL, version, "42")
    (output,) = response["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == (f"{MODEL}_probability", "FP64", [1])
    assert len(output["data"]) == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "schema"),
    [
        (f"/v2/models/{MODEL}/infer", {}, 400, "inference_error_response"),
        (f"/v2/models/{MODEL}/infer", infer_request(inputs=[]), 400, "inference_error_response"),
        ("/v2/models/salary/infer", infer_request(), 404, "inference_error_response"),
        (f"/v2/models/{MODEL}/versions/v0/infer", infer_request(), 404, "inference_error_response"),
        ("/v2/models/salary", None, 404, "metadata_model_error_response"),
        (f"/v2/models/{MODEL}/versions/v0", None, 404, "metadata_model_error_response"),
        (f"/v2/models/{MODEL}/versions/v0/ready", None, 404, "metadata_model_error_response"),
    ],
)
async def test_a_rest_error_has_its_official_schema(path, body, status, schema, rest, transformer):
    method = "GET" if body is None else "POST"
    response = await transformer.http.request(method, path, json=body)
    assert response.status_code == status, response.text
    rest.check(response.json(), schema)
    # The schema of an inference error does not require it.
    assert response.json()["error"]


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> OfficialGrpc:
    return OfficialGrpc(tmp_path_factory.mktemp("oip"))


@contextlib.asynccontextmanager
async def channel_to(transformer: InProcessTransformer) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(transformer.grpc_address) as channel:
        yield channel


def infer_message(official: OfficialGrpc, *, raw: bool = False, **fields: Any) -> Any:
    """A candidate as one BYTES tensor of JSON, with typed or with raw contents."""
    value = json.dumps(SAMPLE).encode()
    message = official.message("ModelInferRequest", model_name=MODEL, id="42", **fields)
    tensor = message.inputs.add(name="candidates", datatype="BYTES", shape=[1])
    if raw:
        message.raw_input_contents.append(len(value).to_bytes(4, "little") + value)
    else:
        tensor.contents.bytes_contents.append(value)
    return message


def test_every_official_grpc_method_is_tested(official):
    assert official.methods.keys() == METHODS


def test_the_served_messages_have_only_official_fields(official):
    def fields(message: Descriptor) -> set[tuple[Any, ...]]:
        return {(field.name, field.number, field.type, field.is_repeated) for field in message.fields}

    def with_nested(message: Descriptor) -> Iterator[Descriptor]:
        yield message
        for nested in message.nested_types:
            yield from with_nested(nested)

    served_methods = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    for name, method in official.methods.items():
        served = served_methods[name]
        assert served.containing_service.full_name == method.containing_service.full_name
        for ours, theirs in (
            (served.input_type, method.input_type),
            (served.output_type, method.output_type),
        ):
            assert ours.full_name == theirs.full_name
            known = {message.full_name: message for message in with_nested(theirs)}
            for message in with_nested(ours):
                assert fields(message) <= fields(known[message.full_name]), message.full_name


def test_a_field_that_is_not_official_is_found(official):
    response = official.message("ModelInferResponse")
    response.outputs.add().MergeFromString(b"\x78\x01")
    assert list(unknown_fields(response)) == ["inference.ModelInferResponse.InferOutputTensor.15"]


@PINNED
async def test_every_official_grpc_method_answers_with_official_messages(
    pinned, official, transformer, version
):
    asked = version if pinned else ""
    of_model = {"name": MODEL, "version": asked}
    async with channel_to(transformer) as channel:

        async def ask(name: str, /, **fields: Any) -> Any:
            return await official.call(channel, name, official.message(f"{name}Request", **fields))

        assert (await ask("ServerLive")).live
        assert (await ask("ServerReady")).ready
        assert (await ask("ModelReady", **of_model)).ready
        server = await ask("ServerMetadata")
        assert server.name
        assert server.version
        assert list(server.extensions) == ["binary_tensor_data"]
        model = await ask("ModelMetadata", **of_model)
        assert (model.name, list(model.versions), model.platform) == (MODEL, [version], "sklearn_joblib")
        assert [tensor.name for tensor in model.inputs] == list(SIGNATURE.names)
        # After these come the outputs of explanations.
        assert [tensor.name for tensor in model.outputs][:2] == [MODEL, f"{MODEL}_probability"]
        request = infer_message(official, model_version=asked)
        inferred = await official.call(channel, "ModelInfer", request)
        assert (inferred.model_name, inferred.model_version, inferred.id) == (MODEL, version, "42")


@pytest.mark.parametrize("raw", [False, True], ids=["typed", "raw"])
async def test_grpc_contents_are_where_the_protocol_has_them(raw, official, transformer):
    async with channel_to(transformer) as channel:
        response = await official.call(channel, "ModelInfer", infer_message(official, raw=raw))
    placed, probability = response.outputs
    assert (placed.datatype, list(placed.shape)) == ("BOOL", [1])
    assert (probability.datatype, list(probability.shape)) == ("FP64", [1])
    if raw:
        assert [len(part) for part in response.raw_output_contents] == [1, 8]
        assert not placed.HasField("contents")
        assert not probability.HasField("contents")
    else:
        assert len(placed.contents.bool_contents) == len(probability.contents.fp64_contents) == 1
        assert not response.raw_output_contents


async def test_every_official_type_of_parameter_is_accepted(official, transformer):
    request = infer_message(official)
    for where in (request, request.inputs[0], request.outputs.add(name=MODEL)):
        where.parameters["a"].bool_param = True
        where.parameters["b"].int64_param = 1
        where.parameters["c"].string_param = "x"
        where.parameters["d"].double_param = 0.5
        where.parameters["e"].uint64_param = 2**64 - 1
    async with channel_to(transformer) as channel:
        response = await official.call(channel, "ModelInfer", request)
    assert [output.name for output in response.outputs] == [MODEL]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("ModelReady", {"name": MODEL, "version": "v0"}),
        ("ModelMetadata", {"name": MODEL, "version": "v0"}),
        ("ModelReady", {"name": "salary"}),
        ("ModelMetadata", {"name": "salary"}),
        ("ModelInfer", {"model_version": "v0"}),
    ],
)
async def test_an_unknown_model_or_version_is_not_found_over_grpc(name, fields, official, transformer):
    request: Message
    if name == "ModelInfer":
        request = infer_message(official, **fields)
    else:
        request = official.message(f"{name}Request", **fields)
    async with channel_to(transformer) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await official.call(channel, name, request)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    assert raised.value.details()
