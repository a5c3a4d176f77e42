"""What KServe says of an InferenceService in a cluster, as data."""

from dataclasses import dataclass

from inferenceservice.cluster import workloads
from inferenceservice.cluster.inference_service import (
    PREDICTOR,
    TRANSFORMER,
    Condition,
    InferenceServiceObject,
    Mode,
)
from inferenceservice.cluster.namespace import Namespace
from inferenceservice.cluster.workloads import Replicas


@dataclass(frozen=True, slots=True)
class Share:
    """A Knative revision's part of the traffic, in percent."""

    revision: str
    uri: str | None
    percent: int


@dataclass(frozen=True, slots=True)
class ComponentStatus:
    """A component of an InferenceService.

    Attributes
    ----------
    uri
        Bundle that the spec asks for.
    replicas
        Its pods, in Standard mode.
    traffic
        Its revisions that get requests, in Knative mode.
    """

    name: str
    uri: str
    replicas: Replicas | None
    traffic: tuple[Share, ...]


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """An InferenceService in a cluster.

    Attributes
    ----------
    model_failure
        Why the predictor's model cannot be loaded, if KServe has seen that.
    """

    mode: Mode
    conditions: tuple[Condition, ...]
    components: tuple[ComponentStatus, ...]
    model_failure: str | None


def read(namespace: Namespace, name: str) -> ClusterStatus:
    """Ask a cluster for everything. Blocks: call it in a thread."""
    isvc = namespace.inference_service(name)
    components = [_component(namespace, isvc, PREDICTOR, isvc.wanted.predictor_uri)]
    if isvc.wanted.transformer_uri is not None:
        components.insert(0, _component(namespace, isvc, TRANSFORMER, isvc.wanted.transformer_uri))
    return ClusterStatus(isvc.mode, tuple(isvc.conditions()), tuple(components), isvc.model_failure())


def _component(
    namespace: Namespace, isvc: InferenceServiceObject, component: str, uri: str
) -> ComponentStatus:
    if isvc.mode is Mode.STANDARD:
        deployment = namespace.deployment(isvc.workload(component))
        pods = workloads.replicas(deployment) if deployment is not None else None
        return ComponentStatus(component, uri, pods, ())
    shares = (
        Share(revision, namespace.revision_uri(revision), percent)
        for revision, percent in workloads.traffic(isvc.component(component))
    )
    return ComponentStatus(component, uri, None, tuple(shares))
