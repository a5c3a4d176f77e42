"""How far a component of an InferenceService is on its way to a bundle, with KServe's own reasons."""

from dataclasses import dataclass

from inferenceservice.cluster.inference_service import PREDICTOR, InferenceServiceObject, Mode
from inferenceservice.cluster.namespace import Namespace
from inferenceservice.cluster.workloads import Object, Step, deployment_step, progressing, revision_step


@dataclass(frozen=True, slots=True)
class Goal:
    """What a component is to serve.

    Attributes
    ----------
    share
        Percent of the traffic that the bundle is to get.
    """

    component: str
    uri: str
    share: int = 100


def before(namespace: Namespace, isvc: InferenceServiceObject, goal: Goal) -> Object:
    """What a component's Deployment says before a change; see `workloads.deployment_step`."""
    if isvc.mode is Mode.KNATIVE:
        return {}
    return progressing(namespace.deployment(isvc.workload(goal.component)) or {})


def step(namespace: Namespace, isvc: InferenceServiceObject, goal: Goal, earlier: Object) -> Step:
    """How far a component is, and why it is not ready where KServe says so.

    Parameters
    ----------
    earlier
        What `before` gave.
    """
    seen = _workload_step(namespace, isvc, goal, earlier)
    ready = isvc.ready(goal.component)
    notes = [] if ready.status == "True" else [str(ready)]
    if goal.component == PREDICTOR and (failure := isvc.model_failure()) is not None:
        notes.append(failure)
    done = seen.done and ready.status == "True"
    return Step("; ".join([seen.text, *notes]), done, seen.failed)


def _workload_step(namespace: Namespace, isvc: InferenceServiceObject, goal: Goal, earlier: Object) -> Step:
    if isvc.mode is Mode.STANDARD:
        deployment = namespace.deployment(isvc.workload(goal.component))
        if deployment is None:
            return Step("waiting for KServe to create the Deployment")
        return deployment_step(deployment, goal.uri, earlier)
    status = isvc.component(goal.component)
    revision = namespace.revision(status.get("latestCreatedRevision"))
    return revision_step(status, revision, goal.uri, goal.share)
