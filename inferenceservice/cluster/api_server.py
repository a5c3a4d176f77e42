"""The Kubernetes API server: JSON in, JSON out, and what goes wrong as one line."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from inferenceservice.rollout_target import TargetError

#: Who changed a field, as `kubectl get --show-managed-fields` tells it.
FIELD_MANAGER = "placement"
#: Seconds before a question that was not answered is asked again.
PAUSE_S = 1.0
_ATTEMPTS = 3
#: Seconds to connect, and to answer.
_TIMEOUT_S = (5, 60)
#: The same for one pod, of which there may be many.
_PROXY_TIMEOUT_S = (5, 5)
_IN_CLUSTER_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class ApiServerError(TargetError):
    """A request that the API server refused or did not answer.

    Attributes
    ----------
    status
        HTTP status, or None without an answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed a moment later."""
        return self.status is None or self.status == 429 or self.status >= 500


class ApiServer:
    """A connection to the API server. Blocks: call it in a thread.

    Parameters
    ----------
    client
        `kubernetes.client.ApiClient` with the address and the credentials.
    namespace
        Namespace that the kubeconfig's context names.
    """

    def __init__(self, client: Any, namespace: str = "default") -> None:  # noqa: ANN401 (has no types)
        self._client = client
        self.namespace = namespace

    @classmethod
    def connect(cls, context: str | None = None) -> Self:
        """Connect as kubectl does: by the kubeconfig, or by the pod's service account without one.

        Raises
        ------
        ApiServerError
            If there is neither, or no such context.
        """
        from kubernetes import client, config

        configuration = client.Configuration()
        # The client's own attempts write warnings, and they repeat patches.
        configuration.retries = False
        try:
            try:
                api = config.new_client_from_config(  # type: ignore[no-untyped-call]
                    context=context, client_configuration=configuration
                )
                return cls(api, _namespace(context))
            except config.ConfigException:
                if context is not None or not _IN_CLUSTER_NAMESPACE.exists():
                    raise
                config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
                return cls(client.ApiClient(configuration), _IN_CLUSTER_NAMESPACE.read_text().strip())
        except config.ConfigException as error:
            raise ApiServerError(
                f"no cluster to talk to: {' '.join(str(error).split())}; set KUBECONFIG and --context"
            ) from error

    @property
    def address(self) -> str:
        """URL of the API server."""
        return str(self._client.configuration.host)

    def get(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        """An object, or with a selector in the query a list of them."""
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._json(*self._request("GET", path, query=query))
            except ApiServerError as error:
                if not error.passing:
                    raise
            time.sleep(PAUSE_S)
        return self._json(*self._request("GET", path, query=query))

    def text(self, path: str) -> str:
        """What a pod or a service answers through the API server's proxy; one that is slow does not count."""
        headers = {"Accept": "text/plain"}
        status, _, body = self._request("GET", path, headers, timeout_s=_PROXY_TIMEOUT_S)
        if status != 200:
            raise ApiServerError(_message(status, body), status)
        return body.decode(errors="replace")

    def patch(self, path: str, operations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Change an object by a JSON patch, and return it as it is then."""
        headers = {"Content-Type": "application/json-patch+json"}
        query = {"fieldManager": FIELD_MANAGER}
        return self._json(*self._request("PATCH", path, headers, list(operations), query))

    def post(self, path: str, content: object) -> tuple[int, Mapping[str, str], bytes]:
        """Send JSON to a service through the API server's proxy: status, headers and body of its answer."""
        return self._request("POST", path, {"Content-Type": "application/json"}, content)

    def _json(self, status: int, _: Mapping[str, str], body: bytes) -> dict[str, Any]:
        if 200 <= status < 300:
            content: dict[str, Any] = json.loads(body)
            return content
        raise ApiServerError(_message(status, body), status)

    def _request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: object = None,
        query: Mapping[str, str] | None = None,
        timeout_s: tuple[float, float] = _TIMEOUT_S,
    ) -> tuple[int, Mapping[str, str], bytes]:
        import urllib3
        from kubernetes.client import ApiException

        try:
            request = self._client.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params={"Accept": "application/json", **(headers or {})},
                body=body,
                auth_settings=["BearerToken"],
            )
            response = self._client.call_api(*request, _request_timeout=timeout_s)
            return response.status, response.headers, response.read()
        except urllib3.exceptions.HTTPError as error:
            raise ApiServerError(f"the API server {self.address} does not answer: {_cause(error)}") from error
        except ApiException as error:
            reason = " ".join(str(error.reason).split())
            raise ApiServerError(f"the API server {self.address} cannot be asked: {reason}") from error


def _namespace(context: str | None) -> str:
    from kubernetes import config

    contexts, current = config.list_kube_config_contexts()  # type: ignore[no-untyped-call]
    chosen = next((one for one in contexts if one["name"] == context), current)
    return str(chosen["context"].get("namespace") or "default")


def _message(status: int, body: bytes) -> str:
    """What the API server says, from its Status object if it is one."""
    try:
        content = json.loads(body)
        return f"{content['message']} ({content.get('reason') or status})"
    except (ValueError, KeyError, TypeError):
        return f"the API server answered with {status}: {' '.join(body.decode(errors='replace').split())}"


def _cause(error: BaseException) -> str:
    """The operating system's word for it, where it is the cause."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return " ".join(str(error).split())
