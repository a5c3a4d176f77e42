"""Traefik in front of the service: KServe's Ingress routes REST by host, and grpc-ingress.yaml adds gRPC."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from predictor.process import free_ports
from tests.soak.cluster import ClusterService
from tests.soak.rollouts import Outcome, some_more
from tests.support.endpoints import V1_EXPLAIN, V1_PREDICT, V2_INFER
from tests.support.expected_explanation import ExpectedExplanation
from tests.support.load import under_load
from tests.support.paths import MANIFEST, ROOT
from tests.support.real_cluster import ClusterNamespace
from tests.support.request_bodies import grpc_objects, v1_request, v2_objects
from tests.support.waiting import wait_until_sync

GRPC_INGRESS = ROOT / "inferenceservice" / "grpc-ingress.yaml"
SOME = 60


class Gateway:
    """A gateway's address, and the host of the service."""

    def __init__(self, port: int, host: str) -> None:
        self.address, self.host = f"127.0.0.1:{port}", host
        self.url = f"http://{self.address}"

    def request(self, method: str, path: str, content: object = None) -> httpx.Response:
        """Send a request for the service's host."""
        return httpx.request(method, self.url + path, json=content, headers={"host": self.host}, timeout=60)

    @contextlib.contextmanager
    def stub(self) -> Iterator[GRPCInferenceServiceStub]:
        """Return a stub for the service's host."""
        with grpc.insecure_channel(self.address, [("grpc.default_authority", self.host)]) as channel:
            yield GRPCInferenceServiceStub(channel)


@pytest.fixture(scope="module")
def gateway(service: ClusterService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Traefik on this machine, with the service's Ingresses."""
    if shutil.which("traefik") is None:
        pytest.skip("needs traefik on the PATH")
    namespace = service.namespace
    namespace.apply(MANIFEST.read_text(), service.old)
    ingress = namespace.read("ingress", "placement")["spec"]
    name, host = ingress["ingressClassName"], ingress["rules"][0]["host"]
    manifest = GRPC_INGRESS.read_text().replace("placement-default.example.com", host)
    namespace.kubectl("apply", "-f", "-", stdin=manifest.replace(": traefik", f": {name}"))
    with ingress_class(namespace, name), traefik(namespace, tmp_path_factory.mktemp("traefik")) as port:
        found = Gateway(port, host)
        wait_until_sync(lambda: found.request("GET", "/v2/health/ready").status_code == 200, poll_s=0.5)
        yield found


@contextlib.contextmanager
def ingress_class(namespace: ClusterNamespace, name: str) -> Iterator[None]:
    """Give a class of Ingresses that no controller serves to Traefik."""
    manifest = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IngressClass",
        "metadata": {"name": name},
        "spec": {"controller": "traefik.io/ingress-controller"},
    }
    namespace.kubectl("create", "-f", "-", stdin=json.dumps(manifest))
    try:
        yield
    finally:
        namespace.kubectl("delete", "ingressclass", name)


@contextlib.contextmanager
def traefik(namespace: ClusterNamespace, directory: Path) -> Iterator[int]:
    """Start Traefik for the Ingresses of a namespace; yield its port."""
    (port,) = free_ports(1)
    command = [
        "traefik",
        f"--entrypoints.web.address=127.0.0.1:{port}",
        "--providers.kubernetesingress",
        f"--providers.kubernetesingress.namespaces={namespace.name}",
    ]
    with (directory / "log").open("w") as log:
        env = {**os.environ, "KUBECONFIG": str(namespace.kubeconfig)}
        process = subprocess.Popen(command, cwd=directory, env=env, stdout=log, stderr=log)
        try:
            wait_until_sync(lambda: process.poll() is None and reachable(port), poll_s=0.2)
            yield port
        finally:
            process.terminate()
            process.wait()


def reachable(port: int) -> bool:
    try:
        httpx.get(f"http://127.0.0.1:{port}")
    except httpx.TransportError:
        return False
    return True


def test_another_host_is_not_routed(gateway: Gateway) -> None:
    assert httpx.get(f"{gateway.url}/v2/health/ready").status_code == 404


def test_v1_and_v2_are_answered(gateway: Gateway, service: ClusterService) -> None:
    rows = service.pair.candidates[:3]
    expected = pytest.approx(service.pair.references["v1"].probabilities(rows), abs=1e-9)
    answer = gateway.request("POST", V1_PREDICT, v1_request(rows))
    assert answer.headers["x-model-version"] == "v1"
    assert [one["placement_probability"] for one in answer.json()["predictions"]] == expected
    for path in (V2_INFER, V2_INFER.replace("/infer", "/versions/v1/infer")):
        content = gateway.request("POST", path, v2_objects(rows)).json()
        assert content["model_version"] == "v1"
        assert content["outputs"][1]["data"] == expected
    assert gateway.request("GET", "/v2/models/placement").json()["versions"] == ["v1"]
    assert gateway.request("GET", "/v2/models/placement/versions/v7/ready").status_code == 404


def test_explanations_are_answered(gateway: Gateway, service: ClusterService) -> None:
    candidate = service.pair.candidates[0]
    answer = gateway.request("POST", V1_EXPLAIN, v1_request([candidate]))
    [explained] = answer.json()["explanations"]
    expected = ExpectedExplanation(service.pair.references["v1"])
    assert max(expected.differences(candidate, explained)) < 1e-9


def test_an_error_keeps_its_status_and_message(gateway: Gateway, service: ClusterService) -> None:
    answer = gateway.request("POST", V1_PREDICT, v1_request([{**service.pair.candidates[0], "ssc_p": 710}]))
    assert answer.status_code == 400
    assert answer.json()["error"] == "instances[0].ssc_p: must be 0 to 100, got 710"


def test_grpc_is_answered(gateway: Gateway, service: ClusterService) -> None:
    rows = service.pair.candidates[:3]
    with gateway.stub() as stub:
        assert stub.ServerReady(pb.ServerReadyRequest(), timeout=30).ready
        answer = stub.ModelInfer(grpc_objects(rows), timeout=30)
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(grpc_objects([{**rows[0], "ssc_p": 710}]), timeout=30)
    assert answer.model_version == "v1"
    expected = pytest.approx(service.pair.references["v1"].probabilities(rows), abs=1e-9)
    assert list(answer.outputs[1].contents.fp64_contents) == expected
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_rollout_and_rollback_lose_no_request(gateway: Gateway, service: ClusterService) -> None:
    load = under_load(service.pair, gateway.url, gateway.address, host=gateway.host)
    async with load as tally:
        await some_more(tally, SOME)
        changes = [await service.placement("rollout", service.new)]
        await some_more(tally, SOME)
        changes.append(await service.placement("rollback"))
        await some_more(tally, SOME)
    print(f"\nthrough a gateway: {tally}")
    assert [done.returncode for done in changes] == [0, 0], changes
    outcome = Outcome(tally)
    outcome.expect_no_failure()
    outcome.expect_answers("v1", "v2", at_least=SOME)
    assert outcome.unexpected == []
