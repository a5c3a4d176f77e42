"""What the transformer's pods say of themselves: their metrics, through the API server's proxy."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from inferenceservice.cluster.api_server import ApiServerError
from inferenceservice.cluster.inference_service import TRANSFORMER, InferenceServiceObject
from inferenceservice.cluster.namespace import Namespace
from inferenceservice.cluster.workloads import Object
from inferenceservice.spec import COLLOCATED_CONTAINER, argument

#: Name that KServe gives to a component's first container.
_KSERVE_CONTAINER = "kserve-container"
#: KServe's own, where the container's arguments do not say otherwise.
_HTTP_PORT = "8080"
#: Pods that are asked at the same time.
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class PodMetrics:
    """Metrics of the pods that run the transformer.

    Attributes
    ----------
    texts
        As Prometheus reads them, by pod.
    unknown
        Why those of a pod are missing, if any are.
    """

    texts: Mapping[str, str]
    unknown: str | None = None


def metrics(namespace: Namespace, isvc: InferenceServiceObject) -> PodMetrics:
    """Ask each running pod. Blocks: call it in a thread.

    A pod that is not ready is asked, too, because it may lack just a connection, but need not answer.
    """
    labels = {"serving.kserve.io/inferenceservice": isvc.name, "component": isvc.entrance}
    try:
        running = [pod for pod in namespace.pods(labels) if _runs(pod)]
    except ApiServerError as error:
        return PodMetrics({}, str(error))
    container = _KSERVE_CONTAINER if isvc.entrance == TRANSFORMER else COLLOCATED_CONTAINER

    def ask(pod: Object) -> str | ApiServerError:
        try:
            return namespace.pod_metrics(pod["metadata"]["name"], _port(pod, container))
        except ApiServerError as error:
            return error

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        answers = list(zip(running, threads.map(ask, running), strict=True))
    texts = {pod["metadata"]["name"]: answer for pod, answer in answers if isinstance(answer, str)}
    return PodMetrics(texts, _unknown(answers, texts))


def _unknown(answers: Iterable[tuple[Object, str | ApiServerError]], texts: Mapping[str, str]) -> str | None:
    errors = [
        error for pod, error in answers if isinstance(error, ApiServerError) and (_ready(pod) or not texts)
    ]
    if not errors:
        return None if texts else "no pod of the transformer is running"
    return f"{errors[0]}" + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else "")


def _runs(pod: Object) -> bool:
    return pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]


def _ready(pod: Object) -> bool:
    conditions = pod["status"].get("conditions") or ()
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _port(pod: Object, container: str) -> str:
    for one in pod["spec"]["containers"]:
        if one["name"] == container and (port := argument(tuple(one.get("args") or ()), "--http_port")):
            return port
    return _HTTP_PORT
