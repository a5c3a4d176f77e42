"""URIs that differ only by a final slash are one version, in specs, in pods and in a rollout."""

import pytest

from inferenceservice.cluster.inference_service import DesiredState, InferenceServiceObject
from inferenceservice.cluster.pods import pods_of_bundle
from inferenceservice.cluster.workloads import SOURCE_URI, deployment_status, history_of_revisions
from storage.uris import canonical

SPELLINGS = [
    ("s3://models/placement/v1", "s3://models/placement/v1/", "s3://models/placement/v1/"),
    ("pvc://models/placement/v1", "pvc://models/placement/v1/", "pvc://models/placement/v1"),
]


def service(predictor_uri, transformer_uri):
    variable = {"name": "STORAGE_URI", "value": transformer_uri}
    return InferenceServiceObject(
        {
            "metadata": {"name": "placement", "resourceVersion": "7"},
            "spec": {
                "predictor": {"model": {"storageUri": predictor_uri}},
                "transformer": {"containers": [{"env": [variable]}]},
            },
        }
    )


@pytest.mark.parametrize(("plain", "with_slash", "known"), SPELLINGS)
def test_a_spec_of_both_spellings_has_one_version_and_needs_no_change(plain, with_slash, known):
    isvc = service(plain, with_slash)
    assert isvc.desired == DesiredState(known, known)
    assert isvc.patch(DesiredState(known, known)) == []
    other = known.replace("v1", "v2")
    assert [one["value"] for one in isvc.patch(DesiredState(other, other))] == ["7", other, other]


@pytest.mark.parametrize(("plain", "with_slash", "known"), SPELLINGS)
def test_pods_and_revisions_of_both_spellings_have_one_version(plain, with_slash, known):
    for found, wanted in ((plain, with_slash), (with_slash, plain)):
        metadata = {"annotations": {SOURCE_URI: found}, "generation": 1}
        pod = {"metadata": metadata, "status": {}}
        assert pods_of_bundle([pod], wanted) == [pod]
        deployment = {"metadata": metadata, "spec": {"template": {"metadata": metadata}}, "status": {}}
        assert deployment_status(deployment, wanted, {}).text == "waiting for the Deployment to start"
        assert history_of_revisions([{"metadata": metadata}]) == [known]


@pytest.mark.parametrize(("plain", "with_slash", "_"), SPELLINGS)
def test_a_local_service_compares_both_spellings_as_one(plain, with_slash, _):
    assert canonical(plain) == canonical(with_slash)
