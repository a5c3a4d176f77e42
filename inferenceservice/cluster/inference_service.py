"""An InferenceService of the API server: the only place that writes its spec, with a canary's traffic."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from inferenceservice.cluster.workloads import stable_revision
from inferenceservice.rollout_target import TargetError
from inferenceservice.spec import COLLOCATED_CONTAINER, argument
from storage.uris import serving_uri

PREDICTOR = "predictor"
TRANSFORMER = "transformer"

_MODE = "serving.kserve.io/deploymentMode"
_PREDICTOR_URI = "/spec/predictor/model/storageUri"
_CANARY_PERCENT = "/spec/predictor/canaryTrafficPercent"


class Mode(StrEnum):
    """KServe's deployment mode: Deployments or Knative Services."""

    STANDARD = "Standard"
    KNATIVE = "Knative"


_MODES = {
    "Standard": Mode.STANDARD,
    "RawDeployment": Mode.STANDARD,  # its name up to v0.15
    "Knative": Mode.KNATIVE,
    "Serverless": Mode.KNATIVE,
}


@dataclass(frozen=True, slots=True)
class DesiredState:
    """The fields of a spec that a rollout changes. URIs are in the form of `serving_uri`.

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

    def difference(self, found: "DesiredState") -> str:
        """Describe the fields in which another state differs from this one."""
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
    """Condition of the status, for example PredictorReady."""

    type: str
    status: str
    reason: str = ""
    message: str = ""

    def __str__(self) -> str:
        why = ": ".join(part for part in (self.reason, self.message) if part)
        return f"{self.type} is {self.status}" + (f" ({why})" if why else "")


class InferenceServiceObject:
    """An InferenceService (v1beta1) as the API server returns it.

    Raises
    ------
    TargetError
        If a rollout does not support it; the message names the field.
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
        self.desired = DesiredState(
            serving_uri(uri),
            None if transformer_uri is None else serving_uri(transformer_uri),
            predictor.get("canaryTrafficPercent"),
        )

    @property
    def collocated(self) -> bool:
        """True if both containers run in the predictor's pod, with one URI."""
        return self.desired.transformer_uri is None

    @property
    def entry_component(self) -> str:
        """Component that receives the clients' requests."""
        return PREDICTOR if self.collocated else TRANSFORMER

    @property
    def entry_service(self) -> str:
        """Service whose endpoints are the pods of the entry component.

        A Knative Service's own Service has no pods as endpoints; the private one of each revision has.
        """
        if self.mode is Mode.STANDARD:
            return self.workload(self.entry_component)
        return f"{self.component_status(self.entry_component).get('latestReadyRevision')}-private"

    @property
    def stable_revision(self) -> str | None:
        """Revision of the predictor beside a canary, if the spec splits the traffic."""
        if self.mode is not Mode.KNATIVE or self.desired.canary_percent is None:
            return None
        return stable_revision(self.component_status(PREDICTOR))

    @property
    def mode(self) -> Mode:
        """Deployment mode in the status, or else in the annotation."""
        annotations = self._metadata.get("annotations") or {}
        name = self._status.get("deploymentMode") or annotations.get(_MODE)
        if name is None:
            raise self._error(
                "has no status.deploymentMode yet: wait until KServe's controller has processed it"
            )
        if name not in _MODES:
            raise self._error(f"deployment mode must be one of {', '.join(Mode)}, got {name}")
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
        """Return the name of a component's Deployment and Service, or of its Knative Service."""
        # KServe's constants.PredictorServiceName.
        own_name = self._spec[component].get("name") if component == PREDICTOR else None
        return "-".join(part for part in (self.name, own_name, component) if part)

    def patch(self, desired: DesiredState) -> list[dict[str, Any]]:
        """Return a JSON patch to another state. It fails if the object was changed after it was read."""
        now = self.desired
        operations: list[dict[str, Any]] = []
        if desired.transformer_uri != now.transformer_uri:
            operations.append(
                {"op": "replace", "path": self._transformer_path, "value": desired.transformer_uri}
            )
        if desired.predictor_uri != now.predictor_uri:
            operations.append({"op": "replace", "path": _PREDICTOR_URI, "value": desired.predictor_uri})
        if desired.canary_percent != now.canary_percent:
            if desired.canary_percent is None:
                operations.append({"op": "remove", "path": _CANARY_PERCENT})
            else:
                operations.append({"op": "add", "path": _CANARY_PERCENT, "value": desired.canary_percent})
        if operations:
            version = self._metadata["resourceVersion"]
            operations.insert(0, {"op": "replace", "path": "/metadata/resourceVersion", "value": version})
        return operations

    def conditions(self) -> Iterator[Condition]:
        """Yield the conditions of the status."""
        for one in self._status.get("conditions") or ():
            yield Condition(one["type"], one["status"], one.get("reason") or "", one.get("message") or "")

    def ready_condition(self, component: str) -> Condition:
        """Return PredictorReady or TransformerReady."""
        name = f"{component.capitalize()}Ready"
        found = (condition for condition in self.conditions() if condition.type == name)
        return next(found, Condition(name, "Unknown"))

    def component_status(self, component: str) -> Mapping[str, Any]:
        """Return a component's part of the status: revisions and traffic, in Knative mode only."""
        found: Mapping[str, Any] = (self._status.get("components") or {}).get(component) or {}
        return found

    def model_failure(self) -> str | None:
        """Return why the predictor cannot load its model, if KServe reports a failure."""
        model = self._status.get("modelStatus") or {}
        if model.get("transitionStatus") not in ("BlockedByFailedLoad", "InvalidSpec"):
            return None
        failure = model.get("lastFailureInfo") or {}
        parts = (failure.get("reason"), failure.get("message"))
        return ": ".join(part for part in parts if part) or str(model["transitionStatus"])

    def _storage_uri(self) -> tuple[str, str]:
        """Return path and value of STORAGE_URI in the first container; KServe reads no other container."""
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
