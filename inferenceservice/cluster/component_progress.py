"""Rollout status of one component of an InferenceService, with the reasons that the cluster reports."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from inferenceservice.cluster.api_server import ApiServerError
from inferenceservice.cluster.inference_service import PREDICTOR, InferenceServiceObject, Mode
from inferenceservice.cluster.namespace import Namespace
from inferenceservice.cluster.pods import (
    Problem,
    deployment_problems,
    event_problem,
    is_pending,
    pod_problems,
    pods_of_bundle,
)
from inferenceservice.cluster.workloads import (
    Object,
    RolloutStatus,
    deployment_status,
    progressing_condition,
    revision_status,
)


@dataclass(frozen=True, slots=True)
class ComponentRollout:
    """A component and the bundle that it is changing to.

    Attributes
    ----------
    percent
        Share of the traffic for the bundle.
    """

    component: str
    uri: str
    percent: int = 100


class ComponentProgress(NamedTuple):
    """Status of a component's rollout, and the problems of its new pods."""

    status: RolloutStatus
    problems: Sequence[Problem] = ()


def condition_before(namespace: Namespace, isvc: InferenceServiceObject, rollout: ComponentRollout) -> Object:
    """Return the condition of a Deployment before a change; see `workloads.deployment_status`."""
    if isvc.mode is Mode.KNATIVE:
        return {}
    return progressing_condition(namespace.deployment(isvc.workload(rollout.component)) or {})


def component_progress(
    namespace: Namespace, isvc: InferenceServiceObject, rollout: ComponentRollout, before: Object
) -> ComponentProgress:
    """Return the progress of a component's rollout, with KServe's reason while it is not ready.

    Parameters
    ----------
    before
        Result of `condition_before`.
    """
    status, problems = _workload_status(namespace, isvc, rollout, before)
    ready = isvc.ready_condition(rollout.component)
    done = status.done and ready.status == "True"
    if not done:
        pods = visible_pods(namespace, isvc.name, rollout.component) or []
        problems += find_problems(namespace, pods_of_bundle(pods, rollout.uri))
    notes = [] if ready.status == "True" else [str(ready)]
    if rollout.component == PREDICTOR and (failure := isvc.model_failure()) is not None:
        notes.append(failure)
    text = "; ".join([status.text, *(problem.text for problem in problems), *notes])
    return ComponentProgress(RolloutStatus(text, done, status.failed), problems)


def visible_pods(namespace: Namespace, name: str, component: str) -> list[Object] | None:
    """Return the pods of a component, or None without the right to list them."""
    try:
        return namespace.pods(name, component)
    except ApiServerError as error:
        if not error.forbidden:
            raise
        return None


def find_problems(namespace: Namespace, pods: Sequence[Object]) -> list[Problem]:
    """Return why pods do not start, as far as the client has the rights to read it."""
    found = pod_problems(pods)
    for pod in filter(is_pending, pods):
        try:
            found += event_problem(namespace.events(pod["metadata"]["name"]))
        except ApiServerError as error:
            if not error.forbidden:
                raise
    return list(dict.fromkeys(found))


def _workload_status(
    namespace: Namespace, isvc: InferenceServiceObject, rollout: ComponentRollout, before: Object
) -> tuple[RolloutStatus, list[Problem]]:
    if isvc.mode is Mode.STANDARD:
        deployment = namespace.deployment(isvc.workload(rollout.component))
        if deployment is None:
            return RolloutStatus("waiting for KServe to create the Deployment"), []
        return deployment_status(deployment, rollout.uri, before), deployment_problems(deployment)
    status = isvc.component_status(rollout.component)
    revision = namespace.revision(status.get("latestCreatedRevision"))
    return revision_status(status, revision, rollout.uri, rollout.percent), []
