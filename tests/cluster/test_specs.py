"""Every spec of Standard mode is READY in a cluster, answers, and runs without privileges."""

from collections import Counter
from typing import Any

import httpx
import pytest
import yaml

from inferenceservice.plain import render
from inferenceservice.spec import argument
from predictor.runtimes import MODEL_MOUNT
from tests.soak.cluster import ClusterService
from tests.support.cluster.manifests import OPERATOR_KINDS, STANDARD_MODE, documents, environment, rendered
from tests.support.endpoints import V1_EXPLAIN
from tests.support.expected_explanation import ExpectedExplanation
from tests.support.protocol_clients import CLIENTS
from tests.support.real_cluster import Address, ClusterNamespace, Json
from tests.support.request_bodies import v1_request
from tests.support.waiting import wait_until_sync

#: The overlay s3 needs a storage; test_storage.py applies it.
SPECS = [name for name in STANDARD_MODE if name != "s3"]

#: Prints what a container's process may do.
PRIVILEGES = """
import json, os
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "user": os.getuid(),
    "groups": sorted({os.getgid(), *os.getgroups()}),
    "capabilities": int(status["CapEff"], 16),
    "may gain privileges": status["NoNewPrivs"].strip() == "0",
    "system calls are filtered": status["Seccomp"].strip() == "2",
    "token": os.path.exists("/var/run/secrets/kubernetes.io"),
    "writable": [path for path in ("/", "/mnt/models") if not os.statvfs(path).f_flag & os.ST_RDONLY],
}))
"""
RESTRICTED = {
    "user": 1000,
    "groups": [1000],
    "capabilities": 0,
    "may gain privileges": False,
    "system calls are filtered": True,
    "token": False,
    "writable": [],
}


#: Fields of a container that KServe passes on.
SAME_FIELDS = {
    *("lifecycle", "ports", "resources", "securityContext"),
    *("startupProbe", "readinessProbe", "livenessProbe"),
}
#: Variables of plain Deployments; with KServe, the server's image or the webhook for pods sets them.
ALREADY_SET = {"MODELS_DIR", "MLSERVER_MODELS_DIR", "STORAGE_URI"}
#: Replicas of each component, where they are more than one.
REPLICAS = {"autoscaling": 2, "hardened": 2}


@pytest.fixture(scope="module", params=SPECS)
def spec(request: pytest.FixtureRequest, service: ClusterService) -> str:
    """A spec that the cluster runs."""
    name: str = request.param
    service.namespace.delete_service()
    service.namespace.apply(for_this_cluster(name, service.namespace))
    return name


def for_this_cluster(name: str, namespace: ClusterNamespace) -> str:
    """Return a spec, without the Prometheus operator's kinds if the cluster does not have them."""
    if namespace.kubectl("api-resources", "--api-group=monitoring.coreos.com", "--output=name"):
        return rendered(name)
    return yaml.safe_dump_all(one for one in documents(name) if one["kind"] not in OPERATOR_KINDS)


def entry_component(spec: str) -> str:
    """Return the component that has the transformer's container, and gets the requests."""
    return "predictor" if spec == "collocated" else "transformer"


def entry(spec: str, service: ClusterService) -> Address:
    """Return the addresses that get the requests."""
    return service.namespace.address(f"placement-{entry_component(spec)}")


@pytest.mark.parametrize("protocol", CLIENTS)
def test_every_protocol_is_answered_through_the_service(
    protocol: str, spec: str, service: ClusterService
) -> None:
    address = entry(spec, service)
    reference = service.pair.references["v1"]
    rows = service.pair.candidates[:3]
    answer = CLIENTS[protocol](address.url, address.grpc, rows, reference.bundle.signature)
    assert answer.version == "v1"
    assert answer.probabilities == pytest.approx(reference.probabilities(rows), abs=1e-9)


def test_explanations_are_answered_through_the_service(spec: str, service: ClusterService) -> None:
    candidate = service.pair.candidates[0]
    response = httpx.post(entry(spec, service).url + V1_EXPLAIN, timeout=60, json=v1_request([candidate]))
    assert response.status_code == 200, response.text
    [explained] = response.json()["explanations"]
    expected = ExpectedExplanation(service.pair.references["v1"])
    assert max(expected.differences(candidate, explained)) < 1e-9


def test_metrics_are_where_the_annotations_say(spec: str, service: ClusterService) -> None:
    # An autoscaler may be adding a pod.
    service.namespace.wait_until_serving(service.old)
    for pod in service.namespace.pods():
        name, annotations = pod["metadata"]["name"], pod["metadata"]["annotations"]
        assert annotations["prometheus.io/scrape"] == "true", name
        port, path = annotations["prometheus.io/port"], annotations["prometheus.io/path"]
        metrics = service.namespace.get_from_pod(name, port, path)
        is_transformer = pod["metadata"]["labels"]["component"] == entry_component(spec)
        assert ("transformer_predictor_connections{" in metrics) == is_transformer, name


def test_containers_run_without_privileges(spec: str, service: ClusterService) -> None:
    for pod in service.namespace.pods():
        for container in pod["spec"]["containers"]:
            where = (pod["metadata"]["name"], container["name"])
            assert service.namespace.python(*where, PRIVILEGES) == RESTRICTED, where


def test_kserve_reports_no_failure(spec: str, service: ClusterService) -> None:
    service.namespace.wait_until_serving(service.old)
    status = service.namespace.read("inferenceservice", "placement")["status"]
    assert {one["status"] for one in status["conditions"] if one["type"] != "Stopped"} == {"True"}
    assert status["modelStatus"]["transitionStatus"] == "UpToDate"


def test_each_component_has_its_replicas(spec: str, service: ClusterService) -> None:
    components = {"predictor", entry_component(spec)}
    expected = Counter({component: REPLICAS.get(spec, 1) for component in components})

    def running() -> bool:
        pods = service.namespace.pods()
        return Counter(pod["metadata"]["labels"]["component"] for pod in pods) == expected

    # An autoscaler adds the second replica some seconds later; other specs start with all.
    if spec == "autoscaling":
        wait_until_sync(running, poll_s=0.5)
    assert running()
    scalers = service.namespace.read("horizontalpodautoscalers")["items"]
    assert bool(scalers) == (spec != "hardened")


def contains(found: Any, wanted: Any) -> bool:
    """Return True if an object has all fields of another one; Kubernetes adds defaults."""
    if isinstance(wanted, dict):
        return all(key in found and contains(found[key], value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(contains, found, wanted))
    return bool(found == wanted)


def options(container: Json) -> dict[str, str | None]:
    """Return the arguments of a container by name."""
    args = tuple(container.get("args", ()))
    names = {text.partition("=")[0] for text in args if text.startswith("--")}
    return {name: argument(args, name) for name in names}


def test_the_plain_way_makes_the_containers_that_kserve_makes(spec: str, service: ClusterService) -> None:
    if spec == "autoscaling":
        pytest.skip("`placement spec --plain` makes no autoscaler")
    made = {one["metadata"]["name"]: one for one in service.namespace.deployments()}
    plain = [one for one in render(documents(spec)) if one["kind"] == "Deployment"]
    assert made.keys() == {one["metadata"]["name"] for one in plain}
    for deployment in plain:
        pod, kserves = (
            one["spec"]["template"]["spec"] for one in (deployment, made[deployment["metadata"]["name"]])
        )
        assert contains(kserves["securityContext"], pod["securityContext"])
        for container in pod["containers"]:
            same = next(one for one in kserves["containers"] if one["name"] == container["name"])
            assert contains(same, {field: container[field] for field in SAME_FIELDS & container.keys()})
            given, expected = options(container), options(same)
            assert given.keys() == expected.keys()
            differing = {name for name in given if given[name] != expected[name]}
            assert differing <= {"--predictor_host"}
            more = environment(container).items() - environment(same).items()
            assert {name for name, _ in more} <= ALREADY_SET
            assert {value for _, value in more} <= {MODEL_MOUNT}
            assert same["image"].endswith(container["image"])
