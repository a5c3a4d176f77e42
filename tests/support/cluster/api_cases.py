"""Behaviour that rollouts rely on, as cases for a real API server with KServe and for the imitated one.

Each case gets a cluster whose InferenceService `placement` serves an old version, and may change it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from inferenceservice.cluster.api_server import ApiServer, ApiServerError
from inferenceservice.cluster.inference_service import PREDICTOR, TRANSFORMER, Mode
from inferenceservice.cluster.namespace import Namespace
from inferenceservice.cluster.workloads import SOURCE_URI
from tests.support.endpoints import V1_PREDICT
from tests.support.waiting import wait_until_sync

Json = dict[str, Any]
_PREDICTOR_URI = "/spec/predictor/model/storageUri"


@dataclass(frozen=True)
class ApiUnderTest:
    """An API server, the namespace of the InferenceService, and URIs of two versions that can serve."""

    api: ApiServer
    namespace: str
    old: str
    new: str

    @property
    def path(self) -> str:
        return f"/apis/serving.kserve.io/v1beta1/namespaces/{self.namespace}/inferenceservices"

    def isvc(self) -> Json:
        return self.api.get(f"{self.path}/placement")

    def patch(self, *operations: Json) -> Json:
        return self.api.patch(f"{self.path}/placement", operations)

    def serve(self, uri: str) -> Json:
        """Change the predictor's URI only."""
        return self.patch({"op": "replace", "path": _PREDICTOR_URI, "value": uri})

    def deployment(self, component: str) -> Json:
        return self.api.get(f"/apis/apps/v1/namespaces/{self.namespace}/deployments/placement-{component}")

    def replica_sets(self) -> dict[str, Json]:
        """Return the predictor's ReplicaSets by the URI of their pods."""
        found = self.api.get(
            f"/apis/apps/v1/namespaces/{self.namespace}/replicasets",
            {"labelSelector": "app=isvc.placement-predictor"},
        )
        return {uri_of(one): one for one in found["items"]}

    def wait_for_replica_set(self, uri: str) -> Json:
        """Return the ReplicaSet of a URI once it is the Deployment's newest."""

        def newest() -> Json | None:
            sets = self.replica_sets()
            last = max(sets.values(), key=revision)
            return last if uri_of(last) == uri else None

        found: Json | None = wait_until_sync(newest, poll_s=0.05)
        assert found is not None
        return found


def uri_of(workload: Json) -> str:
    uri: str = workload["spec"]["template"]["metadata"]["annotations"][SOURCE_URI]
    return uri


def revision(replica_set: Json) -> int:
    return int(replica_set["metadata"]["annotations"]["deployment.kubernetes.io/revision"])


def a_missing_object_is_404_with_its_kind_and_name(cluster: ApiUnderTest) -> None:
    with pytest.raises(ApiServerError) as missing:
        cluster.api.get(f"{cluster.path}/nothing")
    assert missing.value.status == 404
    assert str(missing.value) == 'inferenceservices.serving.kserve.io "nothing" not found (NotFound)'
    with pytest.raises(ApiServerError, match=r'^deployments.apps "placement-x" not found \(NotFound\)$'):
        cluster.deployment("x")


def a_patch_of_an_older_object_is_a_conflict(cluster: ApiUnderTest) -> None:
    version = cluster.isvc()["metadata"]["resourceVersion"]
    cluster.serve(cluster.new)
    same = {"op": "replace", "path": "/metadata/resourceVersion", "value": version}
    with pytest.raises(ApiServerError) as conflict:
        cluster.patch(same, {"op": "replace", "path": _PREDICTOR_URI, "value": cluster.old})
    assert conflict.value.status == 409
    assert "(Conflict)" in str(conflict.value)
    assert cluster.isvc()["spec"]["predictor"]["model"]["storageUri"] == cluster.new


def a_patch_of_a_missing_field_is_invalid(cluster: ApiUnderTest) -> None:
    with pytest.raises(ApiServerError) as invalid:
        cluster.patch({"op": "remove", "path": "/spec/predictor/canaryTrafficPercent"})
    assert invalid.value.status == 422


def a_patch_returns_the_changed_object_with_the_next_generation(cluster: ApiUnderTest) -> None:
    before = cluster.isvc()
    changed = cluster.serve(cluster.new)
    assert changed["spec"]["predictor"]["model"]["storageUri"] == cluster.new
    assert changed["metadata"]["generation"] == before["metadata"]["generation"] + 1
    assert changed["metadata"]["resourceVersion"] != before["metadata"]["resourceVersion"]


def an_equal_patch_changes_nothing(cluster: ApiUnderTest) -> None:
    before = cluster.isvc()
    assert cluster.serve(cluster.old)["metadata"]["generation"] == before["metadata"]["generation"]


def a_uri_reaches_the_pods_of_its_component_only(cluster: ApiUnderTest) -> None:
    untouched = cluster.deployment(TRANSFORMER)
    cluster.serve(cluster.new)
    wait_until_sync(lambda: uri_of(cluster.deployment(PREDICTOR)) == cluster.new, poll_s=0.05)
    after = cluster.deployment(TRANSFORMER)
    assert uri_of(after) == cluster.old
    assert after["metadata"]["generation"] == untouched["metadata"]["generation"]


def a_rolled_back_replica_set_is_the_newest_and_keeps_its_history(cluster: ApiUnderTest) -> None:
    first = revision(cluster.wait_for_replica_set(cluster.old))
    cluster.serve(cluster.new)
    second = revision(cluster.wait_for_replica_set(cluster.new))
    cluster.serve(cluster.old)
    again = cluster.wait_for_replica_set(cluster.old)
    assert first < second < revision(again)
    history = again["metadata"]["annotations"]["deployment.kubernetes.io/revision-history"]
    assert str(first) in history.split(",")
    owner = again["metadata"]["ownerReferences"][0]
    assert (owner["kind"], owner["name"]) == ("Deployment", "placement-predictor")


def the_status_has_the_mode_and_a_condition_for_each_component(cluster: ApiUnderTest) -> None:
    isvc = Namespace(cluster.api, cluster.namespace).inference_service("placement")
    assert isvc.mode is Mode.STANDARD
    assert {"Ready", "PredictorReady", "TransformerReady"} <= {one.type for one in isvc.conditions()}


def a_prediction_goes_through_the_services_proxy(cluster: ApiUnderTest) -> None:
    """An invalid request shows that the transformer answers, and that its status and body are kept."""
    namespace = Namespace(cluster.api, cluster.namespace)
    status, _, body = namespace.post("placement-transformer", V1_PREDICT, {"instances": []})
    assert status in (200, 400), body


CASES: tuple[Callable[[ApiUnderTest], None], ...] = (
    a_prediction_goes_through_the_services_proxy,
    a_missing_object_is_404_with_its_kind_and_name,
    a_patch_of_an_older_object_is_a_conflict,
    a_patch_of_a_missing_field_is_invalid,
    a_patch_returns_the_changed_object_with_the_next_generation,
    an_equal_patch_changes_nothing,
    a_uri_reaches_the_pods_of_its_component_only,
    a_rolled_back_replica_set_is_the_newest_and_keeps_its_history,
    the_status_has_the_mode_and_a_condition_for_each_component,
)
