"""SIGTERM under load: readiness ends, accepted requests are answered, and the process ends by itself."""

import contextlib
import http.client
import json
import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import psutil
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from inferenceservice.local.launch import TransformerProcess
from predictor.process import PredictorProcess
from tests.support.endpoints import SERVER_READY, V1_PREDICT
from tests.support.protocol_clients import over_grpc, over_v1
from tests.support.request_bodies import grpc_tensors
from tests.support.sklearn_reference import SklearnReference
from tests.support.sync_processes import process_families, running_transformer, still_running
from tests.support.waiting import wait_until_sync
from training.generator import generate

#: Clients of each protocol. Each sends its next request at once; the last one of each sends large requests.
CLIENTS = 4
MANY = 2000
#: Number of answers to each client before the signal.
SOME = 5
#: Errors of a gRPC call after the signal, which the transformer has not started.
NOT_TAKEN = "^shutting down; retry on another replica$|Connection refused"


class Client:
    """Repeats a request until the transformer refuses it.

    Attributes
    ----------
    asked, answered
        Number of requests, and of answers.
    """

    def __init__(self, rows: list[dict[str, Any]], sklearn_reference: SklearnReference) -> None:
        self._rows = rows
        self._signature = sklearn_reference.bundle.signature
        self._expected = pytest.approx(sklearn_reference.probabilities(rows), abs=1e-12)
        self.requests = self.answered = 0

    def over_rest(self, process: TransformerProcess) -> None:
        """Use one connection until a response closes it."""
        body = json.dumps({"instances": self._rows})
        connection = http.client.HTTPConnection("127.0.0.1", process.http_port, timeout=60)
        with contextlib.closing(connection):
            closed = False
            while not closed:
                self.requests += 1
                connection.request("POST", V1_PREDICT, body)
                response = connection.getresponse()
                content = json.loads(response.read())
                assert response.status == 200, content
                self._check([one["placement_probability"] for one in content["predictions"]])
                closed = response.will_close

    def over_grpc(self, process: TransformerProcess) -> None:
        """Use one channel until a call is refused."""
        message = grpc_tensors(self._signature, self._rows)
        with grpc.insecure_channel(f"127.0.0.1:{process.grpc_port}") as channel:
            stub = GRPCInferenceServiceStub(channel)
            while True:
                self.requests += 1
                try:
                    answer = stub.ModelInfer(message, timeout=60)
                except grpc.RpcError as error:
                    if error.code() is grpc.StatusCode.UNAVAILABLE and re.search(NOT_TAKEN, error.details()):
                        return
                    raise
                self._check(list(answer.outputs[1].contents.fp64_contents))

    def _check(self, probabilities: list[float]) -> None:
        assert probabilities == self._expected
        self.answered += 1


@contextlib.contextmanager
def suspended(predictor: PredictorProcess) -> Iterator[None]:
    """Suspend the model server while the block runs."""
    server = psutil.Process(predictor.pid)
    members = [server, *server.children(recursive=True)]
    for member in members:
        member.suspend()
    try:
        yield
    finally:
        for member in members:
            member.resume()


def is_ready(process: TransformerProcess) -> bool:
    """Return True if the transformer is ready over REST or over gRPC, on a new connection."""
    if process.ready():
        return True
    with grpc.insecure_channel(f"127.0.0.1:{process.grpc_port}") as channel:
        try:
            return GRPCInferenceServiceStub(channel).ServerReady(pb.ServerReadyRequest(), timeout=10).ready
        except grpc.RpcError as error:
            return error.code() is not grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("predictor", ["answers", "is suspended"])
def test_requests_accepted_before_sigterm_are_answered_while_the_predictor(
    workers, predictor, mlserver, trained_bundle, sklearn_reference, tmp_path
):
    log = tmp_path / "transformer.log"
    ports = (mlserver.http_port, mlserver.grpc_port)
    rows = generate(MANY, seed=1).candidates
    sizes = [*range(1, CLIENTS), MANY]
    clients = [Client(rows[:size], sklearn_reference) for size in sizes * 2]
    with (
        running_transformer(ports, trained_bundle, log, f"--workers={workers}") as process,
        ThreadPoolExecutor(len(clients)) as threads,
    ):
        processes = process_families(process.pid)
        methods = [Client.over_rest] * CLIENTS + [Client.over_grpc] * CLIENTS
        pending = [
            threads.submit(method, client, process) for method, client in zip(methods, clients, strict=True)
        ]
        wait_until_sync(lambda: all(client.answered >= SOME for client in clients) or any_failed(pending))
        with suspended(mlserver) if predictor == "is suspended" else contextlib.nullcontext():
            os.kill(process.pid, signal.SIGTERM)
            wait_until_sync(lambda: not is_ready(process))
            if predictor == "is suspended":
                assert process.poll() is None, "its callers wait"
        for one in pending:
            one.result(timeout=60)
        assert still_running(processes) == []
        assert process.stop() == 0, "and not because it was killed"
    output = log.read_text()
    assert "Traceback" not in output
    assert " ERROR " not in output


@pytest.mark.parametrize("workers", [1, 2])
def test_after_sigterm_requests_are_answered_and_connections_end_until_the_delay_is_over(
    workers, mlserver, trained_bundle, sklearn_reference, tmp_path
):
    log = tmp_path / "transformer.log"
    ports = (mlserver.http_port, mlserver.grpc_port)
    rows = generate(3, seed=1).candidates
    signature = sklearn_reference.bundle.signature
    arguments = (f"--workers={workers}", "--shutdown_delay_seconds=3600")
    with running_transformer(ports, trained_bundle, log, *arguments) as process:
        processes = process_families(process.pid)
        client = Client(rows, sklearn_reference)
        url, grpc_address = f"http://127.0.0.1:{process.http_port}", f"127.0.0.1:{process.grpc_port}"
        os.kill(process.pid, signal.SIGTERM)
        # Each worker learns of it; a connection that lasts until then ends with its next response.
        wait_until_sync(lambda: httpx.get(url + SERVER_READY).headers.get("connection") == "close")
        client.over_rest(process)
        expected = pytest.approx(sklearn_reference.probabilities(rows), abs=1e-12)
        for _ in range(10):
            assert over_v1(url, rows).probabilities == expected
            assert over_grpc(grpc_address, rows, signature).probabilities == expected
        assert process.ready(), "the cluster may still need it"
        # The second signal.
        assert process.stop() == 0
        assert still_running(processes) == []
    output = log.read_text()
    assert "Traceback" not in output
    assert " ERROR " not in output


def test_the_delay_of_a_shutdown_ends(mlserver, trained_bundle, tmp_path):
    ports = (mlserver.http_port, mlserver.grpc_port)
    log = tmp_path / "transformer.log"
    with running_transformer(ports, trained_bundle, log, "--shutdown_delay_seconds=0.1") as process:
        os.kill(process.pid, signal.SIGTERM)
        wait_until_sync(lambda: process.poll() is not None)
        assert process.stop() == 0


def any_failed(pending: list[Future[None]]) -> bool:
    return any(one.done() and one.exception() for one in pending)
