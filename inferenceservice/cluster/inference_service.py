"""An InferenceService as a cluster holds it: what its spec asks for, how to change that, what KServe says."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from inferenceservice.cluster.workloads import stable_revision
from inferenceservice.rollout_target import TargetError
from inferenceservice.spec import COLLOCATED_CONTAINER, argument

PREDICTOR = "predictor"
TRANSFORMER = "transformer"

_MODE = "serving.kserve.io/deploymentMode"
_PREDICTOR_URI = "/spec/predictor/model/storageUri"
_CANARY_PERCENT = "/spec/predictor/canaryTrafficPercent"


class Mode(StrEnum):
    """What KServe runs the components on: Deployments or Knative Services."""

    STANDARD = "Standard"
    KNATIVE = "Knative"


_MODES = {
    "Standard": Mode.STANDARD,
    "RawDeployment": Mode.STANDARD,  # its name up to v0.15
    "Knative": Mode.KNATIVE,
    "Serverless": Mode.KNATIVE,
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a spec asks for, as far as a rollout changes it.

    Attributes
    ----------
    predictor_uri
        The predictor's `storageUri`.
    transformer_uri
        The transformer's `STORAGE_URI`, or None where it shares the predictor's pod.
    canary_percent
        The predictor's `canaryTrafficPercent`.
    """

    predictor_uri: str
    transformer_uri: str | None
    canary_percent: int | None = None

    def difference(self, found: "Wanted") -> str:
        """What another wish differs in, in the spec's words."""
        names = {
            "predictor_uri": "the predictor's storageUri",
            "transformer_uri": "the transformer's STORAGE_URI",
            "canary_percent": "the predictor's canaryTrafficPercent",
        }
        return ", ".join(
            f"{name} is {getattr(found, field)} instead of {getattr(self, field)}"
            for field, name in names.items()
            if getattr(found, field) != getattr(self, field)
        )


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition of the status, for example PredictorReady."""

    type: str
    status: str
    reason: str = ""
    message: str = ""

    def __str__(self) -> str:
        why = ": ".join(part for part in (self.reason, self.message) if part)
        return f"{self.type} is {self.status}" + (f" ({why})" if why else "")


class InferenceServiceObject:
    """An InferenceService (v1beta1) as the API server answers it.

    Raises
    ------
    TargetError
        If it is none that a version can be rolled out to; the message names the field.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._metadata: Mapping[str, Any] = content["metadata"]
        self._spec: Mapping[str, Any] = content["spec"]
        self._status: Mapping[str, Any] = content.get("status") or {}
        self.name: str = self._metadata["name"]
        predictor = self._spec["predictor"]
        uri = (predictor.get("model") or {}).get("storageUri")
        if uri is None:
            raise self._error("spec.predictor.model.storageUri: is required")
        self._transformer_path = ""
        transformer_uri = None
        if TRANSFORMER in self._spec:
            self._transformer_path, transformer_uri = self._storage_uri()
        elif self._container(PREDICTOR, COLLOCATED_CONTAINER) is None:
            raise self._error(
                f"spec.transformer: is required, or {COLLOCATED_CONTAINER} in the predictor's pod"
            )
        self.wanted = Wanted(uri, transformer_uri, predictor.get("canaryTrafficPercent"))

    @property
    def collocated(self) -> bool:
        """Whether both containers run in the predictor's pod, with one URI."""
        return self.wanted.transformer_uri is None

    @property
    def entrance(self) -> str:
        """The component that takes the requests."""
        return PREDICTOR if self.collocated else TRANSFORMER

    @property
    def service(self) -> str:
        """The Service whose endpoints are the pods that take the requests.

        A Knative Service's own Service names no pods; the private one of each revision does.
        """
        if self.mode is Mode.STANDARD:
            return self.workload(self.entrance)
        return f"{self.component(self.entrance).get('latestReadyRevision')}-private"

    @property
    def stable_revision(self) -> str | None:
        """The predictor's revision that answers beside a canary, where the spec divides the traffic."""
        if self.mode is not Mode.KNATIVE or self.wanted.canary_percent is None:
            return None
        return stable_revision(self.component(PREDICTOR))

    @property
    def mode(self) -> Mode:
        """What KServe runs it on: what it has recorded, or else what the annotation asks for."""
        annotations = self._metadata.get("annotations") or {}
        name = self._status.get("deploymentMode") or annotations.get(_MODE)
        if name is None:
            raise self._error("has no status.deploymentMode: KServe's controller has not seen it yet")
        if name not in _MODES:
            raise self._error(f"deployment mode {name}: must be one of {', '.join(Mode)}")
        return _MODES[name]

    @property
    def model_name(self) -> str:
        """Name of the model in the transformer's endpoints."""
        if self.collocated:
            container = self._container(PREDICTOR, COLLOCATED_CONTAINER) or {}
        else:
            container = self._spec[TRANSFORMER]["containers"][0]
        return argument(tuple(container.get("args") or ()), "--model_name") or self.name

    def workload(self, component: str) -> str:
        """Name of a component's Deployment and Service, or of its Knative Service."""
        # KServe's constants.PredictorServiceName.
        own_name = self._spec[component].get("name") if component == PREDICTOR else None
        return "-".join(part for part in (self.name, own_name, component) if part)

    def patch(self, wanted: Wanted) -> list[dict[str, Any]]:
        """JSON patch to another wish; it fails where the object was changed since it was read."""
        now = self.wanted
        operations: list[dict[str, Any]] = []
        if wanted.transformer_uri != now.transformer_uri:
            operations.append(
                {"op": "replace", "path": self._transformer_path, "value": wanted.transformer_uri}
            )
        if wanted.predictor_uri != now.predictor_uri:
            operations.append({"op": "replace", "path": _PREDICTOR_URI, "value": wanted.predictor_uri})
        if wanted.canary_percent != now.canary_percent:
            if wanted.canary_percent is None:
                operations.append({"op": "remove", "path": _CANARY_PERCENT})
            else:
                operations.append({"op": "add", "path": _CANARY_PERCENT, "value": wanted.canary_percent})
        if operations:
            version = self._metadata["resourceVersion"]
            operations.insert(0, {"op": "replace", "path": "/metadata/resourceVersion", "value": version})
        return operations

    def conditions(self) -> Iterator[Condition]:
        """What KServe says of its state."""
        for one in self._status.get("conditions") or ():
            yield Condition(one["type"], one["status"], one.get("reason") or "", one.get("message") or "")

    def ready(self, component: str) -> Condition:
        """PredictorReady or TransformerReady."""
        name = f"{component.capitalize()}Ready"
        found = (condition for condition in self.conditions() if condition.type == name)
        return next(found, Condition(name, "Unknown"))

    def component(self, component: str) -> Mapping[str, Any]:
        """A component's part of the status: revisions and traffic, in Knative mode only."""
        found: Mapping[str, Any] = (self._status.get("components") or {}).get(component) or {}
        return found

    def model_failure(self) -> str | None:
        """Why the predictor's model cannot be loaded, if KServe has seen that."""
        model = self._status.get("modelStatus") or {}
        if model.get("transitionStatus") not in ("BlockedByFailedLoad", "InvalidSpec"):
            return None
        failure = model.get("lastFailureInfo") or {}
        said = (failure.get("reason"), failure.get("message"))
        return ": ".join(part for part in said if part) or str(model["transitionStatus"])

    def _storage_uri(self) -> tuple[str, str]:
        """Path and value of STORAGE_URI in the transformer's first container: KServe reads no other."""
        containers = self._spec[TRANSFORMER].get("containers") or [{}]
        for index, variable in enumerate(containers[0].get("env") or ()):
            if variable["name"] == "STORAGE_URI" and variable.get("value"):
                return f"/spec/transformer/containers/0/env/{index}/value", variable["value"]
        raise self._error("spec.transformer.containers[0].env: STORAGE_URI is required")

    def _container(self, component: str, name: str) -> Mapping[str, Any] | None:
        containers = self._spec[component].get("containers") or ()
        return next((one for one in containers if one.get("name") == name), None)

    def _error(self, message: str) -> TargetError:
        return TargetError(f"InferenceService {self._metadata['name']}: {message}")
