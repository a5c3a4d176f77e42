"""The tests' evaluator of NetworkPolicies follows the Kubernetes API."""

from typing import Any

import pytest

from tests.support.cluster.network_policies import Peer, allowed, selects

A = Peer("home", {"app": "a"})
B = Peer("home", {"app": "b"})
ELSEWHERE = Peer("elsewhere", {"app": "a"})
OUTSIDE = Peer(address="10.1.2.3")


def policy(namespace: str = "home", **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"namespace": namespace},
        "spec": {"podSelector": {"matchLabels": {"app": "b"}}} | spec,
    }


def peer(**fields: Any) -> list[dict[str, Any]]:
    return [{"from": [fields]}]


@pytest.mark.parametrize(
    ("spec", "source", "port", "expected"),
    [
        ({}, A, 80, False),  # selected, and nothing allowed
        ({"ingress": [{}]}, OUTSIDE, 80, True),
        ({"policyTypes": ["Egress"]}, A, 80, True),  # says nothing of what comes in
        ({"podSelector": {"matchLabels": {"app": "c"}}}, A, 80, True),  # of another pod
        ({"podSelector": {}}, A, 80, False),  # of every pod
        ({"ingress": peer(podSelector={})}, A, 80, True),
        ({"ingress": peer(podSelector={})}, ELSEWHERE, 80, False),  # the policy's own namespace
        ({"ingress": peer(namespaceSelector={})}, ELSEWHERE, 80, True),
        ({"ingress": peer(namespaceSelector={})}, OUTSIDE, 80, False),
        (
            {"ingress": peer(namespaceSelector={}, podSelector={"matchLabels": {"app": "b"}})},
            ELSEWHERE,
            80,
            False,  # both selectors have to match
        ),
        ({"ingress": peer(ipBlock={"cidr": "10.0.0.0/8"})}, OUTSIDE, 80, True),
        ({"ingress": peer(ipBlock={"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]})}, OUTSIDE, 80, False),
        ({"ingress": peer(ipBlock={"cidr": "0.0.0.0/0"})}, A, 80, False),
        ({"ingress": [{"ports": [{"port": 80}]}]}, A, 80, True),
        ({"ingress": [{"ports": [{"port": 80}]}]}, A, 81, False),
        ({"ingress": [{"ports": [{"port": 80, "protocol": "UDP"}]}]}, A, 80, False),
        ({"ingress": [{"ports": [{"port": 80, "endPort": 90}]}]}, A, 85, True),
        ({"ingress": [{"ports": [{"protocol": "TCP"}]}]}, A, 80, True),
    ],
)
def test_ingress_rules_allow_only_their_peers_and_ports(
    spec: dict[str, Any], source: Peer, port: int, *, expected: bool
) -> None:
    assert allowed([policy(**spec)], source, B, port) is expected


def test_both_ends_must_allow_a_connection_and_one_policy_of_each_is_enough() -> None:
    closed_out = policy(podSelector={"matchLabels": {"app": "a"}}, policyTypes=["Egress"])
    opened_out = closed_out | {"spec": closed_out["spec"] | {"egress": [{"to": [{"podSelector": {}}]}]}}
    assert not allowed([closed_out], A, B, 80)
    assert allowed([closed_out, opened_out], A, B, 80)
    assert not allowed([closed_out, opened_out, policy()], A, B, 80)


def test_a_policy_has_no_effect_in_other_namespaces() -> None:
    assert allowed([policy(namespace="elsewhere", podSelector={})], A, B, 80)


@pytest.mark.parametrize(
    ("operator", "values", "expected"),
    [
        ("In", ["a"], True),
        ("In", ["b"], False),
        ("NotIn", ["b"], True),
        ("Exists", [], True),
        ("DoesNotExist", [], False),
    ],
)
def test_expressions_select_labels(operator: str, values: list[str], *, expected: bool) -> None:
    expression = {"key": "app", "operator": operator, "values": values}
    assert selects({"matchExpressions": [expression]}, {"app": "a"}) is expected


def test_an_unknown_selector_is_an_error() -> None:
    with pytest.raises(AssertionError):
        selects({"matchLabel": {"app": "a"}}, {"app": "a"})
