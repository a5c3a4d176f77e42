"""Rollout status of one component of an InferenceService, with the reasons that KServe reports."""

from dataclasses import dataclass

from inferenceservice.cluster.inference_service import PREDICTOR, InferenceServiceObject, Mode
from inferenceservice.cluster.namespace import Namespace
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


def condition_before(namespace: Namespace, isvc: InferenceServiceObject, rollout: ComponentRollout) -> Object:
    """Return the condition of a Deployment before a change; see `workloads.deployment_status`."""
    if isvc.mode is Mode.KNATIVE:
        return {}
    return progressing_condition(namespace.deployment(isvc.workload(rollout.component)) or {})


def rollout_status(
    namespace: Namespace, isvc: InferenceServiceObject, rollout: ComponentRollout, before: Object
) -> RolloutStatus:
    """Return the status of a component's rollout, with KServe's reason while it is not ready.

    Parameters
    ----------
    before
        Result of `condition_before`.
    """
    status = _workload_status(namespace, isvc, rollout, before)
    ready = isvc.ready_condition(rollout.component)
    notes = [] if ready.status == "True" else [str(ready)]
    if rollout.component == PREDICTOR and (failure := isvc.model_failure()) is not None:
        notes.append(failure)
    done = status.done and ready.status == "True"
    return RolloutStatus("; ".join([status.text, *notes]), done, status.failed)


def _workload_status(
    namespace: Namespace, isvc: InferenceServiceObject, rollout: ComponentRollout, before: Object
) -> RolloutStatus:
    if isvc.mode is Mode.STANDARD:
        deployment = namespace.deployment(isvc.workload(rollout.component))
        if deployment is None:
            return RolloutStatus("waiting for KServe to create the Deployment")
        return deployment_status(deployment, rollout.uri, before)
    status = isvc.component_status(rollout.component)
    revision = namespace.revision(status.get("latestCreatedRevision"))
    return revision_status(status, revision, rollout.uri, rollout.percent)
