"""A fake Kubernetes API over HTTP with one InferenceService."""

import asyncio
import copy
import random
from collections.abc import Callable
from typing import Any

from aiohttp import web

from tests.support.cluster.kserve_controllers import Controllers, Json

#: Returns status, headers and content for candidates, by the transformer's and the predictor's bundle.
Service = Callable[[str, str, list[Json]], tuple[int, dict[str, str], Json]]

TOKEN = "of-the-test"
_PODS = "/api/v1/namespaces/scoring/pods/"
_EVENTS = "/api/v1/namespaces/scoring/events"
_ISVC = "/apis/serving.kserve.io/v1beta1/namespaces/scoring/inferenceservices/"


class Cluster(Controllers):
    """Serves the Kubernetes API on loopback.

    Attributes
    ----------
    patches
        Operations of each accepted patch, without the one on resourceVersion.
    meanwhile
        Called before each patch is applied, to make changes at the same time.
    errors
        Responses (status, reason, message) by the beginning of a path.
    down
        Number of next requests to answer with 503.
    lost_answers
        Number of next patches to apply without a response.
    hold
        An event that the next patch waits for before it is applied.
    unreached
        (component, bundle) that get no requests, whatever the status says.
    listed, metrics, events
        Pods, the metrics of each by ``name:port``, and its events by name.
    """

    def __init__(self, manifest: Json, service: Service) -> None:
        super().__init__(manifest)
        self.service = service
        self.patches: list[list[Json]] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self.errors: dict[str, tuple[int, str, str]] = {}
        self.down = 0
        self.lost_answers = 0
        self.hold: asyncio.Event | None = None
        self.held = asyncio.Event()
        self.unreached: set[tuple[str, str]] = set()
        self.listed: list[Json] = []
        self.metrics: dict[str, str] = {}
        self.events: dict[str, list[Json]] = {}
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def start(self) -> None:
        """Listen, and start the service."""
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        self.reconcile()
        await self.settled()
        self.shares.clear()
        self.watched = True

    async def close(self) -> None:
        self.stop()
        assert self._runner is not None
        await self._runner.cleanup()

    def kubeconfig(self) -> Json:
        """Return a kubeconfig with this cluster as the current context."""
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url}}],
            "users": [{"name": "operator", "user": {"token": TOKEN}}],
            "contexts": [
                {"name": "test", "context": {"cluster": "test", "user": "operator", "namespace": "scoring"}}
            ],
        }

    def edit(self, change: Callable[[Json], None]) -> None:
        """Change the spec as `kubectl edit` does."""
        before = copy.deepcopy(self.isvc["spec"])
        change(self.isvc)
        self._stored(before)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if path == f"/v1/models/{self.name}:predict":
            # The address of the service, not of the API server.
            return await self._predict(request)
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return _status(401, "Unauthorized", "Unauthorized")
        if self.down:
            self.down -= 1
            return _status(503, "ServiceUnavailable", "the API server is shutting down")
        for start, error in self.errors.items():
            if path.startswith(start):
                return _status(*error)
        if path.startswith(_PODS) and "/proxy/" in path:
            return self._pod(path.removeprefix(_PODS).partition("/")[0])
        if "/proxy/" in path:
            return await self._proxy(request)
        if request.method == "PATCH":
            if self.hold is not None:
                self.held.set()
                await self.hold.wait()
            return self._patch(await request.json(), request)
        found = self._get(path, request.query.get("labelSelector") or request.query.get("fieldSelector", ""))
        return web.json_response(found) if found is not None else _not_found(path)

    def _get(self, path: str, selector: str) -> Json | None:
        *_, kind, name = path.split("/")
        if path == _ISVC + self.name:
            return self.isvc
        if path == _EVENTS:
            return {"items": self.events.get(selector.removeprefix("involvedObject.name="), [])}
        if path + "/" == _PODS:
            wanted = dict(one.split("=") for one in selector.split(","))
            items = [one for one in self.listed if wanted.items() <= one["metadata"]["labels"].items()]
            return {"items": items}
        key, _, value = selector.partition("=")
        if name in ("replicasets", "revisions"):
            listed = self.replica_sets if name == "replicasets" else list(self.revisions.values())
            return {"items": [one for one in listed if one["metadata"]["labels"].get(key) == value]}
        self.looked_at(name)
        return {"deployments": self.deployments, "revisions": self.revisions}.get(kind, {}).get(name)

    def _patch(self, operations: list[Json], request: web.Request) -> web.StreamResponse:
        if request.content_type != "application/json-patch+json" or "fieldManager" not in request.query:
            return _status(415, "UnsupportedMediaType", request.content_type)
        self.meanwhile()
        changed = copy.deepcopy(self.isvc)
        try:
            for operation in operations:
                apply_operation(changed, operation)
        except (KeyError, IndexError) as error:
            return _status(422, "Invalid", f"the server rejected our request: {error}")
        if changed["metadata"]["resourceVersion"] != self.isvc["metadata"]["resourceVersion"]:
            return _status(409, "Conflict", "the object has been modified; please apply your changes")
        self.patches.append([one for one in operations if not one["path"].startswith("/metadata")])
        before, self.isvc = self.isvc["spec"], changed
        self._stored(before)
        if self.lost_answers and request.transport is not None:
            self.lost_answers -= 1
            request.transport.close()
        return web.json_response(self.isvc)

    def _stored(self, before: Json) -> None:
        self.touch()
        if before != self.isvc["spec"]:
            self.isvc["metadata"]["generation"] += 1
        self.reconcile()

    async def _proxy(self, request: web.Request) -> web.StreamResponse:
        service = request.path.split("/services/")[1].split("/")[0]
        entrance = "predictor" if self.collocated else "transformer"
        if self.knative:
            revision = self.isvc["status"]["components"][entrance]["latestReadyRevision"]
            expected = f"http:{revision}-private:80"
        else:
            expected = f"http:{self.name}-{entrance}:80"
        if service != expected or not request.path.endswith(f"/proxy/v1/models/{self.name}:predict"):
            return _status(503, "ServiceUnavailable", f"no endpoints available for service {service!r}")
        return await self._predict(request)

    def _pod(self, address: str) -> web.StreamResponse:
        if address not in self.metrics:
            return _status(503, "ServiceUnavailable", f"error trying to reach service {address}")
        return web.Response(text=self.metrics[address])

    async def _predict(self, request: web.Request) -> web.StreamResponse:
        predictor = self._serving("predictor")
        transformer = predictor if self.collocated else self._serving("transformer")
        content = await request.json()
        status, headers, answer = self.service(transformer, predictor, content["instances"])
        return web.json_response(answer, status=status, headers=headers)

    def _serving(self, component: str) -> str:
        """Return the bundle of the pod that gets a request."""
        if not self.knative:
            return random.choice(self.pods[component])
        parts = [
            part
            for part in self.traffic[component]
            if (component, self.revision_uri(part["revisionName"])) not in self.unreached
        ]
        chosen = random.choices(parts, [part["percent"] for part in parts])[0]
        return self.revision_uri(chosen["revisionName"])


def apply_operation(content: Any, operation: Json) -> None:
    """Apply one operation of a JSON patch."""
    *path, last = [
        int(part) if part.isdecimal() else part.replace("~1", "/").replace("~0", "~")
        for part in operation["path"].split("/")[1:]
    ]
    for part in path:
        content = content[part]
    if operation["op"] != "add":
        content[last]
    if operation["op"] == "remove":
        del content[last]
    else:
        content[last] = operation["value"]


def _status(code: int, reason: str, message: str) -> web.Response:
    content = {"kind": "Status", "status": "Failure", "reason": reason, "message": message, "code": code}
    return web.json_response(content, status=code)


def _not_found(path: str) -> web.Response:
    *_, kind, name = path.split("/")
    group = path.split("/")[2]
    return _status(404, "NotFound", f'{kind}.{group} "{name}" not found')
