"""The overlay `hardened` limits network traffic and keeps a pod of each component while nodes drain."""

import itertools
import shutil
from pathlib import Path

import pytest

from tests.support.cluster.manifests import (
    OVERLAYS,
    Manifest,
    components,
    containers,
    labels,
    listening_ports,
    of_kind,
    pods,
    rendered,
    service,
    transformer_container,
)
from tests.support.cluster.network_policies import Peer, allowed, selects

NAME = "hardened"
COMPONENTS = ["predictor", "transformer"]
DNS = {"k8s-app": "kube-dns"}

PEERS = {
    "transformer": Peer("default", labels("transformer") | {"pod-template-hash": "5f6"}),
    "predictor": Peer("default", labels("predictor") | {"pod-template-hash": "7c8"}),
    "gateway": Peer("envoy-gateway-system", {"app.kubernetes.io/name": "envoy"}),
    "prometheus": Peer("monitoring", {"app.kubernetes.io/name": "prometheus"}),
    "dns": Peer("kube-system", DNS),
    "storage": Peer("storage", {"app": "minio"}),
    "neighbour": Peer("default", {"app": "neighbour"}),
    "stranger": Peer("elsewhere", {"app": "stranger"}),
    "lookalike": Peer("elsewhere", labels("transformer")),
    "another service's transformer": Peer("default", labels("transformer", "promotion")),
    "another service's predictor": Peer("default", labels("predictor", "promotion")),
    "false dns": Peer("default", DNS),
    "kube-system": Peer("kube-system", {"k8s-app": "kube-proxy"}),
    "metadata service": Peer(address="169.254.169.254"),
    "internet": Peer(address="93.184.215.14"),
}
PORTS = [53, 80, 443, 8080, 8081, 8082, 9000]

OPEN = {
    ("gateway", "transformer", 8080, "TCP"),
    ("gateway", "transformer", 8081, "TCP"),
    ("prometheus", "transformer", 8080, "TCP"),
    ("prometheus", "predictor", 8082, "TCP"),
    ("transformer", "predictor", 8080, "TCP"),
    *itertools.product(COMPONENTS, ["dns"], [53], ["UDP", "TCP"]),
    *itertools.product(COMPONENTS, ["storage"], [9000], ["TCP"]),
}


def policies(name: str = NAME) -> list[Manifest]:
    return of_kind(name, "NetworkPolicy")


def open_paths(given: list[Manifest]) -> set[tuple[str, str, int, str]]:
    """Return every connection from or to a component that the policies allow."""
    return {
        (source, target, port, protocol)
        for source, target in itertools.permutations(PEERS, 2)
        if {source, target} & set(COMPONENTS)
        for port, protocol in itertools.product(PORTS, ["TCP", "UDP"])
        if allowed(given, PEERS[source], PEERS[target], port, protocol)
    }


def test_only_the_needed_network_paths_are_open() -> None:
    assert open_paths(policies()) == OPEN


def test_without_the_policies_all_paths_are_open() -> None:
    everything = open_paths([])
    assert ("neighbour", "predictor", 8080, "TCP") in everything
    assert ("predictor", "internet", 443, "TCP") in everything


def test_the_policy_without_rules_closes_all_paths() -> None:
    [closed] = [one for one in policies() if one["metadata"]["name"] == "placement"]
    assert open_paths([closed]) == set()


@pytest.mark.parametrize("name", ["transformer", "predictor", "dns", "storage"])
def test_every_policy_is_needed(name: str) -> None:
    left = [one for one in policies() if one["metadata"]["name"] != f"placement-{name}"]
    assert len(left) == len(policies()) - 1
    assert open_paths(left) != OPEN


def test_the_policies_select_the_pods_of_this_service_and_no_others() -> None:
    selected = {
        policy["metadata"]["name"]: {
            name for name, peer in PEERS.items() if selects(policy["spec"]["podSelector"], peer.labels)
        }
        for policy in policies()
    }
    # The lookalike has the same labels in another namespace, where the policies have no effect.
    transformers = {"transformer", "lookalike"}
    both = transformers | {"predictor"}
    assert selected == {
        "placement": both,
        "placement-transformer": transformers,
        "placement-predictor": {"predictor"},
        "placement-dns": both,
        "placement-storage": both,
    }


def test_the_policies_are_in_the_namespace_of_the_service() -> None:
    everything = [*policies(), *of_kind(NAME, "PodDisruptionBudget"), service(NAME)]
    assert len({document["metadata"].get("namespace") for document in everything}) == 1


def test_the_policies_open_only_ports_that_containers_listen_on() -> None:
    manifest = service(NAME)
    predictor, transformer = components(manifest)
    open_at = {
        component: {port for _, target, port, _ in OPEN if target == component} for component in COMPONENTS
    }
    container = transformer_container(manifest)
    assert open_at["transformer"] == set(listening_ports(container))
    rest, _, metrics = listening_ports(containers(predictor)[0])
    assert open_at["predictor"] == {rest, metrics}
    for name, part in (("predictor", predictor), ("transformer", transformer)):
        assert ("prometheus", name, int(part["annotations"]["prometheus.io/port"]), "TCP") in OPEN


@pytest.mark.parametrize("component", COMPONENTS)
def test_draining_a_node_leaves_a_pod_of_each_component(component: str) -> None:
    [budget] = [
        one["spec"]
        for one in of_kind(NAME, "PodDisruptionBudget")
        if selects(one["spec"]["selector"], labels(component))
    ]
    assert [name for name in COMPONENTS if selects(budget["selector"], labels(name))] == [component]
    assert not selects(budget["selector"], labels(component, "promotion"))
    assert service(NAME)["spec"][component]["minReplicas"] - budget["maxUnavailable"] >= 1
    assert budget["maxUnavailable"] >= 1  # otherwise no node could be drained
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


@pytest.mark.parametrize("component", COMPONENTS)
def test_replicas_of_a_version_are_spread_over_nodes(component: str) -> None:
    constraints = pods(service(NAME))[component]["spec"]["topologySpreadConstraints"]
    by_key = {one["topologyKey"]: one for one in constraints}
    assert by_key["kubernetes.io/hostname"]["whenUnsatisfiable"] == "DoNotSchedule"
    assert by_key["topology.kubernetes.io/zone"]["whenUnsatisfiable"] == "ScheduleAnyway"
    for one in constraints:
        matching = [name for name in COMPONENTS if selects(one["labelSelector"], labels(name))]
        assert (matching, one["maxSkew"]) == ([component], 1)
        assert (one["matchLabelKeys"], one["nodeTaintsPolicy"]) == (["pod-template-hash"], "Honor")


@pytest.mark.parametrize("other", ["s3", "autoscaling"])
def test_any_other_overlay_can_be_hardened_too(other: str, tmp_path: Path) -> None:
    shutil.copytree(OVERLAYS.parent, tmp_path / "i", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    hardened = tmp_path / "i" / "overlays" / NAME
    file = hardened / "kustomization.yaml"
    assert "  - ../../base\n" in file.read_text()
    file.write_text(file.read_text().replace("../../base", f"../{other}"))
    both = str(hardened)
    assert rendered(both).count("kind: InferenceService") == 1
    assert open_paths(policies(both)) == OPEN
    plain = service(other)["spec"]
    for component in COMPONENTS:
        part = service(both)["spec"][component]
        assert part["minReplicas"] == 2
        assert part.get("maxReplicas") == plain[component].get("maxReplicas")
        assert part.get("serviceAccountName") == plain[component].get("serviceAccountName")
