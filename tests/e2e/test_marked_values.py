"""No value of a candidate is in anything that the processes of a service write."""

import asyncio
import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as services

from inferenceservice.local.launch import TransformerProcess
from predictor.process import free_ports
from tests.support.async_processes import wait_until_healthy
from tests.support.faulty_predictor import FaultyHttpPredictor
from tests.support.inference_service import with_arguments
from tests.support.marked_candidates import (
    CANDIDATES,
    FAULTS,
    ask_malformed,
    ask_over_every_protocol,
    traces_in,
)
from tests.support.paths import PLACEMENT
from tests.support.waiting import wait_until

TIMEOUT_S = 120
JSON = {"content-type": "application/json"}


async def test_no_value_of_a_candidate_is_in_the_output_of_the_process(
    trained_bundle: Path, predictor: FaultyHttpPredictor, tmp_path: Path
):
    log = tmp_path / "transformer.log"
    port = int(predictor.address.rpartition(":")[2])
    hurried = with_arguments("--predictor_request_timeout_seconds=1")
    process = await asyncio.to_thread(TransformerProcess, hurried, trained_bundle, (port, port), log)
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{process.grpc_port}")
    try:
        await asyncio.wait_for(channel.channel_ready(), 30)
        stub = services.GRPCInferenceServiceStub(channel)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{process.http_port}") as http:
            await wait_until_healthy(process, process.http_port, "ready")
            for predictor.always in FAULTS.values():
                ended = await ask_over_every_protocol(http, stub)
                assert {"400", "INVALID_ARGUMENT"} <= set(ended)
            assert await ask_malformed(http) == {400, 404}
            metrics = (await http.get("/metrics")).text
    finally:
        await channel.close()
        await asyncio.to_thread(process.stop)
    output = log.read_text()
    assert "the predictor is not ready" in output, "failures are logged, without the values"
    assert traces_in(output + metrics) == []


@contextlib.contextmanager
def local_service(bundle: Path, run: Path, temporary: Path) -> Iterator[tuple[str, str]]:
    """Run `placement up`; return its URL and its gRPC address. Its output goes to the run directory."""
    port, grpc_port = free_ports(2)
    ports = ("--port", str(port), "--grpc-port", str(grpc_port))
    run.mkdir()
    with (run / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [PLACEMENT, "up", "--model", bundle, "--run", run, *ports],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
    assert process.stdout is not None
    watchdog = threading.Timer(TIMEOUT_S, process.kill)
    watchdog.start()
    try:
        while not (line := process.stdout.readline()).startswith("ready"):
            assert line, (run / "stderr").read_text()
        yield f"http://127.0.0.1:{port}", f"127.0.0.1:{grpc_port}"
    finally:
        process.terminate()
        (run / "stdout").write_text(process.communicate()[0])
        watchdog.cancel()


def written_below(*directories: Path) -> dict[Path, str]:
    """Return every file and its content."""
    files = [path for directory in directories for path in directory.rglob("*") if path.is_file()]
    return {path: path.read_bytes().decode("latin-1") for path in files}


async def test_no_value_of_a_candidate_is_in_anything_that_the_local_service_writes(trained_bundle, tmp_path):
    """Logs, metrics and temporary files of transformer, model server, ingress and control endpoint."""
    run, temporary = tmp_path / "run", tmp_path / "temporary"
    temporary.mkdir()
    with local_service(trained_bundle, run, temporary) as (url, grpc_address):
        await wait_until((run / "control.json").exists)
        control = json.loads((run / "control.json").read_text())
        async with (
            httpx.AsyncClient(base_url=url, timeout=60) as http,
            grpc.aio.insecure_channel(grpc_address) as channel,
        ):
            ended = await ask_over_every_protocol(http, services.GRPCInferenceServiceStub(channel))
            assert {"200", "400", "OK", "INVALID_ARGUMENT"} == set(ended)
            assert await ask_malformed(http) == {400, 404}
            token = {"authorization": f"Bearer {control['token']}"}
            for work, given in (
                ("score", {"candidates": [CANDIDATES["fine"]], "name": "placement"}),
                ("metrics", {}),
            ):
                answer = await http.post(f"http://{control['address']}/{work}", json=given, headers=token)
                assert '"result"' in answer.text
            metrics = answer.text + (await http.get("/metrics")).text
            to_predictor = {"host": "placement-predictor-default.example.com"}
            metrics += (await http.get("/metrics", headers=to_predictor)).text
        written = written_below(run, temporary)
    written |= written_below(run, temporary)
    names = " ".join(path.name for path in written)
    assert all(
        name in names for name in ("transformer-v1-", "predictor-v1-", "stderr", "stdout", "bundle.json")
    )
    assert {path: found for path, text in written.items() if (found := traces_in(text))} == {}
    assert traces_in(metrics) == []
