"""Predictors with the trained model that give faulty responses when a test asks for them."""

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pandas as pd
from aiohttp import web
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as services

from predictor.process import free_ports
from tests.support.endpoints import V1_PREDICT
from tests.support.fake_mlserver import v2_rows
from tests.support.sklearn_reference import SklearnReference
from transformer.upstream.known_versions import known_versions

#: Valid probabilities of the classes, which are in alphabetical order: "Not Placed", "Placed".
GOOD = (0.25, 0.75)
#: Called with a request (REST), or with the call's context and a good response (gRPC).
Fault = Callable[..., Awaitable[Any]]

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
REFUSALS = [REFUSED_NAMES, REFUSED_ORDER, REFUSED_WIDTH]
LOADING = "Model placement is not ready yet."


def predictions(protocol: str, rows: Any) -> dict[str, Any]:
    """Return a response with one list of probabilities for each candidate, in the predictor's protocol."""
    if protocol == "v1":
        return {"predictions": rows}
    data = [value for row in rows for value in row]
    output = {"name": "predict_proba", "datatype": "FP64", "shape": [len(rows), len(rows[0])], "data": data}
    return {"model_name": "placement", "id": "1", "outputs": [output]}


class FaultyPredictor:
    """The trained model, which answers well unless a fault is set.

    A call with named columns and the reference rows verifies a connection; every other call scores.

    Attributes
    ----------
    faults, always
        Faults of the next scoring calls, one each; and the fault of all scoring calls after them.
    unverified
        The fault of verifications.
    carried
        Rows and headers (or metadata) of each scoring call.
    """

    def __init__(self, reference: SklearnReference) -> None:
        self.faults: deque[Fault | None] = deque()
        self.always: Fault | None = None
        self.unverified: Fault | None = None
        self.carried: list[tuple[npt.NDArray[Any], Mapping[str, str]]] = []
        # Not a port that the kernel chooses: while the predictor is stopped, it could choose it again.
        (self.port,) = free_ports(1)
        self.address = f"localhost:{self.port}"
        self.reference = reference
        self._reference_rows = known_versions(reference.bundle)[0].reference

    async def start(self) -> None:
        """Listen, on the same port each time."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Close all connections and refuse new ones."""
        raise NotImplementedError

    @property
    def metadata(self) -> list[Mapping[str, str]]:
        """Headers or metadata of the scoring calls."""
        return [headers for _, headers in self.carried]

    def verifies(self, rows: Any) -> bool:
        """Return True if the rows of a call verify a connection."""
        return isinstance(rows, pd.DataFrame) and np.array_equal(rows.to_numpy(), self._reference_rows)

    def fault(self, rows: Any, headers: Mapping[str, str]) -> Fault | None:
        """Record a call, and return its fault if it has one."""
        if self.verifies(rows):
            return self.unverified
        self.carried.append((np.asarray(rows), headers))
        return self.faults.popleft() if self.faults else self.always

    def probabilities(self, rows: Any) -> list[list[float]]:
        """Return the model's probabilities of each class for each row."""
        scores: list[list[float]] = self.reference.predict_proba(rows).tolist()
        return scores


class FaultyHttpPredictor(FaultyPredictor):
    """A faulty predictor that speaks V1 and V2 over REST.

    Attributes
    ----------
    calls
        Each request, and True if it was a scoring call.
    """

    def __init__(self, reference: SklearnReference) -> None:
        super().__init__(reference)
        self.calls: list[tuple[web.Request, bool]] = []
        self.transports: set[asyncio.BaseTransport] = set()

    @property
    def requests(self) -> list[web.Request]:
        """Requests of the scoring calls."""
        return [request for request, scored in self.calls if scored]

    @property
    def connections(self) -> int:
        """Number of open connections."""
        return sum(not transport.is_closing() for transport in self.transports)

    async def start(self) -> None:
        application = web.Application()
        application.router.add_get("/v2/health/live", self._live)
        application.router.add_post("/{path:.*}", self._answer)
        self._runner = web.AppRunner(application, access_log=None, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _live(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"live": True})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        self.transports.add(request.transport)
        body = await request.json()
        hop = "v1" if request.path == V1_PREDICT else "v2"
        rows = v1_rows(body) if hop == "v1" else v2_rows(body)
        self.calls.append((request, not self.verifies(rows)))
        if fault := self.fault(rows, request.headers):
            response: web.StreamResponse = await fault(request)
            return response
        return web.json_response(predictions(hop, self.probabilities(rows)))


def v1_rows(body: dict[str, Any]) -> Any:
    """Return the frame or the array of a V1 request."""
    first = body["instances"][0]
    return pd.DataFrame(first) if isinstance(first, dict) else np.array(body["instances"])


class FaultyGrpcPredictor(services.GRPCInferenceServiceServicer, FaultyPredictor):  # type: ignore[misc]
    """A faulty predictor that speaks gRPC."""

    async def start(self) -> None:
        self._server = grpc.aio.server()
        services.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802 (gRPC's name)
        return pb.ServerLiveResponse(live=True)

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        columns = {tensor.name: list(tensor.contents.fp64_contents) for tensor in request.inputs}
        rows = pd.DataFrame(columns)
        answer = pb.ModelInferResponse(model_name="placement")
        tensor = answer.outputs.add(name="predict_proba", datatype="FP64", shape=[len(rows), 2])
        tensor.contents.fp64_contents.extend(itertools.chain(*self.probabilities(rows)))
        if fault := self.fault(rows, dict(context.invocation_metadata())):
            await fault(context, answer)
        return answer


def has_status(code: int, body: Any = None, text: str | None = None) -> Fault:
    """Return a fault that responds with a status, and with JSON or a text."""

    async def fault(request: web.Request) -> web.Response:
        return web.json_response(body, status=code) if text is None else web.Response(status=code, text=text)

    return fault


async def hangs_up(request: web.Request) -> web.StreamResponse:
    """Close the connection without a response."""
    assert request.transport is not None
    request.transport.close()
    return web.Response()


def aborts(code: str, details: str) -> Fault:
    """Return a fault that ends a gRPC call with a status code."""

    async def fault(context: Any, answer: Any) -> None:
        await context.abort(grpc.StatusCode[code], details)

    return fault


async def breaks_off(request: web.Request) -> web.StreamResponse:
    """Close the connection in the middle of the response."""
    response = web.StreamResponse(headers={"content-length": "1000"})
    await response.prepare(request)
    await response.write(b'{"predictions": [[0.25, 0')
    assert request.transport is not None
    request.transport.close()
    return response


async def never_answers(request: web.Request) -> web.StreamResponse:
    """Keep the connection open without a response."""
    await asyncio.Event().wait()
    raise AssertionError


async def never_ends(request: web.Request) -> web.StreamResponse:
    """Keep the connection open in the middle of the response."""
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b'{"predictions": [')
    await asyncio.Event().wait()
    return response


async def redirects(request: web.Request) -> web.StreamResponse:
    """Redirect to another path."""
    return web.Response(status=307, headers={"location": str(request.url.with_path("/elsewhere"))})
