"""Every pod of every overlay meets the Pod Security Standard "restricted"."""

import copy
from typing import Any

import pytest

from tests.support.cluster.manifests import BASE, EVERY_MANIFEST, Manifest, pods, service
from tests.support.cluster.pod_security import violations

#: The storage initializer of KServe v0.20 (ClusterStorageContainer `default`).
BY_THE_CHART = {
    "allowPrivilegeEscalation": False,
    "privileged": False,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
}
BY_PLAIN_MANIFESTS: Manifest = {}

POD = ("spec",)
CONTAINER = ("spec", "containers", 0)
INIT = ("spec", "initContainers", 0)
GONE = object()


@pytest.mark.parametrize("name", EVERY_MANIFEST)
def test_every_pod_meets_the_restricted_standard(name: str) -> None:
    made = pods(service(name))
    assert sorted(made) == (["predictor"] if name == "collocated" else ["predictor", "transformer"])
    for pod in made.values():
        assert violations(pod) == []


def with_initializer(pod: Manifest, context: Manifest) -> Manifest:
    injected = {"name": "storage-initializer", "securityContext": context}
    return {**pod, "spec": pod["spec"] | {"initContainers": [injected]}}


@pytest.mark.parametrize("component", ["predictor", "transformer"])
def test_the_hardened_pod_also_covers_the_storage_initializer_of_kserves_chart(component: str) -> None:
    plain, hardened = (pods(service(name))[component] for name in ("s3", "hardened"))
    assert violations(with_initializer(plain, BY_THE_CHART)) == ["storage-initializer.seccompProfile"]
    assert violations(with_initializer(hardened, BY_THE_CHART)) == []


def test_without_kserves_chart_the_storage_initializer_needs_the_documented_settings() -> None:
    hardened = pods(service("hardened"))["predictor"]
    assert violations(with_initializer(hardened, BY_PLAIN_MANIFESTS)) == [
        "storage-initializer.allowPrivilegeEscalation",
        "storage-initializer.capabilities.drop",
    ]


def changed(pod: Manifest, where: tuple[str | int, ...], field: str, value: object) -> Manifest:
    pod = copy.deepcopy(pod)
    inner: Any = pod
    for key in where:
        inner = inner.setdefault(key, {}) if isinstance(key, str) else inner[key]
    if value is GONE:
        del inner[field]
    else:
        inner[field] = value
    return pod


def restricted_pod() -> Manifest:
    """Return a pod that meets the standard, with a container of each kind."""
    pod = pods(service(BASE))["transformer"]
    container = pod["spec"]["containers"][0]
    return changed(pod, POD, "initContainers", [copy.deepcopy(container) | {"name": "first"}])


@pytest.mark.parametrize(
    ("where", "field", "value", "told"),
    [
        (POD, "hostNetwork", True, "hostNetwork"),
        (POD, "hostPID", True, "hostPID"),
        (POD, "hostIPC", True, "hostIPC"),
        (POD, "volumes", [{"name": "root", "hostPath": {"path": "/"}}], "volumes.hostPath"),
        (POD, "volumes", [{"name": "share", "nfs": {"path": "/"}}], "volumes.nfs"),
        (
            (*POD, "securityContext"),
            "sysctls",
            [{"name": "kernel.msgmax", "value": "1"}],
            "sysctls.kernel.msgmax",
        ),
        ((*POD, "securityContext"), "runAsUser", 0, "securityContext.runAsUser"),
        ((*POD, "securityContext"), "runAsNonRoot", False, "securityContext.runAsNonRoot"),
        ((*POD, "securityContext"), "seLinuxOptions", {"type": "spc_t"}, "securityContext.seLinuxOptions"),
        (
            (*POD, "securityContext"),
            "seccompProfile",
            {"type": "Unconfined"},
            "securityContext.seccompProfile",
        ),
        (
            ("metadata", "annotations"),
            "container.apparmor.security.beta.kubernetes.io/kserve-container",
            "unconfined",
            "annotations.container.apparmor.security.beta.kubernetes.io/kserve-container",
        ),
        (CONTAINER, "ports", [{"containerPort": 8080, "hostPort": 80}], "kserve-container.ports.hostPort"),
        (CONTAINER, "securityContext", GONE, "kserve-container.capabilities.drop"),
        (INIT, "securityContext", GONE, "first.capabilities.drop"),
        (
            (*CONTAINER, "readinessProbe", "httpGet"),
            "host",
            "10.0.0.1",
            "kserve-container.readinessProbe.host",
        ),
        (
            (*CONTAINER, "lifecycle", "postStart", "httpGet"),
            "host",
            "10.0.0.1",
            "kserve-container.lifecycle.postStart.host",
        ),
    ],
)
def test_a_forbidden_field_of_a_pod_is_found(where, field, value, told) -> None:
    pod = restricted_pod()
    assert violations(pod) == []
    assert told in violations(changed(pod, where, field, value))


@pytest.mark.parametrize("where", [CONTAINER, INIT], ids=["container", "initContainer"])
@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("privileged", True, "privileged"),
        ("allowPrivilegeEscalation", True, "allowPrivilegeEscalation"),
        ("allowPrivilegeEscalation", GONE, "allowPrivilegeEscalation"),
        ("capabilities", {"drop": ["NET_RAW"]}, "capabilities.drop"),
        ("capabilities", {"drop": ["ALL"], "add": ["NET_BIND_SERVICE", "SYS_ADMIN"]}, "capabilities.add"),
        ("runAsNonRoot", False, "runAsNonRoot"),
        ("runAsNonRoot", GONE, "runAsNonRoot"),
        ("runAsUser", 0, "runAsUser"),
        ("seccompProfile", {"type": "Unconfined"}, "seccompProfile"),
        ("seccompProfile", GONE, "seccompProfile"),
        ("appArmorProfile", {"type": "Unconfined"}, "appArmorProfile"),
        ("seLinuxOptions", {"user": "system_u"}, "seLinuxOptions"),
        ("procMount", "Unmasked", "procMount"),
        ("windowsOptions", {"hostProcess": True}, "windowsOptions.hostProcess"),
    ],
)
def test_a_forbidden_field_of_a_container_is_found(where, field, value, told) -> None:
    pod = changed(restricted_pod(), (*where, "securityContext"), field, value)
    name = "first" if where == INIT else "kserve-container"
    assert violations(pod) == [f"{name}.{told}"]


def test_an_allowed_field_of_a_container_is_accepted() -> None:
    context = (*CONTAINER, "securityContext")
    pod = changed(restricted_pod(), context, "capabilities", {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]})
    pod = changed(pod, context, "runAsUser", 1000)
    pod = changed(pod, context, "seccompProfile", {"type": "Localhost", "localhostProfile": "p.json"})
    pod = changed(pod, POD, "volumes", [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}])
    assert violations(pod) == []


def test_a_container_inherits_the_pods_security_context() -> None:
    pod = changed(restricted_pod(), (*CONTAINER, "securityContext"), "seccompProfile", GONE)
    pod = changed(pod, (*POD, "securityContext"), "seccompProfile", {"type": "RuntimeDefault"})
    assert violations(pod) == []
