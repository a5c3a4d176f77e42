"""Whatever the predictor does, the caller gets the status that says so, and nobody's values are logged."""

import asyncio
import contextlib
import itertools
import json
import logging
import warnings
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pandas as pd
import pytest
from aiohttp import web
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as services

from inferenceservice import spec
from inferenceservice.local.components import TransformerProcess
from tests import stock
from tests.serving import Serving, serving
from tests.truth import Truth
from training.candidates import SAMPLE
from transformer import pool, retry_budget, slot
from transformer.candidates import Rows
from transformer.errors import PredictorUnavailable
from transformer.metrics import CONNECTIONS
from transformer.predictor_client import PredictorAddress, connect
from transformer.scoring import Scorer
from transformer.versions import known_versions

V1 = "/v1/models/placement:predict"
V2 = "/v2/models/placement/infer"
READY = ("/v2/health/ready", "/v2/models/placement/ready", "/v1/models/placement")
#: A port that nobody can listen to: a connection to it is refused at once.
NOBODY = "127.0.0.1:1"
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
#: Of each transformer here: one for each of the three protocols that `outcomes` asks over at once.
SLOTS = 3


def predictions(protocol: str, rows: Any) -> dict[str, Any]:
    """An answer with these probabilities, one list for each candidate, in the predictor's protocol."""
    if protocol == "v1":
        return {"predictions": rows}
    data = [value for row in rows for value in row]
    output = {"name": "predict_proba", "datatype": "FP64", "shape": [len(rows), len(rows[0])], "data": data}
    return {"model_name": "placement", "id": "1", "outputs": [output]}


class Predictor:
    """The trained model, unless a fault is to come first. A verification is always answered well.

    Verification is the reference rows with their names and nothing else; every other call scores.

    Attributes
    ----------
    faults, always
        What the next calls that score meet, one each; and what all others do.
    """

    def __init__(self, truth: Truth) -> None:
        self.faults: deque[Callable[..., Any]] = deque()
        self.always: Callable[..., Any] | None = None
        self.address = ""
        self.truth = truth
        self._reference = known_versions(truth.bundle)[0].reference
        #: What each of many verifications is answered.
        self._verified: list[list[float]] | None = None

    def verifies(self, rows: Any) -> bool:
        return isinstance(rows, pd.DataFrame) and np.array_equal(rows.to_numpy(), self._reference)

    def fault(self) -> Callable[..., Any] | None:
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
            return self.truth.model.predict_proba(rows).tolist()


class HttpPredictor(Predictor):
    """Speaks V1 and V2; a fault is a function of the request.

    Attributes
    ----------
    calls
        What came: a request, and whether it scored.
    """

    def __init__(self, truth: Truth) -> None:
        super().__init__(truth)
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
        hop = "v1" if request.path == V1 else "v2"
        rows = instances(body) if hop == "v1" else stock.features(body)
        self.calls.append((request, not self.verifies(rows)))
        if not self.verifies(rows) and (fault := self.fault()):
            return await fault(request)
        return web.json_response(predictions(hop, self.probabilities(rows)))


def instances(body: dict[str, Any]) -> Any:
    """The frame or the array of a V1 request."""
    first = body["instances"][0]
    return pd.DataFrame(first) if isinstance(first, dict) else np.array(body["instances"])


class GrpcPredictor(services.GRPCInferenceServiceServicer, Predictor):
    """Speaks gRPC; a fault is a function of the call's context and of a good answer.

    Attributes
    ----------
    metadata
        What came with the calls that scored.
    """

    def __init__(self, truth: Truth) -> None:
        super().__init__(truth)
        self.metadata: list[dict[str, str]] = []

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
        if not self.verifies(rows):
            self.metadata.append(dict(context.invocation_metadata()))
            if fault := self.fault():
                await fault(context, answer)
        return answer


@pytest.fixture(scope="module")
def truth(trained_bundle: Path) -> Truth:
    return Truth(trained_bundle)


@pytest.fixture
async def predictor(truth) -> AsyncIterator[HttpPredictor]:
    predictor = HttpPredictor(truth)
    await predictor.start()
    yield predictor
    await predictor.stop()


@pytest.fixture
async def grpc_predictor(truth) -> AsyncIterator[GrpcPredictor]:
    predictor = GrpcPredictor(truth)
    await predictor.start()
    yield predictor
    await predictor.stop()


@dataclass
class Front(Serving):
    """A transformer in front of a scripted predictor, every connection verified.

    Attributes
    ----------
    hop
        Protocol between the two.
    answer
        How a request for two of `SAMPLE` ends that ends well.
    tasks
        How many there were while nothing happened.
    """

    hop: str
    answer: tuple[str, Any, bool]
    tasks: int


@contextlib.asynccontextmanager
async def in_front_of(
    predictor: Predictor, bundle: Path, hop: str, *arguments: str, slots: int = SLOTS
) -> AsyncIterator[Front]:
    """A transformer whose requests may take a second; `hop` is a protocol, or one `` by request``."""
    protocol, _, by = hop.partition(" by ")
    options = [
        f"--predictor_protocol={protocol}",
        "--predictor_request_timeout_seconds=1",
        f"--predictor_connections={slots}",
        *([f"--verify={by}"] if by else []),
        *arguments,
    ]
    (probability,) = predictor.truth.probabilities([SAMPLE])
    async with serving(bundle, predictor.address, *options) as running:
        await eventually(lambda: usable() == slots)
        answer = ("200", pytest.approx([probability] * 2, abs=1e-12), False)
        yield Front(**vars(running), hop=protocol, answer=answer, tasks=len(asyncio.all_tasks()))


@pytest.fixture(params=["v1", "v2"])
async def transformer(request, trained_bundle, predictor) -> AsyncIterator[Front]:
    """A transformer in front of the HTTP predictor, over each protocol that there is between them."""
    async with in_front_of(predictor, trained_bundle, request.param) as running:
        yield running


@pytest.fixture
async def grpc_transformer(trained_bundle, grpc_predictor) -> AsyncIterator[Front]:
    async with in_front_of(grpc_predictor, trained_bundle, "grpc-v2") as running:
        yield running


async def eventually(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def usable() -> float:
    """Connections that can carry requests, of all transformers in this process."""
    samples = (sample for metric in CONNECTIONS.collect() for sample in metric.samples)
    return sum(sample.value for sample in samples if sample.labels["state"] == "usable")


async def recovers(front: Front, predictor: Predictor) -> None:
    """Without help: requests are answered, each connection is there again, of the failed ones nothing."""
    predictor.always = None
    await check(front, FINE)
    await eventually(lambda: usable() == SLOTS)
    await eventually(lambda: len(asyncio.all_tasks()) <= front.tasks)
    if isinstance(predictor, HttpPredictor):
        await eventually(lambda: predictor.connections == SLOTS)


# What callers see


def message(candidate: dict[str, Any], copies: int = 1) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="placement")
    tensor = request.inputs.add(name="candidates", datatype="BYTES", shape=[copies])
    tensor.contents.bytes_contents.extend([json.dumps(candidate).encode()] * copies)
    return request


def v2_body(candidate: dict[str, Any], copies: int = 1) -> dict[str, Any]:
    data = [json.dumps(candidate)] * copies
    return {"inputs": [{"name": "candidates", "datatype": "BYTES", "shape": [copies], "data": data}]}


#: How a request ended: its status, the probabilities or the error, and whether it says when to try again.
Outcome = tuple[str, Any, bool]


async def v1_status(service: Serving, candidate: dict[str, Any]) -> Outcome:
    response = await service.http.post(V1, json={"instances": [candidate] * 2})
    return of_rest(response, lambda content: [p["placement_probability"] for p in content["predictions"]])


async def v2_status(service: Serving, candidate: dict[str, Any]) -> Outcome:
    response = await service.http.post(V2, json=v2_body(candidate, 2))
    return of_rest(response, lambda content: content["outputs"][1]["data"])


def of_rest(response: httpx.Response, probabilities: Callable[[Any], list[float]]) -> Outcome:
    content = response.json()
    told = probabilities(content) if response.status_code == 200 else content["error"]
    return str(response.status_code), told, response.headers.get("retry-after") == "1"


async def grpc_status(service: Serving, candidate: dict[str, Any]) -> Outcome:
    call = service.grpc.ModelInfer(message(candidate, 2))
    code, details = await call.code(), await call.details()
    if code is grpc.StatusCode.OK:
        details = list((await call).outputs[1].contents.fp64_contents)
    return code.name, details, ("retry-after", "1") in tuple(await call.trailing_metadata() or ())


async def outcomes(
    service: Serving, candidate: dict[str, Any] = SAMPLE, *, together: bool = True
) -> list[Outcome]:
    """How the same request ends over V1, V2 and gRPC, asked at once or one by one."""
    asking = [ask(service, candidate) for ask in (v1_status, v2_status, grpc_status)]
    if together:
        return await asyncio.gather(*asking)
    return [await one for one in asking]


#: Cause: status over REST and over gRPC, and whether a client is told when to try again.
UNAVAILABLE = [("503", True), ("503", True), ("UNAVAILABLE", True)]
NONSENSE = [("502", False), ("502", False), ("INTERNAL", False)]
TOO_SLOW = [("504", False), ("504", False), ("DEADLINE_EXCEEDED", False)]
FINE = [("200", False), ("200", False), ("OK", False)]
#: The same, and how often the predictor is asked; without a number, again and again until the deadline.
DROPPED = (UNAVAILABLE, 2)
REFUSED = (UNAVAILABLE, None)
WRONG = (NONSENSE, 1)
SLOW = (TOO_SLOW, 1)


async def check(service: Serving, expected: list[tuple[str, bool]], *, together: bool = True) -> None:
    ended = await outcomes(service, together=together)
    assert [(status, again) for status, _, again in ended] == expected
    told = ended[0][1]
    assert all(other == told for _, other, _ in ended), "each protocol tells the same"
    if expected is FINE:
        assert told == service.answer[1]
    else:
        assert "predictor" in told


def check_asked(calls: int, often: int | None) -> None:
    """Whether that many calls came for three requests, which may go together, and then one by one."""
    assert often <= calls <= 3 * often + 1 if often else calls > 3


# A predictor that speaks HTTP


def status(code: int, body: Any = None, text: str | None = None) -> Callable[..., Any]:
    async def fault(request: web.Request) -> web.Response:
        return web.json_response(body, status=code) if text is None else web.Response(status=code, text=text)

    return fault


async def hangs_up(request: web.Request) -> web.StreamResponse:
    request.transport.close()
    return web.Response()


async def breaks_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-length": "1000"})
    await response.prepare(request)
    await response.write(b'{"predictions": [[0.25, 0')
    request.transport.close()
    return response


async def never_answers(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def never_ends(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b'{"predictions": [')
    await asyncio.Event().wait()
    return response


async def redirects(request: web.Request) -> web.StreamResponse:
    return web.Response(status=307, headers={"location": str(request.url.with_path("/elsewhere"))})


HTTP_FAULTS = [
    pytest.param(hangs_up, DROPPED, id="hangs up"),
    pytest.param(breaks_off, DROPPED, id="breaks off"),
    pytest.param(never_answers, SLOW, id="never answers"),
    pytest.param(never_ends, SLOW, id="never ends"),
    pytest.param(status(504, text="upstream request timeout"), SLOW, id="504"),
    pytest.param(status(404, {"error": "Model placement not found"}), DROPPED, id="404"),
    pytest.param(status(429, text="slow down"), DROPPED, id="429"),
    pytest.param(status(502, text="bad gateway"), DROPPED, id="502"),
    pytest.param(status(503, text="no healthy upstream"), DROPPED, id="503"),
    pytest.param(status(400, {"error": LOADING}), DROPPED, id="400 while loading"),
    pytest.param(status(500, text="Internal Server Error"), DROPPED, id="500 while stopping"),
    pytest.param(status(500, {"error": REFUSED_NAMES}), REFUSED, id="other feature names"),
    pytest.param(status(500, {"error": REFUSED_ORDER}), REFUSED, id="another order"),
    pytest.param(status(500, {"error": REFUSED_WIDTH}), REFUSED, id="another width"),
    pytest.param(status(500, {"error": "KeyError: 'x'"}), WRONG, id="500"),
    pytest.param(status(400, {"error": "no"}), WRONG, id="400"),
    pytest.param(status(403, text="RBAC: access denied"), WRONG, id="403"),
    pytest.param(redirects, WRONG, id="redirect"),
    pytest.param(status(204, text=""), WRONG, id="204"),
    pytest.param(status(200, text=""), WRONG, id="empty"),
    pytest.param(status(200, text="<html>"), WRONG, id="not JSON"),
    pytest.param(status(200, []), WRONG, id="a list"),
    pytest.param(status(200, {"predictions": None, "outputs": None}), WRONG, id="null"),
    pytest.param(status(200, {"error": "oh"}), WRONG, id="an error as success"),
]


@pytest.mark.parametrize(("fault", "expected"), HTTP_FAULTS)
async def test_a_fault_of_the_predictor_has_its_status_and_passes(fault, expected, transformer, predictor):
    statuses, often = expected
    predictor.always = fault
    await check(transformer, statuses)
    check_asked(len(predictor.requests), often)
    await recovers(transformer, predictor)


@pytest.mark.parametrize("transformer", ["v2 by request"], indirect=True)
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        pytest.param(hangs_up, DROPPED, id="hangs up"),
        pytest.param(status(400, {"error": LOADING}), DROPPED, id="400 while loading"),
        pytest.param(status(500, {"error": REFUSED_NAMES}), REFUSED, id="other feature names"),
        pytest.param(never_answers, SLOW, id="never answers"),
        pytest.param(status(500, {"error": "KeyError: 'x'"}), WRONG, id="500"),
    ],
)
async def test_a_fault_has_the_same_status_where_each_request_is_verified(
    fault, expected, transformer, predictor
):
    statuses, often = expected
    predictor.always = fault
    await check(transformer, statuses)
    check_asked(len(predictor.requests), often)
    await recovers(transformer, predictor)


NAN = float("nan")
ROWS = [
    pytest.param([GOOD], id="too few candidates"),
    pytest.param([GOOD] * 3, id="too many candidates"),
    pytest.param([(0.25,)] * 2, id="too few classes"),
    pytest.param([(0.2, 0.3, 0.5)] * 2, id="too many classes"),
    pytest.param([GOOD, (NAN, NAN)], id="NaN"),
    pytest.param([GOOD, (None, None)], id="null"),
    pytest.param([GOOD, (-0.25, 1.25)], id="below 0 and above 1"),
    pytest.param([GOOD, (0.25, 0.25)], id="not 1 in all"),
    pytest.param([GOOD, (1e308, 1e308)], id="infinite in all"),
    pytest.param([GOOD, ("Not Placed", "Placed")], id="text"),
    pytest.param([(0,), (1,)], id="labels"),
    pytest.param([("Placed",), ("Not Placed",)], id="names of labels"),
]


@pytest.mark.parametrize("rows", ROWS)
async def test_only_probabilities_of_each_class_for_each_candidate_are_taken(rows, transformer, predictor):
    predictor.always = status(200, predictions(transformer.hop, rows))
    # As many rows as one request has.
    await check(transformer, NONSENSE, together=False)
    check_asked(len(predictor.requests), 1)
    await recovers(transformer, predictor)


@pytest.mark.parametrize("transformer", ["v1"], indirect=True)
@pytest.mark.parametrize("labels", [[0, 1], ["Placed", "Not Placed"], [True, False]])
async def test_a_v1_predictor_without_predict_proba_is_told_from_one_with(labels, transformer, predictor):
    predictor.always = status(200, {"predictions": labels})
    # As many rows as one request has.
    await check(transformer, NONSENSE, together=False)
    check_asked(len(predictor.requests), 1)


TENSOR = {"name": "predict_proba", "datatype": "FP64", "shape": [2, 2], "data": [*GOOD, *GOOD]}
OUTPUTS = [
    pytest.param([{**TENSOR, "name": "predict", "datatype": "INT64"}], id="another output"),
    pytest.param([{**TENSOR, "shape": [2, 3]}], id="a shape that the data does not fill"),
    pytest.param([{**TENSOR, "shape": [4]}], id="flat"),
    pytest.param([{**TENSOR, "shape": "2, 2"}], id="a shape that is none"),
    pytest.param([{**TENSOR, "shape": [2**63, 2]}], id="a shape beyond all numbers"),
    pytest.param([{"name": "predict_proba"}], id="no data"),
    pytest.param([], id="no outputs"),
    pytest.param([None], id="null"),
]


@pytest.mark.parametrize("transformer", ["v2"], indirect=True)
@pytest.mark.parametrize("outputs", OUTPUTS)
async def test_a_v2_answer_without_the_asked_output_is_nonsense(outputs, transformer, predictor):
    predictor.always = status(200, {"model_name": "placement", "outputs": outputs})
    # As many rows as one request has.
    await check(transformer, NONSENSE, together=False)
    check_asked(len(predictor.requests), 1)


HOPS = ["v1", "v2", "v2 by request", "grpc-v2"]


async def readiness(service: Serving) -> set[int]:
    return {(await service.http.get(path)).status_code for path in READY}


@pytest.mark.parametrize("hop", ["v1", "v2", "grpc-v2"])
async def test_a_predictor_that_is_not_there_is_503_and_try_again(hop, trained_bundle, monkeypatch):
    monkeypatch.setattr(pool, "GRACE_S", 0.2)
    async with (
        serving(trained_bundle, NOBODY, f"--predictor_protocol={hop}", ready=False) as transformer,
        asyncio.timeout(5),
    ):  # the deadline is 10 s
        await check(transformer, UNAVAILABLE)
        assert await readiness(transformer) == {503}
        assert (await transformer.http.get("/v2/health/live")).status_code == 200


@pytest.mark.parametrize("hop", HOPS)
async def test_a_predictor_that_goes_and_comes_back_is_missed_and_found_without_help(
    hop, trained_bundle, predictor, grpc_predictor, monkeypatch
):
    monkeypatch.setattr(slot, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(pool, "GRACE_S", 0.2)
    behind = grpc_predictor if hop == "grpc-v2" else predictor
    async with in_front_of(behind, trained_bundle, hop) as transformer:
        await behind.stop()
        await check(transformer, UNAVAILABLE)
        await eventually(lambda: not usable())
        assert await readiness(transformer) == {503}
        await behind.start(int(behind.address.rpartition(":")[2]))
        async with asyncio.timeout(5):
            while await readiness(transformer) != {200}:
                await asyncio.sleep(0.01)
        await recovers(transformer, behind)


ONCE = [hangs_up, breaks_off, status(503, text="moving"), status(500, text="Internal Server Error")]


@pytest.mark.parametrize("fault", ONCE, ids=["hangs up", "breaks off", "503", "500 while stopping"])
async def test_a_call_that_was_dropped_is_sent_once_more_over_a_connection_verified_since(
    fault, transformer, predictor
):
    predictor.faults.append(fault)
    assert await v1_status(transformer, SAMPLE) == transformer.answer
    first, second = predictor.requests
    scored = [request for request, _ in predictor.calls]
    since = predictor.calls[scored.index(first) + 1 : scored.index(second)]
    assert second.transport in [request.transport for request, scored in since if not scored]


async def test_a_call_that_was_dropped_twice_is_not_sent_again(transformer, predictor):
    predictor.faults += [hangs_up] * 2
    assert (await v1_status(transformer, SAMPLE))[0] == "503"
    assert len(predictor.requests) == 2
    assert await v1_status(transformer, SAMPLE) == transformer.answer


async def test_a_predictor_that_drops_everything_does_not_get_every_call_twice(
    trained_bundle, predictor, monkeypatch
):
    monkeypatch.setattr(retry_budget, "MOST", 3.0)
    async with in_front_of(predictor, trained_bundle, "v2") as transformer:
        predictor.faults += [hangs_up] * 100
        for _ in range(10):
            assert (await v1_status(transformer, SAMPLE))[0] == "503"
        assert len(predictor.requests) == 10 + 3
        predictor.faults.clear()
        assert await v1_status(transformer, SAMPLE) == transformer.answer


async def test_a_second_try_does_not_get_a_second_deadline(transformer, predictor):
    predictor.faults += [hangs_up, never_answers]
    start = asyncio.get_running_loop().time()
    assert (await v1_status(transformer, SAMPLE))[0] == "504"
    assert asyncio.get_running_loop().time() - start < 1.9
    assert len(predictor.requests) == 2


async def test_a_call_that_is_given_up_is_cancelled(transformer, predictor):
    """Or a predictor that is too slow would go on working for nobody."""
    cancelled = asyncio.Event()

    async def fault(request: web.Request) -> web.StreamResponse:
        try:
            return await never_answers(request)
        finally:
            cancelled.set()

    predictor.always = fault
    assert (await v1_status(transformer, SAMPLE))[0] == "504"
    await asyncio.wait_for(cancelled.wait(), 10)
    await recovers(transformer, predictor)


REFUSALS = [REFUSED_NAMES, REFUSED_ORDER, REFUSED_WIDTH]


@pytest.mark.parametrize("refusal", REFUSALS, ids=["other feature names", "another order", "another width"])
@pytest.mark.parametrize("transformer", ["v1", "v2", "v2 by request"], indirect=True)
async def test_a_call_that_was_refused_is_sent_again_until_a_model_takes_it(refusal, transformer, predictor):
    predictor.faults += [status(500, {"error": refusal})] * 3
    assert await v1_status(transformer, SAMPLE) == transformer.answer
    assert len(predictor.requests) == 4


async def test_a_call_that_was_refused_once_and_then_takes_too_long_is_too_slow(transformer, predictor):
    predictor.faults += [status(500, {"error": REFUSED_WIDTH}), never_answers]
    assert (await v1_status(transformer, SAMPLE))[0] == "504"
    assert len(predictor.requests) == 2


@pytest.mark.parametrize(
    "fault", [status(500, {"error": "KeyError"}), status(200, {})], ids=["500", "nonsense"]
)
async def test_an_answer_that_would_be_the_same_again_is_not_asked_for_again(fault, transformer, predictor):
    predictor.faults.append(fault)
    assert (await v1_status(transformer, SAMPLE))[0] == "502"
    assert len(predictor.requests) == 1
    assert await v1_status(transformer, SAMPLE) == transformer.answer


async def test_a_caller_whose_requests_bring_nonsense_does_not_keep_others_waiting(transformer, predictor):
    """Connections are not suspected more with every such answer, or nobody would get one in the end."""
    predictor.faults += [status(500, {"error": "KeyError"})] * 30
    ended = [(await v1_status(transformer, SAMPLE))[0] for _ in range(30)]
    assert ended == ["502"] * 30
    assert await v1_status(transformer, SAMPLE) == transformer.answer


async def test_no_candidate_goes_over_a_connection_that_was_not_verified(trained_bundle, predictor):
    """An idle connection that the predictor closes would be opened again; anything may be behind it."""
    async with in_front_of(predictor, trained_bundle, "v2", slots=1) as transformer:
        for asked in range(1, 5):
            (used,) = [one for one in predictor.transports if not one.is_closing()]
            used.close()
            # The connection is closed on the other side, too, before the request comes.
            await asyncio.sleep(0.05)
            assert await v1_status(transformer, SAMPLE) == transformer.answer
            assert len(predictor.requests) == asked
            carried = predictor.requests[-1].transport
            assert any(one.transport is carried for one, scored in predictor.calls if not scored)


async def test_a_connection_that_cannot_even_be_tried_is_tried_again(trained_bundle, predictor, monkeypatch):
    """Certificates that are not mounted yet, for one."""
    missing = iter([FileNotFoundError("ca.crt")] * 2 * SLOTS)

    def connect_later(address: PredictorAddress, **how: bool):
        if error := next(missing, None):
            raise error
        return connect(address, **how)

    monkeypatch.setattr(slot, "connect", connect_later)
    async with in_front_of(predictor, trained_bundle, "v2") as transformer:
        await recovers(transformer, predictor)


@pytest.fixture
async def scorer(truth, predictor) -> AsyncIterator[Scorer]:
    address = PredictorAddress(predictor.address, "v2", "placement", "predict_proba")
    scorer = Scorer(truth.bundle, address, timeout_s=60)
    yield scorer
    await scorer.close()


def score(scorer: Scorer) -> asyncio.Task[Any]:
    return asyncio.create_task(scorer.predict(Rows([SAMPLE], "instances"), {}))


async def test_a_request_whose_caller_has_gone_is_forgotten_when_its_call_is_dropped(scorer, predictor):
    gone = asyncio.Event()

    async def hangs_up_then(request: web.Request) -> web.StreamResponse:
        await gone.wait()
        return await hangs_up(request)

    predictor.faults += [hangs_up_then]
    asking = [score(scorer) for _ in range(3)]
    # They wait for a connection, and then go together.
    await eventually(lambda: predictor.requests)
    for one in asking:
        one.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    gone.set()
    await score(scorer)
    await eventually(lambda: usable() == pool.PoolSettings.connections)
    assert len(scorer._pool.dispatcher) == 0
    assert len(predictor.requests) == 2


async def test_who_still_waits_when_the_transformer_closes_is_told_so_at_once(scorer, predictor):
    predictor.always = never_answers
    asking = [score(scorer)]
    await eventually(lambda: predictor.requests)
    asking += [score(scorer) for _ in range(9)]
    await asyncio.sleep(0)
    await scorer.close()
    for one in asking:
        with pytest.raises(PredictorUnavailable):
            await asyncio.wait_for(one, 5)


# A predictor that speaks gRPC


def aborts(code: str, details: str):
    async def fault(context, answer):
        await context.abort(grpc.StatusCode[code], details)

    return fault


async def is_stuck(context, answer):
    await asyncio.Event().wait()


def answers(**changed: Any):
    async def fault(context, answer):
        output = answer.outputs[0]
        for name, value in changed.items():
            if name == "values":
                output.contents.fp64_contents[:] = value * output.shape[0]
            elif name == "rows":
                output.shape[0] = value
                del output.contents.fp64_contents[2 * value :]
            elif name == "shape":
                output.shape[:] = value
            else:
                setattr(output, name, value)

    return fault


async def answers_labels(context, answer):
    output = answer.outputs[0]
    output.contents.Clear()
    output.datatype = "INT64"
    output.contents.int64_contents.extend([1] * output.shape[0])
    del output.shape[1]


async def answers_raw_bytes_that_are_too_few(context, answer):
    answer.outputs[0].contents.Clear()
    answer.raw_output_contents.append(bytes(8))


async def answers_without_outputs(context, answer):
    del answer.outputs[:]


GRPC_FAULTS = [
    pytest.param(aborts("UNAVAILABLE", "moving"), DROPPED, id="UNAVAILABLE"),
    pytest.param(aborts("NOT_FOUND", "Model placement not found"), DROPPED, id="NOT_FOUND"),
    pytest.param(aborts("RESOURCE_EXHAUSTED", "slow down"), DROPPED, id="RESOURCE_EXHAUSTED"),
    pytest.param(aborts("INVALID_ARGUMENT", LOADING), DROPPED, id="loading"),
    pytest.param(aborts("INTERNAL", "1"), DROPPED, id="stopping"),
    pytest.param(aborts("INTERNAL", f"ValueError: {REFUSED_NAMES}"), REFUSED, id="other feature names"),
    pytest.param(aborts("INVALID_ARGUMENT", REFUSED_ORDER), REFUSED, id="another order"),
    pytest.param(aborts("INVALID_ARGUMENT", REFUSED_WIDTH), REFUSED, id="another width"),
    pytest.param(aborts("INTERNAL", "KeyError: 'x'"), WRONG, id="INTERNAL"),
    pytest.param(aborts("INVALID_ARGUMENT", "no"), WRONG, id="INVALID_ARGUMENT"),
    pytest.param(aborts("UNKNOWN", "oh"), WRONG, id="UNKNOWN"),
    pytest.param(aborts("PERMISSION_DENIED", "RBAC"), WRONG, id="PERMISSION_DENIED"),
    pytest.param(aborts("DEADLINE_EXCEEDED", "upstream"), SLOW, id="DEADLINE_EXCEEDED"),
    pytest.param(is_stuck, SLOW, id="never answers"),
    pytest.param(answers(name="predict"), WRONG, id="another output"),
    pytest.param(answers(datatype="FP32"), WRONG, id="another datatype"),
    pytest.param(answers(rows=1), WRONG, id="too few candidates"),
    pytest.param(answers(shape=[20]), WRONG, id="flat"),
    pytest.param(answers(values=[NAN, NAN]), WRONG, id="NaN"),
    pytest.param(answers(values=[-0.5, 1.5]), WRONG, id="below 0 and above 1"),
    pytest.param(answers_labels, WRONG, id="labels"),
    pytest.param(answers_raw_bytes_that_are_too_few, WRONG, id="too few bytes"),
    pytest.param(answers_without_outputs, WRONG, id="no outputs"),
]


@pytest.mark.parametrize(("fault", "expected"), GRPC_FAULTS)
async def test_a_fault_of_a_grpc_predictor_has_the_same_status_and_passes(
    fault, expected, grpc_transformer, grpc_predictor
):
    statuses, often = expected
    grpc_predictor.always = fault
    await check(grpc_transformer, statuses)
    check_asked(len(grpc_predictor.metadata), often)
    await recovers(grpc_transformer, grpc_predictor)


async def test_a_grpc_call_that_was_dropped_is_sent_once_more(grpc_transformer, grpc_predictor):
    grpc_predictor.faults.append(aborts("UNAVAILABLE", "moving"))
    assert await v1_status(grpc_transformer, SAMPLE) == grpc_transformer.answer
    assert len(grpc_predictor.metadata) == 2


@pytest.mark.parametrize("refusal", REFUSALS, ids=["other feature names", "another order", "another width"])
async def test_a_grpc_call_that_was_refused_is_sent_again_until_a_model_takes_it(
    refusal, grpc_transformer, grpc_predictor
):
    grpc_predictor.faults += [aborts("INTERNAL", f"ValueError: {refusal}")] * 3
    assert await v1_status(grpc_transformer, SAMPLE) == grpc_transformer.answer
    assert len(grpc_predictor.metadata) == 4


async def test_a_grpc_call_that_is_given_up_is_cancelled(grpc_transformer, grpc_predictor):
    """Or a predictor that is too slow would go on working for nobody."""
    cancelled = asyncio.Event()

    async def fault(context, answer):
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    grpc_predictor.always = fault
    assert (await v1_status(grpc_transformer, SAMPLE))[0] == "504"
    await asyncio.wait_for(cancelled.wait(), 10)
    await recovers(grpc_transformer, grpc_predictor)


# What reaches the predictor


PASSED_ON = {
    "authorization": "Bearer secret",
    "x-request-id": "7",
    "x-b3-traceid": "80f198ee56343ba864fe8b2a57d3eff7",
    "x-b3-spanid": "e457b5a2e4d86bd1",
    "x-b3-sampled": "1",
    "traceparent": "00-80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-01",
    "tracestate": "vendor=1",
}
KEPT_BACK = {
    "cookie": "session=1",
    "x-forwarded-for": "10.0.0.1",
    "x-api-key": "secret",
    "accept-language": "de",
    "ce-id": "7",
    "x-b2-traceid": "1",
    "authorization-2": "secret",
}


async def ask_over_rest(service: Serving, headers: dict[str, str]) -> None:
    response = await service.http.post(V1, json={"instances": [SAMPLE]}, headers=headers)
    assert response.status_code == 200, response.text


async def ask_over_grpc(service: Serving, headers: dict[str, str]) -> None:
    await service.grpc.ModelInfer(message(SAMPLE), metadata=tuple(headers.items()))


@pytest.mark.parametrize("ask", [ask_over_rest, ask_over_grpc])
async def test_a_callers_headers_reach_an_http_predictor_and_no_others(ask, transformer, predictor):
    await ask(transformer, {})
    await ask(transformer, {**PASSED_ON, **KEPT_BACK})
    own, caller = [{name.lower(): v for name, v in r.headers.items()} for r in predictor.requests]
    assert {name: value for name, value in caller.items() if own.get(name) != value} == PASSED_ON
    assert set(own) <= {"host", "accept", "accept-encoding", "user-agent", "content-length", "content-type"}


@pytest.mark.parametrize("ask", [ask_over_rest, ask_over_grpc])
async def test_a_callers_headers_reach_a_grpc_predictor_as_metadata(ask, grpc_transformer, grpc_predictor):
    await ask(grpc_transformer, {})
    await ask(grpc_transformer, {**PASSED_ON, **KEPT_BACK})
    own, caller = grpc_predictor.metadata
    assert {name: value for name, value in caller.items() if own.get(name) != value} == PASSED_ON


async def test_headers_are_forwarded_whatever_their_case(transformer, predictor):
    await ask_over_rest(transformer, {"X-Request-ID": "7", "X-B3-TraceId": "8"})
    headers = {name.lower(): value for name, value in predictor.requests[0].headers.items()}
    assert (headers["x-request-id"], headers["x-b3-traceid"]) == ("7", "8")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(b"x-request-id", "é".encode(), id="UTF-8"),
        pytest.param(b"x-request-id", b"\xe9", id="Latin-1"),
        pytest.param(b"x-request-id", b"tab\there", id="tab"),
        pytest.param(b"x-request-id", b"", id="empty"),
        pytest.param(b"x-b3-flags-bin", b"1", id="a name for bytes"),
        pytest.param(b"x-b3-wh*t", b"1", id="a name that gRPC has not"),
    ],
)
@pytest.mark.parametrize("hop", ["v2", "grpc-v2"])
async def test_a_header_that_cannot_be_forwarded_does_not_fail_the_request(
    name, value, hop, trained_bundle, predictor, grpc_predictor
):
    address = grpc_predictor.address if hop == "grpc-v2" else predictor.address
    async with serving(trained_bundle, address, f"--predictor_protocol={hop}") as transformer:
        response = await transformer.http.post(
            V1, json={"instances": [SAMPLE]}, headers=[(name, value), (b"traceparent", b"1")]
        )
    assert response.status_code == 200, response.text
    seen = grpc_predictor.metadata[0] if hop == "grpc-v2" else predictor.requests[0].headers
    assert seen["traceparent"] == "1"


async def test_metadata_of_bytes_does_not_fail_the_request(transformer, predictor):
    await transformer.grpc.ModelInfer(message(SAMPLE), metadata=(("x-b3-flags-bin", b"\xff"),))
    assert not any(name.lower().startswith("x-b3-") for name in predictor.requests[0].headers)


@pytest.mark.parametrize("hop", ["v1", "v2"])
async def test_what_a_predictor_sets_for_one_caller_is_not_sent_for_another(hop, trained_bundle, predictor):
    async def sets_a_cookie(request: web.Request) -> web.Response:
        response = web.json_response(predictions(hop, [GOOD]))
        response.set_cookie("session", "secret")
        return response

    predictor.always = sets_a_cookie
    # One connection, so that it is the same client that the predictor sets it for.
    async with in_front_of(predictor, trained_bundle, hop, slots=1) as transformer:
        for _ in range(2):
            await ask_over_rest(transformer, {})
    assert [request.headers.get("cookie") for request in predictor.requests] == [None, None]


@pytest.mark.parametrize("hop", ["v1", "grpc-v2"])
async def test_no_proxy_of_the_environment_comes_between(
    hop, trained_bundle, predictor, grpc_predictor, monkeypatch
):
    behind, drop = (grpc_predictor, aborts("UNAVAILABLE", "")) if hop == "grpc-v2" else (predictor, hangs_up)
    async with in_front_of(behind, trained_bundle, hop) as transformer:
        # Only now, since the test's own channel would use it, too.
        for variable in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
            monkeypatch.setenv(variable, f"http://{NOBODY}")
            monkeypatch.setenv(variable.upper(), f"http://{NOBODY}")
        # Is answered over a new connection.
        behind.faults.append(drop)
        assert await v1_status(transformer, SAMPLE) == transformer.answer


# What is written down


#: Values that stand nowhere else, each a field of one candidate.
SECRETS = {"ssc_p": 67.8901, "hsc_p": 84.3219, "degree_p": 71.7171, "mba_p": 63.6363}
SECRET_TEXT = "Zaphodshire"
CANDIDATES = {
    "fine": {**SAMPLE, **SECRETS},
    "unknown category": {**SAMPLE, **SECRETS, "ssc_b": SECRET_TEXT},
    "out of range": {**SAMPLE, **SECRETS, "etest_p": 8765.4321},
    "wrong type": {**SAMPLE, **SECRETS, "etest_p": SECRET_TEXT},
    "a list": {**SAMPLE, **SECRETS, "etest_p": [SECRET_TEXT]},
    "missing field": SECRETS,
}
#: Parts of them, since a number may be written with fewer digits and text cut short.
#: None can be a time of day or a duration.
TRACES = ["67.89", "84.32", "71.71", "63.63", "8765.4", "Zaphod"]


PATHS = [V1, V2, "/v1/models/placement:explain", "/v1/models/other:predict", f"{V2[:-6]}/versions/1/infer"]
TEXTS = [
    json.dumps({"instances": [SECRETS]})[:-3],
    json.dumps({"instances": [SECRETS]}),
    json.dumps([SECRETS]),
    json.dumps(SECRETS),
    f'{{"specversion": "1.0", "id": "1", "source": "s", "type": "t", "data": "{SECRET_TEXT}"}}',
    f'{{"specversion": "1.0", "id": "1", "source": "s", "type": "{SECRET_TEXT}"}}',
    f'"{SECRET_TEXT} \\ud800"',
    f"{SECRET_TEXT} \xff".encode("latin-1"),
    "67.8901",
    "6789" * 100,
    "null",
    "[" * 10_000 + "67.8901",
    "",
]
EVENT = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s", "ce-type": "t"}
HEADERS = [
    {"content-type": kind, **more}
    for kind in ("application/json", "application/cloudevents+json", "application/octet-stream", "")
    for more in ({}, EVENT, {**EVENT, "ce-contenttype": "application/json"}, {**EVENT, "ce-specversion": "9"})
]


async def ask_in_every_way(http, stub) -> list[str]:
    """Statuses of good candidates and of bad ones, over every protocol."""
    ended = []
    for candidate in CANDIDATES.values():
        response = await http.post(V1, json={"instances": [candidate]})
        ended.append(str(response.status_code))
        response = await http.post(V2, json=v2_body(candidate))
        ended.append(str(response.status_code))
        ended.append((await stub.ModelInfer(message(candidate)).code()).name)
    bad = pb.ModelInferRequest(model_name="placement")
    bad.inputs.add(name=SECRET_TEXT, datatype="BYTES", shape=[3]).contents.bytes_contents.append(b"Zaphod")
    ended.append((await stub.ModelInfer(bad).code()).name)
    return ended


async def ask_oddly(http) -> set[int]:
    """Statuses of requests that are none."""
    odd = itertools.product(PATHS, TEXTS, HEADERS)
    return {(await http.post(path, content=text, headers=more)).status_code for path, text, more in odd}


LOGGED = {
    "fine": None,
    "unavailable": status(503, text=f"no: {SECRETS}"),
    "nonsense": status(200, {"predictions": [[67.8901, 84.3219]], "outputs": [SECRETS]}),
    "refused": status(500, {"error": f"ValueError: could not convert {SECRETS}"}),
    "other feature names": status(500, {"error": REFUSED_NAMES + SECRET_TEXT}),
    "hangs up": hangs_up,
}


@pytest.mark.parametrize("fault", LOGGED.values(), ids=LOGGED)
async def test_no_value_of_a_candidate_is_logged(fault, transformer, predictor, caplog, capfd):
    predictor.always = fault
    kserve = [logging.getLogger(name) for name in ("kserve", "kserve.trace")]
    with caplog.at_level(logging.INFO), contextlib.ExitStack() as stack:
        for logger in kserve:  # they do not propagate
            logger.addHandler(caplog.handler)
            stack.callback(logger.removeHandler, caplog.handler)
        ended = await ask_in_every_way(transformer.http, transformer.grpc)
        if not fault:
            assert await ask_oddly(transformer.http) == {400, 404, 501}
    assert {"400", "INVALID_ARGUMENT"} <= set(ended)
    logged = caplog.text + "".join(capfd.readouterr())
    if fault:
        assert "predictor" in logged, "failures are logged, without the values"
    assert [trace for trace in TRACES if trace in logged] == []


async def test_no_value_of_a_candidate_is_in_the_output_of_the_process(
    trained_bundle: Path, predictor: HttpPredictor, tmp_path: Path
):
    log = tmp_path / "transformer.log"

    described = spec.read("inferenceservice/placement.yaml")
    hurried = (*described.transformer_args, "--predictor_request_timeout_seconds=1")
    described = replace(described, transformer_args=hurried)
    port = int(predictor.address.rpartition(":")[2])
    process = await asyncio.to_thread(TransformerProcess, described, trained_bundle, (port, port), log)
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{process.grpc_port}")
    try:
        await asyncio.wait_for(channel.channel_ready(), 30)
        stub = services.GRPCInferenceServiceStub(channel)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{process.http_port}") as http:
            while True:
                with contextlib.suppress(httpx.ConnectError):
                    if (await http.get("/v2/health/ready")).status_code == 200:
                        break
                await asyncio.sleep(0.05)
            for predictor.always in LOGGED.values():
                ended = await ask_in_every_way(http, stub)
                assert {"400", "INVALID_ARGUMENT"} <= set(ended)
            assert await ask_oddly(http) == {400, 404, 501}
    finally:
        await channel.close()
        await asyncio.to_thread(process.stop)
    output = log.read_text()
    assert "the predictor is not ready" in output, "failures are logged, without the values"
    assert [trace for trace in TRACES if trace in output] == []
