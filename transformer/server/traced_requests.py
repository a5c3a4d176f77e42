"""The operations of the requests that the handler answers, in traces."""

from collections.abc import Mapping
from urllib.parse import quote

from transformer.monitoring.monitor import GRPC_INFER, V1_EXPLAIN, V1_PREDICT, V2_INFER, Kind
from transformer.tracing.operation import Operation


class TracedOperations:
    """The operations of one model.

    Parameters
    ----------
    model_name
        Name of the model in paths.
    tls
        True if the server speaks TLS.
    """

    def __init__(self, model_name: str, *, tls: bool) -> None:
        self._model = quote(model_name)
        self._scheme = "https" if tls else "http"
        self.by_kind: Mapping[Kind, Operation] = {
            V1_PREDICT: self._http("/v1/models/{model_name}:predict"),
            V1_EXPLAIN: self._http("/v1/models/{model_name}:explain"),
            V2_INFER: self._http("/v2/models/{model_name}/infer"),
            GRPC_INFER: Operation.of_grpc({}),
        }

    def of_version(self, version: str) -> Operation:
        """Return the inference by a version that the path names."""
        return self._http("/v2/models/{model_name}/versions/{version}/infer", version)

    def _http(self, route: str, version: str = "") -> Operation:
        path = route.format(model_name=self._model, version=quote(version))
        attributes = {"http.route": route, "url.path": path, "url.scheme": self._scheme}
        return Operation.of_http(route, attributes)
