"""An evaluator of NetworkPolicies: tells if they allow a connection."""

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Policy = Mapping[str, Any]


@dataclass(frozen=True)
class Peer:
    """One end of a connection.

    Attributes
    ----------
    namespace
        Name of a pod's namespace, or None outside the cluster.
    address
        IP address of a peer that is not a pod.
    """

    namespace: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str | None = None


def allowed(
    policies: Sequence[Policy],
    source: Peer,
    target: Peer,
    port: int,
    protocol: str = "TCP",
) -> bool:
    """Return True if both ends allow a connection."""
    return _side(policies, "Egress", source, target, (port, protocol)) and _side(
        policies, "Ingress", target, source, (port, protocol)
    )


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Return True if a label selector matches; an empty one matches all."""
    unknown = selector.keys() - {"matchLabels", "matchExpressions"}
    assert not unknown, unknown
    equal = all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items())
    return equal and all(_holds(one, labels) for one in selector.get("matchExpressions", []))


def _holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value, values = labels.get(expression["key"]), expression.get("values", [])
    return {
        "In": value in values,
        "NotIn": value not in values,
        "Exists": value is not None,
        "DoesNotExist": value is None,
    }[expression["operator"]]


def _side(
    policies: Iterable[Policy],
    direction: str,
    pod: Peer,
    other: Peer,
    port: tuple[int, str],
) -> bool:
    """Return True if a pod has no policy for a direction, or one that allows a connection."""
    applying = [
        policy["spec"]
        for policy in policies
        if pod.namespace == policy["metadata"].get("namespace", "default")
        and selects(policy["spec"]["podSelector"], pod.labels)
        and direction in _types(policy["spec"])
    ]
    if not applying:
        return True
    peers = "to" if direction == "Egress" else "from"
    rules = [rule for spec in applying for rule in spec.get(direction.lower()) or []]
    return any(_names(rule.get(peers), other, pod) and _has_port(rule.get("ports"), *port) for rule in rules)


def _types(spec: Mapping[str, Any]) -> Sequence[str]:
    default = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]
    types: Sequence[str] = spec.get("policyTypes", default)
    return types


def _names(peers: Sequence[Mapping[str, Any]] | None, other: Peer, pod: Peer) -> bool:
    """Return True if a rule matches the other end; a rule without peers matches all."""
    return not peers or any(_is(peer, other, pod) for peer in peers)


def _is(peer: Mapping[str, Any], other: Peer, pod: Peer) -> bool:
    if "ipBlock" in peer:
        if other.address is None:
            return False
        address, block = ipaddress.ip_address(other.address), peer["ipBlock"]
        outside = any(address in ipaddress.ip_network(part) for part in block.get("except", []))
        return address in ipaddress.ip_network(block["cidr"]) and not outside
    if other.namespace is None:
        return False
    if "namespaceSelector" in peer:
        in_namespace = selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": other.namespace})
    else:
        in_namespace = other.namespace == pod.namespace
    return in_namespace and selects(peer.get("podSelector", {}), other.labels)


def _has_port(ports: Sequence[Mapping[str, Any]] | None, number: int, protocol: str) -> bool:
    return not ports or any(
        one.get("protocol", "TCP") == protocol
        and ("port" not in one or one["port"] <= number <= one.get("endPort", one["port"]))
        for one in ports
    )
