"""The Pod Security Standard "restricted" (v1.34): lists the fields of a pod that violate it."""

from collections.abc import Iterator
from typing import Any

Pod = dict[str, Any]

_APPARMOR = "container.apparmor.security.beta.kubernetes.io/"
_CONTAINER_LISTS = ("initContainers", "containers", "ephemeralContainers")
_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
}
_SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
_CONFINED = {"RuntimeDefault", "Localhost"}
_HOOKS = ("startupProbe", "readinessProbe", "livenessProbe")


def violations(pod: Pod) -> list[str]:
    """Return the paths of a pod's fields (`metadata` and `spec`) that a restricted namespace refuses."""
    spec = pod["spec"]
    found = [*_of_the_pod(spec), *_of_the_annotations(pod.get("metadata", {}))]
    context = spec.get("securityContext") or {}
    found += [f"securityContext.{field}" for field in _of_a_context(context)]
    for kind in _CONTAINER_LISTS:
        for container in spec.get(kind, []):
            found += [f"{container['name']}.{field}" for field in _of_a_container(container, context)]
    return found


def _of_the_pod(spec: Pod) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield field
    for volume in spec.get("volumes", []):
        yield from (f"volumes.{kind}" for kind in volume.keys() - {"name"} - _VOLUMES)
    for sysctl in (spec.get("securityContext") or {}).get("sysctls", []):
        if sysctl["name"] not in _SYSCTLS:
            yield f"sysctls.{sysctl['name']}"


def _of_the_annotations(metadata: Pod) -> Iterator[str]:
    for name, value in (metadata.get("annotations") or {}).items():
        if name.startswith(_APPARMOR) and value != "runtime/default" and not value.startswith("localhost/"):
            yield f"annotations.{name}"


def _of_a_context(context: Pod) -> Iterator[str]:
    """Check the fields that the securityContext of pods and containers have in common."""
    selinux = context.get("seLinuxOptions") or {}
    if selinux.get("type", "") not in _SELINUX_TYPES or selinux.get("user") or selinux.get("role"):
        yield "seLinuxOptions"
    for profile in ("seccompProfile", "appArmorProfile"):
        if profile in context and context[profile].get("type") not in _CONFINED:
            yield profile
    if context.get("runAsUser") == 0:
        yield "runAsUser"
    if context.get("runAsNonRoot") is False:
        yield "runAsNonRoot"
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield "windowsOptions.hostProcess"


def _of_a_container(container: Pod, of_pod: Pod) -> Iterator[str]:
    context = container.get("securityContext") or {}
    yield from _of_a_context(context)
    # Fields that a container inherits from its pod.
    if "runAsNonRoot" not in context and of_pod.get("runAsNonRoot") is not True:
        yield "runAsNonRoot"
    if "seccompProfile" not in context and "seccompProfile" not in of_pod:
        yield "seccompProfile"
    # Fields that only a container has.
    if context.get("privileged"):
        yield "privileged"
    if context.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation"
    capabilities = context.get("capabilities") or {}
    if "ALL" not in capabilities.get("drop", []):
        yield "capabilities.drop"
    if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield "capabilities.add"
    if context.get("procMount", "Default") != "Default":
        yield "procMount"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield "ports.hostPort"
    yield from _of_the_hooks(container)


def _of_the_hooks(container: Pod) -> Iterator[str]:
    """Check that probes and hooks name no other host."""
    hooks = {name: container.get(name) or {} for name in _HOOKS}
    hooks |= {f"lifecycle.{name}": hook for name, hook in (container.get("lifecycle") or {}).items()}
    for name, hook in hooks.items():
        if any((hook.get(kind) or {}).get("host") for kind in ("httpGet", "tcpSocket")):
            yield f"{name}.host"
