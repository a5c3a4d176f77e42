"""Each kind of question is trained, verified, answered over every protocol, explained, counted, described."""

import asyncio
import html
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pyarrow as pa
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from placement.drift import read_drift
from placement.outputs import Output, predictions
from placement.service_predictor import ServicePredictor
from scoring.batch import answer as answer_batch
from scoring.predictor import BundlePredictor
from tests.support.fake_mlserver import FakeMLServer
from tests.support.in_process_transformer import InProcessTransformer, in_process_transformer
from tests.support.kinds import NAME, QUESTIONS, Question, Trained, train_question
from tests.support.sklearn_reference import SklearnReference
from transformer.bundle.format import BUNDLE_FILE, load_bundle

ROWS: list[dict[str, Any]] = [
    {"size": 1.0, "age": 0.5, "town": "Ulm"},
    {"size": 9.5, "age": 5.5, "town": "Bonn"},
    {"size": 5, "town": "Köln"},
    {"size": 0, "age": 0, "town": "Köln"},
]
V1, V2 = f"/v1/models/{NAME}", f"/v2/models/{NAME}"
DATATYPES = {str: "BYTES", int: "INT64", float: "FP64", bool: "BOOL"}


@pytest.fixture(scope="module", params=list(QUESTIONS), ids=lambda name: name)
def question(request: pytest.FixtureRequest) -> Question:
    return QUESTIONS[request.param]


@pytest.fixture(scope="module")
def trained(question: Question, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_question(question, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def newer(question: Question, trained: Trained) -> Trained:
    """The next version, which was trained on other data."""
    storage = trained.directory.parent.parent
    return train_question(question, storage, version="v2", previous=str(trained.directory), seed=5)


@pytest.fixture
async def served(trained: Trained) -> AsyncIterator[InProcessTransformer]:
    async with (
        FakeMLServer(SklearnReference(trained.directory)).running() as predictor,
        in_process_transformer(trained.directory, predictor.address, "--predictor_protocol=v2") as running,
    ):
        yield running


def same(given: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Compare answers: the keys in order, classes and booleans exactly, numbers but for rounding."""
    assert len(given) == len(expected)
    for one, other in zip(given, expected, strict=True):
        assert list(one) == list(other)
        for name, value in other.items():
            assert type(one[name]) is type(value)
            if isinstance(value, dict):
                assert one[name] == pytest.approx(value, abs=1e-12)
                assert list(one[name]) == list(value)
            elif isinstance(value, float):
                assert one[name] == pytest.approx(value, rel=1e-12)
            else:
                assert one[name] == value


async def post(served: InProcessTransformer, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = await served.http.post(path, json=body)
    assert response.status_code == 200, response.text
    assert response.headers["x-model-version"] == "v1"
    content: dict[str, Any] = response.json()
    return content


def tensors() -> list[dict[str, Any]]:
    datatypes = {"size": "FP64", "age": "FP64", "town": "BYTES"}
    return [
        {"name": name, "datatype": datatype, "shape": [4], "data": [row.get(name) for row in ROWS]}
        for name, datatype in datatypes.items()
    ]


async def test_every_protocol_gives_scikit_learns_answers(served, trained):
    expected = trained.answers(ROWS)
    same((await post(served, f"{V1}:predict", {"instances": ROWS}))["predictions"], expected)
    response = await post(served, f"{V2}/infer", {"inputs": tensors()})
    outputs = [
        Output(one["name"], one["data"], one.get("parameters", {}).get("classes"))
        for one in response["outputs"]
    ]
    same(predictions(outputs), expected)
    request = pb.ModelInferRequest(model_name=NAME)
    tensor = request.inputs.add(name="candidates", datatype="BYTES", shape=[4])
    tensor.contents.bytes_contents.extend(json.dumps(row).encode() for row in ROWS)
    answer = await served.grpc.ModelInfer(request)
    found = []
    for output in answer.outputs:
        (values,) = (values for _, values in output.contents.ListFields())
        decoded = [value.decode() if isinstance(value, bytes) else value for value in values]
        classes = output.parameters["classes"].string_param if "classes" in output.parameters else None
        found.append(Output(output.name, decoded, classes))
    same(predictions(found), expected)
    # Binary data, which has no type of its own.
    raw = await served.http.post(
        f"{V2}/infer", json={"inputs": tensors(), "parameters": {"binary_data_output": True}}
    )
    length = int(raw.headers["inference-header-content-length"])
    first = json.loads(raw.content[:length])["outputs"][0]
    answers = [row[NAME] for row in expected]
    data = raw.content[length : length + first["parameters"]["binary_data_size"]]
    if first["datatype"] == "BYTES":
        assert data == b"".join(len(text.encode()).to_bytes(4, "little") + text.encode() for text in answers)
    else:
        dtype = {"BOOL": "?", "INT64": "<i8", "FP64": "<f8"}[first["datatype"]]
        np.testing.assert_allclose(np.frombuffer(data, dtype), answers, rtol=1e-12)


async def test_bulk_scoring_gives_the_services_answers_bit_for_bit(served, trained):
    candidates = trained.dataset.candidates[:50]
    batch = pa.RecordBatch.from_pylist(candidates)

    def through_the_service() -> pa.RecordBatch:
        with closing(ServicePredictor(str(served.http.base_url), NAME)) as predictor:
            return answer_batch(batch, predictor)

    scored = answer_batch(batch, BundlePredictor(str(trained.directory)))
    assert scored.equals(await asyncio.to_thread(through_the_service))
    for row, expected in zip(scored.to_pylist(), trained.answers(candidates), strict=True):
        label, *scores = expected.values()
        assert type(row["prediction"]) is type(label)
        assert (row["prediction"], row["version"], row["error"]) == (label, "v1", None)
        highest = [max(one.values()) if isinstance(one, dict) else one for one in scores]
        assert [row[name] for name in row if name == "probability"] == pytest.approx(highest, rel=1e-12)


async def test_the_metadata_has_the_datatypes_and_shapes_of_the_outputs(served, question, trained):
    shapes = {
        one["name"]: (one["datatype"], one["shape"]) for one in (await served.http.get(V2)).json()["outputs"]
    }
    datatype = {
        "binary": "BOOL",
        "multiclass": DATATYPES[type(question.classes[0])] if question.classes else "",
        "regression": "FP64",
    }[question.kind]
    assert shapes[NAME] == (datatype, [-1])
    has_probabilities = hasattr(trained.model, "predict_proba")
    columns = [len(question.classes)] if question.kind == "multiclass" else []
    name = f"{NAME}_probabilities" if columns else f"{NAME}_probability"
    assert shapes.get(name) == (("FP64", [-1, *columns]) if has_probabilities else None)
    assert (f"{NAME}_changes" in shapes) == (question.kind == "binary")
    metadata = await served.grpc.ModelMetadata(pb.ModelMetadataRequest(name=NAME))
    assert {one.name: (one.datatype, list(one.shape)) for one in metadata.outputs} == shapes


async def test_the_openapi_description_allows_the_answers(served):
    description = (await served.http.get("/openapi.json")).json()

    def check(name: str, content: object) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": description["components"]}
        jsonschema_rs.Draft202012Validator(schema).validate(content)

    check("PredictResponse", await post(served, f"{V1}:predict", {"instances": ROWS}))
    check("InferResponse", await post(served, f"{V2}/infer", {"inputs": tensors()}))
    check("ExplainResponse", await post(served, f"{V1}:explain", {"instances": ROWS[:2]}))


async def test_an_explanation_adds_up_to_the_score_of_the_answer(served, trained, question):
    explained = (await post(served, f"{V1}:explain", {"instances": ROWS[:2]}))["explanations"]
    answers = trained.answers(ROWS[:2])
    background = trained.bundle.background
    assert background is not None
    baselines = trained.answers(list(background.candidates))
    for one, answer in zip(explained, answers, strict=True):

        def score(other: dict[str, Any], answer: dict[str, Any] = answer) -> float:
            if f"{NAME}_probability" in other:
                return float(other[f"{NAME}_probability"])
            if f"{NAME}_probabilities" in other:
                return float(other[f"{NAME}_probabilities"][str(answer[NAME])])
            if question.kind == "regression":
                return float(other[NAME])
            return float(other[NAME] if question.kind == "binary" else other[NAME] == answer[NAME])

        mean = float(np.dot([score(row) for row in baselines], background.weights))
        assert one["baseline"] == pytest.approx(mean, rel=1e-6, abs=1e-9)
        total = one["baseline"] + sum(one["contributions"].values())
        assert total == pytest.approx(score(answer), rel=1e-9, abs=1e-9)
        assert ("changes" in one) == (answer[NAME] is False)
        for change in one.get("changes", ()):
            (turned,) = trained.answers([{**dict(zip(("size", "age", "town"), (0, 3.0, ""), strict=True)),
                                          **ROWS[explained.index(one)], **change}])  # fmt: skip
            assert turned[NAME] is True


async def test_values_scores_and_decisions_are_counted(trained, question, tmp_path):
    # A version of its own, because the metrics are those of the process.
    version = f"counted-{list(QUESTIONS.values()).index(question)}"
    shutil.copytree(trained.directory, tmp_path / version)
    bundle = trained.bundle.model_copy(update={"version": version})
    (tmp_path / version / BUNDLE_FILE).write_text(bundle.to_json())
    rows = [*trained.bundle.reference.candidates]
    async with (
        FakeMLServer(SklearnReference(trained.directory)).running() as predictor,
        in_process_transformer(tmp_path / version, predictor.address, "--predictor_protocol=v2") as running,
    ):
        response = await running.http.post(f"{V1}:predict", json={"instances": rows})
        assert response.status_code == 200
        metrics = (await running.http.get("/metrics")).text
    (drift,) = [one for one in read_drift([metrics]) if one.version == version]
    answers = [row[NAME] for row in trained.answers([dict(row) for row in rows])]
    assert (drift.candidates, drift.training_candidates) == (len(rows), 240)
    assert {one.field for one in drift.fields} == {"size", "age", "town"}
    if question.kind == "binary":
        assert drift.selection_rate == pytest.approx(np.mean(answers))
    else:
        assert drift.selection_rate is None
    if question.kind == "multiclass":
        shares = {str(label): answers.count(label) / len(rows) for label in question.classes}
        assert drift.class_shares == pytest.approx(shares)
    has_scores = question.kind == "regression" or hasattr(trained.model, "predict_proba")
    assert (drift.score_distance is not None) == has_scores


async def test_another_model_of_the_same_encoding_is_not_taken_for_this_version(trained, newer):
    async with (
        FakeMLServer(SklearnReference(newer.directory)).running() as predictor,
        in_process_transformer(trained.directory, predictor.address, "--predictor_protocol=v2") as running,
    ):
        response = await running.http.post(f"{V1}:predict", json={"instances": ROWS})
        assert response.headers["x-model-version"] == "unverified"


async def test_a_version_recognises_its_predecessor(trained, newer):
    assert newer.bundle.previous[0].target == trained.bundle.target
    async with (
        FakeMLServer(SklearnReference(trained.directory)).running() as predictor,
        in_process_transformer(newer.directory, predictor.address, "--predictor_protocol=v2") as running,
    ):
        answers = (await post(running, f"{V1}:predict", {"instances": ROWS}))["predictions"]
        same(answers, trained.answers(ROWS))


def test_the_bundle_is_the_same_after_it_was_read_again_and_has_metrics_that_fit(trained, question):
    bundle = load_bundle(trained.directory)
    assert bundle == trained.bundle
    assert bundle.target.kind == question.kind
    has_probabilities = hasattr(trained.model, "predict_proba")
    expected = {
        "binary": {"accuracy", "f1", "precision", "recall"},
        "multiclass": {"accuracy", "macro_f1"},
        "regression": {"mae", "rmse", "r2"},
    }[question.kind]
    if has_probabilities:
        expected |= {"brier", "log_loss"} | ({"roc_auc"} if question.kind == "binary" else set())
    assert bundle.metrics.keys() == expected
    assert bundle.metrics.get("accuracy", bundle.metrics.get("r2", 0)) > 0.7


def test_the_report_says_what_the_model_gives(trained, question):
    page = trained.report.read_text()
    headline = "Wrong by <em>" if question.kind == "regression" else "Correct for <em>"
    assert headline in page
    for label in question.classes:
        text = json.dumps(label) if isinstance(label, bool) else str(label)
        assert f"is {html.escape(text)}" in page
    has_threshold = question.kind == "binary" and hasattr(trained.model, "predict_proba")
    assert ("What if the threshold were different?" in page) == has_threshold


def test_another_kind_of_question_is_another_model(tmp_path: Path):
    first = train_question(QUESTIONS["three texts"], tmp_path)
    with pytest.raises(Exception, match=r"v1 has a multiclass model and other outputs than this regression"):
        train_question(QUESTIONS["a number"], tmp_path, version="v2", previous=str(first.directory))
