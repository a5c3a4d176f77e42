"""The REST routes, in place of KServe's.

KServe's routes know no model versions, parse V2 requests twice, and answer 422 or 500 where the request is at
fault.
"""

import asyncio
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

import orjson
from prometheus_client import exposition
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from transformer.errors import NotImplementedHere, PredictorUnavailable
from transformer.headers import VERSION_HEADER, forwardable
from transformer.metrics import registry
from transformer.monitoring.monitor import V1_EXPLAIN, V1_PREDICT, V2_INFER, Kind
from transformer.protocols import v2
from transformer.protocols.v1 import V1Request
from transformer.server.dataplane import NO_LOADING, TransformerDataPlane
from transformer.server.handler import Handler

_Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


class PostOnly:
    """Passes POST to an endpoint, and answers other methods with 405, also where another path would match."""

    def __init__(self, endpoint: _Endpoint) -> None:
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["method"] != "POST":
            raise HTTPException(HTTPStatus.METHOD_NOT_ALLOWED, headers={"allow": "POST"})
        response = await self._endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


class RestRoutes:
    """Endpoints of V1 and V2.

    Parameters
    ----------
    dataplane
        Finds the handlers.
    """

    def __init__(self, dataplane: TransformerDataPlane) -> None:
        self._dataplane = dataplane

    def add_to(self, app: Starlette) -> None:
        """Add the routes to an application. They answer HEAD where they answer GET."""
        v1, v2_model = "/v1/models/{model_name}", "/v2/models/{model_name}"
        version = v2_model + "/versions/{version}"
        post: dict[str, _Endpoint] = {
            f"{v1}:predict": self.predict,
            f"{v1}:explain": self.explain,
            f"{v2_model}/infer": self.infer,
            f"{version}/infer": self.infer,
            "/v2/repository/models/{model_name}/load": self.change_models,
            "/v2/repository/models/{model_name}/unload": self.change_models,
        }
        get: dict[str, _Endpoint] = {
            "/": self.live_v1,
            "/metrics": self.metrics,
            "/v1/models": self.models,
            "/v2/models": self.models,
            "/v2": self.server_metadata,
            # The path in the Open Inference Protocol's description.
            "/v2/": self.server_metadata,
            "/v2/health/live": self.live,
            "/v2/health/ready": self.ready,
            v1: self.model_ready,
            f"{v2_model}/ready": self.model_ready,
            f"{version}/ready": self.model_ready,
            v2_model: self.model_metadata,
            version: self.model_metadata,
        }
        app.router.routes += [
            Route(path, PostOnly(endpoint), name=endpoint.__name__) for path, endpoint in post.items()
        ]
        app.router.routes += [Route(path, endpoint, methods=["GET"]) for path, endpoint in get.items()]

    async def live_v1(self, _: Request) -> Response:
        """V1: the process is alive."""
        return JSONResponse({"status": "alive"})

    async def metrics(self, request: Request) -> Response:
        """Metrics of all processes of the server, in Prometheus' format."""
        self._dataplane.handler.flush_metrics()
        encode, content_type = exposition.choose_encoder(request.headers.get("accept", ""))
        # Not in the event loop: it takes milliseconds.
        content = await asyncio.to_thread(lambda: encode(registry()))
        return Response(content, headers={"content-type": content_type})

    async def models(self, _: Request) -> Response:
        """V1 and V2: names of the models."""
        return JSONResponse({"models": list(self._dataplane.model_registry.get_models())})

    async def change_models(self, _: Request) -> Response:
        """V2: load or unload a model, which is refused."""
        raise NotImplementedHere(NO_LOADING)

    async def server_metadata(self, _: Request) -> Response:
        """V2: name, version and extensions of the server."""
        return JSONResponse(self._dataplane.metadata())

    async def live(self, _: Request) -> Response:
        """V2: the process is alive."""
        return JSONResponse({"live": True})

    async def ready(self, _: Request) -> Response:
        """V2: a prediction would succeed."""
        if not await self._dataplane.ready():
            raise PredictorUnavailable("the server is not ready")
        return JSONResponse({"ready": True})

    async def model_ready(self, request: Request) -> Response:
        """V1 and V2: a prediction of the model, or of one version, would succeed."""
        name = request.path_params["model_name"]
        if not self._dataplane.handler_of(name).ready(request.path_params.get("version")):
            raise PredictorUnavailable(f"model {name} is not ready")
        return JSONResponse({"name": name, "ready": True})

    async def model_metadata(self, request: Request) -> Response:
        """V2: inputs, outputs and versions of the model."""
        handler = self._dataplane.handler_of(request.path_params["model_name"])
        metadata = handler.metadata(request.path_params.get("version"))
        return JSONResponse(metadata, headers=handler.metadata_headers)

    async def predict(self, request: Request) -> Response:
        """V1: predictions, also for CloudEvents."""
        handler = self._dataplane.handler_of(request.path_params["model_name"])
        return await self._answer_v1(V1_PREDICT, request, handler, handler.decode_v1)

    async def explain(self, request: Request) -> Response:
        """V1: predictions with their explanations, also for CloudEvents."""
        handler = self._dataplane.handler_of(request.path_params["model_name"])
        return await self._answer_v1(V1_EXPLAIN, request, handler, handler.decode_v1_explain)

    async def _answer_v1(
        self, kind: Kind, request: Request, handler: Handler, decode_payload: Callable[[object], V1Request]
    ) -> Response:
        body = await request.body()
        headers = dict(request.headers)
        attributes: dict[str, Any] = {}

        def decode() -> V1Request:
            payload, found = self._dataplane.decode(body, headers)
            attributes.update(found)
            return decode_payload(payload)

        answer, version = await handler.predict(
            kind,
            decode,
            lambda decoded, prediction: decoded.answer(prediction),
            forwardable(request.headers.raw),
            len(body),
        )
        content, answer_headers = self._dataplane.encode(handler.name, answer, headers, attributes)
        answer_headers.pop("content-length", None)
        answer_headers[VERSION_HEADER] = version
        if not isinstance(content, str | bytes):
            content = orjson.dumps(content)
            answer_headers["content-type"] = "application/json"
        return Response(content, headers=answer_headers)

    async def infer(self, request: Request) -> Response:
        """V2: predictions, by one version if the path names it."""
        handler = self._dataplane.handler_of(request.path_params["model_name"])
        body = await request.body()
        json_length = request.headers.get(v2.JSON_LENGTH_HEADER)
        (content, content_headers), version = await handler.predict(
            V2_INFER,
            lambda: handler.decode_v2(body, json_length, request.path_params.get("version")),
            v2.V2Request.encode,
            forwardable(request.headers.raw),
            len(body),
        )
        return Response(content, headers={**content_headers, VERSION_HEADER: version})
