"""A proxy that routes REST calls as the mesh of Seldon Core 2 does."""

import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from predictor.process import PredictorProcess
from tests.support.web_server import catch_all, passed_on, running_application


@dataclass
class SeldonMesh:
    """Envoy's routes of one Model, and the proxy beside each server.

    Envoy routes paths below /v2 by the header seldon-model, to any loaded version of that Model. The proxy
    beside the server puts the version's own name into the path, and the answer names it in x-seldon-route.

    Attributes
    ----------
    model
        Name of the Model.
    versions
        Server of each version that has traffic, by the name under which the server loaded the version.
    routed
        Number of calls by version.
    refused
        Number of calls without a route.
    """

    model: str
    port: int = 0
    versions: dict[str, PredictorProcess] = field(default_factory=dict)
    routed: dict[str, int] = field(default_factory=dict)
    refused: int = 0


@contextlib.asynccontextmanager
async def seldon_mesh(model: str) -> AsyncIterator[SeldonMesh]:
    """Run a mesh on a free port."""
    mesh = SeldonMesh(model)
    async with aiohttp.ClientSession() as session:

        async def handle(request: web.Request) -> web.Response:
            if request.headers.get("seldon-model") != mesh.model or not request.path.startswith("/v2"):
                mesh.refused += 1
                return web.Response(status=404)
            name, server = random.choice(list(mesh.versions.items()))
            mesh.routed[name] = mesh.routed.get(name, 0) + 1
            path = request.path.replace(f"/models/{mesh.model}/", f"/models/{name}/")
            response = await passed_on(session, request, f"http://127.0.0.1:{server.http_port}{path}")
            response.headers["x-seldon-route"] = f":{name}:"
            return response

        async with running_application(catch_all(handle)) as mesh.port:
            yield mesh
