"""A stock server in the test's own loop: real models, the stock servers' manners, and versions to swap."""

import asyncio
import contextlib
import warnings
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from aiohttp import web

from tests.support.endpoints import V2_INFER
from tests.support.sklearn_reference import SklearnReference


class FakeMLServer:
    """Speaks V2 over REST as MLServer does: named columns are checked by scikit-learn, plain ones by width.

    Attributes
    ----------
    serving
        The version that answers, or what chooses one for each call; None while there is none (connections are
        then refused work with 404).
    calls, connections
        How many calls came, and over how many connections.
    plain
        Plain arrays that came, each with its headers.
    refuses
        Whether the model cannot score an array.
    open
        Answers are held back while it is not set.
    """

    def __init__(self, served: SklearnReference | Callable[[], SklearnReference] | None) -> None:
        self.served = served
        self.calls = 0
        self.connections = 0
        self.plain_calls: list[tuple[np.ndarray, Mapping[str, str]]] = []
        self.refuses: Callable[[np.ndarray], bool] = lambda _: False
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.address = ""
        self._transports: set[asyncio.BaseTransport] = set()

    def swap(self, served: SklearnReference | None) -> None:
        """Another pod takes over: what was connected to the old one is cut off."""
        self.served = served
        for transport in self._transports:
            transport.close()
        self._transports.clear()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["FakeMLServer"]:
        """Listen on a free port."""
        application = web.Application(client_max_size=2**26)
        application.router.add_get("/v2/health/live", self._live)
        application.router.add_post(V2_INFER, self._infer)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.address = "{}:{}".format(*runner.addresses[0][:2])
        try:
            yield self
        finally:
            await runner.cleanup()

    def _count(self, request: web.Request) -> None:
        assert request.transport is not None
        if request.transport not in self._transports:
            self._transports.add(request.transport)
            self.connections += 1

    async def _live(self, request: web.Request) -> web.Response:
        self._count(request)
        return web.json_response({"live": True})

    async def _infer(self, request: web.Request) -> web.Response:
        self._count(request)
        self.calls += 1
        if self.served is None:
            return web.json_response({"error": "Model placement not found"}, status=404)
        body = await request.json()
        if "parameters" not in body:
            self.plain_calls.append((features(body), request.headers))
        await self.may_answer.wait()
        if "parameters" not in body and self.refuses(features(body)):
            return web.json_response({"error": "builtins.ValueError: Input is too large"}, status=500)
        try:
            with warnings.catch_warnings():
                # What scikit-learn says of every plain array.
                warnings.filterwarnings("ignore", "X does not have valid feature names")
                reference = self.served if isinstance(self.served, SklearnReference) else self.served()
                scores = reference.model.predict_proba(features(body))
        except ValueError as error:
            return web.json_response({"error": f"builtins.ValueError: {error}"}, status=500)
        output = {
            "name": "predict_proba",
            "datatype": "FP64",
            "shape": list(scores.shape),
            "data": scores.ravel().tolist(),
        }
        return web.json_response({"model_name": "placement", "outputs": [output]})


def features(body: dict[str, Any]) -> Any:
    """The frame or the array of a V2 request."""
    if body.get("parameters", {}).get("content_type") == "pd":
        return pd.DataFrame({tensor["name"]: tensor["data"] for tensor in body["inputs"]})
    (tensor,) = body["inputs"]
    return np.reshape(tensor["data"], tensor["shape"])
