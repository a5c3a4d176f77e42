"""Rollouts to a cluster, against a fake Kubernetes API with KServe's controllers."""

import asyncio
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kubernetes.config import kube_config

from inferenceservice.rollout import RolloutError, rollback, rollout
from inferenceservice.rollout_target import Canary, State, TargetError
from tests.support.cluster.fixtures import V1, V2, V3, V9, Start, Versions, paths
from tests.support.cluster.kserve_controllers import Json, condition
from tests.support.cluster.kubernetes_api import Cluster


async def test_a_rollout_changes_the_transformer_and_then_the_predictor(start: Start, target: Any) -> None:
    cluster = await start()
    lines: list[str] = []
    assert await rollout(target(), V2, lines.append) == "v2"
    assert paths(cluster) == [
        ("replace", "transformer/value", V2),
        ("replace", "predictor/storageUri", V2),
    ]
    assert cluster.pods == {"transformer": [V2, V2], "predictor": [V2, V2]}
    told = [line for line in lines if line.startswith("predictor: ")]
    assert "predictor: 0 of 2 replicas updated" in told
    assert told[-1] == "predictor: 2 of 2 replicas updated"
    assert await target().state() == State(V2, V2, V1)


async def test_a_rollback_changes_the_predictor_and_then_the_transformer(start: Start, target: Any) -> None:
    cluster = await start()
    await rollout(target(), V2, print)
    cluster.patches.clear()
    assert await rollback(target(), print) == "v1"
    assert paths(cluster) == [
        ("replace", "predictor/storageUri", V1),
        ("replace", "transformer/value", V1),
    ]
    with pytest.raises(RolloutError, match="no earlier version"):
        await rollback(target(), print)


async def test_repeated_rollbacks_go_further_back(start: Start, target: Any) -> None:
    await start()
    await rollout(target(), V2, print)
    await rollout(target(), V3, print)
    assert await rollback(target(), print) == "v2"
    assert await target().state() == State(V2, V2, V1)
    assert await rollback(target(), print) == "v1"


async def test_a_rollout_changes_only_the_uris(start: Start, target: Any) -> None:
    cluster = await start()
    before = copy.deepcopy(cluster.isvc)
    await target().set_transformer(V2, print)
    assert cluster.deployments["placement-predictor"]["metadata"]["generation"] == 1
    await target().set_predictor(V2, print)
    assert cluster.deployments["placement-transformer"]["metadata"]["generation"] == 2
    before["spec"]["predictor"]["model"]["storageUri"] = V2
    before["spec"]["transformer"]["containers"][0]["env"][0]["value"] = V2
    assert cluster.isvc["spec"] == before["spec"]
    assert cluster.isvc["metadata"]["annotations"] == before["metadata"]["annotations"]


@pytest.mark.parametrize(("failing", "changed"), [(V2, ["transformer"]), (V3, ["transformer", "predictor"])])
async def test_a_failed_deployment_is_rolled_back(
    start: Start, target: Any, failing: str, changed: list[str]
) -> None:
    cluster = await start()
    before = cluster.isvc["spec"]
    if failing == V2:
        cluster.failing.add(V2)
    else:
        cluster.meanwhile = lambda: cluster.failing.add(V2) if cluster.patches else None
    with pytest.raises(RolloutError) as failed:
        await rollout(target(), V2, print)
    assert f"the {changed[-1]} does not become ready with {V2}: ProgressDeadlineExceeded" in str(failed.value)
    assert "has timed out progressing" in str(failed.value)
    assert "\n" not in str(failed.value)
    assert cluster.isvc["spec"] == before
    assert [path.split("/")[0] for _, path, _ in paths(cluster)] == changed + changed[::-1]
    assert cluster.pods == {"transformer": [V1, V1], "predictor": [V1, V1]}
    assert await target().state() == State(V1, V1, None)


async def test_a_version_with_other_scores_is_rolled_back(
    start: Start, target: Any, versions: Versions
) -> None:
    cluster = await start()
    versions.serve_other_scores(V2)
    with pytest.raises(RolloutError, match="scores its reference rows differently from its bundle"):
        await rollout(target(), V2, print)
    assert cluster.pods == {"transformer": [V1, V1], "predictor": [V1, V1]}


def someone_sets_the_predictor(cluster: Cluster) -> None:
    def change(isvc: Json) -> None:
        isvc["spec"]["predictor"]["model"]["storageUri"] = V3

    cluster.meanwhile = lambda: None
    cluster.edit(change)


async def test_a_change_by_someone_else_is_not_overwritten(start: Start, target: Any) -> None:
    cluster = await start()

    def progress(line: str) -> None:
        if "of 2 replicas updated" in line and cluster.uri("predictor") == V1:
            someone_sets_the_predictor(cluster)

    with pytest.raises(RolloutError, match="was not rolled out") as failed:
        await rollout(target(), V2, progress)
    assert str(failed.value) == (
        "v2 was not rolled out: another client changed the InferenceService placement during the rollout: "
        f"the predictor's storageUri is {V3} instead of {V1}; that change is in place and was not "
        "overwritten; see `placement status`"
    )
    assert (cluster.uri("transformer"), cluster.uri("predictor")) == (V2, V3)


async def test_a_change_during_the_patch_is_not_overwritten(start: Start, target: Any) -> None:
    cluster = await start()
    cluster.meanwhile = lambda: someone_sets_the_predictor(cluster)
    with pytest.raises(TargetError, match="another client changed"):
        await target().set_predictor(V2, print)
    assert cluster.uri("predictor") == V3


async def test_a_status_written_during_the_patch_is_not_a_conflict(start: Start, target: Any) -> None:
    cluster = await start()
    writes = iter(range(3))
    cluster.meanwhile = lambda: cluster.touch() if next(writes, None) is not None else None
    await target().set_predictor(V2, print)
    assert cluster.uri("predictor") == V2


async def test_a_patch_whose_response_is_lost_is_recognised(start: Start, target: Any) -> None:
    cluster = await start()
    cluster.lost_answers = 1
    assert await rollout(target(), V2, print) == "v2"
    assert len(cluster.patches) == 2


async def test_a_rollout_survives_a_pause_of_the_api_server(start: Start, target: Any) -> None:
    cluster = await start()
    lines: list[str] = []

    def progress(line: str) -> None:
        lines.append(line)
        if line == "transformer: waiting for the Deployment to start":
            cluster.down = 10

    assert await rollout(target(), V2, progress) == "v2"
    assert any("shutting down (ServiceUnavailable); retrying" in line for line in lines)


async def test_waiting_for_an_idle_controller_times_out(start: Start, target: Any) -> None:
    cluster = await start()
    cluster.reconciles = False
    with pytest.raises(TargetError) as failed:
        await target(timeout_s=0.1).set_predictor(V2, print)
    assert str(failed.value) == (
        f"the predictor is not ready with {V2} after 0.1 s: waiting for KServe to update the Deployment"
    )


async def test_a_timeout_error_includes_the_conditions(start: Start, target: Any) -> None:
    cluster = await start()
    cluster.reconciles = False
    cluster.isvc["status"] |= {
        "conditions": [condition("PredictorReady", "False", "ReconcileFailed", "no such runtime")],
        "modelStatus": {
            "transitionStatus": "BlockedByFailedLoad",
            "lastFailureInfo": {"reason": "ModelLoadFailed", "message": "no such bucket"},
        },
    }
    with pytest.raises(TargetError) as failed:
        await target(timeout_s=0.1).set_predictor(V2, print)
    assert str(failed.value).endswith(
        "waiting for KServe to update the Deployment; PredictorReady is False (ReconcileFailed: no such "
        "runtime); ModelLoadFailed: no such bucket"
    )


async def test_a_canary_in_standard_mode_is_refused_with_the_reason(start: Start, target: Any) -> None:
    cluster = await start()
    for work in (target().require_canary_support(), target().set_canary(Canary(V2, 20), print)):
        with pytest.raises(
            TargetError, match=r"ignores canaryTrafficPercent.*roll the version out without a canary"
        ):
            await work
    # Before anything else that is wrong with the canary.
    with pytest.raises(TargetError, match="ignores canaryTrafficPercent"):
        await rollout(target(), V9, print, canary=20)
    assert cluster.patches == []


async def test_a_canary_in_knative_mode_is_finished_by_a_rollout(start: Start, target: Any) -> None:
    cluster = await start("Knative")
    await rollout(target(), V2, print, canary=20)
    assert await target().state() == State(V2, V1, None, Canary(V2, 20))
    assert cluster.shares[-1] == {V1: 80, V2: 20}
    await rollout(target(), V2, print, canary=50)
    assert await target().state() == State(V2, V1, None, Canary(V2, 50))
    assert await rollout(target(), V2, print) == "v2"
    assert cluster.shares[-1] == {V2: 100}
    assert await target().state() == State(V2, V2, V1)
    assert paths(cluster) == [
        ("replace", "transformer/value", V2),
        ("replace", "predictor/storageUri", V2),
        ("add", "predictor/canaryTrafficPercent", 20),
        ("add", "predictor/canaryTrafficPercent", 50),
        ("remove", "predictor/canaryTrafficPercent", None),
    ]


async def test_a_canary_that_is_being_undone_never_gets_all_traffic(start: Start, target: Any) -> None:
    cluster = await start("Knative")
    await rollout(target(), V2, print, canary=20)
    assert await rollback(target(), print) == "v1"
    assert await target().state() == State(V1, V1, None)
    assert max(shares.get(V2, 0) for shares in cluster.shares) == 20
    assert cluster.shares[-1] == {V1: 100}
    assert "canaryTrafficPercent" not in cluster.isvc["spec"]["predictor"]


async def test_a_canary_that_does_not_become_ready_is_rolled_back(start: Start, target: Any) -> None:
    cluster = await start("Knative")
    cluster.meanwhile = lambda: cluster.failing.add(V2) if cluster.patches else None
    with pytest.raises(RolloutError, match="placement-predictor-00002: ProgressDeadlineExceeded"):
        await rollout(target(), V2, print, canary=20)
    assert all(shares == {V1: 100} for shares in cluster.shares)
    assert await target().state() == State(V1, V1, None)


async def test_a_canary_with_wrong_answers_is_undone(start: Start, target: Any, versions: Versions) -> None:
    cluster = await start("Knative")
    versions.serve_other_scores(V2)
    with pytest.raises(
        RolloutError, match="the previous state is restored: v2 scores its reference rows differently"
    ):
        await rollout(target(), V2, print, canary=20)
    assert cluster.shares[-1] == {V1: 100}
    assert max(shares.get(V2, 0) for shares in cluster.shares) == 20


async def test_a_canary_that_gets_no_requests_is_undone(
    start: Start, target: Any, versions: Versions
) -> None:
    cluster = await start("Knative")
    cluster.unreached.add(("predictor", V2))
    with pytest.raises(RolloutError, match=r"is restored: v2 gave 0 of 49 answers within .* about 50 %"):
        await rollout(target(), V2, print, canary=50)
    assert cluster.shares[-1] == {V1: 100}


async def test_a_canary_of_the_first_revision_is_refused(start: Start, target: Any) -> None:
    cluster = await start("Knative")
    del cluster.isvc["status"]["components"]["predictor"]["latestRolledoutRevision"]
    with pytest.raises(TargetError, match="no revision of the predictor has had all traffic yet"):
        await target().require_canary_support()


async def test_knative_revisions_are_rolled_out_and_back(start: Start, target: Any) -> None:
    await start("Knative")
    await rollout(target(), V2, print)
    await rollout(target(), V3, print)
    assert await target().state() == State(V3, V3, V2)
    assert await rollback(target(), print) == "v2"
    assert await target().state() == State(V2, V2, V1)


@pytest.mark.parametrize("mode", ["Standard", "Knative"])
async def test_a_collocated_service_has_one_uri(start: Start, target: Any, mode: str) -> None:
    cluster = await start(mode, collocated=True)
    lines: list[str] = []
    assert await rollout(target(), V2, lines.append) == "v2"
    assert paths(cluster) == [("replace", "predictor/storageUri", V2)]
    assert f"transformer and predictor: {V2}" in lines
    assert await target().state() == State(V2, V2, V1, collocated=True)
    assert await rollback(target(), print) == "v1"


async def test_a_canary_of_a_collocated_service_is_finished_or_undone(start: Start, target: Any) -> None:
    cluster = await start("Knative", collocated=True)
    await rollout(target(), V2, print, canary=20)
    assert await target().state() == State(V1, V1, None, Canary(V2, 20), collocated=True)
    assert await rollback(target(), print) == "v1"
    assert cluster.shares[-1] == {V1: 100}
    await rollout(target(), V2, print, canary=20)
    assert await rollout(target(), V2, print) == "v2"
    assert cluster.shares[-1] == {V2: 100}


@pytest.mark.parametrize("mode", ["Standard", "Knative"])
async def test_unrelated_versions_change_in_one_patch(start: Start, target: Any, mode: str) -> None:
    cluster = await start(mode)
    with pytest.raises(RolloutError, match="v9 does not recognise v1"):
        await rollout(target(), V9, print)
    lines: list[str] = []
    assert await rollout(target(), V9, lines.append, force=True) == "v9"
    assert "v9 and v1 do not recognise each other: both components change at once" in lines[0]
    assert {line.partition(": ")[0] for line in lines[1:]} >= {"predictor", "transformer"}
    assert await rollback(target(), lines.append) == "v1"
    assert [len(patch) for patch in cluster.patches] == [2, 2]
    assert paths(cluster) == [
        ("replace", "transformer/value", V9),
        ("replace", "predictor/storageUri", V9),
        ("replace", "transformer/value", V1),
        ("replace", "predictor/storageUri", V1),
    ]


@pytest.mark.parametrize("failing", ["predictor", "transformer"])
async def test_unrelated_versions_that_do_not_become_ready_are_rolled_back_in_one_patch(
    start: Start, target: Any, failing: str
) -> None:
    cluster = await start()
    cluster.failing.add((failing, V9))
    with pytest.raises(
        RolloutError, match=f"the previous state is restored: the {failing} does not become ready with {V9}"
    ):
        await rollout(target(), V9, print, force=True)
    assert cluster.pods == {"transformer": [V1, V1], "predictor": [V1, V1]}
    assert [len(patch) for patch in cluster.patches] == [2, 2]


async def test_a_canary_gets_no_traffic_while_both_components_change(start: Start, target: Any) -> None:
    cluster = await start("Knative")
    await rollout(target(), V2, print, canary=20)
    cluster.patches.clear()
    await target().set_both(V9, print)
    assert paths(cluster) == [
        ("replace", "predictor/storageUri", V9),
        ("add", "predictor/canaryTrafficPercent", 0),
        ("replace", "transformer/value", V9),
        ("remove", "predictor/canaryTrafficPercent", None),
    ]
    assert max(shares.get(V2, 0) for shares in cluster.shares) == 20
    assert cluster.shares[-1] == {V9: 100}
    assert await target().state() == State(V9, V9, V2)


async def test_a_transformer_never_meets_a_version_that_it_does_not_know(
    start: Start, target: Any, versions: Versions
) -> None:
    await start()
    rolling = asyncio.create_task(rollout(target(), V2, print))
    client = target()
    while not rolling.done():
        scored = await client.score([dict(versions.bundles[V1].reference.candidates[0])], "placement")
        assert scored.version in ("v1", "v2")
        client = target()
    await rolling
    assert (V1, V2) not in versions.answered


async def test_predictions_go_to_the_given_address(start: Start, target: Any, versions: Versions) -> None:
    cluster = await start()
    bundle = versions.bundles[V1]
    rows = [dict(candidate) for candidate in bundle.reference.candidates]
    scored = await target(url=cluster.url + "/").score(rows, "placement")
    assert (scored.version, scored.answers) == ("v1", bundle.reference.probabilities)


async def test_a_prediction_is_retried_while_the_service_is_not_ready(
    start: Start, target: Any, versions: Versions
) -> None:
    await start()
    versions.unready = 3
    bundle = versions.bundles[V1]
    assert (await target().score([dict(bundle.reference.candidates[0])], "placement")).version == "v1"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        pytest.param(
            (403, "Forbidden", 'inferenceservices "placement" is forbidden: User "eve" cannot get'),
            'is forbidden: User "eve" cannot get (Forbidden)',
            id="forbidden",
        ),
        pytest.param(
            (404, "NotFound", "the server could not find the requested resource"),
            "has no InferenceService placement in namespace scoring (the server could not find",
            id="no KServe",
        ),
        pytest.param((401, "Unauthorized", "Unauthorized"), "Unauthorized (Unauthorized)", id="token"),
    ],
)  # fmt: skip
async def test_a_refusal_of_the_api_server_is_a_one_line_error(
    start: Start, target: Any, error: tuple[int, str, str], said: str
) -> None:
    cluster = await start()
    cluster.errors["/apis/serving.kserve.io"] = error
    with pytest.raises(TargetError) as failed:
        await target().state()
    assert said in str(failed.value)
    assert "\n" not in str(failed.value)


async def test_a_missing_service_or_context_or_api_server_is_a_one_line_error(
    start: Start, target: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = await start()
    missing = (
        r"no InferenceService plaicement in namespace scoring \(.* not found \(NotFound\)\); check --context"
    )
    with pytest.raises(TargetError, match=missing):
        await target("plaicement").state()
    with pytest.raises(TargetError, match=r"cannot find a cluster: .*other.*set KUBECONFIG"):
        target(context="other")
    await cluster.close()
    with pytest.raises(TargetError, match=r"^the API server http://.* does not answer: Connection refused$"):
        await target().state()
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(TargetError, match=r"^cannot find a cluster: .*; set KUBECONFIG or --context$"):
        target()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(
            lambda isvc: isvc["spec"]["transformer"]["containers"][0]["env"].clear(),
            "spec.transformer.containers[0].env: STORAGE_URI is required",
            id="no STORAGE_URI",
        ),
        pytest.param(
            lambda isvc: isvc["spec"].pop("transformer"), "spec.transformer: is required", id="no transformer"
        ),
        pytest.param(
            lambda isvc: isvc["spec"]["predictor"]["model"].pop("storageUri"),
            "spec.predictor.model.storageUri: is required",
            id="no storageUri",
        ),
        pytest.param(
            lambda isvc: isvc["status"].update(deploymentMode="ModelMesh"),
            "deployment mode must be one of Standard, Knative, got ModelMesh",
            id="ModelMesh",
        ),
    ],
)  # fmt: skip
async def test_a_service_that_cannot_be_rolled_out_to_is_refused(
    start: Start, target: Any, change: Callable[[Json], Any], said: str
) -> None:
    cluster = await start()
    cluster.reconciles = False
    cluster.edit(change)
    with pytest.raises(TargetError) as refused:
        await target().state()
    assert said in str(refused.value)


async def test_a_bundle_is_read_from_its_copy_and_checked_against_its_digest(
    start: Start, target: Any, versions: Versions, tmp_path: Path
) -> None:
    await start()
    assert (await target().read_bundle(V2)).version == "v2"
    one = target(bundle_copies={V2: f"{tmp_path}/models/placement/v3", "pvc://mod": "elsewhere"})
    assert (await one.read_bundle(V2)).version == "v3"
    missing = target(bundle_copies={V2: f"{tmp_path}/none"})
    with pytest.raises(TargetError, match=rf"^{V2}: its copy cannot be used: .*/none: no version here"):
        await missing.read_bundle(V2)
    (tmp_path / "models/placement/v2/model.joblib").write_bytes(b"another model")
    with pytest.raises(TargetError, match=r"SHA-256 is .*, expected"):
        await target().read_bundle(V2)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        (V2, r"this machine cannot read pvc://; name a copy .* --bundle pvc://models=DIRECTORY"),
        ("models/placement/v2", "a cluster cannot read a local path; use a URI of its storage"),
        ("file:///models/placement/v2", "a cluster cannot read a local path"),
    ],
)
async def test_a_bundle_that_cannot_be_read_is_refused(
    start: Start, target: Any, uri: str, said: str
) -> None:
    await start()
    with pytest.raises(TargetError, match=said):
        await target(bundle_copies={}).read_bundle(uri)
