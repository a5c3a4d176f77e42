"""A rollout changes plain Deployments to what `placement spec --plain` prints for the new version."""

import copy

import pytest

from inferenceservice.cluster.inference_service import DesiredState
from inferenceservice.cluster.plain_service import PlainService, is_plain
from inferenceservice.plain import render
from inferenceservice.rollout_target import TargetError
from tests.support.cluster.kubernetes_api import apply_operation
from tests.support.cluster.manifests import BASE, Manifest, documents

URIS = {
    BASE: ("pvc://models/placement/v1", "pvc://models/placement/v2"),
    "s3": ("s3://models/placement/v1/", "s3://models/placement/v2/"),
    "collocated": ("pvc://models/placement/v1", "pvc://models/placement/v2"),
}


def deployments(name: str, uri: str) -> dict[str, Manifest]:
    """Return the rendered Deployments of a version, by component."""
    objects = documents(name)
    for one in objects:
        if one["kind"] == "InferenceService":
            one["spec"]["predictor"]["model"]["storageUri"] = uri
    rendered = [one for one in render(objects) if one["kind"] == "Deployment"]
    for one in rendered:
        one["metadata"]["resourceVersion"] = "7"
    return {one["metadata"]["labels"]["component"]: one for one in rendered}


@pytest.mark.parametrize("name", URIS)
def test_a_patched_deployment_is_that_of_the_new_version(name: str) -> None:
    old, new = URIS[name]
    before = deployments(name, old)
    service = PlainService("placement", before)
    collocated = name == "collocated"
    assert service.desired == DesiredState(old, None if collocated else old)
    assert service.entry_service == f"placement-{'predictor' if collocated else 'transformer'}"
    assert service.model_name == "placement"
    for workload, operations in service.patches(DesiredState(new, None if collocated else new)):
        for operation in operations:
            apply_operation(before[workload.removeprefix("placement-")], operation)
    assert before == deployments(name, new)


def test_only_the_component_that_changes_is_patched() -> None:
    old, new = URIS[BASE]
    service = PlainService("placement", deployments(BASE, old))
    assert [workload for workload, _ in service.patches(DesiredState(old, new))] == ["placement-transformer"]
    assert list(service.patches(DesiredState(old, old))) == []


@pytest.mark.parametrize("uri", ["pvc://others/placement/v2", "s3://models/placement/v2/"])
def test_a_change_of_storage_is_refused(uri: str) -> None:
    service = PlainService("placement", deployments(BASE, URIS[BASE][0]))
    with pytest.raises(TargetError, match="a rollout cannot change to other storage"):
        list(service.patches(DesiredState(uri, uri)))


def test_a_deployment_of_kserve_is_not_plain() -> None:
    deployment = deployments("s3", URIS["s3"][0])["predictor"]
    assert is_plain(deployment)
    of_kserve = copy.deepcopy(deployment)
    of_kserve["metadata"]["ownerReferences"] = [{"kind": "InferenceService", "name": "placement"}]
    assert not is_plain(of_kserve)
