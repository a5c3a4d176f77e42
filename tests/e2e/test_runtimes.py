"""The real stock runtimes give exactly the scores of scikit-learn, and refuse other columns."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import grpc
import joblib
import numpy as np
import pandas as pd
import psutil
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from sklearn.base import ClassifierMixin
from sklearn.ensemble import RandomForestClassifier

from predictor.environment import ensure
from predictor.last_words import last_words
from predictor.process import PredictorProcess
from predictor.runtimes import QUIET_ENV, RUNTIMES, get_runtime
from tests.support.endpoints import V1_PREDICT, V2_INFER
from tests.support.sync_processes import running_predictor
from tests.support.waiting import wait_until_sync

NAMES = ["degree_t=Comm&Mgmt", "gender=F", "gender=M", "ssc_p"]
WRONG_NAMES = {
    "other names": (["degree_t=Arts", *NAMES[1:]], "unseen at fit time:\n- degree_t=Arts"),
    "another order": (NAMES[::-1], "must be in the same order"),
    "one missing": (NAMES[:3], "yet now missing:\n- ssc_p"),
}
Answer = tuple[int, dict[str, Any]]


@pytest.fixture(scope="session")
def rows() -> np.ndarray:
    values: np.ndarray = np.random.default_rng(7).random((7, len(NAMES))) * 100
    return values


@pytest.fixture(scope="session")
def forest() -> ClassifierMixin:
    candidates = pd.DataFrame(np.random.default_rng(0).random((200, len(NAMES))) * 100, columns=NAMES)
    placed = candidates.sum(axis=1) > 200
    classifier = RandomForestClassifier(10, random_state=0)
    classifier.fit(candidates, placed)
    return classifier


@pytest.fixture(scope="session")
def expected(forest: ClassifierMixin, rows: np.ndarray) -> np.ndarray:
    probabilities: np.ndarray = forest.predict_proba(pd.DataFrame(rows, columns=NAMES))
    return probabilities


@pytest.fixture(scope="session")
def model_dir(forest: ClassifierMixin, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("storage") / "v1"
    directory.mkdir()
    joblib.dump(forest, directory / "model.joblib")
    (directory / "bundle.json").write_text("{}")
    return directory


def running(name: str, model_dir: Path) -> AbstractContextManager[PredictorProcess]:
    runtime = get_runtime(name)
    return running_predictor(runtime, model_dir, env={**runtime.probability_env, **QUIET_ENV})


@pytest.fixture(scope="session")
def mlserver(model_dir: Path) -> Iterator[PredictorProcess]:
    with running("kserve-mlserver", model_dir) as process:
        yield process


@pytest.fixture(scope="session")
def sklearnserver(model_dir: Path) -> Iterator[PredictorProcess]:
    with running("kserve-sklearnserver", model_dir) as process:
        yield process


@pytest.fixture(scope="session")
def predictiveserver(model_dir: Path) -> Iterator[PredictorProcess]:
    with running("kserve-predictiveserver", model_dir) as process:
        yield process


@pytest.fixture(params=list(RUNTIMES))
def server(request: pytest.FixtureRequest) -> PredictorProcess:
    """Each runtime, over the protocol that they share."""
    process: PredictorProcess = request.getfixturevalue(request.param.removeprefix("kserve-"))
    return process


# Requests


def post(process: PredictorProcess, path: str, body: Mapping[str, Any]) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", process.http_port, timeout=30)
    try:
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def v1_named(names: Sequence[str], rows: np.ndarray) -> dict[str, Any]:
    return {"instances": [{name: rows[:, i].tolist() for i, name in enumerate(names)}]}


def v2_outputs(process: PredictorProcess) -> list[dict[str, str]]:
    return [{"name": process.runtime.probability_output}]


def v2_named(process: PredictorProcess, names: Sequence[str], rows: np.ndarray) -> dict[str, Any]:
    columns = [
        {"name": name, "datatype": "FP64", "shape": [len(rows), 1], "data": rows[:, i].tolist()}
        for i, name in enumerate(names)
    ]
    return {"parameters": {"content_type": "pd"}, "inputs": columns, "outputs": v2_outputs(process)}


def v2_plain(process: PredictorProcess, rows: np.ndarray) -> dict[str, Any]:
    array = {"name": "rows", "datatype": "FP64", "shape": list(rows.shape), "data": rows.ravel().tolist()}
    return {"inputs": [array], "outputs": v2_outputs(process)}


def grpc_named(process: PredictorProcess, names: Sequence[str], rows: np.ndarray) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="placement")
    request.parameters["content_type"].string_param = "pd"
    for i, name in enumerate(names):
        column = request.inputs.add(name=name, datatype="FP64", shape=[len(rows), 1])
        column.contents.fp64_contents.extend(rows[:, i])
    request.outputs.add(name=process.runtime.probability_output)
    return request


def grpc_plain(process: PredictorProcess, rows: np.ndarray, *, raw: bool) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="placement")
    array = request.inputs.add(name="rows", datatype="FP64", shape=rows.shape)
    if raw:
        request.raw_input_contents.append(rows.tobytes())
    else:
        array.contents.fp64_contents.extend(rows.ravel())
    request.outputs.add(name=process.runtime.probability_output)
    return request


def infer(process: PredictorProcess, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    with grpc.insecure_channel(f"127.0.0.1:{process.grpc_port}") as channel:
        return GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=30)


def v2_probabilities(answer: Answer) -> np.ndarray:
    status, body = answer
    assert status == 200, body
    return np.array(body["outputs"][0]["data"]).reshape(body["outputs"][0]["shape"])


def grpc_probabilities(answer: pb.ModelInferResponse) -> np.ndarray:
    output = answer.outputs[0]
    if answer.raw_output_contents:
        return np.frombuffer(answer.raw_output_contents[0]).reshape(output.shape)
    return np.array(output.contents.fp64_contents).reshape(output.shape)


def assert_equal(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


# Scores


def test_v2_scores_named_columns(server: PredictorProcess, rows: np.ndarray, expected: np.ndarray) -> None:
    answer = post(server, V2_INFER, v2_named(server, NAMES, rows))
    assert answer[1]["outputs"][0]["name"] == server.runtime.probability_output
    assert_equal(v2_probabilities(answer), expected)


def test_v2_scores_a_plain_array(server: PredictorProcess, rows: np.ndarray, expected: np.ndarray) -> None:
    answer = post(server, V2_INFER, v2_plain(server, rows))
    assert_equal(v2_probabilities(answer), expected)


def test_grpc_scores_named_columns(server: PredictorProcess, rows: np.ndarray, expected: np.ndarray) -> None:
    answer = infer(server, grpc_named(server, NAMES, rows))
    assert answer.outputs[0].name == server.runtime.probability_output
    assert_equal(grpc_probabilities(answer), expected)


@pytest.mark.parametrize("raw", [False, True], ids=["typed", "raw"])
def test_grpc_scores_a_plain_array(
    server: PredictorProcess, rows: np.ndarray, expected: np.ndarray, raw: bool
) -> None:
    assert_equal(grpc_probabilities(infer(server, grpc_plain(server, rows, raw=raw))), expected)


def test_v1_scores_named_columns(
    sklearnserver: PredictorProcess, rows: np.ndarray, expected: np.ndarray
) -> None:
    status, body = post(sklearnserver, V1_PREDICT, v1_named(NAMES, rows))
    assert status == 200
    assert_equal(np.array(body["predictions"]), expected)


def test_v1_scores_plain_rows(
    sklearnserver: PredictorProcess, rows: np.ndarray, expected: np.ndarray
) -> None:
    status, body = post(sklearnserver, V1_PREDICT, {"instances": rows.tolist()})
    assert status == 200
    assert_equal(np.array(body["predictions"]), expected)


def test_plain_arrays_leave_no_warning_in_the_log(server: PredictorProcess, rows: np.ndarray) -> None:
    """The refusals below show that columns with wrong names are still an error."""
    for _ in range(5):
        v2_probabilities(post(server, V2_INFER, v2_plain(server, rows)))
    log = "\n".join(server.tail(60))
    assert log, "the start of the server"
    assert "valid feature names" not in log


# Refusals, on which the transformer's verification relies


@pytest.mark.parametrize(("names", "reason"), WRONG_NAMES.values(), ids=WRONG_NAMES)
def test_v2_refuses_wrong_columns(
    server: PredictorProcess, names: list[str], reason: str, rows: np.ndarray
) -> None:
    status, body = post(server, V2_INFER, v2_named(server, names, rows))
    assert status == 500
    assert "The feature names should match those that were passed during fit" in body["error"]
    assert reason in body["error"]


@pytest.mark.parametrize(("names", "reason"), WRONG_NAMES.values(), ids=WRONG_NAMES)
def test_v1_refuses_wrong_columns(
    sklearnserver: PredictorProcess, names: list[str], reason: str, rows: np.ndarray
) -> None:
    status, body = post(sklearnserver, V1_PREDICT, v1_named(names, rows))
    assert status == 500
    assert body["error"].startswith("The feature names should match those that were passed during fit")
    assert reason in body["error"]


@pytest.mark.parametrize(("names", "reason"), WRONG_NAMES.values(), ids=WRONG_NAMES)
def test_grpc_refuses_wrong_columns(
    server: PredictorProcess, names: list[str], reason: str, rows: np.ndarray
) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        infer(server, grpc_named(server, names, rows))
    codes = {"kserve-mlserver": grpc.StatusCode.INTERNAL}
    assert refusal.value.code() == codes.get(server.runtime.name, grpc.StatusCode.INVALID_ARGUMENT)
    assert "The feature names should match those that were passed during fit" in refusal.value.details()
    assert reason in refusal.value.details()


@pytest.mark.parametrize("width", [3, 5])
def test_a_plain_array_of_another_width_is_refused(server: PredictorProcess, width: int) -> None:
    status, body = post(server, V2_INFER, v2_plain(server, np.ones((2, width))))
    assert status == 500
    assert f"X has {width} features, but RandomForestClassifier is expecting 4 features" in body["error"]


def test_an_unknown_model_is_not_found(server: PredictorProcess, rows: np.ndarray) -> None:
    assert post(server, "/v2/models/other/infer", v2_plain(server, rows))[0] == 404
    request = grpc_plain(server, rows, raw=False)
    request.model_name = "other"
    with pytest.raises(grpc.RpcError) as refusal:
        infer(server, request)
    assert refusal.value.code() == grpc.StatusCode.NOT_FOUND


# Start and end


def test_mlserver_restarts_its_worker_process(
    mlserver: PredictorProcess, rows: np.ndarray, expected: np.ndarray
) -> None:
    """So the local service, like a kubelet, has to restart only the server."""
    (worker,) = [
        child
        for child in psutil.Process(mlserver.pid).children()
        if "resource_tracker" not in " ".join(child.cmdline())
    ]
    worker.kill()

    def answers() -> bool:
        # Without a worker, MLServer answers 500 with a traceback.
        with contextlib.suppress(json.JSONDecodeError):
            return post(mlserver, V2_INFER, v2_plain(mlserver, rows))[0] == 200
        return False

    wait_until_sync(answers)
    assert_equal(v2_probabilities(post(mlserver, V2_INFER, v2_plain(mlserver, rows))), expected)
    assert mlserver.poll() is None


def test_sklearnserver_returns_classes_without_predict_proba(
    model_dir: Path, rows: np.ndarray, expected: np.ndarray
) -> None:
    with running_predictor(get_runtime("kserve-sklearnserver"), model_dir) as process:
        _, body = post(process, V1_PREDICT, {"instances": rows.tolist()})
    assert body["predictions"] == (expected[:, 1] > 0.5).tolist()


@pytest.mark.parametrize("files", [[], ["model.joblib", "model.pkl"]], ids=["zero", "two"])
def test_sklearnserver_does_not_start_without_exactly_one_model_file(
    files: list[str], tmp_path: Path
) -> None:
    for file in files:
        (tmp_path / file).touch()
    runtime = get_runtime("kserve-sklearnserver")
    python = ensure(runtime)
    launch = runtime.launch(python, model_name="m", model_dir=tmp_path, http_port=1, grpc_port=2)
    ended = subprocess.run(launch.argv, env={}, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].endswith(f"found {', '.join(files) or 'none'}")


@pytest.mark.parametrize("name", ["kserve-mlserver", "kserve-sklearnserver"])
def test_an_unreadable_model_file_is_an_error_at_start(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.joblib").write_bytes(b"junk")
    runtime = get_runtime(name)
    with PredictorProcess(runtime, tmp_path, python=ensure(runtime), model_name="placement") as process:
        wait_until_sync(lambda: process.poll() is not None)
        assert "error: unpack requires a buffer" in last_words(process.tail(60))


@pytest.mark.parametrize("name", ["kserve-mlserver", "kserve-sklearnserver"])
def test_stop_leaves_no_process_behind(name: str, model_dir: Path) -> None:
    with running(name, model_dir) as process:
        server = psutil.Process(process.pid)
        family = [server, server.parent(), *server.children(recursive=True)]
        if name == "kserve-mlserver":
            assert len(family) > 2, "MLServer predicts in worker processes"
        assert process.stop() == 0
    _, left = psutil.wait_procs(family, timeout=5)
    assert left == []
