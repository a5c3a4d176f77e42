"""Real model servers and transformer processes behind the ingress answer what scikit-learn answers here."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import psutil
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from inferenceservice import spec
from inferenceservice.local.components import TransformerProcess
from inferenceservice.local.processes import LocalServiceError
from predictor.process import PredictorProcess, free_ports
from tests.service import SPEC, Service, service
from tests.serving import serving
from tests.truth import Truth
from training.generator import generate
from transformer.bundle import BUNDLE_FILE
from transformer.signature import Number

OVERLAYS = Path("inferenceservice/overlays")
Answer = tuple[list[bool], list[float], str]

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl renders the overlays")


# The hops: every way from a transformer to a stock predictor


def with_hop(protocol: str, *more: str) -> spec.InferenceService:
    """The project's spec with another protocol to the same model server."""
    return dataclasses.replace(SPEC, transformer_args=(f"--predictor_protocol={protocol}", *more))


def with_sklearnserver(protocol: str, *more: str) -> spec.InferenceService:
    """The project's spec with KServe's own model server."""
    return dataclasses.replace(
        with_hop(protocol, *more),
        runtime="kserve-sklearnserver",
        runtime_version=None,
        predictor_env={"PREDICT_PROBA": "true"},
    )


def overlay(name: str) -> spec.InferenceService:
    return spec.read(OVERLAYS / name)


HOPS: list[Any] = [
    pytest.param(lambda: SPEC, id="mlserver over v2"),
    pytest.param(lambda: with_hop("grpc-v2"), id="mlserver over grpc-v2"),
    pytest.param(lambda: with_sklearnserver("v2", "--predictor_output=output-0"), id="sklearnserver over v2"),
    pytest.param(
        lambda: with_sklearnserver("grpc-v2", "--predictor_output=output-0"), id="sklearnserver over grpc-v2"
    ),
    pytest.param(lambda: overlay("sklearnserver"), id="overlay sklearnserver, over v1", marks=needs_kubectl),
    pytest.param(lambda: overlay("collocated"), id="overlay collocated", marks=needs_kubectl),
]


@pytest.fixture(scope="module")
def truth(trained_bundle: Path) -> Truth:
    return Truth(trained_bundle)


@pytest.fixture(scope="module")
def candidates() -> list[dict[str, Any]]:
    return generate(40, seed=7).candidates


@pytest.fixture(scope="module", params=HOPS)
def served(
    request: pytest.FixtureRequest, trained_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    with service(request.param(), trained_bundle, tmp_path_factory.mktemp("logs")) as running:
        yield running


# The ways to ask


def over_v1(url: str, rows: Sequence[dict[str, Any]], _: Truth) -> Answer:
    response = httpx.post(f"{url}/v1/models/placement:predict", timeout=60, json={"instances": rows})
    assert response.status_code == 200, response.text
    predictions = response.json()["predictions"]
    return (
        [one["placement"] for one in predictions],
        [one["placement_probability"] for one in predictions],
        response.headers["x-model-version"],
    )


def over_v2(url: str, rows: Sequence[dict[str, Any]], truth: Truth) -> Answer:
    inputs = [
        {"name": f.name, "datatype": f.datatype, "shape": [len(rows)], "data": [row[f.name] for row in rows]}
        for f in truth.bundle.signature.fields
    ]
    response = httpx.post(f"{url}/v2/models/placement/infer", timeout=60, json={"inputs": inputs})
    assert response.status_code == 200, response.text
    content = response.json()
    placed, probability = (tensor["data"] for tensor in content["outputs"])
    return placed, probability, content["model_version"]


def column(field: Any, rows: Sequence[dict[str, Any]]) -> bytes:
    if isinstance(field, Number):
        return np.array([row[field.name] for row in rows], "<f8").tobytes()
    return b"".join(struct.pack("<I", len(v)) + v for v in (row[field.name].encode() for row in rows))


def over_v2_binary(url: str, rows: Sequence[dict[str, Any]], truth: Truth) -> Answer:
    data = {field: column(field, rows) for field in truth.bundle.signature.fields}
    inputs = [
        {
            "name": field.name,
            "datatype": field.datatype,
            "shape": [len(rows)],
            "parameters": {"binary_data_size": len(part)},
        }
        for field, part in data.items()
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    headers = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
    body = b"".join([head, *data.values()])
    response = httpx.post(f"{url}/v2/models/placement/infer", timeout=60, content=body, headers=headers)
    assert response.status_code == 200, response.text
    length = int(response.headers["inference-header-content-length"])
    content, raw = json.loads(response.content[:length]), response.content[length:]
    placed, probability = raw[: len(rows)], raw[len(rows) :]
    return np.frombuffer(placed, "?").tolist(), np.frombuffer(probability).tolist(), content["model_version"]


def over_grpc(address: str, rows: Sequence[dict[str, Any]], truth: Truth, *, raw: bool = False) -> Answer:
    message = pb.ModelInferRequest(model_name="placement")
    for field in truth.bundle.signature.fields:
        tensor = message.inputs.add(name=field.name, datatype=field.datatype, shape=[len(rows)])
        if raw:
            message.raw_input_contents.append(column(field, rows))
        elif isinstance(field, Number):
            tensor.contents.fp64_contents.extend(row[field.name] for row in rows)
        else:
            tensor.contents.bytes_contents.extend(row[field.name].encode() for row in rows)
    with grpc.insecure_channel(address) as channel:
        answer = GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=30)
    if raw:
        placed, probability = answer.raw_output_contents
        return np.frombuffer(placed, "?").tolist(), np.frombuffer(probability).tolist(), answer.model_version
    placed, probability = answer.outputs
    return list(placed.contents.bool_contents), list(probability.contents.fp64_contents), answer.model_version


WAYS: dict[str, Callable[[Service, Sequence[dict[str, Any]], Truth], Answer]] = {
    "v1": lambda running, rows, truth: over_v1(running.url, rows, truth),
    "v2": lambda running, rows, truth: over_v2(running.url, rows, truth),
    "v2 binary": lambda running, rows, truth: over_v2_binary(running.url, rows, truth),
    "grpc": lambda running, rows, truth: over_grpc(running.grpc_address, rows, truth),
    "grpc raw": lambda running, rows, truth: over_grpc(running.grpc_address, rows, truth, raw=True),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_way_and_every_hop_gives_the_score_of_scikit_learn(way, served, truth, candidates):
    for rows in (candidates[:1], candidates):
        placed, probabilities, version = way(served, rows, truth)
        assert probabilities == pytest.approx(truth.probabilities(rows), abs=1e-12)
        assert placed == [probability >= truth.bundle.threshold for probability in probabilities]
        assert version == truth.bundle.version


def test_every_hop_tells_what_is_wrong_with_a_candidate(served, candidates):
    rows = [candidates[0], {**candidates[1], "ssc_p": 710}]
    response = httpx.post(f"{served.url}/v1/models/placement:predict", timeout=60, json={"instances": rows})
    assert response.status_code == 400
    assert response.json() == {"error": "instances[1].ssc_p: must be 0 to 100, got 710"}


def test_the_predictors_host_leads_to_the_model_server_itself(served):
    headers = {"host": "placement-predictor-default.example.com"}
    path = served.local._predictor.process.runtime.readiness_path.format(model_name="placement")
    assert httpx.get(served.url + path, headers=headers).status_code == 200
    assert httpx.get(f"{served.url}/v2/models/placement", headers=headers).json()["inputs"] == []
    assert httpx.get(f"{served.url}/v2/models/placement").json()["inputs"] != []


@pytest.mark.parametrize("hop", ["v2", "grpc-v2"])
async def test_a_model_of_another_encoding_gives_no_score(
    hop, mlserver, trained_bundle, candidates, tmp_path
):
    """The same feature names in another order: a transformer of one version, a model server of another."""
    content = json.loads((trained_bundle / BUNDLE_FILE).read_text())
    content["vectorizer"]["feature_names"].reverse()
    (tmp_path / BUNDLE_FILE).write_text(json.dumps(content))
    port = mlserver.grpc_port if hop == "grpc-v2" else mlserver.http_port
    hopping = (f"127.0.0.1:{port}", f"--predictor_protocol={hop}")
    async with serving(tmp_path, *hopping, ready=False) as running:
        response = await running.http.post("/v1/models/placement:predict", json={"instances": candidates})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json() == {"error": "no verified predictor is there"}


# How it ends


def family(*pids: int) -> list[psutil.Process]:
    """Processes, their guards and all that they started."""
    processes = [psutil.Process(pid) for pid in pids]
    return [
        member
        for process in processes
        for member in (process.parent(), process, *process.children(recursive=True))
    ]


def left_of(processes: list[psutil.Process]) -> list[psutil.Process]:
    return psutil.wait_procs(processes, timeout=10)[1]


def test_a_component_that_dies_is_reported_and_nothing_is_left_behind(trained_bundle, tmp_path):
    with service(with_sklearnserver("v1"), trained_bundle, tmp_path) as running:
        predictor, transformer = running.local._predictor.process, running.local._transformer.process
        processes = family(predictor.pid, transformer.pid)
        watching = running.portal.start_task_soon(running.local.watch)
        os.kill(predictor.pid, signal.SIGKILL)
        with pytest.raises(LocalServiceError) as raised:
            watching.result(timeout=10)
    (log,) = tmp_path.glob("predictor-*.log")
    told = str(raised.value).splitlines()
    assert told[0] == f"the predictor ended with status 137; its last lines ({log}):"
    assert told[1:] == [f"  {line}" for line in log.read_text().splitlines()[-20:]]
    assert left_of(processes) == []


def test_a_transformer_that_does_not_start_is_reported_with_what_it_said(trained_bundle, tmp_path):
    unknown = with_sklearnserver("v1", "--no_such_option")
    with (
        pytest.raises(LocalServiceError, match="the transformer ended with status 2") as raised,
        service(unknown, trained_bundle, tmp_path),
    ):
        pass
    assert str(raised.value).splitlines()[-1].endswith("error: unrecognized arguments: --no_such_option")


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, but not for ever."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def ready(process: TransformerProcess) -> bool:
    assert process.poll() is None, "\n".join(process.tail())
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{process.http_port}/v2/models/placement/ready").is_success
    return False


@contextlib.contextmanager
def transformer(
    predictor: PredictorProcess, bundle: Path, log: Path, *arguments: str
) -> Iterator[TransformerProcess]:
    """A transformer's process that answers over REST and gRPC."""
    inference_service = dataclasses.replace(SPEC, transformer_args=(*SPEC.transformer_args, *arguments))
    ports = (predictor.http_port, predictor.grpc_port)
    process = TransformerProcess(inference_service, bundle, ports, log)
    try:
        until(lambda: ready(process))
        with grpc.insecure_channel(f"127.0.0.1:{process.grpc_port}") as channel:
            grpc.channel_ready_future(channel).result(timeout=30)
        yield process
    finally:
        process.stop()


def test_several_workers_answer_are_replaced_and_end_cleanly(
    mlserver, trained_bundle, truth, candidates, tmp_path
):
    log = tmp_path / "transformer.log"
    expected = pytest.approx(truth.probabilities(candidates), abs=1e-12)
    with transformer(mlserver, trained_bundle, log, "--workers=2") as process:
        url, address = f"http://127.0.0.1:{process.http_port}", f"127.0.0.1:{process.grpc_port}"
        for _ in range(4):
            assert over_v1(url, candidates, truth)[1] == expected
            assert over_grpc(address, candidates, truth)[1] == expected
        processes = family(process.pid)
        workers = re.findall(r"worker (\d+) serves REST", log.read_text())
        assert len(workers) == 2, "one that is slow to start is not taken for dead"
        os.kill(int(workers[0]), signal.SIGKILL)
        until(lambda: log.read_text().count("serves REST") == 3)
        assert over_v1(url, candidates, truth)[1] == expected
        processes += family(process.pid)
        os.kill(process.pid, signal.SIGTERM)
        assert left_of(processes) == []
        assert process.stop() == 0
    assert "Traceback" not in log.read_text()


def test_a_port_in_use_ends_the_transformer_and_its_workers(trained_bundle):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = (*SPEC.transformer_args, "--workers=2", f"--grpc_port={port}")
        environment = {**os.environ, "STORAGE_URI": str(trained_bundle)}
        command = [sys.executable, "-m", "transformer", "--predictor_host=127.0.0.1:1", *arguments]
        done = subprocess.run(
            [*command, f"--http_port={free_ports(1)[0]}"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert f"Failed to bind to address [::]:{port}" in done.stderr


def test_sigterm_lets_what_is_under_way_be_answered(mlserver, trained_bundle, truth, tmp_path):
    """The largest requests, so that they take a while."""
    rows = generate(5000, seed=1).candidates
    log = tmp_path / "transformer.log"
    with transformer(mlserver, trained_bundle, log) as process, ThreadPoolExecutor() as threads:
        processes = family(process.pid)
        url = f"http://127.0.0.1:{process.http_port}"
        answers = [threads.submit(over_v1, url, rows, truth) for _ in range(2)]
        until(lambda: established(process) == 2)
        os.kill(process.pid, signal.SIGTERM)
        expected = pytest.approx(truth.probabilities(rows), abs=1e-12)
        assert [answer.result()[1] for answer in answers] == [expected, expected]
        assert left_of(processes) == []
        assert process.stop() == 0
    output = log.read_text()
    assert "Traceback" not in output
    assert " ERROR " not in output


def established(process: TransformerProcess) -> int:
    """Connections of REST clients."""
    connections = psutil.Process(process.pid).connections(kind="tcp")
    ours = (one for one in connections if one.laddr.port == process.http_port)
    return sum(one.status == psutil.CONN_ESTABLISHED for one in ours)
