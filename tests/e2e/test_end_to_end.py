"""Real model servers and transformers behind the ingress give the scores of scikit-learn."""

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from inferenceservice import spec
from inferenceservice.local.local_service import LocalService
from inferenceservice.local.running_process import LocalServiceError
from predictor.process import free_ports
from tests.support.endpoints import V1_PREDICT
from tests.support.in_process_transformer import in_process_transformer
from tests.support.inference_service import SPEC
from tests.support.protocol_clients import CLIENTS, over_grpc, over_v1
from tests.support.sync_processes import (
    process_families,
    running_service,
    running_transformer,
    still_running,
)
from tests.support.waiting import wait_until_sync
from training.generator import generate
from transformer.bundle.format import BUNDLE_FILE

OVERLAYS = Path("inferenceservice/overlays")

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl renders the overlays")


# Hops: protocols between a transformer and a stock model server


def with_hop(protocol: str, *more: str) -> spec.InferenceService:
    """Return the project's spec with another protocol to the same model server."""
    return dataclasses.replace(SPEC, transformer_args=(f"--predictor_protocol={protocol}", *more))


def with_worker_process() -> spec.InferenceService:
    """Return the project's spec with a worker process in MLServer."""
    return dataclasses.replace(SPEC, predictor_env={**SPEC.predictor_env, "MLSERVER_PARALLEL_WORKERS": "1"})


def with_sklearnserver(protocol: str, *more: str) -> spec.InferenceService:
    """Return the project's spec with KServe's model server."""
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
    pytest.param(with_worker_process, id="mlserver with a worker process, over v2"),
    pytest.param(lambda: with_sklearnserver("v2", "--predictor_output=output-0"), id="sklearnserver over v2"),
    pytest.param(
        lambda: with_sklearnserver("grpc-v2", "--predictor_output=output-0"), id="sklearnserver over grpc-v2"
    ),
    pytest.param(lambda: overlay("sklearnserver"), id="overlay sklearnserver, over v1", marks=needs_kubectl),
    pytest.param(lambda: overlay("collocated"), id="overlay collocated", marks=needs_kubectl),
]


@pytest.fixture(scope="module")
def candidates() -> list[dict[str, Any]]:
    return generate(40, seed=7).candidates


@pytest.fixture(scope="module", params=HOPS)
def served(
    request: pytest.FixtureRequest, trained_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalService]:
    with running_service(request.param(), trained_bundle, tmp_path_factory.mktemp("logs")) as running:
        yield running


@pytest.mark.parametrize("protocol", CLIENTS)
def test_every_protocol_over_every_hop_gives_the_score_of_scikit_learn(
    protocol, served, sklearn_reference, candidates
):
    bundle = sklearn_reference.bundle
    for rows in (candidates[:1], candidates):
        answer = CLIENTS[protocol](served.url, served.grpc_address, rows, bundle.signature)
        assert answer.probabilities == pytest.approx(sklearn_reference.probabilities(rows), abs=1e-12)
        assert answer.positive == [probability >= bundle.threshold for probability in answer.probabilities]
        assert answer.version == bundle.version


def test_every_hop_reports_what_is_wrong_with_a_candidate(served, candidates):
    rows = [candidates[0], {**candidates[1], "ssc_p": 710}]
    response = httpx.post(served.url + V1_PREDICT, timeout=60, json={"instances": rows})
    assert response.status_code == 400
    assert response.json() == {"error": "instances[1].ssc_p: must be 0 to 100, got 710"}


def test_the_predictors_host_header_leads_to_the_model_server(served):
    headers = {"host": "placement-predictor-default.example.com"}
    path = served._predictor.process.runtime.readiness_path.format(model_name="placement")
    assert httpx.get(served.url + path, headers=headers).status_code == 200
    assert httpx.get(f"{served.url}/v2/models/placement", headers=headers).json()["inputs"] == []
    assert httpx.get(f"{served.url}/v2/models/placement").json()["inputs"] != []


@pytest.mark.parametrize("hop", ["v2", "grpc-v2"])
async def test_a_model_of_another_encoding_gives_no_score(
    hop, mlserver, trained_bundle, candidates, tmp_path
):
    """The transformer's bundle has the same feature names in another order."""
    content = json.loads((trained_bundle / BUNDLE_FILE).read_text())
    content["vectorizer"]["feature_names"].reverse()
    (tmp_path / BUNDLE_FILE).write_text(json.dumps(content))
    port = mlserver.grpc_port if hop == "grpc-v2" else mlserver.http_port
    hopping = (f"127.0.0.1:{port}", f"--predictor_protocol={hop}")
    async with in_process_transformer(tmp_path, *hopping, ready=False) as running:
        response = await running.http.post(V1_PREDICT, json={"instances": candidates})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json() == {"error": "no verified predictor connection available"}


# Shutdown and failures


def test_a_transformer_that_does_not_start_is_reported_in_one_line(trained_bundle, tmp_path):
    unknown = with_sklearnserver("v1", "--no_such_option")
    with pytest.raises(LocalServiceError) as raised, running_service(unknown, trained_bundle, tmp_path):
        pass
    (log,) = tmp_path.glob("transformer-*.log")
    assert str(raised.value) == (
        "the transformer ended with status 2: python -m transformer: error: unrecognized arguments: "
        f"--no_such_option; the log is {log}"
    )


def test_several_workers_answer_and_are_replaced_and_end_cleanly(
    mlserver, trained_bundle, sklearn_reference, candidates, tmp_path
):
    log = tmp_path / "transformer.log"
    expected = pytest.approx(sklearn_reference.probabilities(candidates), abs=1e-12)
    signature = sklearn_reference.bundle.signature
    ports = (mlserver.http_port, mlserver.grpc_port)
    with running_transformer(ports, trained_bundle, log, "--workers=2") as process:
        url, address = f"http://127.0.0.1:{process.http_port}", f"127.0.0.1:{process.grpc_port}"
        for _ in range(4):
            assert over_v1(url, candidates).probabilities == expected
            assert over_grpc(address, candidates, signature).probabilities == expected
        processes = process_families(process.pid)
        workers = re.findall(r"worker (\d+) serves REST", log.read_text())
        assert len(workers) == 2, "one that is slow to start is not taken for dead"
        os.kill(int(workers[0]), signal.SIGKILL)
        wait_until_sync(lambda: log.read_text().count("serves REST") == 3)
        assert over_v1(url, candidates).probabilities == expected
        processes += process_families(process.pid)
        os.kill(process.pid, signal.SIGTERM)
        assert still_running(processes) == []
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
