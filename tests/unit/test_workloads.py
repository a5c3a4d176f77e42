"""Progress of a change and previous versions, as Deployments and Knative revisions show them."""

from typing import Any

import pytest

from inferenceservice.cluster.workloads import (
    SOURCE_URI,
    RolloutStatus,
    deployment_status,
    history_of_replica_sets,
    history_of_revisions,
    previous_uri,
    revision_status,
    stable_revision,
)
from tests.support.cluster.kserve_controllers import Json, condition

GAVE_UP = condition("Progressing", "False", "ProgressDeadlineExceeded", "too late", 5)


def template(uri: str) -> Json:
    return {"metadata": {"annotations": {SOURCE_URI: uri}}}


def deployment(uri: str = "v2", *, progressing: Json | None = None, **status: Any) -> Json:
    """Return a Deployment of three replicas and generation 2."""
    counts = {"observedGeneration": 2, "updatedReplicas": 3, "availableReplicas": 3, "replicas": 3, **status}
    return {
        "metadata": {"generation": 2},
        "spec": {"replicas": 3, "template": template(uri)},
        "status": {**counts, "conditions": [progressing] if progressing else []},
    }


@pytest.mark.parametrize(
    ("seen", "step"),
    [
        pytest.param(
            deployment("v1"),
            RolloutStatus("waiting for KServe to update the Deployment"),
            id="not handed on yet",
        ),
        pytest.param(
            deployment(observedGeneration=1),
            RolloutStatus("waiting for the Deployment to start"),
            id="not seen yet",
        ),
        pytest.param(
            {**deployment(), "status": {}}, RolloutStatus("waiting for the Deployment to start"), id="new"
        ),
        pytest.param(deployment(updatedReplicas=1), RolloutStatus("1 of 3 replicas updated"), id="under way"),
        pytest.param(
            deployment(replicas=4), RolloutStatus("3 of 3 replicas updated, 1 old left"), id="old ones left"
        ),
        pytest.param(
            deployment(availableReplicas=2),
            RolloutStatus("3 of 3 replicas updated, 2 available"),
            id="not available",
        ),
        pytest.param(deployment(), RolloutStatus("3 of 3 replicas updated", done=True), id="done"),
        pytest.param(
            deployment(updatedReplicas=1, progressing=GAVE_UP),
            RolloutStatus("ProgressDeadlineExceeded: too late", failed=True),
            id="gave up",
        ),
    ],
)
def test_a_deployment_is_complete_when_kubectl_says_so(seen: Json, step: RolloutStatus) -> None:
    assert deployment_status(seen, "v2", {}) == step


def test_a_deployment_that_failed_before_the_change_is_still_waited_for() -> None:
    seen = deployment(updatedReplicas=1, progressing=GAVE_UP)
    assert deployment_status(seen, "v2", GAVE_UP) == RolloutStatus("1 of 3 replicas updated")
    again = deployment(updatedReplicas=1, progressing={**GAVE_UP, "lastUpdateTime": "later"})
    assert deployment_status(again, "v2", GAVE_UP).failed


def revision(uri: str, *conditions: Json, number: int = 2) -> Json:
    labels = {"serving.knative.dev/configurationGeneration": str(number)}
    return {
        "metadata": {"annotations": {SOURCE_URI: uri}, "labels": labels},
        "status": {"conditions": list(conditions)},
    }


def part(name: str, percent: int | None, *, latest: bool) -> Json:
    return {"revisionName": name, "latestRevision": latest, "percent": percent}


@pytest.mark.parametrize(
    ("seen", "status", "step"),
    [
        pytest.param(None, {}, RolloutStatus("waiting for KServe to create the revision"), id="nothing yet"),
        pytest.param(
            revision("v1"), {}, RolloutStatus("waiting for KServe to create the revision"), id="the old one"
        ),
        pytest.param(
            revision("v2", condition("Ready", "Unknown", "Deploying")),
            {"latestReadyRevision": "p-00001"},
            RolloutStatus("revision p-00002 is not ready: Deploying"),
            id="coming up",
        ),
        pytest.param(
            revision("v2", condition("Ready", "False", "ProgressDeadlineExceeded", "exit code 1")),
            {"latestReadyRevision": "p-00001"},
            RolloutStatus("revision p-00002: ProgressDeadlineExceeded: exit code 1", failed=True),
            id="gave up",
        ),
        pytest.param(
            revision("v2"),
            {"latestReadyRevision": "p-00002", "traffic": [part("p-00001", 100, latest=True)]},
            RolloutStatus("revision p-00002 has 0 % of the traffic"),
            id="traffic not moved",
        ),
        pytest.param(
            revision("v2"),
            {
                "latestReadyRevision": "p-00002",
                "traffic": [part("p-00002", 20, latest=True), part("p-00001", 80, latest=False)],
            },
            RolloutStatus("revision p-00002 has 20 % of the traffic", done=True),
            id="done",
        ),
    ],
)
def test_a_revision_is_complete_when_it_gets_its_share_of_the_traffic(
    seen: Json | None, status: Json, step: RolloutStatus
) -> None:
    assert revision_status({"latestCreatedRevision": "p-00002", **status}, seen, "v2", 20) == step


def test_the_stable_revision_gets_the_traffic_that_a_canary_does_not_get() -> None:
    divided = [part("p-00002", 20, latest=True), part("p-00001", 80, latest=False)]
    assert stable_revision({"traffic": divided, "latestRolledoutRevision": "p-00000"}) == "p-00001"
    undivided = [part("p-00002", 100, latest=True), part("p-00000", None, latest=False)]
    assert stable_revision({"traffic": undivided, "latestRolledoutRevision": "p-00001"}) == "p-00001"
    assert stable_revision({}) is None


def replica_set(uri: str, number: str, earlier: str = "", owner: str = "p") -> Json:
    annotations = {
        "deployment.kubernetes.io/revision": number,
        "deployment.kubernetes.io/revision-history": earlier,
    }
    owners = [{"kind": "Deployment", "name": owner}]
    return {
        "metadata": {"annotations": annotations, "ownerReferences": owners},
        "spec": {"template": template(uri)},
    }


def test_previous_versions_of_a_deployment_are_read_from_its_replica_sets() -> None:
    sets = [
        replica_set("v2", "10"),
        replica_set("v1", "12", "1,9"),
        replica_set("v3", "11"),
        replica_set("v4", "13", owner="another"),
    ]
    assert history_of_replica_sets(sets, "p") == ["v1", "v1", "v2", "v3", "v1"]


def test_previous_versions_of_a_knative_service_are_read_from_its_revisions() -> None:
    revisions = [revision("v2", number=10), revision("v1", number=9), revision("v3", number=11)]
    assert history_of_revisions(revisions) == ["v1", "v2", "v3"]


@pytest.mark.parametrize(
    ("history", "uri", "before"),
    [
        pytest.param([], "v1", None, id="nothing known"),
        pytest.param(["v1"], "v1", None, id="the first"),
        pytest.param(["v1", "v2"], "v2", "v1", id="one before"),
        pytest.param(["v1", "v1", "v2", "v2"], "v2", "v1", id="other changes between"),
        pytest.param(["v1", "v2", "v1"], "v1", None, id="v2 failed or was rolled back"),
        pytest.param(["v1", "v2", "v3", "v2"], "v2", "v1", id="further back"),
        pytest.param(["v1", "v2", "v1", "v2"], "v2", "v1", id="tried again"),
        pytest.param(["v1"], "v2", "v1", id="not handed on yet"),
    ],
)
def test_rollback_refuses_when_there_is_no_previous_version(
    history: list[str], uri: str, before: str | None
) -> None:
    assert previous_uri(history, uri) == before
