"""Pods of a component: which are ready or terminating, and why one does not start."""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from inferenceservice.cluster.workloads import Object, source_uri
from storage.uris import serving_uri

#: Starts of a container that fail before it counts as broken: about 50 s, with Kubernetes' pauses.
MAX_FAILED_STARTS = 3
#: Seconds for which another problem must last. The registry of an image may be out of reach for a moment.
STUCK_S = 60.0

#: Reasons of a container that waits for the ordinary steps of a start.
_STARTING = {"ContainerCreating", "PodInitializing"}
#: Reasons that no time changes.
_FINAL = {"InvalidImageName", "ErrImageNeverPull"}
_IMAGE = {"ErrImagePull", "ImagePullBackOff"}
_MAX_TEXT = 300


@dataclass(frozen=True, slots=True)
class Problem:
    """Reason why pods do not start.

    Attributes
    ----------
    cause
        Part of the pod that it concerns. The text of the same problem changes.
    timeout_s
        Seconds after which it counts as lasting; infinite if it may still pass.
    """

    cause: str
    text: str
    timeout_s: float = math.inf


class ProblemTimer:
    """Measures how long each problem has lasted."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def lasting(self, problems: Sequence[Problem]) -> list[Problem]:
        """Return those of the present problems that have lasted for their timeout."""
        now = time.monotonic()
        self._since = {one.cause: self._since.get(one.cause, now) for one in problems}
        return [one for one in problems if now - self._since[one.cause] >= one.timeout_s]


def is_ready(pod: Object) -> bool:
    """Return True if a pod gets requests."""
    return _condition(pod, "Ready").get("status") == "True"


def is_terminating(pod: Object) -> bool:
    """Return True if a pod was deleted and may still run."""
    ended = pod["status"].get("phase") in {"Succeeded", "Failed"}
    return _is_deleted(pod) and not ended


def is_running(pod: Object) -> bool:
    """Return True if a pod runs and was not deleted."""
    return pod["status"].get("phase") == "Running" and not _is_deleted(pod)


def grace_period_s(pod: Object) -> int:
    """Return the seconds after which a terminating pod is killed."""
    return int(pod["metadata"].get("deletionGracePeriodSeconds") or 0)


def pods_of_bundle(pods: Iterable[Object], uri: str) -> list[Object]:
    """Return the pods with a bundle that were not deleted."""
    return [pod for pod in pods if not _is_deleted(pod) and source_uri(pod["metadata"]) == serving_uri(uri)]


def newest_pods(pods: Iterable[Object]) -> list[Object]:
    """Return the pods of the newest template that were not deleted."""
    left = [pod for pod in pods if not _is_deleted(pod)]
    if not left:
        return []
    newest = max(left, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))
    return [pod for pod in left if _template(pod) == _template(newest)]


def restarts(pods: Iterable[Object]) -> int:
    """Return how often containers of pods were restarted."""
    return sum(status.get("restartCount", 0) for pod in pods for status in _container_statuses(pod))


def deployment_problems(deployment: Object) -> list[Problem]:
    """Return why a Deployment cannot create pods: a quota, or a rule such as Pod Security."""
    conditions = (deployment.get("status") or {}).get("conditions") or ()
    return [
        Problem("pods", f"cannot create pods: {_line(one.get('message', ''))}", STUCK_S)
        for one in conditions
        if one["type"] == "ReplicaFailure" and one["status"] == "True"
    ]


def pod_problems(pods: Iterable[Object]) -> list[Problem]:
    """Return why pods do not start; a problem of several replicas once."""
    found: dict[Problem, None] = {}
    for pod in pods:
        found |= dict.fromkeys(_problems(pod))
    return list(found)


def is_pending(pod: Object) -> bool:
    """Return True if a pod waits for the ordinary steps of a start. Its events may say what delays them."""
    waiting = [(status.get("state") or {}).get("waiting") for status in _container_statuses(pod)]
    return any(one and one.get("reason") in _STARTING for one in waiting) and not list(_problems(pod))


def event_problem(events: Sequence[Object]) -> list[Problem]:
    """Return the newest warning among the events of a pod that waits to start."""
    warnings = [one for one in events if one.get("type") == "Warning" and one.get("reason") != "Unhealthy"]
    if not warnings:
        return []
    newest = max(warnings, key=lambda one: str(one.get("lastTimestamp") or one.get("eventTime") or ""))
    return [Problem("events", f"{newest.get('reason')}: {_line(newest.get('message', ''))}")]


def _problems(pod: Object) -> Iterator[Problem]:
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        # A cluster that grows adds a node within minutes.
        yield Problem("scheduling", f"{scheduled.get('reason')}: {_line(scheduled.get('message', ''))}")
    for status in _container_statuses(pod):
        yield from _container_problems(status)


def _container_problems(status: Object) -> Iterator[Problem]:
    name, state = status["name"], status.get("state") or {}
    waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
    last = (status.get("lastState") or {}).get("terminated") or {}
    reason = waiting.get("reason")
    if reason == "CrashLoopBackOff" or ended.get("exitCode"):
        failures = status.get("restartCount", 0) + 1
        often = f" {failures} times, last" if failures > 1 else ""
        text = f"container {name} failed{often} with {_exit(ended or last)}"
        yield Problem(name, text, 0.0 if failures >= MAX_FAILED_STARTS else math.inf)
    elif reason and reason not in _STARTING:
        timeout_s = 0.0 if reason in _FINAL else STUCK_S
        cause = f"image of {name}" if reason in _IMAGE else name
        text = f"container {name}: {reason}: {_line(waiting.get('message', ''))}"
        yield Problem(cause, text, timeout_s)
    elif last.get("exitCode") and not status.get("ready"):
        yield Problem(name, f"container {name} was restarted after {_exit(last)}")


def _exit(terminated: Object) -> str:
    """Describe the end of a container: status, reason and the last line of its message."""
    text = f"exit code {terminated.get('exitCode')}"
    if (reason := terminated.get("reason")) not in {None, "Error"}:
        text += f" ({reason})"
    lines = [line for line in (terminated.get("message") or "").splitlines() if line.strip()]
    return f"{text}: {_line(lines[-1])}" if lines else text


def _line(text: str) -> str:
    """Return a text in one line of limited length."""
    joined = " ".join(text.split())
    return joined if len(joined) <= _MAX_TEXT else joined[: _MAX_TEXT - 1] + "…"


def _condition(pod: Object, kind: str) -> Object:
    return next((one for one in pod["status"].get("conditions") or () if one["type"] == kind), {})


def _container_statuses(pod: Object) -> list[Object]:
    status = pod["status"]
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def _is_deleted(pod: Object) -> bool:
    """Return True if a pod was deleted; until it has ended, it may still run."""
    return "deletionTimestamp" in pod["metadata"]


def _template(pod: Object) -> str | None:
    found: str | None = (pod["metadata"].get("labels") or {}).get("pod-template-hash")
    return found
