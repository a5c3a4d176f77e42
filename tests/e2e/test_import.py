"""An imported model is served like a trained one: every protocol, explanations, monitoring, rollouts."""

import json
import pickle
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction import DictVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.support.placement_command import PlacementUp, run_placement
from training.example import LABEL, example_csv

FIELDS = ["tenure", "contract", "payment", "support", "senior", "monthlycharges", "totalcharges"]


@pytest.fixture(scope="module")
def customers(tmp_path_factory) -> Path:
    """A directory with customers.csv, and a model's versions as others save them: churn.pkl, later.pkl."""
    directory = tmp_path_factory.mktemp("customers")
    (directory / "customers.csv").write_text(example_csv())
    table = pd.read_csv(directory / "customers.csv").fillna(0)
    rows = table[FIELDS].to_dict(orient="records")
    labels = np.where(table[LABEL] == "yes", 1, 0)
    vectorizer = DictVectorizer(sparse=False)
    forest = RandomForestClassifier(20, n_jobs=2, random_state=1)
    (directory / "churn.pkl").write_bytes(
        pickle.dumps((vectorizer, forest.fit(vectorizer.fit_transform(rows), labels)))
    )
    # The later version has other features.
    later = make_pipeline(
        DictVectorizer(sparse=False), StandardScaler(), RandomForestClassifier(20, random_state=2)
    )
    without = [{name: value for name, value in row.items() if name != "support"} for row in rows]
    (directory / "later.pkl").write_bytes(pickle.dumps(later.fit(without, labels)))
    return directory


def ask(up: PlacementUp, path: str, content: object = None) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{up.port}{path}",
        None if content is None else json.dumps(content).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        body = response.read().decode()
    return json.loads(body) if body.startswith(("{", "[")) else body


def import_file(directory: Path, file: str, *more: object) -> str:
    arguments = ("--sample", directory / "customers.csv", "--label", LABEL, "--name", "churn")
    done = run_placement(
        *("import", directory / file, *arguments, "--storage", directory / "models", "--json"),
        *("--output", directory / f"{file}.json", *more),
    )
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["uri"])


def test_an_imported_model_of_three_classes_is_served(tmp_path):
    """A pickle with texts of pandas as classes, a list of categories, and booleans."""
    random = np.random.default_rng(0)
    rows: list[dict[str, Any]] = [
        {
            "size": int(random.integers(0, 100)),
            "tags": [str(one) for one in random.choice(["new", "old", "blue"], random.integers(4))],
            "town": str(random.choice(["Ulm", "Köln"])),
            "paid": bool(random.random() < 0.5),
        }
        for _ in range(150)
    ]
    numbers = [row["size"] + 30 * row["tags"].count("new") + 20 * row["paid"] for row in rows]
    grades = pd.Series(np.array(["low", "mid", "hoch ä"])[np.digitize(numbers, [50, 100])], dtype=object)
    model = make_pipeline(DictVectorizer(sparse=False), RandomForestClassifier(10, random_state=0))
    (tmp_path / "grade.pkl").write_bytes(pickle.dumps(model.fit(rows, grades)))
    sample = [{**row, "grade": grade} for row, grade in zip(rows, grades, strict=True)]
    (tmp_path / "sample.json").write_text(json.dumps(sample))
    done = run_placement(
        *("import", tmp_path / "grade.pkl", "--sample", tmp_path / "sample.json"),
        *("--storage", tmp_path / "models", "--output", tmp_path / "grade.json"),
    )
    assert done.returncode == 0, done.stderr
    assert "predicts  grade, one of 3 classes, and the probability of each" in done.stdout
    asked = [*rows[:20], {**rows[0], "tags": []}]
    expected = model.predict_proba(asked)
    classes = model.classes_.tolist()
    with PlacementUp(tmp_path / "models/grade/v1", tmp_path / "run") as up:
        up.wait_for("ready")
        answers = ask(up, "/v1/models/grade:predict", {"instances": asked})["predictions"]
        assert [one["grade"] for one in answers] == model.predict(asked).tolist()
        assert [list(one["grade_probabilities"]) for one in answers] == [classes] * len(asked)
        given = [list(one["grade_probabilities"].values()) for one in answers]
        np.testing.assert_allclose(given, expected, atol=1e-12)
        tensor = {
            "name": "candidates",
            "datatype": "BYTES",
            "shape": [len(asked)],
            "data": [json.dumps(row) for row in asked],
        }
        outputs = ask(up, "/v2/models/grade/infer", {"inputs": [tensor]})["outputs"]
        assert [(one["name"], one["datatype"], one["shape"]) for one in outputs] == [
            ("grade", "BYTES", [len(asked)]),
            ("grade_probabilities", "FP64", [len(asked), 3]),
        ]
        assert outputs[0]["data"] == model.predict(asked).tolist()
        np.testing.assert_allclose(np.reshape(outputs[1]["data"], (-1, 3)), expected, atol=1e-12)
        (explained,) = ask(up, "/v1/models/grade:explain", {"instances": rows[:1]})["explanations"]
        assert set(explained["contributions"]) == {"size", "tags", "town", "paid"}


def test_an_imported_model_is_served_and_rolled_out_like_a_trained_one(customers, tmp_path):
    first = import_file(customers, "churn.pkl")
    second = import_file(customers, "later.pkl", "--previous", first)
    rows = pd.read_csv(customers / "customers.csv").fillna(0)[FIELDS].to_dict(orient="records")
    vectorizer, model = pickle.loads((customers / "churn.pkl").read_bytes())
    expected = model.predict_proba(vectorizer.transform(rows))[:, 1]
    with PlacementUp(Path(first), tmp_path) as up:
        up.wait_for("ready")
        answers = ask(up, "/v1/models/churn:predict", {"instances": rows[:50]})["predictions"]
        np.testing.assert_allclose([one["churn_probability"] for one in answers], expected[:50], atol=1e-12)
        assert [one["churn"] for one in answers] == (expected[:50] >= 0.5).tolist()
        tensors = [
            {
                "name": name,
                "datatype": "BYTES" if isinstance(rows[0][name], str) else "FP64",
                "shape": [50],
                "data": [row[name] for row in rows[:50]],
            }
            for name in FIELDS
        ]
        outputs = ask(up, "/v2/models/churn/infer", {"inputs": tensors})["outputs"]
        np.testing.assert_allclose(outputs[1]["data"], expected[:50], atol=1e-12)
        metadata = ask(up, "/v2/models/churn")
        assert [one["name"] for one in metadata["inputs"]][:2] == ["tenure", "contract"]
        assert "/v1/models/churn:predict" in ask(up, "/openapi.json")["paths"]
        (explained,) = ask(up, "/v1/models/churn:explain", {"instances": rows[:1]})["explanations"]
        assert set(explained["contributions"]) == set(FIELDS)
        total = explained["baseline"] + sum(explained["contributions"].values())
        assert total == pytest.approx(expected[0], abs=1e-6)
        drift = run_placement("status", "--run", tmp_path, "--drift")
        assert drift.returncode == 0, drift.stderr
        assert "monthlycharges" in drift.stdout
        rolled = run_placement("rollout", second, "--run", tmp_path)
        assert rolled.returncode == 0, rolled.stderr
        later = pickle.loads((customers / "later.pkl").read_bytes())
        answers = ask(up, "/v1/models/churn:predict", {"instances": [
            {name: value for name, value in row.items() if name != "support"} for row in rows[:50]
        ]})["predictions"]  # fmt: skip
        np.testing.assert_allclose(
            [one["churn_probability"] for one in answers], later.predict_proba(rows[:50])[:, 1], atol=1e-12
        )
