"""A fake MLServer in the test's event loop: it scores with real models, and a test can swap them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from aiohttp import web

from tests.support.endpoints import SERVER_LIVE
from tests.support.sklearn_reference import SklearnReference
from tests.support.web_server import MAX_BODY_BYTES, running_application

#: Datatype of an output by numpy's kind.
_DATATYPES = {"f": "FP64", "i": "INT64", "b": "BOOL", "U": "BYTES"}


class FakeMLServer:
    """Speaks V2 over REST as MLServer does: scikit-learn checks names, order and number of columns.

    Attributes
    ----------
    served
        The version that scores, or a function that chooses one for each call. None while there is none: calls
        then get 404.
    calls, connections
        Number of calls, and of the connections that they came over.
    plain_calls
        Each call with a plain array: the array and the headers.
    refuses
        Returns True for an array that the model cannot score.
    may_answer
        Responses wait until it is set.
    explains
        Errors of the model contain their reason, as with MLServer's worker process. Without, they are a bare
        500, after which the connection is closed.
    """

    def __init__(self, served: SklearnReference | Callable[[], SklearnReference] | None) -> None:
        self.served = served
        self.calls = 0
        self.connections = 0
        self.plain_calls: list[tuple[npt.NDArray[Any], Mapping[str, str]]] = []
        self.refuses: Callable[[npt.NDArray[Any]], bool] = lambda _: False
        self.explains = True
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.address = ""
        self._transports: set[asyncio.BaseTransport] = set()

    def swap(self, served: SklearnReference | None) -> None:
        """Replace the pod: close all connections, and serve another version."""
        self.served = served
        for transport in self._transports:
            transport.close()
        self._transports.clear()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["FakeMLServer"]:
        """Listen on a free port."""
        application = web.Application(client_max_size=MAX_BODY_BYTES)
        application.router.add_get(SERVER_LIVE, self._live)
        application.router.add_post("/v2/models/{name}/infer", self._infer)
        async with running_application(application) as port:
            self.address = f"127.0.0.1:{port}"
            yield self

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
            self.plain_calls.append((v2_rows(body), request.headers))
        await self.may_answer.wait()
        if self.refuses(np.asarray(v2_rows(body))):
            return self._error("Input is too large")
        name = body["outputs"][0]["name"]
        try:
            scores = self._score(name, v2_rows(body))
        except ValueError as error:
            return self._error(str(error))
        # As MLServer: a prediction has shape [n, 1].
        shape = scores.shape if scores.ndim == 2 else (len(scores), 1)
        output = {
            "name": name,
            "datatype": _DATATYPES[scores.dtype.kind],
            "shape": list(shape),
            "data": scores.ravel().tolist(),
        }
        return web.json_response({"model_name": "placement", "outputs": [output]})

    def _error(self, reason: str) -> web.Response:
        if self.explains:
            return web.json_response({"error": f"builtins.ValueError: {reason}"}, status=500)
        response = web.Response(status=500, text="Internal Server Error")
        response.force_close()
        return response

    def _score(self, output: str, rows: Any) -> Any:
        served = self.served() if callable(self.served) else self.served
        assert served is not None
        return served.predict(rows) if output == "predict" else served.predict_proba(rows)


def v2_rows(body: dict[str, Any]) -> Any:
    """Return the frame or the array of a V2 request."""
    if body.get("parameters", {}).get("content_type") == "pd":
        return pd.DataFrame({tensor["name"]: tensor["data"] for tensor in body["inputs"]})
    (tensor,) = body["inputs"]
    return np.reshape(tensor["data"], tensor["shape"])
