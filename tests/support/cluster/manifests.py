"""The InferenceService and its overlays as a cluster gets them, and readers for their parts."""

import copy
import functools
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from tests.support.paths import MANIFEST, ROOT

Manifest = dict[str, Any]

OVERLAYS = ROOT / "inferenceservice" / "overlays"

BASE = "placement.yaml"
OVERLAY_NAMES = ["autoscaling", "collocated", "hardened", "knative", "monitoring", "s3", "sklearnserver"]
EVERY_MANIFEST = [BASE, *OVERLAY_NAMES]
#: Kinds of the Prometheus operator, which KServe's and Kubernetes' models do not have.
OPERATOR_KINDS = {"PodMonitor", "PrometheusRule"}
TWO_PODS = [name for name in EVERY_MANIFEST if name != "collocated"]
WITH_MLSERVER = [name for name in EVERY_MANIFEST if name != "sklearnserver"]
STANDARD_MODE = [name for name in EVERY_MANIFEST if name != "knative"]


@functools.cache
def rendered(name: str) -> str:
    """Return the YAML that a cluster gets: the base as written, an overlay as kustomize renders it."""
    if name == BASE:
        return MANIFEST.read_text()
    if kubectl := shutil.which("kubectl"):
        # Rendering needs no cluster, but some versions of kubectl first ask one for its version.
        command = [kubectl, "--server=http://127.0.0.1:1", "kustomize"]
    elif kustomize := shutil.which("kustomize"):
        command = [kustomize, "build"]
    else:
        pytest.skip("rendering an overlay needs kubectl or kustomize")
    # An absolute path in the name is used as it is.
    done = subprocess.run([*command, str(OVERLAYS / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def documents(name: str) -> list[Manifest]:
    return copy.deepcopy(_parsed(name))


@functools.cache
def _parsed(name: str) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(rendered(name)) if document]


def of_kind(name: str, kind: str) -> list[Manifest]:
    return [document for document in documents(name) if document["kind"] == kind]


def service(name: str) -> Manifest:
    [found] = of_kind(name, "InferenceService")
    return dict(found)


def labels(component: str, service_name: str = "placement") -> dict[str, str]:
    """Return the labels that KServe v0.20 puts on the pods of a component in Standard mode."""
    return {
        "serving.kserve.io/inferenceservice": service_name,
        "component": component,
        "app": f"isvc.{service_name}-{component}",
    }


def pods(manifest: Manifest) -> dict[str, Manifest]:
    """Return each component's pod as far as the manifest decides it."""
    replicas = {"minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "deploymentStrategy"}
    not_the_pods = replicas | {"annotations", "model"}
    made = {}
    for name in manifest["spec"].keys() & {"predictor", "transformer"}:
        part = manifest["spec"][name]
        metadata = {"labels": labels(name), "annotations": part.get("annotations", {})}
        spec = {field: value for field, value in part.items() if field not in not_the_pods}
        named = [{"name": "kserve-container", **container} for container in containers(part)]
        made[name] = {"metadata": metadata, "spec": spec | {"containers": named}}
    return made


def components(manifest: Manifest) -> list[Manifest]:
    """Return the parts that become separate pods."""
    spec = manifest["spec"]
    return [spec[part] for part in ("predictor", "transformer") if part in spec]


def transformer_container(manifest: Manifest) -> Manifest:
    part = manifest["spec"].get("transformer") or manifest["spec"]["predictor"]
    [container] = part["containers"]
    return dict(container)


def containers(component: Manifest) -> list[Manifest]:
    return [*filter(None, [component.get("model")]), *component.get("containers", [])]


def environment(container: Manifest) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container.get("env", [])}


def argument(container: Manifest, name: str) -> str | None:
    values = [text.partition("=")[2] for text in container["args"] if text.startswith(f"--{name}=")]
    assert len(values) <= 1, f"--{name} is given {len(values)} times"
    return values[0] if values else None


def listening_ports(container: Manifest) -> list[int]:
    """Return every port that a container's process listens on."""
    if "modelFormat" not in container:
        return [port["containerPort"] for port in container["ports"]]
    if container["runtime"] == "kserve-sklearnserver":
        return [8080, 8081]
    # Ports of the ClusterServingRuntime, MLServer's defaults, and the manifest's changes.
    ports = {"MLSERVER_HTTP_PORT": "8080", "MLSERVER_GRPC_PORT": "9000", "MLSERVER_METRICS_PORT": "8082"}
    ports |= {name: value for name, value in environment(container).items() if name in ports}
    return [int(port) for port in ports.values()]


def pause_seconds(container: Manifest) -> int:
    """Return the seconds for which a terminating container still accepts requests."""
    if "modelFormat" not in container:
        return int(argument(container, "shutdown_delay_seconds") or 0)
    return int(container["lifecycle"]["preStop"]["sleep"]["seconds"])
