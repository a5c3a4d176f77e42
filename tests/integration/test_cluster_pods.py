"""A rollout in a cluster waits for old pods, and says why new ones do not start."""

import asyncio
from typing import Any

import pytest

from inferenceservice.cluster import terminating_pods
from inferenceservice.rollout import RolloutError, rollback, rollout
from tests.support.cluster.fixtures import V1, V2, Start, paths
from tests.support.cluster.kserve_controllers import condition
from tests.support.cluster.pods import container, ended, pod, terminating, waiting
from tests.support.waiting import wait_until

BROKEN = container(waiting("CrashLoopBackOff"), last=ended("no bundle.json"), restarts=2)
TEXT = "container kserve-container failed 3 times, last with exit code 1: no bundle.json"


async def test_the_predictor_changes_when_all_old_transformers_have_ended(start: Start, target: Any) -> None:
    cluster = await start()
    cluster.listed = [terminating(pod("t-1", uri=V1)), terminating(pod("t-2", uri=V1)), pod("t-3", uri=V2)]
    lines: list[str] = []
    running = asyncio.create_task(rollout(target(), V2, lines.append))
    await wait_until(lambda: "transformer: waiting for 2 old pods to end" in lines)
    del cluster.listed[0]
    await wait_until(lambda: "transformer: waiting for 1 old pod to end" in lines)
    assert [path for _, path, _ in paths(cluster)] == ["transformer/value"]
    # A pod stays for a moment after its containers have ended.
    cluster.listed[0]["status"]["phase"] = "Succeeded"
    assert await running == "v2"
    assert [path for _, path, _ in paths(cluster)] == ["transformer/value", "predictor/storageUri"]


async def test_a_rollback_waits_for_old_predictors(start: Start, target: Any) -> None:
    cluster = await start()
    await rollout(target(), V2, print)
    cluster.patches.clear()
    cluster.listed = [terminating(pod("p-1", component="predictor", uri=V2))]
    lines: list[str] = []
    running = asyncio.create_task(rollback(target(), lines.append))
    await wait_until(lambda: "predictor: waiting for 1 old pod to end" in lines)
    assert [path for _, path, _ in paths(cluster)] == ["predictor/storageUri"]
    cluster.listed = []
    assert await running == "v1"


async def test_a_pod_on_a_lost_node_is_not_waited_for_for_ever(
    start: Start, target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminating_pods, "LATE_S", 0.05)
    cluster = await start()
    cluster.listed = [terminating(pod("t-1"), grace_period_s=0)]
    lines: list[str] = []
    assert await rollout(target(), V2, lines.append) == "v2"
    assert "transformer: t-1 does not end, so its node may be lost; going on" in lines


async def test_without_the_right_to_list_pods_the_grace_period_is_waited(start: Start, target: Any) -> None:
    cluster = await start()
    cluster.grace_period_s = 0
    cluster.errors["/api/v1/namespaces/scoring/pods"] = (403, "Forbidden", "no")
    lines: list[str] = []
    assert await rollout(target(), V2, lines.append) == "v2"
    said = "without the right to list pods, waiting 0 s for the old ones to end"
    assert [line for line in lines if "without the right" in line] == [f"transformer: {said}"]


async def test_a_pause_of_the_api_server_does_not_end_the_wait(start: Start, target: Any) -> None:
    cluster = await start()
    cluster.listed = [terminating(pod("t-1", uri=V1))]
    lines: list[str] = []
    running = asyncio.create_task(rollout(target(), V2, lines.append))
    await wait_until(lambda: "transformer: waiting for 1 old pod to end" in lines)
    cluster.down = 20
    await wait_until(lambda: not cluster.down)
    cluster.listed = []
    assert await running == "v2"


async def test_a_version_whose_containers_fail_is_rolled_back_at_once_with_the_reason(
    start: Start, target: Any
) -> None:
    cluster = await start()
    cluster.stuck.add(V2)
    cluster.listed = [
        pod("t-1", uri=V1),
        pod("t-2", uri=V2, number=2, ready=False, containerStatuses=[BROKEN]),
    ]
    lines: list[str] = []
    with pytest.raises(RolloutError) as failed:
        await rollout(target(timeout_s=60), V2, lines.append)
    assert str(failed.value) == (
        "v2 was not rolled out, the previous state is restored: the transformer does not become ready with "
        f"{V2}: {TEXT}"
    )
    assert any(line.startswith("transformer: ") and TEXT in line for line in lines)


async def test_problems_are_shown_while_they_may_pass(start: Start, target: Any) -> None:
    cluster = await start()
    cluster.stuck.add(V2)
    lacks = condition("PodScheduled", "False", "Unschedulable", "0/1 nodes are available")
    starting = pod("t-2", uri=V2, ready=False, containerStatuses=[container(waiting("ContainerCreating"))])
    cluster.listed = [pod("t-1", uri=V2, phase="Pending", conditions=[lacks]), starting]
    cluster.events = {"t-2": [{"type": "Warning", "reason": "FailedMount", "message": "no such claim"}]}
    lines: list[str] = []
    running = asyncio.create_task(rollout(target(), V2, lines.append))
    shown = "Unschedulable: 0/1 nodes are available; FailedMount: no such claim"
    await wait_until(lambda: any(shown in line for line in lines))
    cluster.errors["/api/v1/namespaces/scoring/events"] = (403, "Forbidden", "no")
    await wait_until(lambda: "FailedMount" not in lines[-1])
    cluster.listed = []
    cluster.stuck.clear()
    assert await running == "v2"


async def test_a_deployment_that_cannot_create_pods_is_reported(start: Start, target: Any) -> None:
    cluster = await start()
    cluster.stuck.add(V2)
    said = condition("ReplicaFailure", "True", "FailedCreate", "exceeded quota")
    cluster.deployments["placement-transformer"]["status"]["conditions"].append(said)
    lines: list[str] = []
    running = asyncio.create_task(rollout(target(), V2, lines.append))
    await wait_until(lambda: any("cannot create pods: exceeded quota" in line for line in lines))
    cluster.stuck.clear()
    assert await running == "v2"
