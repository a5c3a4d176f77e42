"""Pods of a cluster as KServe's Deployments make them."""

from tests.support.cluster.kserve_controllers import Json, condition


def pod(
    name: str, *arguments: str, component: str = "transformer", ready: bool = True, **status: str
) -> Json:
    """Return a pod as KServe's Deployments make it."""
    labels = {"serving.kserve.io/inferenceservice": "placement", "component": component}
    container = "kserve-container" if component == "transformer" else "transformer-container"
    conditions = [condition("Ready", "True" if ready else "False")]
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {"containers": [{"name": "another"}, {"name": container, "args": list(arguments)}]},
        "status": {"phase": "Running", "conditions": conditions, **status},
    }
