"""A proxy that routes REST calls as the mesh of Seldon Core 2 does."""

import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from predictor.process import PredictorProcess


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
            async with session.request(
                request.method,
                f"http://127.0.0.1:{server.http_port}{path}",
                data=await request.read(),
                headers={"content-type": request.content_type},
            ) as response:
                return web.Response(
                    status=response.status,
                    body=await response.read(),
                    headers={"content-type": response.content_type, "x-seldon-route": f":{name}:"},
                )

        application = web.Application(client_max_size=2**26)
        application.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        mesh.port = runner.addresses[0][1]
        try:
            yield mesh
        finally:
            await runner.cleanup()
