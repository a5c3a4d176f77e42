"""Problems of pods are read from the states that Kubernetes reports, and last before they count."""

import math
import time
from typing import Any

import pytest

from inferenceservice.cluster.pods import (
    MAX_FAILED_STARTS,
    STUCK_S,
    Problem,
    ProblemTimer,
    deployment_problems,
    event_problem,
    is_pending,
    newest_pods,
    pod_problems,
    pods_of_bundle,
)
from tests.support.cluster.kserve_controllers import Json, condition
from tests.support.cluster.pods import container, ended, pod, terminating, waiting

NAME = "kserve-container"
STARTING = [container(waiting("PodInitializing"))]
LOG = "INFO starting\nTraceback\ntransformer: /mnt/models/bundle.json: No such file or directory\n\n"
CAUSE = "exit code 1: transformer: /mnt/models/bundle.json: No such file or directory"


def unready(**status: Any) -> Json:
    return pod("t-1", ready=False, **status)


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        pytest.param(
            container(ended(LOG)), Problem(NAME, f"container {NAME} failed with {CAUSE}"), id="first"
        ),
        pytest.param(
            container({"running": {}}, last=ended(LOG), restarts=1),
            Problem(NAME, f"container {NAME} was restarted after {CAUSE}"),
            id="started again",
        ),
        pytest.param(
            container(waiting("CrashLoopBackOff"), last=ended(LOG), restarts=MAX_FAILED_STARTS - 2),
            Problem(NAME, f"container {NAME} failed 2 times, last with {CAUSE}"),
            id="waits",
        ),
        pytest.param(
            container(waiting("CrashLoopBackOff"), last=ended(LOG), restarts=MAX_FAILED_STARTS - 1),
            Problem(NAME, f"container {NAME} failed 3 times, last with {CAUSE}", 0.0),
            id="failed too often",
        ),
        pytest.param(
            container(ended("", code=137, reason="OOMKilled"), restarts=4),
            Problem(NAME, f"container {NAME} failed 5 times, last with exit code 137 (OOMKilled)", 0.0),
            id="out of memory",
        ),
        pytest.param(
            container(waiting("ImagePullBackOff", "Back-off pulling a:1")),
            Problem(f"image of {NAME}", f"container {NAME}: ImagePullBackOff: Back-off pulling a:1", STUCK_S),
            id="image",
        ),
        pytest.param(
            container(waiting("InvalidImageName", "couldn't parse")),
            Problem(NAME, f"container {NAME}: InvalidImageName: couldn't parse", 0.0),
            id="name of the image",
        ),
        pytest.param(
            container(waiting("CreateContainerConfigError", 'secret "a" not found')),
            Problem(NAME, f'container {NAME}: CreateContainerConfigError: secret "a" not found', STUCK_S),
            id="configuration",
        ),
    ],
)
def test_a_container_that_does_not_start_is_a_problem(status: Json, problem: Problem) -> None:
    found = unready(containerStatuses=[status])
    assert pod_problems([found]) == [problem]
    assert pod_problems([unready(initContainerStatuses=[status], containerStatuses=STARTING)]) == [problem]
    assert pod_problems([found, found]) == [problem], "replicas have the same one"
    assert not is_pending(found)


@pytest.mark.parametrize(
    "status",
    [
        container(waiting("ContainerCreating")),
        container({"running": {}}),
        container({"running": {}}, last=ended("once"), restarts=1, ready=True),
        container({"terminated": {"exitCode": 0}}),
    ],
)
def test_an_ordinary_start_is_no_problem(status: Json) -> None:
    assert pod_problems([unready(containerStatuses=[status])]) == []


def test_a_pod_without_a_node_is_a_problem_that_may_pass() -> None:
    lacks = condition("PodScheduled", "False", "Unschedulable", "0/1 nodes are available: too few\n cpus")
    (problem,) = pod_problems([unready(phase="Pending", conditions=[lacks])])
    assert problem.text == "Unschedulable: 0/1 nodes are available: too few cpus"
    assert problem.timeout_s == math.inf


def test_a_long_message_is_cut_to_one_line() -> None:
    (problem,) = pod_problems([unready(containerStatuses=[container(ended("first\n" + "x" * 5000))])])
    assert len(problem.text) < 400
    assert problem.text.endswith("x…")


def test_a_deployment_that_cannot_create_pods_is_a_problem() -> None:
    failure = condition(
        "ReplicaFailure", "True", "FailedCreate", 'pods "a" is forbidden: violates PodSecurity'
    )
    deployment = {"status": {"conditions": [condition("Available", "True"), failure]}}
    text = 'cannot create pods: pods "a" is forbidden: violates PodSecurity'
    assert deployment_problems(deployment) == [Problem("pods", text, STUCK_S)]
    assert deployment_problems({"status": {"conditions": [{**failure, "status": "False"}]}}) == []
    assert deployment_problems({}) == []


def test_the_newest_warning_says_what_a_pending_pod_waits_for() -> None:
    assert is_pending(unready(containerStatuses=STARTING))
    said = [
        ("Warning", "FailedMount", "old"),
        ("Warning", "FailedMount", "new"),
        ("Normal", "Pulled", "image"),
        ("Warning", "Unhealthy", "no"),
    ]
    events = [
        {"type": kind, "reason": reason, "message": text, "lastTimestamp": f"2026-01-01T00:00:0{number}Z"}
        for number, (kind, reason, text) in enumerate(said)
    ]
    assert event_problem(events) == [Problem("events", "FailedMount: new")]
    assert event_problem(events[2:]) == []


def test_a_problem_must_last_without_a_break(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    timer = ProblemTimer()
    pull, back_off = (Problem("image", text, STUCK_S) for text in ("ErrImagePull", "ImagePullBackOff"))
    assert timer.lasting([pull]) == []
    now = STUCK_S - 1
    assert timer.lasting([back_off]) == []
    now = STUCK_S
    assert timer.lasting([pull]) == [pull]
    assert timer.lasting([]) == []
    now = 2 * STUCK_S - 1
    assert timer.lasting([pull]) == []
    assert timer.lasting([Problem("pods", "final", 0.0)]) == [Problem("pods", "final", 0.0)]
    now = math.inf
    assert timer.lasting([Problem("scheduling", "may pass")]) == []


def test_pods_are_chosen_by_bundle_or_by_the_newest_template() -> None:
    old, new = pod("a", uri="v1", number=1), pod("b", uri="v2", number=2)
    gone = terminating(pod("c", uri="v2", number=3))
    assert pods_of_bundle([old, new, gone], "v2") == [new]
    assert newest_pods([new, old, gone]) == [new]
    assert newest_pods([gone]) == []
