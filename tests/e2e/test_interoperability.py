"""Clients of KServe, Triton and MLServer get right answers, and our errors for wrong requests."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from kserve import (
    InferenceGRPCClient,
    InferenceRESTClient,
    InferInput,
    InferRequest,
    RESTConfig,
)
from kserve.protocol.infer_type import RequestedOutput
from tritonclient.utils import InferenceServerException

from inferenceservice.local.local_service import LocalService
from predictor.environment import ensure
from predictor.runtimes import get_runtime
from tests.support.endpoints import V1_PREDICT, V2_INFER
from tests.support.inference_service import SPEC
from tests.support.sklearn_reference import SklearnReference
from tests.support.sync_processes import running_service
from training.generator import generate

MODEL = "placement"
PROBABILITY = "placement_probability"
OUT_OF_RANGE = "inputs.ssc_p[0]: must be 0 to 100, got 710.5"
#: The outputs that explain a prediction, which only a request that names them gets.
EXPLANATION_OUTPUTS = [
    f"{MODEL}_{name}" for name in ("baseline", "contributions", "standard_errors", "changes")
]
OUTPUTS = [MODEL, PROBABILITY, *EXPLANATION_OUTPUTS]
NO_OUTPUT = f"outputs: must be one of {', '.join(OUTPUTS)}, got 'salary'"
NO_VERSION = "model placement has no version '1'; versions now: v1"
SHAPES = [pytest.param(lambda rows: [rows], id="[n]"), pytest.param(lambda rows: [rows, 1], id="[n, 1]")]


@pytest.fixture(scope="module")
def running(trained_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    with running_service(SPEC, trained_bundle, tmp_path_factory.mktemp("logs")) as served:
        yield served


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return generate(7, seed=11).candidates


@pytest.fixture(scope="module")
def expected(sklearn_reference: SklearnReference, rows: list[dict[str, Any]]) -> Any:
    return pytest.approx(sklearn_reference.probabilities(rows), abs=1e-12)


@pytest.fixture
def columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


@pytest.fixture
def bad_columns(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {**columns, "ssc_p": [710.5, *columns["ssc_p"][1:]]}


def arrays(columns: dict[str, list[Any]], shape: list[int]) -> dict[str, np.ndarray]:
    """Return the columns as numpy arrays, text as objects."""
    return {
        name: np.array(values, np.object_ if isinstance(values[0], str) else np.float64).reshape(shape)
        for name, values in columns.items()
    }


def datatype(array: np.ndarray) -> str:
    return "BYTES" if array.dtype == np.object_ else "FP64"


# kserve's REST client


@pytest.fixture
async def rest_v1():
    async with InferenceRESTClient(RESTConfig(protocol="v1", retries=0)) as client:
        yield client


@pytest.fixture
async def rest_v2():
    async with InferenceRESTClient(RESTConfig(protocol="v2", retries=0)) as client:
        yield client


async def test_kserves_v1_client_gets_predictions(running, rest_v1, rows, expected):
    headers: dict[str, str] = {}
    answer = await rest_v1.infer(running.url, {"instances": rows}, model_name=MODEL, response_headers=headers)
    assert [one[PROBABILITY] for one in answer["predictions"]] == expected
    assert headers["x-model-version"] == "v1"
    assert await rest_v1.is_server_live(running.url)
    assert await rest_v1.is_model_ready(running.url, MODEL)


async def test_kserves_v1_client_gets_explanations(running, rest_v1, rows):
    asked = {"instances": rows[:1]}
    (prediction,) = (await rest_v1.infer(running.url, asked, model_name=MODEL))["predictions"]
    (one,) = (await rest_v1.explain(running.url, MODEL, asked))["explanations"]
    assert prediction.items() <= one.items()
    total = one["baseline"] + sum(one["contributions"].values())
    assert total == pytest.approx(prediction[PROBABILITY], abs=1e-9)


async def test_kserves_v1_client_gets_our_errors(running, rest_v1, rows):
    with pytest.raises(
        httpx.HTTPStatusError, match=r"^instances\[0\].ssc_p: must be 0 to 100, got 710, '400"
    ):
        await rest_v1.infer(running.url, {"instances": [{**rows[0], "ssc_p": 710}]}, model_name=MODEL)
    with pytest.raises(
        httpx.HTTPStatusError, match=r"salary does not exist\. Models here: placement\., '404 "
    ):
        await rest_v1.infer(running.url, {"instances": rows}, model_name="salary")


def kserve_request(columns: dict[str, list[Any]], shape: list[int], form: str, **more: Any) -> InferRequest:
    """Return a request of kserve's SDK with lists, with arrays as JSON, or with arrays as binary data."""
    inputs = []
    for name, array in arrays(columns, shape).items():
        tensor = InferInput(name, shape, datatype(array), data=columns[name] if form == "list" else None)
        if form != "list":
            tensor.set_data_from_numpy(array, binary_data=form == "binary")
        inputs.append(tensor)
    return InferRequest(MODEL, inputs, request_id="mine", **more)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["list", "array", "binary"])
@pytest.mark.parametrize("binary_output", [False, True], ids=["JSON answer", "binary answer"])
async def test_kserves_v2_client_gets_tensors(
    form, shape, binary_output, running, rest_v2, columns, rows, expected
):
    request = kserve_request(
        columns, shape(len(rows)), form, parameters={"binary_data_output": binary_output}
    )
    headers: dict[str, str] = {}
    answer = await rest_v2.infer(running.url, request, model_name=MODEL, response_headers=headers)
    assert (answer.id, answer.model_name, headers["x-model-version"]) == ("mine", MODEL, "v1")
    assert answer.get_output_by_name(PROBABILITY).as_numpy().tolist() == expected
    placed = answer.get_output_by_name(MODEL)
    assert (placed.datatype, placed.shape) == ("BOOL", [len(rows)])
    assert placed.as_numpy().tolist() == [bool(p >= 0.5) for p in expected.expected]


async def test_kserves_v2_client_may_mix_binary_and_json_tensors(running, rest_v2, columns, rows, expected):
    binary = kserve_request(columns, [len(rows)], "binary").inputs
    plain = kserve_request(columns, [len(rows)], "list").inputs
    mixed = [(binary if number % 2 else plain)[number] for number in range(len(binary))]
    answer = await rest_v2.infer(running.url, InferRequest(MODEL, mixed), model_name=MODEL)
    assert answer.get_output_by_name(PROBABILITY).as_numpy().tolist() == expected


async def test_kserves_v2_client_gets_the_requested_outputs(running, rest_v2, columns, rows, expected):
    wanted = [RequestedOutput(PROBABILITY, {"binary_data": True}), RequestedOutput(MODEL)]
    request = kserve_request(columns, [len(rows)], "binary", request_outputs=wanted)
    answer = await rest_v2.infer(running.url, request, model_name=MODEL)
    assert [output.name for output in answer.outputs] == [PROBABILITY, MODEL]
    assert answer.outputs[0].as_numpy().tolist() == expected


async def test_kserves_v2_client_gets_health_and_readiness(running, rest_v2):
    assert await rest_v2.is_server_live(running.url)
    assert await rest_v2.is_server_ready(running.url)
    assert await rest_v2.is_model_ready(running.url, MODEL)
    assert not await rest_v2.is_model_ready(running.url, "salary")


async def test_kserves_v2_client_gets_our_errors(running, rest_v2, columns, bad_columns, rows):
    for form in ("list", "binary"):
        request = kserve_request(bad_columns, [len(rows)], form)
        with pytest.raises(httpx.HTTPStatusError) as raised:
            await rest_v2.infer(running.url, request, model_name=MODEL)
        assert str(raised.value).startswith(f"{OUT_OF_RANGE}, '400 ")
    request = kserve_request(columns, [len(rows)], "list", request_outputs=[RequestedOutput("salary")])
    with pytest.raises(httpx.HTTPStatusError) as raised:
        await rest_v2.infer(running.url, request, model_name=MODEL)
    assert str(raised.value).startswith(f"{NO_OUTPUT}, '400 ")


# kserve's gRPC client


@pytest.fixture
async def grpc_client(running):
    async with InferenceGRPCClient(running.grpc_address) as client:
        yield client


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["list", "binary"])
async def test_kserves_grpc_client_gets_tensors(form, shape, grpc_client, columns, rows, expected):
    answer = await grpc_client.infer(
        kserve_request(columns, shape(len(rows)), form), headers=(("x-request-id", "7"),)
    )
    assert (answer.id, answer.model_name, answer.model_version) == ("mine", MODEL, "v1")
    assert answer.get_output_by_name(PROBABILITY).as_numpy().tolist() == expected
    assert answer.get_output_by_name(MODEL).as_numpy().dtype == np.bool_


async def test_kserves_grpc_client_gets_health_and_readiness(grpc_client):
    assert await grpc_client.is_server_live()
    assert await grpc_client.is_server_ready()
    assert await grpc_client.is_model_ready(MODEL)
    with pytest.raises(grpc.RpcError) as raised:
        await grpc_client.is_model_ready("salary")
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


async def test_kserves_grpc_client_gets_our_errors(grpc_client, columns, bad_columns, rows):
    wrong = {
        OUT_OF_RANGE: kserve_request(bad_columns, [len(rows)], "binary"),
        NO_OUTPUT: kserve_request(columns, [len(rows)], "list", request_outputs=[RequestedOutput("salary")]),
    }
    for error, request in wrong.items():
        with pytest.raises(grpc.RpcError) as raised:
            await grpc_client.infer(request)
        assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, error)
    versioned = kserve_request(columns, [len(rows)], "list", model_version="1")
    with pytest.raises(grpc.RpcError) as raised:
        await grpc_client.infer(versioned)
    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.NOT_FOUND, NO_VERSION)


# Triton's HTTP clients


def triton_inputs(
    columns: dict[str, list[Any]], shape: list[int], *, binary: bool
) -> list[triton.InferInput]:
    inputs = []
    for name, array in arrays(columns, shape).items():
        tensor = triton.InferInput(name, shape, datatype(array))
        tensor.set_data_from_numpy(array, binary_data=binary)
        inputs.append(tensor)
    return inputs


@pytest.fixture
def triton_client(running):
    client = triton.InferenceServerClient(running.url.removeprefix("http://"))
    yield client
    client.close()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("binary", [False, True], ids=["JSON", "binary"])
@pytest.mark.parametrize("binary_output", [None, False, True], ids=["any", "JSON answer", "binary answer"])
def test_tritons_http_client_gets_tensors(
    binary, binary_output, shape, triton_client, columns, rows, expected
):
    outputs = None
    if binary_output is not None:
        outputs = [
            triton.InferRequestedOutput(name, binary_data=binary_output) for name in (PROBABILITY, MODEL)
        ]
    result = triton_client.infer(
        MODEL, triton_inputs(columns, shape(len(rows)), binary=binary), outputs=outputs, request_id="mine"
    )
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("mine", MODEL, "v1")
    assert result.as_numpy(PROBABILITY).tolist() == expected
    assert result.as_numpy(MODEL).dtype == np.bool_
    assert result.as_numpy(MODEL).shape == (len(rows),)
    if outputs:
        assert [output["name"] for output in response["outputs"]] == [PROBABILITY, MODEL]


def test_tritons_http_client_may_send_narrower_numbers_and_json_objects(
    triton_client, sklearn_reference, rows
):
    row = {**rows[0], "ssc_p": 71.0}
    inputs = triton_inputs(
        {name: [value] for name, value in row.items() if name != "ssc_p"}, [1], binary=True
    )
    narrow = triton.InferInput("ssc_p", [1], "INT32")
    narrow.set_data_from_numpy(np.array([71], np.int32))
    whole = triton.InferInput("candidates", [1], "BYTES")
    whole.set_data_from_numpy(np.array([json.dumps(row)], np.object_))
    for tensors in ([*inputs, narrow], [whole]):
        result = triton_client.infer(MODEL, tensors)
        assert result.as_numpy(PROBABILITY).tolist() == pytest.approx(
            sklearn_reference.probabilities([row]), abs=1e-12
        )


def test_tritons_http_client_gets_health_and_metadata(triton_client, sklearn_reference):
    assert triton_client.is_server_live()
    assert triton_client.is_server_ready()
    assert triton_client.is_model_ready(MODEL)
    assert not triton_client.is_model_ready("salary")
    assert "binary_tensor_data" in triton_client.get_server_metadata()["extensions"]
    metadata = triton_client.get_model_metadata(MODEL)
    assert metadata["name"] == MODEL
    assert [tensor["name"] for tensor in metadata["inputs"]] == list(sklearn_reference.bundle.signature.names)
    assert metadata["outputs"][:2] == [
        {"name": MODEL, "datatype": "BOOL", "shape": [-1]},
        {"name": PROBABILITY, "datatype": "FP64", "shape": [-1]},
    ]
    assert [tensor["name"] for tensor in metadata["outputs"][2:]] == EXPLANATION_OUTPUTS


def test_tritons_http_client_gets_our_errors(triton_client, columns, bad_columns, rows):
    good = triton_inputs(columns, [len(rows)], binary=True)
    wrong = {
        ("400", OUT_OF_RANGE): lambda: triton_client.infer(
            MODEL, triton_inputs(bad_columns, [len(rows)], binary=True)
        ),
        ("400", NO_OUTPUT): lambda: triton_client.infer(
            MODEL, good, outputs=[triton.InferRequestedOutput("salary")]
        ),
        ("404", "Model with name salary does not exist. Models here: placement."): lambda: (
            triton_client.infer("salary", good)
        ),
        ("404", NO_VERSION): lambda: triton_client.infer(MODEL, good, model_version="1"),
        ("415", "content-encoding: must be identity, got 'gzip'"): lambda: triton_client.infer(
            MODEL, good, request_compression_algorithm="gzip"
        ),
        ("404", "GET /v2/models/placement/config: Not Found"): lambda: triton_client.get_model_config(MODEL),
    }
    for told, ask in wrong.items():
        with pytest.raises(InferenceServerException) as raised:
            ask()
        assert (raised.value.status(), raised.value.message()) == told


async def test_tritons_asynchronous_http_client_gets_tensors(running, columns, bad_columns, rows, expected):
    async with triton_aio.InferenceServerClient(running.url.removeprefix("http://")) as client:
        assert await client.is_server_ready()
        result = await client.infer(MODEL, triton_inputs(columns, [len(rows)], binary=True))
        assert result.as_numpy(PROBABILITY).tolist() == expected
        with pytest.raises(InferenceServerException) as raised:
            await client.infer(MODEL, triton_inputs(bad_columns, [len(rows)], binary=False))
        assert raised.value.message() == OUT_OF_RANGE


# Triton's gRPC clients


@pytest.fixture(scope="module")
def over_triton_grpc(running: LocalService, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Answers to Triton's gRPC clients, which run in a process without kserve."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.triton_grpc_client", running.grpc_address],
        input=json.dumps(columns),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_tritons_grpc_client_gets_tensors(over_triton_grpc, rows, expected):
    answers = over_triton_grpc["blocking"]
    for name in ("all", "nested", "headers"):
        assert answers[name]["outputs"][PROBABILITY] == expected
        assert set(map(type, answers[name]["outputs"][MODEL])) == {bool}
        assert answers[name]["version"] == "v1"
    assert answers["all"]["id"] == "mine"
    assert list(answers["one"]["outputs"]) == [PROBABILITY]
    assert over_triton_grpc["aio"]["all"]["outputs"][PROBABILITY] == expected


def test_tritons_grpc_client_gets_health_and_metadata(over_triton_grpc, sklearn_reference):
    answers = over_triton_grpc["blocking"]
    assert answers["live"]
    assert answers["ready"]
    assert answers["model ready"]
    assert over_triton_grpc["aio"]["ready"]
    assert "binary_tensor_data" in answers["server"]["extensions"]
    assert [tensor["name"] for tensor in answers["model"]["inputs"]] == list(
        sklearn_reference.bundle.signature.names
    )
    assert [tensor["name"] for tensor in answers["model"]["outputs"]] == OUTPUTS


def test_tritons_grpc_client_gets_our_errors(over_triton_grpc):
    answers = over_triton_grpc["blocking"]
    assert answers["bad value"] == ["StatusCode.INVALID_ARGUMENT", OUT_OF_RANGE]
    assert over_triton_grpc["aio"]["bad value"] == ["StatusCode.INVALID_ARGUMENT", OUT_OF_RANGE]
    assert answers["no output"] == ["StatusCode.INVALID_ARGUMENT", NO_OUTPUT]
    assert answers["a version"] == ["StatusCode.NOT_FOUND", NO_VERSION]
    for name in ("no model", "no metadata"):
        assert answers[name] == [
            "StatusCode.NOT_FOUND",
            "Model with name salary does not exist. Models here: placement.",
        ]
    assert answers["no config"][0] == "StatusCode.UNIMPLEMENTED"
    assert answers["unload"][0] == "StatusCode.UNIMPLEMENTED"
    assert answers["compressed"] == ["StatusCode.UNIMPLEMENTED", "Compression algorithm 'gzip' is disabled."]


# Clients without a library


@pytest.mark.parametrize("path", [V1_PREDICT, V2_INFER])
@pytest.mark.parametrize("chunked", [False, True], ids=["known length", "chunked"])
def test_a_client_that_sends_too_much_gets_413_and_keeps_working(path, chunked, running):
    """The transformer answers before it has read the body, and the ingress keeps the connection open."""
    body = bytes(30 * 2**20)
    with httpx.Client(base_url=running.url, timeout=60) as client:
        for _ in range(2):
            response = client.post(path, content=iter([body]) if chunked else body)
            assert response.status_code == 413
            got = "more" if chunked else len(body)
            assert response.json() == {"error": f"body: limit {8 * 2**20} bytes, got {got}"}
            assert client.get("/v2/health/live").status_code == 200


# MLServer's codecs

ENCODE = """
import json, sys
import pandas
from mlserver.codecs import PandasCodec
frame = pandas.DataFrame(json.load(sys.stdin))
request = PandasCodec.encode_request(frame, use_bytes=False)
complete = json.loads(request.model_dump_json(exclude_none=False, exclude_unset=False))
json.dump([request.model_dump(), complete], sys.stdout)
"""


def test_a_frame_encoded_by_mlservers_codec_is_decoded(running, rows, expected):
    """As its client sends it, and with every optional field written out."""
    done = subprocess.run(
        [ensure(get_runtime("kserve-mlserver")), "-c", ENCODE],
        input=json.dumps(rows),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for request in json.loads(done.stdout):
        response = httpx.post(running.url + V2_INFER, json=request)
        assert response.status_code == 200, response.text
        assert response.json()["outputs"][1]["data"] == expected
