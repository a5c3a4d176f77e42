"""The Deployments of `placement spec --plain`, read as the InferenceService that they serve."""

from collections.abc import Iterator, Mapping
from typing import Any

from inferenceservice.cluster.inference_service import (
    PREDICTOR,
    TRANSFORMER,
    DesiredState,
    InferenceServiceObject,
)
from inferenceservice.cluster.workloads import SOURCE_URI, Object
from inferenceservice.plain import INITIALIZER, claim_of, source_of
from inferenceservice.rollout_target import TargetError
from storage.uris import serving_uri


class PlainService(InferenceServiceObject):
    """A service of plain Deployments.

    Parameters
    ----------
    name
        Name of the service.
    deployments
        Deployment of each component; without one of the transformer, both share the predictor's pod.
    """

    def __init__(self, name: str, deployments: Mapping[str, Object]) -> None:
        self._deployments = deployments
        super().__init__(
            {
                "metadata": {"name": name},
                "spec": {component: _spec(component, one) for component, one in deployments.items()},
                "status": {
                    "deploymentMode": "Standard",
                    "conditions": [_condition(component, one) for component, one in deployments.items()],
                },
            }
        )

    def patches(self, desired: DesiredState) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Yield a JSON patch for each Deployment that another state changes, after the Deployment's name.

        Raises
        ------
        TargetError
            If the new bundle is in another claim or kind of storage.
        """
        uris = {TRANSFORMER: desired.transformer_uri, PREDICTOR: desired.predictor_uri}
        for component, deployment in self._deployments.items():
            uri, now = uris[component], _uri(deployment)
            if uri is not None and uri != serving_uri(now):
                self._require_same_storage(now, uri)
                yield self.workload(component), _patch(deployment, uri)

    def _require_same_storage(self, now: str, uri: str) -> None:
        if claim_of(uri) != claim_of(now) or uri.partition("://")[0] != now.partition("://")[0]:
            raise TargetError(
                f"{self.name} serves {now}: a rollout cannot change to other storage ({uri}); apply "
                "`placement spec --plain` with the new bundle"
            )


def is_plain(deployment: Object) -> bool:
    """Return True if `placement spec --plain` has rendered a Deployment; KServe's have an owner."""
    initializers = deployment["spec"]["template"].get("spec", {}).get("initContainers") or ()
    rendered = any(one["name"] == INITIALIZER for one in initializers)
    return rendered and not deployment["metadata"].get("ownerReferences")


def _patch(deployment: Object, uri: str) -> list[dict[str, Any]]:
    template = "/spec/template"
    annotation = f"{template}/metadata/annotations/{SOURCE_URI.replace('/', '~1')}"
    initializers = deployment["spec"]["template"]["spec"]["initContainers"]
    index = next(number for number, one in enumerate(initializers) if one["name"] == INITIALIZER)
    values = {
        "/metadata/resourceVersion": deployment["metadata"]["resourceVersion"],
        annotation: uri,
        f"{template}/spec/initContainers/{index}/args/0": source_of(uri),
    }
    return [{"op": "replace", "path": path, "value": value} for path, value in values.items()]


def _spec(component: str, deployment: Object) -> dict[str, Any]:
    """Return a component's part of the spec, as far as a rollout reads it."""
    containers = deployment["spec"]["template"]["spec"]["containers"]
    uri = _uri(deployment)
    if component == PREDICTOR:
        return {"model": {"storageUri": uri}, "containers": containers}
    return {"containers": [{**containers[0], "env": [{"name": "STORAGE_URI", "value": uri}]}]}


def _condition(component: str, deployment: Object) -> dict[str, Any]:
    """Return the condition Available of a Deployment under the name that KServe gives it."""
    conditions = (deployment.get("status") or {}).get("conditions") or ()
    available: Object = next((one for one in conditions if one["type"] == "Available"), {})
    return {"status": "Unknown", **available, "type": f"{component.capitalize()}Ready"}


def _uri(deployment: Object) -> str:
    uri: str = deployment["spec"]["template"]["metadata"]["annotations"][SOURCE_URI]
    return uri
