"""Pods of a cluster as KServe's Deployments make them."""

from typing import Any

from inferenceservice.cluster.workloads import SOURCE_URI
from tests.support.cluster.kserve_controllers import Json, condition


def pod(
    name: str,
    *arguments: str,
    component: str = "transformer",
    uri: str = "",
    number: int = 1,
    ready: bool = True,
    **status: Any,
) -> Json:
    """Return a pod as KServe's Deployments make it.

    Parameters
    ----------
    uri
        Its bundle.
    number
        Number of its template; pods of newer ones were created later.
    """
    labels = {
        "serving.kserve.io/inferenceservice": "placement",
        "component": component,
        "pod-template-hash": f"hash{number}",
    }
    container = "kserve-container" if component == "transformer" else "transformer-container"
    conditions = [condition("Ready", "True" if ready else "False")]
    return {
        "metadata": {
            "name": name,
            "labels": labels,
            "annotations": {SOURCE_URI: uri},
            "creationTimestamp": f"2026-01-01T00:{number:02}:00Z",
        },
        "spec": {"containers": [{"name": "another"}, {"name": container, "args": list(arguments)}]},
        "status": {"phase": "Running", "conditions": conditions, **status},
    }


def terminating(pod: Json, *, grace_period_s: int = 60) -> Json:
    """Return a pod that was deleted and still runs."""
    deleted = {"deletionTimestamp": "2026-01-01T01:00:00Z", "deletionGracePeriodSeconds": grace_period_s}
    return {**pod, "metadata": {**pod["metadata"], **deleted}}


def ended(message: str = "", *, code: int = 1, reason: str = "Error") -> Json:
    """Return the state of a container that has ended."""
    return {"terminated": {"exitCode": code, "reason": reason, "message": message}}


def waiting(reason: str, message: str = "") -> Json:
    """Return the state of a container that waits."""
    return {"waiting": {"reason": reason, "message": message}}


def container(state: Json, *, last: Json | None = None, restarts: int = 0, ready: bool = False) -> Json:
    """Return the status of a container."""
    return {
        "name": "kserve-container",
        "ready": ready,
        "restartCount": restarts,
        "state": state,
        "lastState": last or {},
    }
