"""The pipeline, in a pod with the Role of rollouts, publishes versions to the claim and rolls them out."""

import json
from collections.abc import Iterator

import pytest

from tests.support.cluster.manifests import BASE, rendered
from tests.support.paths import ROOT
from tests.support.protocol_clients import over_v1
from tests.support.real_cluster import COMMAND_S, MODELS, ClusterNamespace, missing_image
from tests.support.waiting import wait_until_sync
from training.generator import generate

IMAGE = "placement-training:0.1.0"
ROLE = ROOT / "inferenceservice" / "rollout-role.yaml"
ACCOUNT = "pipeline-runner"
ENDED_S = 600


@pytest.fixture
def runner(namespace: ClusterNamespace) -> Iterator[ClusterNamespace]:
    """A namespace with the claim, and a service account that may roll out."""
    namespace.kubectl("apply", "-f", str(MODELS), "-f", str(ROLE))
    namespace.kubectl("wait", "--for=condition=Ready", "pod/models", f"--timeout={COMMAND_S}s")
    namespace.kubectl("create", "serviceaccount", ACCOUNT)
    binding = ("rolebinding", ACCOUNT, "--role=placement-rollout")
    namespace.kubectl("create", *binding, f"--serviceaccount={namespace.name}:{ACCOUNT}")
    yield namespace
    namespace.delete_service()
    namespace.kubectl("delete", "rolebinding,serviceaccount", ACCOUNT)


def pod(name: str, arguments: tuple[str, ...]) -> dict[str, object]:
    """Return a pod that runs the pipeline with the local runner of Kubeflow's SDK."""
    container = {
        "name": "pipeline",
        "image": IMAGE,
        "command": ["python", "-m", "pipelines.run", *arguments],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [
            {"name": "work", "mountPath": "/work"},
            {"name": "models", "mountPath": "/work/models"},
            {"name": "work", "mountPath": "/tmp"},
        ],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "serviceAccountName": ACCOUNT,
            "restartPolicy": "Never",
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "fsGroup": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [
                {"name": "work", "emptyDir": {}},
                {"name": "models", "persistentVolumeClaim": {"claimName": "models"}},
            ],
        },
    }


def run_pipeline(namespace: ClusterNamespace, name: str, *arguments: str) -> str:
    """Run the pipeline in a pod until it has ended, and return its log; skip the test without its image."""
    manifest = pod(name, ("--namespace", namespace.name, *arguments))
    namespace.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))

    def phase() -> str | None:
        found = namespace.read("pod", name)
        if image := missing_image(found):
            pytest.skip(f"the cluster has no image {image}")
        return found["status"]["phase"] if found["status"]["phase"] in {"Succeeded", "Failed"} else None

    ended = wait_until_sync(phase, timeout_s=ENDED_S, poll_s=2)
    log = namespace.kubectl("logs", name)
    assert ended == "Succeeded", log
    return log


def test_the_pipeline_publishes_a_version_and_rolls_the_next_one_out(runner: ClusterNamespace) -> None:
    log = run_pipeline(runner, "first")
    assert "pvc://models/placement/v1" in log
    runner.apply(rendered(BASE), "pvc://models/placement/v1")
    log = run_pipeline(runner, "second", "--seed", "5")
    assert "pvc://models/placement/v2" in log
    assert over_v1(runner.address().url, generate(3).candidates).version == "v2"
