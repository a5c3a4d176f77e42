"""Every form of a request gets the score of scikit-learn, and a bad request gets a status and a reason."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from tests.support.endpoints import V1_PREDICT, V2_INFER
from tests.support.fake_mlserver import FakeMLServer
from tests.support.in_process_transformer import InProcessTransformer, in_process_transformer
from tests.support.request_bodies import field_tensors
from tests.support.request_forms import FORMS, ask_v2, v1
from tests.support.sklearn_reference import SklearnReference
from training.candidates import SAMPLE

pytestmark = pytest.mark.asyncio(loop_scope="module")

OVER_V2 = ("--predictor_protocol=v2",)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def predictor(sklearn_reference: SklearnReference) -> AsyncIterator[FakeMLServer]:
    async with FakeMLServer(sklearn_reference).running() as predictor:
        yield predictor


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def transformer(trained_bundle: Path, predictor: FakeMLServer) -> AsyncIterator[InProcessTransformer]:
    async with in_process_transformer(trained_bundle, predictor.address, *OVER_V2) as running:
        yield running


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("count", [1, 32])
async def test_every_form_of_a_request_gives_the_score_of_scikit_learn(
    form, count, transformer, sklearn_reference
):
    bundle = sklearn_reference.bundle
    rows = [dict(row) for row in bundle.reference.candidates[:count]]
    answer = await form(transformer, rows, bundle.signature)
    assert answer.probabilities == pytest.approx(sklearn_reference.probabilities(rows), abs=1e-12)
    assert answer.positive == [probability >= bundle.threshold for probability in answer.probabilities]
    assert answer.version == bundle.version


async def test_metadata_lists_fields_and_outputs_over_rest_and_grpc(transformer, sklearn_reference):
    rest = (await transformer.http.get("/v2/models/placement")).json()
    expected = {field.name: field.datatype for field in sklearn_reference.bundle.signature.fields}
    assert {tensor["name"]: tensor["datatype"] for tensor in rest["inputs"]} == expected
    assert {tensor["name"]: tensor["datatype"] for tensor in rest["outputs"]} == {
        "placement": "BOOL",
        "placement_probability": "FP64",
        "placement_baseline": "FP64",
        "placement_contributions": "FP64",
        "placement_standard_errors": "FP64",
        "placement_changes": "BYTES",
    }
    over_grpc = await transformer.grpc.ModelMetadata(pb.ModelMetadataRequest(name="placement"))
    for rest_part, grpc_part in ((rest["inputs"], over_grpc.inputs), (rest["outputs"], over_grpc.outputs)):
        assert [(t["name"], t["datatype"], t["shape"]) for t in rest_part] == [
            (t.name, t.datatype, list(t.shape)) for t in grpc_part
        ]


@pytest.mark.parametrize(
    "path", ["/", "/v2/health/live", "/v2/health/ready", "/v2/models/placement/ready", "/v1/models/placement"]
)
async def test_a_transformer_with_a_predictor_is_live_and_ready(path, transformer):
    assert (await transformer.http.get(path)).status_code == 200
    assert (await transformer.grpc.ServerLive(pb.ServerLiveRequest())).live
    assert (await transformer.grpc.ServerReady(pb.ServerReadyRequest())).ready
    assert (await transformer.grpc.ModelReady(pb.ModelReadyRequest(name="placement"))).ready


async def test_only_the_requested_outputs_are_answered(transformer, sklearn_reference):
    rows = [dict(sklearn_reference.bundle.reference.candidates[0])]
    wanted = [{"name": "placement_probability"}]
    response = await transformer.http.post(
        V2_INFER, json={"inputs": field_tensors(sklearn_reference.bundle.signature, rows), "outputs": wanted}
    )
    assert [output["name"] for output in response.json()["outputs"]] == ["placement_probability"]
    response = await transformer.http.post(
        V2_INFER,
        json={
            "inputs": field_tensors(sklearn_reference.bundle.signature, rows),
            "outputs": [{"name": "salary"}],
        },
    )
    assert response.status_code == 400
    assert response.json() == {
        "error": "outputs: must be one of placement, placement_probability, placement_baseline, "
        "placement_contributions, placement_standard_errors, placement_changes, got 'salary'"
    }


async def test_numbers_may_be_sent_in_narrower_datatypes(transformer, sklearn_reference):
    rows = [{**sklearn_reference.bundle.reference.candidates[0], "ssc_p": 71.0}]
    columns = [
        {**tensor, "datatype": "INT32", "data": [71]} if tensor["name"] == "ssc_p" else tensor
        for tensor in field_tensors(sklearn_reference.bundle.signature, rows)
    ]
    _, probabilities, _ = await ask_v2(transformer, {"inputs": columns})
    assert probabilities == pytest.approx(sklearn_reference.probabilities(rows), abs=1e-12)


CANDIDATE = {"ssc_p": 1}
FIELD = {"name": "ssc_p", "datatype": "FP64", "shape": [1], "data": [1.0]}

V1_ERRORS = [
    pytest.param(b"{", 400, "body: is not JSON", id="not-json"),
    pytest.param(b"", 400, "body: is not JSON", id="empty"),
    pytest.param(b"\xff\xfe", 400, "body: is not JSON", id="not-utf-8"),
    pytest.param(b'{"instances": [{"ssc_p": NaN}]}', 400, "body: is not JSON", id="nan"),
    pytest.param(b"[]", 400, 'must be {"instances"', id="a-list"),
    pytest.param(b'{"inputs": []}', 400, 'must be {"instances"', id="no-instances"),
    pytest.param(b'{"instances": []}', 400, "at least one candidate", id="no-candidate"),
    pytest.param(b'{"instances": {}}', 400, 'must be {"instances"', id="instances-no-list"),
    pytest.param(b'{"instances": [1]}', 400, "instances[0]: must be an object", id="candidate-no-object"),
    pytest.param(b'{"instances": [{}]}', 400, "instances[0].gender: is required", id="missing-field"),
]


@pytest.mark.parametrize(("body", "status", "error"), V1_ERRORS)
async def test_the_error_for_a_bad_v1_request_says_what_is_wrong(body, status, error, transformer):
    response = await transformer.http.post(V1_PREDICT, content=body)
    assert response.status_code == status
    assert error in response.json()["error"]


V2_ERRORS = [
    pytest.param({}, "inputs: is required", id="no-inputs"),
    pytest.param({"inputs": []}, "inputs: must be one tensor per field", id="no-tensor"),
    pytest.param({"inputs": 3}, "inputs: ", id="inputs-no-list"),
    pytest.param({"inputs": [{**FIELD, "shape": [2]}]}, "needs 2 values, got 1", id="too-few-values"),
    pytest.param({"inputs": [{**FIELD, "shape": [-1]}]}, "shape must be [n] or [n, 1]", id="negative-shape"),
    pytest.param({"inputs": [{**FIELD, "shape": [0], "data": []}]}, "shape must be", id="no-candidate"),
    pytest.param({"inputs": [{**FIELD, "shape": []}]}, "shape must be", id="no-shape"),
    pytest.param({"inputs": [{**FIELD, "shape": [1, 2]}]}, "shape must be", id="two-columns"),
    pytest.param({"inputs": [{**FIELD, "shape": ["1"]}]}, "inputs[0].shape[0]: ", id="shape-no-number"),
    pytest.param({"inputs": [{**FIELD, "datatype": "DATE"}]}, "datatype must be one of", id="datatype"),
    pytest.param({"inputs": [{"name": "x", "datatype": "FP64", "shape": [1]}]}, "got neither", id="no-data"),
    pytest.param({"inputs": [FIELD, FIELD]}, "inputs: duplicate tensor name 'ssc_p'", id="twice"),
    pytest.param(
        {"inputs": [FIELD, {**FIELD, "name": "hsc_p", "shape": [2], "data": [1, 2]}]},
        "inputs.hsc_p: must have length 1, as inputs.ssc_p has, got 2",
        id="lengths-differ",
    ),
    pytest.param(
        {"inputs": [{**FIELD, "parameters": {"binary_data_size": 8}}]}, "not both", id="data-and-binary"
    ),
    pytest.param(
        {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "data": ["{"]}]},
        "inputs.x[0]: is not JSON",
        id="object-no-json",
    ),
    pytest.param(
        {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "data": [7]}]},
        "inputs.x[0]: must be a string, datatype BYTES, got the number 7",
        id="object-no-string",
    ),
    pytest.param({"inputs": [FIELD]}, "inputs.gender[0]: is required", id="missing-tensor"),
    pytest.param(
        {"inputs": [{**FIELD, "data": ["high"]}]},
        "inputs.ssc_p[0]: must be a number, datatype FP64, got a string 'high'",
        id="wrong-type",
    ),
    pytest.param(
        {"inputs": [{**FIELD, "datatype": "INT64", "data": [71.5]}]},
        "inputs.ssc_p[0]: must be an integer, datatype INT64, got the number 71.5",
        id="no-integer",
    ),
    pytest.param({"inputs": [{**FIELD, "name": "n" * 129}]}, "limit 128 characters, got 129", id="long-name"),
    pytest.param({"id": "i" * 129, "inputs": [FIELD]}, "id: limit 128 characters, got 129", id="long-id"),
]


@pytest.mark.parametrize(("request_", "error"), V2_ERRORS)
async def test_the_error_for_a_bad_v2_request_says_what_is_wrong(request_, error, transformer):
    response = await transformer.http.post(V2_INFER, json=request_)
    assert response.status_code == 400
    assert error in response.json()["error"]


@pytest.mark.parametrize(
    ("size", "header", "error"),
    [
        (8, "x", "inference-header-content-length: must be 0 to"),
        (8, "-1", "inference-header-content-length: must be 0 to"),
        (8, "999999", "inference-header-content-length: must be 0 to"),
        (8, "9" * 5000, "inference-header-content-length: must be 0 to"),
        (9, None, "binary_data_size must be 0 to 8"),
        (-8, None, "binary_data_size must be 0 to 8"),
        (True, None, "binary_data_size must be 0 to 8"),
        (4, None, "shape [1] of FP64 needs 8 bytes, got 4"),
        (0, None, "shape [1] of FP64 needs 8 bytes, got 0"),
    ],
)
async def test_wrong_binary_sizes_are_refused(size, header, error, transformer):
    tensor = {"name": "ssc_p", "datatype": "FP64", "shape": [1], "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"inference-header-content-length": header or str(len(head))}
    response = await transformer.http.post(V2_INFER, content=head + bytes(8), headers=headers)
    assert response.status_code == 400
    assert error in response.json()["error"]


@pytest.mark.parametrize(
    ("message", "code", "details"),
    [
        (pb.ModelInferRequest(model_name="placement"), "INVALID_ARGUMENT", "inputs: must be one tensor"),
        (pb.ModelInferRequest(model_name="salary"), "NOT_FOUND", "salary"),
        (
            pb.ModelInferRequest(model_name="placement", model_version="v0"),
            "NOT_FOUND",
            "has no version 'v0'",
        ),
        (
            pb.ModelInferRequest(
                model_name="placement",
                inputs=[{"name": "gender", "datatype": "BYTES", "shape": [1]}],
                raw_input_contents=[b"\x05\x00\x00\x00M"],
            ),
            "INVALID_ARGUMENT",
            "inputs.gender[0]: length is past the end",
        ),
        (
            pb.ModelInferRequest(
                model_name="placement",
                inputs=[{"name": "gender", "datatype": "BYTES", "shape": [1]}],
                raw_input_contents=[b"\x01\x00\x00\x00\xff"],
            ),
            "INVALID_ARGUMENT",
            "inputs.gender[0]: is not UTF-8",
        ),
        (
            pb.ModelInferRequest(
                model_name="placement",
                inputs=[{"name": "a", "datatype": "FP64", "shape": [1], "contents": {"int_contents": [1]}}],
            ),
            "INVALID_ARGUMENT",
            "inputs.a: must have FP64 values in fp64_contents, got int_contents",
        ),
        (
            pb.ModelInferRequest(
                model_name="placement",
                inputs=[{"name": "a", "datatype": "FP64", "shape": [1]}] * 2,
                raw_input_contents=[bytes(8)],
            ),
            "INVALID_ARGUMENT",
            "raw_input_contents: must be one per input, 2, got 1",
        ),
        (
            pb.ModelInferRequest(
                model_name="placement",
                id="i" * 129,
                inputs=[{"name": "a", "datatype": "FP64", "shape": [1], "contents": {"fp64_contents": [1]}}],
            ),
            "INVALID_ARGUMENT",
            "id: limit 128 characters, got 129",
        ),
    ],
)
async def test_a_bad_grpc_request_gets_its_status_code(message, code, details, transformer):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await transformer.grpc.ModelInfer(message)
    assert raised.value.code().name == code
    assert details in raised.value.details()


@pytest.mark.parametrize("path", ["/v1/models/salary:predict", "/v2/models/salary/infer"])
async def test_an_unknown_model_is_not_found(path, transformer):
    response = await transformer.http.post(path, json={})
    assert response.status_code == 404
    assert "salary" in response.json()["error"]


async def test_an_unknown_path_gets_kserves_error_body(transformer):
    response = await transformer.http.get("/v3")
    assert (response.status_code, response.json()) == (404, {"error": "GET /v3: Not Found"})


async def test_no_caller_can_unload_the_model(transformer, sklearn_reference):
    response = await transformer.http.post("/v2/repository/models/placement/unload")
    assert response.status_code == 501
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await transformer.grpc.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="placement"))
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    await v1(transformer, [SAMPLE], sklearn_reference.bundle.signature)


async def test_requests_beyond_the_limits_of_candidates_and_bytes_are_too_large(trained_bundle, predictor):
    limits = ("--max_candidates=2", "--max_request_bytes=1000")
    async with in_process_transformer(trained_bundle, predictor.address, *OVER_V2, *limits) as service:
        response = await service.http.post(V1_PREDICT, json={"instances": [{}, {}, {}]})
        assert response.status_code == 413
        assert response.json()["error"] == "too many candidates: limit 2, got 3"
        for path in (V1_PREDICT, V2_INFER):
            response = await service.http.post(path, content=b" " * 1001)
            assert response.status_code == 413
            assert "1000 bytes" in response.json()["error"]
        message = pb.ModelInferRequest(model_name="placement")
        tensor = message.inputs.add(name="x", datatype="BYTES", shape=[3])
        tensor.contents.bytes_contents.extend([b"{}"] * 3)
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await service.grpc.ModelInfer(message)
            assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            tensor.contents.bytes_contents.append(bytes(1000))


async def test_with_unknown_category_ignore_an_unknown_category_sets_no_column(
    trained_bundle, predictor, sklearn_reference
):
    rows = [{**sklearn_reference.bundle.reference.candidates[0], "hsc_s": "Music"}]
    async with in_process_transformer(
        trained_bundle, predictor.address, *OVER_V2, "--unknown_category=ignore"
    ) as service:
        _, probabilities, _ = await v1(service, rows, sklearn_reference.bundle.signature)
    # DictVectorizer also ignores unknown categories.
    assert probabilities == pytest.approx(sklearn_reference.probabilities(rows), abs=1e-12)
