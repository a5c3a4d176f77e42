"""A namespace of the cluster that KUBECONFIG names: kubectl, a claim with versions, the service's pods."""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from inferenceservice.cluster.workloads import SOURCE_URI
from tests.support.paths import ROOT
from tests.support.waiting import wait_until_sync

Json = dict[str, Any]

#: The claim and the pod that copies versions into it.
MODELS = ROOT / "inferenceservice" / "models.yaml"
#: URI in the specs, which tests replace by others.
SPEC_URI = "pvc://models/placement/v1"
#: Marks the namespaces of tests.
LABEL = "app.kubernetes.io/managed-by=placement-tests"
#: Reasons why a container waits for its image in vain.
_NO_IMAGE = {"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull"}
#: Seconds for one command, and until pods are ready: a node may have to pull images first.
COMMAND_S = 120
READY_S = 300


class NoClusterError(Exception):
    """KUBECONFIG names no cluster with KServe; the message says what is missing."""


@dataclass(frozen=True)
class Address:
    """Addresses of a Service: the URL for REST, and host and port for gRPC."""

    url: str
    grpc: str


def missing_image(pod: Json) -> str | None:
    """Return an image that a pod waits for in vain, or None."""
    for status in pod["status"].get("containerStatuses", ()):
        if status["state"].get("waiting", {}).get("reason") in _NO_IMAGE:
            image: str = status["image"]
            return image
    return None


class ClusterNamespace:
    """A namespace for tests, in which commands find the claim `models` and the InferenceService `placement`.

    Attributes
    ----------
    kubeconfig
        Its context has this namespace.
    """

    def __init__(self, name: str, kubeconfig: Path) -> None:
        self.name = name
        self.kubeconfig = kubeconfig
        self._uploaded: set[str] = set()

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl in the namespace, and return what it prints."""
        return _kubectl(*arguments, stdin=stdin, kubeconfig=self.kubeconfig)

    def read(self, *what: str) -> Json:
        """Read an object or a list."""
        content: Json = json.loads(self.kubectl("get", *what, "-o", "json"))
        return content

    def upload(self, version: Path, path: str) -> str:
        """Copy a version into the claim as the README does, and return its URI."""
        if not self._uploaded:
            self.kubectl("apply", "-f", str(MODELS))
            self.kubectl("wait", "--for=condition=Ready", "pod/models", f"--timeout={COMMAND_S}s")
        if path not in self._uploaded:
            self.kubectl("exec", "models", "--", "mkdir", "-p", f"/models/{Path(path).parent}")
            self.kubectl("cp", str(version), f"models:/models/{path}")
            self._uploaded.add(path)
        return f"pvc://models/{path}"

    def apply(self, manifest: str, uri: str = SPEC_URI) -> None:
        """Apply a manifest, with another version in it, and wait until it serves."""
        self.change(manifest, uri)
        self.wait_until_serving(uri)

    def change(self, manifest: str, uri: str = SPEC_URI) -> None:
        """Apply a manifest, with another version in it, and wait until KServe has updated the Deployments."""
        self.kubectl("apply", "-f", "-", stdin=manifest.replace(SPEC_URI, uri))
        wait_until_sync(lambda: self._bundles() == {uri}, timeout_s=COMMAND_S, poll_s=0.5)

    def wait_until_serving(self, uri: str) -> None:
        """Wait until KServe reports READY, and all pods of all components have the version."""
        self.wait_for_deployments(uri)
        # `kubectl wait` may never end after a change: KServe's observedGeneration is a Deployment's.
        wait_until_sync(self._is_ready, timeout_s=READY_S, poll_s=0.5)

    def wait_for_deployments(self, uri: str) -> None:
        """Wait until all pods of all components have the version, and are available."""
        wait_until_sync(lambda: self._bundles() == {uri}, timeout_s=COMMAND_S, poll_s=0.5)
        for deployment in self.deployments():
            name = deployment["metadata"]["name"]
            self.kubectl("rollout", "status", f"deployment/{name}", f"--timeout={READY_S}s")

    def delete_service(self) -> None:
        """Delete the InferenceService, and wait until its Services and pods have gone.

        KServe would give a new one the old Services, which are deleted a moment later.
        """
        self.kubectl("delete", "inferenceservice", "placement", "--cascade=foreground", "--ignore-not-found")
        wait_until_sync(lambda: not self._all_pods(), timeout_s=READY_S, poll_s=0.5)

    def address(self, service: str = "placement-transformer") -> Address:
        """Return the addresses of a Service. This machine must have a route to the cluster's Services."""
        ip = self.read("service", service)["spec"]["clusterIP"]
        return Address(f"http://{ip}", f"{ip}:8081")

    def pods(self, component: str | None = None) -> list[Json]:
        """Return the pods of the service, or of one component, that are not terminating."""
        return [pod for pod in self._all_pods(component) if "deletionTimestamp" not in pod["metadata"]]

    def delete_pods(self, component: str, *, kill: bool = False) -> None:
        """Delete the pods of a component, and wait until others are ready.

        Parameters
        ----------
        kill
            True if they end at once, without a pause or a drain.
        """
        deleted = _names(self.pods(component))
        how = ("--grace-period=0", "--force") if kill else ()
        self.kubectl("delete", "pod", *deleted, *how)
        new = wait_until_sync(lambda: _names(self.pods(component)) - deleted, poll_s=0.5)
        self.kubectl("wait", "--for=condition=Ready", "pod", *new, f"--timeout={READY_S}s")

    def python(self, pod: str, container: str, code: str) -> Any:
        """Run Python code in a container, and return the JSON that it prints."""
        return json.loads(self.kubectl("exec", pod, "-c", container, "--", "python", "-c", code))

    def get_from_pod(self, pod: str, port: str, path: str) -> str:
        """Return what a pod answers to GET."""
        return self.kubectl("get", "--raw", f"/api/v1/namespaces/{self.name}/pods/{pod}:{port}/proxy{path}")

    def deployments(self) -> list[Json]:
        """Return the Deployment of each component."""
        found: list[Json] = self.read("deployments", "-l", _of_the_service())["items"]
        return found

    def _is_ready(self) -> bool:
        conditions = self.read("inferenceservice", "placement")["status"].get("conditions", ())
        return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)

    def _all_pods(self, component: str | None = None) -> list[Json]:
        found: list[Json] = self.read("pods", "-l", _of_the_service(component))["items"]
        return found

    def _bundles(self) -> set[str]:
        return {
            one["spec"]["template"]["metadata"]["annotations"].get(SOURCE_URI, "")
            for one in self.deployments()
        }


@contextlib.contextmanager
def cluster_namespace(directory: Path, *, restricted: bool = True) -> Iterator[ClusterNamespace]:
    """Create a namespace, and delete it with all that is in it, also after Ctrl-C.

    Parameters
    ----------
    directory
        Directory of this machine for the kubeconfig, and for the claim's files if the cluster has no storage
        class (then its node must be this machine).
    restricted
        True if the namespace admits only pods that comply with the Pod Security Standard "restricted".

    Raises
    ------
    NoClusterError
        If there is no cluster, or it has no KServe.
    """
    _require_kserve()
    name = f"placement-test-{secrets.token_hex(3)}"
    labels = [LABEL, f"pod-security.kubernetes.io/enforce={'restricted' if restricted else 'baseline'}"]
    files = directory / name
    files.mkdir(parents=True)
    _kubectl("create", "namespace", name)
    try:
        _kubectl("label", "namespace", name, *labels)
        if not _has_default_storage_class():
            _kubectl("create", "-f", "-", stdin=yaml.safe_dump(_volume(name, files)))
        yield ClusterNamespace(name, _kubeconfig(name, files / "kubeconfig"))
    finally:
        _kubectl("delete", "namespace", name, f"--timeout={READY_S}s")
        _kubectl("delete", "persistentvolume", name, "--ignore-not-found")
        shutil.rmtree(files)


def _kubectl(*arguments: str, stdin: str | None = None, kubeconfig: Path | None = None) -> str:
    env = os.environ if kubeconfig is None else {**os.environ, "KUBECONFIG": str(kubeconfig)}
    done = subprocess.run(
        ["kubectl", *arguments],
        input=stdin,
        env=env,
        capture_output=True,
        text=True,
        timeout=COMMAND_S + READY_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _require_kserve() -> None:
    if shutil.which("kubectl") is None:
        raise NoClusterError("kubectl is not installed")
    try:
        _kubectl("get", "crd", "inferenceservices.serving.kserve.io")
    except RuntimeError as error:
        raise NoClusterError(f"set KUBECONFIG to a cluster with KServe: {error}") from error


def _has_default_storage_class() -> bool:
    classes = json.loads(_kubectl("get", "storageclasses", "-o", "json"))["items"]
    default = "storageclass.kubernetes.io/is-default-class"
    return any((one["metadata"].get("annotations") or {}).get(default) == "true" for one in classes)


def _volume(namespace: str, files: Path) -> Json:
    """Return a volume for the namespace's claim on a directory of this machine."""
    directory = files / "models"
    directory.mkdir()
    directory.chmod(0o777)
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": namespace},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "claimRef": {"namespace": namespace, "name": "models"},
            "hostPath": {"path": str(directory)},
        },
    }


def _kubeconfig(namespace: str, file: Path) -> Path:
    """Write a copy of the current kubeconfig whose context has the namespace."""
    file.touch(mode=0o600)
    file.write_text(_kubectl("config", "view", "--raw", "--flatten", "--minify"))
    _kubectl("config", "set-context", "--current", f"--namespace={namespace}", f"--kubeconfig={file}")
    return file


def _names(pods: Iterable[Json]) -> set[str]:
    return {pod["metadata"]["name"] for pod in pods}


def _of_the_service(component: str | None = None) -> str:
    service = "serving.kserve.io/inferenceservice=placement"
    return f"{service},component={component}" if component else service
