"""Status of an InferenceService in a cluster, as KServe reports it."""

from dataclasses import dataclass

from inferenceservice.cluster import workloads
from inferenceservice.cluster.component_progress import find_problems, visible_pods
from inferenceservice.cluster.inference_service import (
    PREDICTOR,
    TRANSFORMER,
    Condition,
    InferenceServiceObject,
    Mode,
)
from inferenceservice.cluster.namespace import Namespace
from inferenceservice.cluster.pods import Problem, deployment_problems, is_ready, newest_pods, restarts
from inferenceservice.cluster.workloads import Replicas


@dataclass(frozen=True, slots=True)
class TrafficShare:
    """A Knative revision and its share of the traffic, in percent."""

    revision: str
    uri: str | None
    percent: int


@dataclass(frozen=True, slots=True)
class NewestPods:
    """Pods of a component's newest template.

    Attributes
    ----------
    ready
        Number of pods that get requests.
    restarts
        Number of restarts of their containers.
    problems
        Why they do not start.
    """

    ready: int
    restarts: int
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ComponentStatus:
    """Status of a component of an InferenceService.

    Attributes
    ----------
    uri
        Bundle in the spec.
    replicas
        Pods of the component, in Standard mode.
    traffic
        Revisions that get requests, in Knative mode.
    newest
        None without the right to list pods.
    """

    name: str
    uri: str
    replicas: Replicas | None
    traffic: tuple[TrafficShare, ...]
    newest: NewestPods | None


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """Status of an InferenceService in a cluster.

    Attributes
    ----------
    model_failure
        Why the predictor cannot load its model, if KServe reports a failure.
    """

    mode: Mode
    conditions: tuple[Condition, ...]
    components: tuple[ComponentStatus, ...]
    model_failure: str | None


def read_status(namespace: Namespace, name: str) -> ClusterStatus:
    """Read the status of an InferenceService. Blocks: call it in a thread."""
    isvc = namespace.inference_service(name)
    components = [_component(namespace, isvc, PREDICTOR, isvc.desired.predictor_uri)]
    if isvc.desired.transformer_uri is not None:
        components.insert(0, _component(namespace, isvc, TRANSFORMER, isvc.desired.transformer_uri))
    return ClusterStatus(isvc.mode, tuple(isvc.conditions()), tuple(components), isvc.model_failure())


def _component(
    namespace: Namespace, isvc: InferenceServiceObject, component: str, uri: str
) -> ComponentStatus:
    if isvc.mode is Mode.STANDARD:
        deployment = namespace.deployment(isvc.workload(component)) or {}
        replicas = workloads.replicas(deployment) if deployment else None
        newest = _newest(namespace, isvc.name, component, deployment_problems(deployment))
        return ComponentStatus(component, uri, replicas, (), newest)
    shares = (
        TrafficShare(revision, namespace.revision_uri(revision), percent)
        for revision, percent in workloads.traffic(isvc.component_status(component))
    )
    return ComponentStatus(component, uri, None, tuple(shares), _newest(namespace, isvc.name, component, []))


def _newest(namespace: Namespace, name: str, component: str, problems: list[Problem]) -> NewestPods | None:
    pods = visible_pods(namespace, name, component)
    if pods is None:
        return None
    pods = newest_pods(pods)
    texts = [one.text for one in (*problems, *find_problems(namespace, pods))]
    return NewestPods(sum(map(is_ready, pods)), restarts(pods), tuple(texts))
