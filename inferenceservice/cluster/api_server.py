"""Client of the Kubernetes API server: JSON in, JSON out, errors in one line."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from inferenceservice.rollout_target import TargetError

#: Name under which `kubectl get --show-managed-fields` lists our changes.
FIELD_MANAGER = "placement"
#: Seconds before a retry of a read.
PAUSE_S = 1.0
_ATTEMPTS = 3
#: Seconds to connect, and to wait for the answer.
_TIMEOUT_S = (5, 60)
#: The same for a request to one pod; there may be many pods.
_PROXY_TIMEOUT_S = (5, 5)
_IN_CLUSTER_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class ApiServerError(TargetError):
    """A request that the API server refused or did not answer.

    Attributes
    ----------
    status
        HTTP status, or None if there was no answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    @property
    def forbidden(self) -> bool:
        """True if the client lacks a right."""
        return self.status == 403

    @property
    def transient(self) -> bool:
        """True if a retry of the same request may succeed."""
        return self.status is None or self.status == 429 or self.status >= 500


class ApiServer:
    """Connection to the API server. Blocks: call it in a thread.

    Parameters
    ----------
    client
        `kubernetes.client.ApiClient` with address and credentials.
    namespace
        Namespace of the kubeconfig's context.
    """

    def __init__(self, client: Any, namespace: str = "default") -> None:  # noqa: ANN401 (has no types)
        self._client = client
        self.namespace = namespace

    @classmethod
    def connect(cls, context: str | None = None) -> Self:
        """Connect as kubectl does: by the kubeconfig, or without one by the pod's service account.

        Raises
        ------
        ApiServerError
            If there is neither, or the context does not exist.
        """
        from kubernetes import client, config

        configuration = client.Configuration()
        # The client's own retries log warnings and repeat patches.
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
                f"cannot find a cluster: {' '.join(str(error).split())}; set KUBECONFIG or --context"
            ) from error

    @property
    def address(self) -> str:
        """URL of the API server."""
        return str(self._client.configuration.host)

    def get(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Read an object, or with a selector in the query a list. Retries transient errors."""
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._json(*self._request("GET", path, query=query))
            except ApiServerError as error:
                if not error.transient:
                    raise
            time.sleep(PAUSE_S)
        return self._json(*self._request("GET", path, query=query))

    def get_text(self, path: str) -> str:
        """Read text from a pod or Service through the API server's proxy, with a short timeout."""
        headers = {"Accept": "text/plain"}
        status, _, body = self._request("GET", path, headers, timeout_s=_PROXY_TIMEOUT_S)
        if status != 200:
            raise ApiServerError(_message(status, body), status)
        return body.decode(errors="replace")

    def patch(self, path: str, operations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Change an object by a JSON patch, and return the result."""
        headers = {"Content-Type": "application/json-patch+json"}
        query = {"fieldManager": FIELD_MANAGER}
        return self._json(*self._request("PATCH", path, headers, list(operations), query))

    def post(self, path: str, content: object) -> tuple[int, Mapping[str, str], bytes]:
        """Send JSON to a Service through the API server's proxy, and return status, headers and body."""
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
            raise ApiServerError(f"the request to the API server {self.address} failed: {reason}") from error


def _namespace(context: str | None) -> str:
    from kubernetes import config

    contexts, current = config.list_kube_config_contexts()  # type: ignore[no-untyped-call]
    chosen = next((one for one in contexts if one["name"] == context), current)
    return str(chosen["context"].get("namespace") or "default")


def _message(status: int, body: bytes) -> str:
    """Return the API server's error: the message of its Status object, or the body."""
    try:
        content = json.loads(body)
        return f"{content['message']} ({content.get('reason') or status})"
    except (ValueError, KeyError, TypeError):
        return (
            f"the API server answered with status {status}: {' '.join(body.decode(errors='replace').split())}"
        )


def _cause(error: BaseException) -> str:
    """Return the operating system's error message if one is the cause, else the error's text."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return " ".join(str(error).split())
