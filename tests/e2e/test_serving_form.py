"""The stock runtimes load a forest's serving form, and answer with the forest's results."""

import json
import subprocess
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import RandomForestClassifier

from predictor.environment import ensure
from predictor.process import PredictorProcess
from predictor.runtimes import RUNTIMES, get_runtime
from tests.support.endpoints import V1_PREDICT, V2_INFER
from tests.support.sync_processes import running_predictor
from training.bundling import dump
from training.served import serve

NAMES = ["degree_t=Comm&Mgmt", "gender=F", "gender=M", "ssc_p"]
ROWS = np.random.default_rng(7).random((200, len(NAMES))) * 100
FRAME = pd.DataFrame(np.random.default_rng(0).random((200, len(NAMES))) * 100, columns=NAMES)

#: Loads a model in a runtime's environment, which has nothing of this project.
SCRIPT = """
import json, sys, joblib, pandas
model, rows = joblib.load(sys.argv[1]), pandas.DataFrame(json.load(sys.stdin))
refused = []
for columns in (rows.columns[::-1], rows.columns[1:]):
    try:
        model.predict_proba(rows[columns])
    except ValueError as error:
        refused.append(str(error))
answers = [model.predict_proba(rows).tolist(), model.predict(rows).tolist(), refused]
print(json.dumps([*answers, any(name.startswith("training") for name in sys.modules)]))
"""


def labels(classes: int) -> np.ndarray:
    total: np.ndarray = FRAME.sum(axis=1).to_numpy()
    return np.array(["no", "yes", "often"])[np.digitize(total, [200, 260][: classes - 1])]


@pytest.fixture(scope="module", params=[(2, 64), (2, 50), (3, 50)], ids="{0[0]} classes, {0[1]} trees".format)
def forest(request: pytest.FixtureRequest) -> RandomForestClassifier:
    classes, trees = request.param
    return RandomForestClassifier(trees, max_depth=5, random_state=0).fit(FRAME, labels(classes))


@pytest.fixture
def model_dir(forest: RandomForestClassifier, tmp_path: Path) -> Path:
    served = serve(forest, FRAME, 1)
    assert served.rows
    (tmp_path / "model.joblib").write_bytes(dump(served.model))
    return tmp_path


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtimes_environment_loads_it(name, forest, model_dir):
    runtime = get_runtime(name)
    rows = pd.DataFrame(ROWS, columns=NAMES)
    done = subprocess.run(
        [ensure(runtime), "-c", SCRIPT, model_dir / "model.joblib"],
        input=json.dumps(rows.to_dict("list")),
        capture_output=True,
        text=True,
        check=True,
        cwd=model_dir,
    )
    probabilities, classes, refused, imported = json.loads(done.stdout)
    np.testing.assert_array_equal(np.array(probabilities)[:, 1], forest.predict_proba(rows)[:, 1])
    np.testing.assert_allclose(probabilities, forest.predict_proba(rows), rtol=0, atol=1e-12)
    assert classes == forest.predict(rows).tolist()
    assert "must be in the same order" in refused[0]
    assert "yet now missing" in refused[1]
    assert not imported


@pytest.fixture(params=["kserve-mlserver", "kserve-sklearnserver"])
def server(request: pytest.FixtureRequest, model_dir: Path) -> Iterator[PredictorProcess]:
    runtime = get_runtime(request.param)
    with running_predictor(runtime, model_dir, env=runtime.probability_env) as process:
        yield process


def post(server: PredictorProcess, path: str, body: dict[str, Any]) -> dict[str, Any]:
    connection = HTTPConnection("127.0.0.1", server.http_port, timeout=30)
    try:
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200
        content: dict[str, Any] = json.loads(response.read())
        return content
    finally:
        connection.close()


def v2(*outputs: str) -> dict[str, Any]:
    tensor = {"name": "rows", "datatype": "FP64", "shape": ROWS.shape, "data": ROWS.ravel().tolist()}
    return {"inputs": [tensor], "outputs": [{"name": name} for name in outputs]}


def test_a_stock_server_answers_with_the_forests_probabilities(server, forest):
    expected = forest.predict_proba(pd.DataFrame(ROWS, columns=NAMES))
    content = post(server, V2_INFER, v2(server.runtime.probability_output))
    (output,) = content["outputs"]
    answered = np.reshape(output["data"], output["shape"])
    np.testing.assert_array_equal(answered[:, 1], expected[:, 1])
    if "v1" in server.runtime.protocols:
        rows = post(server, V1_PREDICT, {"instances": ROWS.tolist()})["predictions"]
        np.testing.assert_array_equal(np.array(rows)[:, 1], expected[:, 1])
    else:
        # MLServer answers `predict` unless a request asks for another output.
        (output,) = post(server, V2_INFER, v2())["outputs"]
        assert output["name"] == "predict"
        assert output["data"] == forest.predict(pd.DataFrame(ROWS, columns=NAMES)).tolist()
