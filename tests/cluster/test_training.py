"""The Job trains a version in the cluster and writes it to the claim, and KServe serves it."""

import re
from collections.abc import Iterator

import pytest
import yaml

from tests.support.cluster.manifests import BASE, documents, rendered
from tests.support.paths import ROOT
from tests.support.protocol_clients import over_v1
from tests.support.real_cluster import COMMAND_S, MODELS, ClusterNamespace, missing_image
from tests.support.waiting import wait_until_sync
from training.generator import generate

JOB = "placement-train"
#: Less work than the manifest asks for.
LESS = {"--rows=2000": "--rows=400", "--tune=50": "--tune=8"}
TRAINED_S = 900


@pytest.fixture
def job(namespace: ClusterNamespace) -> Iterator[ClusterNamespace]:
    """A namespace in which the Job runs."""
    (manifest,) = documents(str(ROOT / "pipelines" / "cluster" / "job"))
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    container["args"] = [LESS.get(argument, argument) for argument in container["args"]]
    assert set(LESS.values()) <= set(container["args"])
    namespace.kubectl("apply", "-f", str(MODELS))
    namespace.kubectl("wait", "--for=condition=Ready", "pod/models", f"--timeout={COMMAND_S}s")
    namespace.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(manifest))
    yield namespace
    namespace.kubectl("delete", "job", JOB)


def has_ended(namespace: ClusterNamespace) -> bool:
    """Return True if the Job has succeeded; fail if it has failed, and skip the test without its image."""
    for pod in namespace.read("pods", "-l", f"batch.kubernetes.io/job-name={JOB}")["items"]:
        if image := missing_image(pod):
            pytest.skip(f"the cluster has no image {image}")
    conditions = namespace.read("job", JOB)["status"].get("conditions", ())
    true = {one["type"] for one in conditions if one["status"] == "True"}
    assert "Failed" not in true, namespace.kubectl("logs", f"job/{JOB}")
    return "Complete" in true


def test_a_job_trains_a_version_that_is_served(job: ClusterNamespace) -> None:
    wait_until_sync(lambda: has_ended(job), timeout_s=TRAINED_S, poll_s=2)
    found = re.search(r"^uri +/models/placement/(v\d+)$", job.kubectl("logs", f"job/{JOB}"), re.MULTILINE)
    assert found is not None
    job.apply(rendered(BASE), f"pvc://models/placement/{found[1]}")
    try:
        answer = over_v1(job.address().url, generate(3).candidates)
        assert answer.version == found[1]
    finally:
        job.delete_service()
