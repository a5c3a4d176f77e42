"""Every type of field goes the whole way: from a table to an answer that equals DictVectorizer's."""

import json
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from prometheus_client.parser import text_string_to_metric_families

from placement.candidate_file import open_candidates
from placement.client import connect
from tests.support.fake_mlserver import FakeMLServer
from tests.support.in_process_transformer import InProcessTransformer, in_process_transformer
from tests.support.prometheus_samples import sum_of
from tests.support.sklearn_reference import SklearnReference, vectorizer_of
from training.candidates import Task
from training.cells import LIST
from training.data import read_dataset
from training.train import train
from transformer.bundle.format import MODEL_FILE, load_bundle

TASK = {
    "signature": {
        "fields": [
            {"name": "price", "type": "number", "minimum": 0},
            {"name": "rooms", "type": "integer", "minimum": 1, "maximum": 9},
            {"name": "garden", "type": "boolean", "default": False},
            {"name": "area", "type": "category", "categories": ["1010", "1020", "8010"]},
            {"name": "agent", "type": "category", "categories": ["ada", "bob"], "open": True},
            {"name": "tags", "type": "categories", "categories": ["lift", "pool", "view"], "open": True},
        ]
    },
    "label": "sold",
    "classes": [False, True],
    "positive_class": True,
}
#: Rows as clients send them, and as DictVectorizer must get them.
ROWS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"price": 3.5, "rooms": 2, "garden": True, "area": "1010", "agent": "ada", "tags": ["pool"]},
        {"price": 3.5, "rooms": 2, "garden": True, "area": "1010", "agent": "ada", "tags": ["pool"]},
    ),
    (
        {"price": 1, "rooms": 4.0, "area": 8010, "agent": "someone", "tags": []},
        {"price": 1, "rooms": 4, "garden": False, "area": "8010", "tags": []},
    ),
    (
        {
            "price": 0,
            "rooms": 9,
            "garden": 1,
            "area": "1020",
            "agent": "bob",
            "tags": ["lift", "sauna", "lift"],
        },
        {"price": 0, "rooms": 9, "garden": True, "area": "1020", "agent": "bob", "tags": ["lift", "lift"]},
    ),
]
SENT, MEANT = [sent for sent, _ in ROWS], [meant for _, meant in ROWS]
V1 = "/v1/models/homes:predict"


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version that was trained on a table with these types."""
    directory = tmp_path_factory.mktemp("homes")
    (directory / "task.json").write_text(json.dumps(TASK))
    random = np.random.default_rng(0)
    lines = ["price,rooms,garden,area,agent,tags,sold"]
    for number in range(120):
        garden = number % 3 == 0
        tags = [" lift | pool ", '"[""view"", ""view""]"', "", "sauna"][number % 4]
        agent = ("ada", "bob", "eve")[random.integers(3)]
        area = (1010, 1020, 8010)[random.integers(3)]
        sold = ("TRUE", "False")[int(random.random() < (0.2 if garden else 0.8))]
        numbers = f"{random.uniform(0, 9):.2f},{random.integers(1, 10)}"
        lines.append(f"{numbers},{('', 'yes')[garden]},{area},{agent},{tags},{sold}")
    (directory / "homes.csv").write_text("\n".join(lines))
    dataset = read_dataset(directory / "homes.csv", Task.read(directory / "task.json"))
    assert dataset.candidates[0]["tags"] == ("lift", "pool")
    assert dataset.candidates[1]["tags"] == ("view", "view")
    assert dataset.candidates[2]["tags"] == ()
    trained = train(dataset, storage=directory / "models", name="homes", estimator="forest-50")
    return Path(trained.uri)


@pytest.fixture
async def served(version: Path) -> AsyncIterator[InProcessTransformer]:
    async with (
        FakeMLServer(SklearnReference(version)).running() as predictor,
        in_process_transformer(version, predictor.address, "--predictor_protocol=v2") as running,
    ):
        yield running


def expected(version: Path) -> list[float]:
    vectorizer = vectorizer_of(load_bundle(version))
    frame = pd.DataFrame(vectorizer.transform(MEANT), columns=vectorizer.feature_names_)
    scores: list[float] = joblib.load(version / MODEL_FILE).predict_proba(frame)[:, 1].tolist()
    return scores


async def test_every_type_is_encoded_as_dictvectorizer_does(served, version):
    response = await served.http.post(V1, json={"instances": SENT})
    assert response.status_code == 200, response.text
    given = [one["homes_probability"] for one in response.json()["predictions"]]
    assert given == pytest.approx(expected(version), abs=1e-12)


async def test_tensors_have_the_types_of_the_metadata_and_lists_are_json(served, version):
    inputs = (await served.http.get("/v2/models/homes")).json()["inputs"]
    assert [one["datatype"] for one in inputs] == ["FP64", "INT64", "BOOL", "BYTES", "BYTES", "BYTES"]

    def element(name: str, value: Any) -> Any:
        if name == "area":
            return str(value)
        if name == "garden":
            return None if value is None else bool(value)
        return json.dumps(value) if name == "tags" else int(value) if name == "rooms" else value

    tensors = [
        {**one, "shape": [3], "data": [element(one["name"], row.get(one["name"])) for row in SENT]}
        for one in inputs
    ]
    response = await served.http.post("/v2/models/homes/infer", json={"inputs": tensors})
    assert response.status_code == 200, response.text
    assert response.json()["outputs"][1]["data"] == pytest.approx(expected(version), abs=1e-12)


@pytest.mark.parametrize("protocol", ["v1", "v2", "grpc"])
@pytest.mark.parametrize("name", ["homes.csv", "homes.jsonl", "texts.jsonl"])
async def test_the_client_reads_lists_as_training_does(served, version, tmp_path, name, protocol):
    rows: list[dict[str, Any]] = [
        {"price": 3.5, "rooms": 2, "garden": True, "area": "1010", "agent": "ada", "tags": ["pool"]},
        {"price": 1, "rooms": 4, "area": "8010", "agent": "eve", "tags": None},
        {"price": 0, "rooms": 9, "garden": 1, "area": "1020", "agent": "bob", "tags": ["lift", "a", "lift"]},
    ]  # fmt: skip
    if name != "homes.jsonl":
        rows = [{**row, "tags": " | ".join(row["tags"]) if row["tags"] else ""} for row in rows]
    frame = pd.DataFrame(rows)
    text = frame.to_csv(index=False) if name == "homes.csv" else "\n".join(map(json.dumps, rows))
    (tmp_path / name).write_text(text)
    address = served.grpc_address if protocol == "grpc" else str(served.http.base_url)
    client = connect(address, "homes", protocol)
    try:
        with ExitStack() as stack:
            file = open_candidates(str(tmp_path / name), await client.fields(), stack)
            answer = await client.predict([one.candidate for one in file.candidates])
    finally:
        await client.close()
    given = [one["homes_probability"] for one in answer.predictions]
    assert given == pytest.approx(expected(version), abs=1e-12)


async def test_a_file_of_one_object_with_only_lists_is_one_row(tmp_path):
    fields = {"actors": LIST, "genres": LIST}
    row = {"actors": ["A", "B"], "genres": ["x", "y"]}
    columns = {"actors": [["A", "B"]], "genres": [["x", "y"]]}
    for number, content in enumerate((row, [row], {"instances": [row]}, {"inputs": [row]}, columns)):
        (tmp_path / f"{number}.json").write_text(json.dumps(content))
        with ExitStack() as stack:
            file = open_candidates(str(tmp_path / f"{number}.json"), fields, stack)
            assert [one.candidate for one in file.candidates] == [row], content


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"rooms": 2.5}, "instances[0].rooms: must be a whole number, 1 to 9, got 2.5"),
        ({"rooms": "2"}, "instances[0].rooms: must be a number, a whole number, 1 to 9, got a string '2'"),
        ({"garden": "yes"}, "instances[0].garden: must be true or false, got a string 'yes'"),
        ({"area": "9999"}, "instances[0].area: must be one of 1010, 1020, 8010, got '9999'"),
        ({"area": 9999}, "instances[0].area: must be a string, one of 1010, 1020, 8010, got the number 9999"),
        ({"agent": 5}, "instances[0].agent: must be a string, for example ada, bob, got the number 5"),
        ({"tags": "pool"}, "instances[0].tags: must be an array of strings"),
        ({"tags": ["pool", 7]}, "got the number 7 at position 1"),
    ],
)
async def test_a_value_of_another_type_is_refused_by_name(served, change, error):
    response = await served.http.post(V1, json={"instances": [{**SENT[0], **change}]})
    assert response.status_code == 400
    assert error in response.json()["error"]


async def test_values_that_an_open_field_does_not_know_are_counted(served):
    def other(text: str) -> float:
        found = [one for family in text_string_to_metric_families(text) for one in family.samples]
        return sum_of(found, "transformer_candidate_values_total", field="agent", bin="other")

    before = other((await served.http.get("/metrics")).text)
    await served.http.post(V1, json={"instances": SENT})
    assert other((await served.http.get("/metrics")).text) == before + 1


async def test_an_explanation_changes_only_what_can_be_changed(served):
    response = await served.http.post("/v1/models/homes:explain", json={"instances": SENT})
    assert response.status_code == 200, response.text
    for one in response.json()["explanations"]:
        total = one["baseline"] + sum(one["contributions"].values())
        assert total == pytest.approx(one["homes_probability"], abs=1e-9)
        for change in one.get("changes", ()):
            assert "tags" not in change
            assert float(change.get("rooms", 1)).is_integer()
            assert type(change.get("garden", True)) is bool


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        (
            [{"name": "team", "type": "category", "categories": ["red"]},
             {"name": "team=red", "type": "number"}],
            "fields 'team' and 'team=red' have a feature of the same name, 'team=red'; rename one",
        ),
        (
            [{"name": "a", "type": "category", "categories": ["b=c"]},
             {"name": "a=b", "type": "categories", "categories": ["c"]}],
            "fields 'a' and 'a=b' have a feature of the same name, 'a=b=c'; rename one",
        ),
    ],
)  # fmt: skip
def test_fields_whose_features_get_one_name_are_refused_when_the_task_is_read(fields, error, tmp_path):
    (tmp_path / "task.json").write_text(json.dumps({**TASK, "signature": {"fields": fields}}))
    with pytest.raises(Exception, match="have a feature of the same name") as refused:
        Task.read(tmp_path / "task.json")
    assert error in str(refused.value)
    assert "Value error" not in str(refused.value)
