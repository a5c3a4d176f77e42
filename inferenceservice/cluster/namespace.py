"""Objects of one namespace that a rollout reads and writes, and proxied requests to its services and pods."""

from collections.abc import Mapping

from inferenceservice.cluster.api_server import ApiServer, ApiServerError
from inferenceservice.cluster.inference_service import (
    PREDICTOR,
    TRANSFORMER,
    DesiredState,
    InferenceServiceObject,
    Mode,
)
from inferenceservice.cluster.plain_service import PlainService, is_plain
from inferenceservice.cluster.workloads import (
    Object,
    history_of_replica_sets,
    history_of_revisions,
    revision_uri,
)
from inferenceservice.rollout_target import NoInferenceServiceError


class Namespace:
    """One namespace of a cluster. Blocks: call it in a thread."""

    def __init__(self, api: ApiServer, name: str) -> None:
        self._api = api
        self.name = name

    def inference_service(self, name: str) -> InferenceServiceObject:
        """Read an InferenceService.

        Raises
        ------
        NoInferenceServiceError
            If there is none with that name.
        inferenceservice.rollout_target.TargetError
            If a rollout does not support it.
        """
        try:
            return InferenceServiceObject(self._api.get(self._inference_service(name)))
        except ApiServerError as error:
            if error.status != 404:
                raise
            if (plain := self._plain_service(name)) is not None:
                return plain
            raise NoInferenceServiceError(
                f"{self._api.address} has no InferenceService {name} in namespace {self.name} ({error}); "
                "check --context, --namespace and --name"
            ) from error

    def change(self, isvc: InferenceServiceObject, desired: DesiredState) -> InferenceServiceObject:
        """Change an InferenceService to another state, and return the result."""
        if isinstance(isvc, PlainService):
            for deployment, operations in isvc.patches(desired):
                path = f"/apis/apps/v1/namespaces/{self.name}/deployments/{deployment}"
                self._api.patch(path, operations)
            return self.inference_service(isvc.name)
        return InferenceServiceObject(
            self._api.patch(self._inference_service(isvc.name), isvc.patch(desired))
        )

    def deployment(self, name: str) -> Object | None:
        """Read a Deployment, or return None if there is none with that name."""
        return self._get(f"apps/v1/namespaces/{self.name}/deployments/{name}")

    def revision(self, name: str | None) -> Object | None:
        """Read a Knative revision, or return None if there is none with that name."""
        return self._get(f"serving.knative.dev/v1/namespaces/{self.name}/revisions/{name}") if name else None

    def revision_uri(self, name: str | None) -> str | None:
        """Return the bundle of a Knative revision."""
        revision = self.revision(name)
        return revision_uri(revision) if revision is not None else None

    def history(self, workload: str, mode: Mode) -> list[str]:
        """Return the bundles that a Deployment or Knative Service had, oldest first."""
        if mode is Mode.STANDARD:
            path, label = f"apps/v1/namespaces/{self.name}/replicasets", f"app=isvc.{workload}"
            return history_of_replica_sets(self._list(path, label), workload)
        path = f"serving.knative.dev/v1/namespaces/{self.name}/revisions"
        return history_of_revisions(self._list(path, f"serving.knative.dev/configuration={workload}"))

    def post(self, service: str, path: str, content: object) -> tuple[int, Mapping[str, str], bytes]:
        """Send JSON to port 80 of a Service; see `ApiServer.post`."""
        proxy = f"/api/v1/namespaces/{self.name}/services/http:{service}:80/proxy"
        return self._api.post(proxy + path, content)

    def pods(self, name: str, component: str) -> list[Object]:
        """Read the pods of an InferenceService's component."""
        selector = f"serving.kserve.io/inferenceservice={name},component={component}"
        pods: list[Object] = self._api.get(self._pods(), {"labelSelector": selector})["items"]
        return pods

    def events(self, pod: str) -> list[Object]:
        """Read the events of a pod."""
        path = f"/api/v1/namespaces/{self.name}/events"
        events: list[Object] = self._api.get(path, {"fieldSelector": f"involvedObject.name={pod}"})["items"]
        return events

    def pod_metrics(self, pod: str, port: str) -> str:
        """Read `/metrics` of a pod's port."""
        return self._api.get_text(f"{self._pods()}/{pod}:{port}/proxy/metrics")

    def _pods(self) -> str:
        return f"/api/v1/namespaces/{self.name}/pods"

    def _plain_service(self, name: str) -> PlainService | None:
        """Read the Deployments of `placement spec --plain`, or return None if there are none."""
        found = {one: self.deployment(f"{name}-{one}") for one in (PREDICTOR, TRANSFORMER)}
        deployments = {component: one for component, one in found.items() if one and is_plain(one)}
        return PlainService(name, deployments) if PREDICTOR in deployments else None

    def _inference_service(self, name: str) -> str:
        return f"/apis/serving.kserve.io/v1beta1/namespaces/{self.name}/inferenceservices/{name}"

    def _get(self, path: str) -> Object | None:
        try:
            return self._api.get(f"/apis/{path}")
        except ApiServerError as error:
            if error.status == 404:
                return None
            raise

    def _list(self, path: str, label: str) -> list[Object]:
        found: list[Object] = self._api.get(f"/apis/{path}", {"labelSelector": label})["items"]
        return found
