"""What clients send by mistake gets an error that says so: CloudEvents, base64, NaN, encodings."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.endpoints import V1_PREDICT, V2_INFER
from tests.support.fake_mlserver import FakeMLServer
from tests.support.in_process_transformer import InProcessTransformer, in_process_transformer
from tests.support.request_forms import v1_cloudevent_with_base64
from tests.support.sklearn_reference import SklearnReference
from training.candidates import SAMPLE

pytestmark = pytest.mark.asyncio(loop_scope="module")

EVENT = {"specversion": "1.0", "id": "7", "source": "test", "type": "candidate"}
STRUCTURED = {"content-type": "application/cloudevents+json; charset=utf-8"}
REQUEST = {"instances": [SAMPLE]}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def transformer(
    trained_bundle: Path, sklearn_reference: SklearnReference
) -> AsyncIterator[InProcessTransformer]:
    async with (
        FakeMLServer(sklearn_reference).running() as predictor,
        in_process_transformer(trained_bundle, predictor.address, "--predictor_protocol=v2") as running,
    ):
        yield running


@pytest.mark.parametrize(
    ("event", "problem"),
    [
        ({**EVENT, "id": None, "data": REQUEST}, "id: is required in a CloudEvent"),
        ({**EVENT, "type": 7, "data": REQUEST}, "type: must be a text in a CloudEvent, got the number 7"),
        ({**EVENT, "specversion": "2.0", "data": REQUEST}, "specversion: must be 1.0 or 0.3, got '2.0'"),
        (EVENT, "data: is required in a CloudEvent, or data_base64"),
        ({**EVENT, "data_base64": "?"}, "data_base64: must be base64"),
        ({**EVENT, "data_base64": 7}, "data_base64: must be base64"),
        ({**EVENT, "data_base64": "e30x"}, "data_base64: is not JSON: "),
        (
            {**EVENT, "data": REQUEST, "data_base64": "e30="},
            "data: must not be in a CloudEvent together with data_base64",
        ),
        ([EVENT], "body: must be a CloudEvent, an object with attributes, got an array"),
        ({**EVENT, "data": {"instances": []}}, 'body: must be {"instances": ['),
    ],
)
async def test_an_invalid_cloudevent_is_refused_with_its_attribute(transformer, event, problem):
    response = await transformer.http.post(V1_PREDICT, json=event, headers=STRUCTURED)
    assert response.status_code == 400
    assert response.json()["error"].startswith(problem)


async def test_a_batch_of_cloudevents_is_refused(transformer):
    headers = {"content-type": "application/cloudevents-batch+json"}
    response = await transformer.http.post(V1_PREDICT, json=[EVENT], headers=headers)
    assert (response.status_code, response.json()["error"]) == (
        400,
        "content-type: must be that of one CloudEvent, got a batch; send one by one",
    )


async def test_merged_attributes_need_no_time(transformer, sklearn_reference, monkeypatch):
    monkeypatch.setenv("CE_MERGE", "true")
    answer = await v1_cloudevent_with_base64(transformer, [SAMPLE], sklearn_reference.bundle.signature)
    assert answer.probabilities == pytest.approx(sklearn_reference.probabilities([SAMPLE]), abs=1e-12)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
async def test_what_pythons_json_writes_for_no_number_is_named(transformer, number):
    body = json.dumps({"instances": [{**SAMPLE, "mba_p": float(number.replace("inity", ""))}]})
    place = f"line 1 column {body.index(number) + 1 + number.startswith('-')}"
    problem = f"{number} at {place}: JSON has no such number; send null for a missing value"
    for headers in ({}, {"content-type": "application/json; charset=utf-8"}):
        response = await transformer.http.post(V1_PREDICT, content=body, headers=headers)
        assert (response.status_code, response.json()["error"]) == (400, f"body: is not JSON: {problem}")
    tensor = {"name": "mba_p", "datatype": "FP64", "shape": [1], "data": [float("nan")]}
    response = await transformer.http.post(V2_INFER, content=json.dumps({"inputs": [tensor]}))
    assert response.status_code == 400
    assert "NaN at line 1 column" in response.json()["error"]


@pytest.mark.parametrize("path", [V1_PREDICT, V2_INFER])
@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (json.dumps(REQUEST).encode("utf-16"), "must be UTF-8, got UTF-16"),
        (json.dumps(REQUEST).encode("utf-16-le"), "must be UTF-8, got UTF-16"),
        (json.dumps(REQUEST).encode("utf-16-be"), "must be UTF-8, got UTF-16"),
        ('{"instances": ["Köln"]}'.encode("latin-1"), "must be UTF-8"),
        (b"", "is empty"),
    ],
)
async def test_a_body_that_is_no_utf_8_is_refused_as_such(transformer, path, body, problem):
    response = await transformer.http.post(path, content=body)
    assert (response.status_code, response.json()["error"]) == (400, f"body: is not JSON: {problem}")


@pytest.mark.parametrize(
    ("tensor", "problem"),
    [
        ({"datatype": "BYTES", "data": ["?"]}, "inputs.gender[0]: must be base64"),
        ({"datatype": "BYTES", "data": ["/w=="]}, "inputs.gender[0]: is not UTF-8"),
        ({"datatype": "BYTES", "data": ["é"]}, "inputs.gender[0]: must be base64"),
        ({"datatype": "INT8", "data": [1]}, "inputs.gender: base64 needs datatype BYTES, got INT8"),
    ],
)
async def test_a_tensor_that_is_not_base64_is_refused(transformer, tensor, problem):
    tensor |= {"name": "gender", "shape": [1], "parameters": {"content_type": "base64"}}
    other = {"name": "ssc_p", "datatype": "FP64", "shape": [1], "data": [1]}
    response = await transformer.http.post(V2_INFER, json={"inputs": [tensor, other]})
    assert (response.status_code, response.json()["error"]) == (400, problem)


@pytest.mark.parametrize(
    ("instances", "problem"),
    [
        ([{"a": [1, 2], "b": [1]}], "inputs[0]: must have lists of one length, got 1 to 2"),
        ([[7]], "inputs[0]: must be an object of fields and values"),
        ([[]], "inputs[0]: must be an object of fields and values"),
        ([[SAMPLE, {**SAMPLE, "ssc_p": 710}]], "inputs[1].ssc_p: must be 0 to 100, got 710"),
    ],
)
async def test_a_problem_in_inputs_is_named(transformer, instances, problem):
    response = await transformer.http.post(V1_PREDICT, json={"inputs": instances})
    assert response.status_code == 400
    assert response.json()["error"].startswith(problem)
