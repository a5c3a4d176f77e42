"""Predictors that do as a test says, the transformer in front of them, and what is asked of it."""

import asyncio
import itertools
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import numpy as np
import pandas as pd
from aiohttp import web
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as services

from tests.support import fake_mlserver
from tests.support.endpoints import V1_PREDICT
from tests.support.sklearn_reference import SklearnReference
from transformer.upstream.known_versions import known_versions

#: The class columns are in the alphabet's order: "Not Placed", "Placed".
GOOD = (0.25, 0.75)
REFUSED_NAMES = (
    "The feature names should match those that were passed during fit.\n"
    "Feature names unseen at fit time:\n- hsc_s=Music\n"
    "Feature names seen at fit time, yet now missing:\n- hsc_s=Arts\n"
)
REFUSED_ORDER = (
    "The feature names should match those that were passed during fit.\n"
    "Feature names must be in the same order as they were in fit.\n"
)
REFUSED_WIDTH = "X has 20 features, but RandomForestClassifier is expecting 21 features as input."
LOADING = "Model placement is not ready yet."


def predictions(protocol: str, rows: Any) -> dict[str, Any]:
    """An answer with these probabilities, one list for each candidate, in the predictor's protocol."""
    if protocol == "v1":
        return {"predictions": rows}
    data = [value for row in rows for value in row]
    output = {"name": "predict_proba", "datatype": "FP64", "shape": [len(rows), len(rows[0])], "data": data}
    return {"model_name": "placement", "id": "1", "outputs": [output]}


class FaultyPredictor:
    """The trained model, unless a fault is to come first.

    Verification is the reference rows with their names and nothing else; every other call scores.

    Attributes
    ----------
    faults, always
        What the next calls that score meet, one each; and what all others do.
    unverified
        What a verification meets.
    carried
        What came with each call that scored: its rows, and its headers or metadata.
    """

    def __init__(self, sklearn_reference: SklearnReference) -> None:
        self.faults: deque[Callable[..., Any]] = deque()
        self.always: Callable[..., Any] | None = None
        self.unverified: Callable[..., Any] | None = None
        self.carried: list[tuple[np.ndarray, Mapping[str, str]]] = []
        self.address = ""
        self.reference = sklearn_reference
        self._reference = known_versions(sklearn_reference.bundle)[0].reference
        #: What each of many verifications is answered.
        self._verified: list[list[float]] | None = None

    @property
    def metadata(self) -> list[Mapping[str, str]]:
        """Headers or metadata of the calls that scored."""
        return [headers for _, headers in self.carried]

    def verifies(self, rows: Any) -> bool:
        return isinstance(rows, pd.DataFrame) and np.array_equal(rows.to_numpy(), self._reference)

    def fault(self, rows: Any, headers: Mapping[str, str]) -> Callable[..., Any] | None:
        """What a call meets, if it is not answered well."""
        if self.verifies(rows):
            return self.unverified
        self.carried.append((np.asarray(rows), headers))
        return self.faults.popleft() if self.faults else self.always

    def probabilities(self, rows: Any) -> list[list[float]]:
        if not self.verifies(rows):
            return self._scored(rows)
        if self._verified is None:
            self._verified = self._scored(rows)
        return self._verified

    def _scored(self, rows: Any) -> list[list[float]]:
        with warnings.catch_warnings():
            # What scikit-learn says of every plain array.
            warnings.filterwarnings("ignore", "X does not have valid feature names")
            return self.reference.model.predict_proba(rows).tolist()


class FaultyHttpPredictor(FaultyPredictor):
    """Speaks V1 and V2; a fault is a function of the request.

    Attributes
    ----------
    calls
        What came: a request, and whether it scored.
    """

    def __init__(self, sklearn_reference: SklearnReference) -> None:
        super().__init__(sklearn_reference)
        self.calls: list[tuple[web.Request, bool]] = []
        self.transports: set[asyncio.BaseTransport] = set()

    @property
    def requests(self) -> list[web.Request]:
        """Those that scored."""
        return [request for request, scored in self.calls if scored]

    @property
    def connections(self) -> int:
        """How many are open."""
        return sum(not transport.is_closing() for transport in self.transports)

    async def start(self, port: int = 0) -> None:
        application = web.Application()
        application.router.add_get("/v2/health/live", self._live)
        application.router.add_post("/{path:.*}", self._answer)
        self._runner = web.AppRunner(application, access_log=None, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self.address = f"localhost:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _live(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"live": True})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.transports.add(request.transport)
        body = await request.json()
        hop = "v1" if request.path == V1_PREDICT else "v2"
        rows = instances(body) if hop == "v1" else fake_mlserver.features(body)
        self.calls.append((request, not self.verifies(rows)))
        if fault := self.fault(rows, request.headers):
            return await fault(request)
        return web.json_response(predictions(hop, self.probabilities(rows)))


def instances(body: dict[str, Any]) -> Any:
    """The frame or the array of a V1 request."""
    first = body["instances"][0]
    return pd.DataFrame(first) if isinstance(first, dict) else np.array(body["instances"])


class FaultyGrpcPredictor(services.GRPCInferenceServiceServicer, FaultyPredictor):
    """Speaks gRPC; a fault is a function of the call's context and of a good answer."""

    async def start(self, port: int = 0) -> None:
        self._server = grpc.aio.server()
        services.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.address = f"localhost:{self._server.add_insecure_port(f'127.0.0.1:{port}')}"
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def ServerLive(self, request, context):  # noqa: N802 (the service's own name)
        return pb.ServerLiveResponse(live=True)

    async def ModelInfer(self, request, context):  # noqa: N802
        columns = {tensor.name: list(tensor.contents.fp64_contents) for tensor in request.inputs}
        rows = pd.DataFrame(columns)
        answer = pb.ModelInferResponse(model_name="placement")
        tensor = answer.outputs.add(name="predict_proba", datatype="FP64", shape=[len(rows), 2])
        tensor.contents.fp64_contents.extend(itertools.chain(*self.probabilities(rows)))
        if fault := self.fault(rows, dict(context.invocation_metadata())):
            await fault(context, answer)
        return answer


def status(code: int, body: Any = None, text: str | None = None) -> Callable[..., Any]:
    async def fault(request: web.Request) -> web.Response:
        return web.json_response(body, status=code) if text is None else web.Response(status=code, text=text)

    return fault


async def hangs_up(request: web.Request) -> web.StreamResponse:
    request.transport.close()
    return web.Response()


def aborts(code: str, details: str):
    async def fault(context, answer):
        await context.abort(grpc.StatusCode[code], details)

    return fault
