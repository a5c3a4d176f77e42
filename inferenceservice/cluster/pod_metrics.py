"""Metrics of the transformer's pods, read through the API server's proxy."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from inferenceservice.cluster.api_server import ApiServerError
from inferenceservice.cluster.inference_service import TRANSFORMER, InferenceServiceObject
from inferenceservice.cluster.namespace import Namespace
from inferenceservice.cluster.pods import is_ready, is_running
from inferenceservice.cluster.workloads import Object
from inferenceservice.spec import COLLOCATED_CONTAINER, argument

#: Name that KServe gives to a component's first container.
_KSERVE_CONTAINER = "kserve-container"
#: KServe's default, for containers without `--http_port`.
_HTTP_PORT = "8080"
#: Pods that are queried at the same time.
_CONCURRENCY = 8


@dataclass(frozen=True, slots=True)
class PodMetrics:
    """Metrics of the pods that run the transformer.

    Attributes
    ----------
    texts
        Metrics in Prometheus' text format, by pod.
    error
        Why the metrics of a pod are missing, if any are.
    """

    texts: Mapping[str, str]
    error: str | None = None


def read_metrics(namespace: Namespace, isvc: InferenceServiceObject) -> PodMetrics:
    """Read the metrics of each running pod. Blocks: call it in a thread.

    Pods that are not ready are included, because all they may lack is a connection to the predictor; a
    missing answer of such a pod is no error.
    """
    try:
        running = [pod for pod in namespace.pods(isvc.name, isvc.entry_component) if is_running(pod)]
    except ApiServerError as error:
        return PodMetrics({}, str(error))
    container = _KSERVE_CONTAINER if isvc.entry_component == TRANSFORMER else COLLOCATED_CONTAINER

    def read(pod: Object) -> str | ApiServerError:
        try:
            return namespace.pod_metrics(pod["metadata"]["name"], _http_port(pod, container))
        except ApiServerError as error:
            return error

    with ThreadPoolExecutor(_CONCURRENCY) as threads:
        results = list(zip(running, threads.map(read, running), strict=True))
    texts = {pod["metadata"]["name"]: result for pod, result in results if isinstance(result, str)}
    return PodMetrics(texts, _error(results, texts))


def _error(results: Iterable[tuple[Object, str | ApiServerError]], texts: Mapping[str, str]) -> str | None:
    errors = [
        result
        for pod, result in results
        if isinstance(result, ApiServerError) and (is_ready(pod) or not texts)
    ]
    if not errors:
        return None if texts else "no pod of the transformer is running"
    return f"{errors[0]}" + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else "")


def _http_port(pod: Object, container: str) -> str:
    for one in pod["spec"]["containers"]:
        if one["name"] == container and (port := argument(tuple(one.get("args") or ()), "--http_port")):
            return port
    return _HTTP_PORT
