"""Whatever the predictor does, the caller gets the status that says so, and nobody's values are logged."""

import asyncio
import contextlib
import itertools
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as services

from inferenceservice import spec
from inferenceservice.components import TransformerProcess
from tests.serving import Serving, serving
from training.candidates import SAMPLE

V1 = "/v1/models/placement:predict"
V2 = "/v2/models/placement/infer"
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

Fault = Callable[[web.Request], Awaitable[web.StreamResponse]]


def predictions(protocol: str, rows: Any) -> dict[str, Any]:
    """An answer with these probabilities, one list for each candidate, in the predictor's protocol."""
    if protocol == "v1":
        return {"predictions": rows}
    data = [value for row in rows for value in row]
    output = {"name": "predict_proba", "datatype": "FP64", "shape": [len(rows), len(rows[0])], "data": data}
    return {"model_name": "placement", "id": "1", "outputs": [output]}


class HttpPredictor:
    """Answers well, unless a fault is to come first; keeps what it was asked."""

    def __init__(self) -> None:
        self.faults: deque[Fault] = deque()
        self.always: Fault | None = None
        self.requests: list[web.Request] = []
        self.address = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(request)
        if self.faults:
            return await self.faults.popleft()(request)
        if self.always:
            return await self.always(request)
        if request.path == V1:
            rows = len(next(iter(body["instances"][0].values())))
            return web.json_response(predictions("v1", [GOOD] * rows))
        return web.json_response(predictions("v2", [GOOD] * body["inputs"][0]["shape"][0]))


@pytest.fixture
async def predictor() -> AsyncIterator[HttpPredictor]:
    predictor = HttpPredictor()
    application = web.Application()
    application.router.add_post("/{path:.*}", predictor.answer)
    async with TestServer(application) as server:
        predictor.address = f"localhost:{server.port}"
        yield predictor


class GrpcPredictor(services.GRPCInferenceServiceServicer):
    """The same over gRPC: a fault here is a function of the call's context and of a good answer."""

    def __init__(self) -> None:
        self.fault: Callable[[grpc.aio.ServicerContext, pb.ModelInferResponse], Awaitable[None]] | None = None
        self.metadata: list[dict[str, str]] = []
        self.address = ""

    async def ModelInfer(self, request, context):  # noqa: N802 (the service's own name)
        self.metadata.append(dict(context.invocation_metadata()))
        rows = request.inputs[0].shape[0]
        answer = pb.ModelInferResponse(model_name="placement")
        tensor = answer.outputs.add(name="predict_proba", datatype="FP64", shape=[rows, 2])
        tensor.contents.fp64_contents.extend(GOOD * rows)
        if self.fault:
            await self.fault(context, answer)
        return answer


@pytest.fixture
async def grpc_predictor() -> AsyncIterator[GrpcPredictor]:
    predictor = GrpcPredictor()
    server = grpc.aio.server()
    services.add_GRPCInferenceServiceServicer_to_server(predictor, server)
    predictor.address = f"localhost:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield predictor
    finally:
        await server.stop(None)


@pytest.fixture(params=["v1", "v2"])
async def transformer(request, trained_bundle, predictor) -> AsyncIterator[Serving]:
    """A transformer in front of the HTTP predictor, over each protocol that there is between them."""
    arguments = (f"--predictor_protocol={request.param}", "--predictor_request_timeout_seconds=1")
    async with serving(trained_bundle, predictor.address, *arguments) as running:
        running.hop = request.param
        yield running


@pytest.fixture
async def grpc_transformer(trained_bundle, grpc_predictor) -> AsyncIterator[Serving]:
    arguments = ("--predictor_protocol=grpc-v2", "--predictor_request_timeout_seconds=1")
    async with serving(trained_bundle, grpc_predictor.address, *arguments) as running:
        yield running


# What callers see


def message(candidate: dict[str, Any], copies: int = 1) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="placement")
    tensor = request.inputs.add(name="candidates", datatype="BYTES", shape=[copies])
    tensor.contents.bytes_contents.extend([json.dumps(candidate).encode()] * copies)
    return request


def v2_body(candidate: dict[str, Any], copies: int = 1) -> dict[str, Any]:
    data = [json.dumps(candidate)] * copies
    return {"inputs": [{"name": "candidates", "datatype": "BYTES", "shape": [copies], "data": data}]}


async def v1_status(service: Serving, candidate: dict[str, Any]) -> tuple[str, str, bool]:
    return of_rest(await service.http.post(V1, json={"instances": [candidate] * 2}))


async def v2_status(service: Serving, candidate: dict[str, Any]) -> tuple[str, str, bool]:
    return of_rest(await service.http.post(V2, json=v2_body(candidate, 2)))


def of_rest(response) -> tuple[str, str, bool]:
    """Status, error, and whether it says when to try again."""
    content = response.json()
    return str(response.status_code), content.get("error", ""), response.headers.get("retry-after") == "1"


async def grpc_status(service: Serving, candidate: dict[str, Any]) -> tuple[str, str, bool]:
    call = service.grpc.ModelInfer(message(candidate, 2))
    code, details = await call.code(), await call.details()
    return code.name, details, ("retry-after", "1") in tuple(await call.trailing_metadata() or ())


async def outcomes(service: Serving, candidate: dict[str, Any] = SAMPLE) -> list[tuple[str, str, bool]]:
    """How the same request ends over V1, V2 and gRPC, asked at once."""
    return await asyncio.gather(*(ask(service, candidate) for ask in (v1_status, v2_status, grpc_status)))


#: Cause: status over REST and over gRPC, and whether a client is told when to try again.
UNAVAILABLE = [("503", True), ("503", True), ("UNAVAILABLE", True)]
NONSENSE = [("502", False), ("502", False), ("INTERNAL", False)]
TOO_SLOW = [("504", False), ("504", False), ("DEADLINE_EXCEEDED", False)]
FINE = [("200", False), ("200", False), ("OK", False)]


async def check(service: Serving, expected: list[tuple[str, bool]]) -> None:
    ended = await outcomes(service)
    assert [(status, again) for status, _, again in ended] == expected
    errors = {error for _, error, _ in ended}
    assert len(errors) == 1, "each protocol tells the same"
    if expected is not FINE:
        assert "predictor" in errors.pop()


# A predictor that speaks HTTP


def status(code: int, body: Any = None, text: str | None = None) -> Fault:
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
    pytest.param(hangs_up, UNAVAILABLE, id="hangs up"),
    pytest.param(breaks_off, UNAVAILABLE, id="breaks off"),
    pytest.param(never_answers, TOO_SLOW, id="never answers"),
    pytest.param(never_ends, TOO_SLOW, id="never ends"),
    pytest.param(status(404, {"error": "Model placement not found"}), UNAVAILABLE, id="404"),
    pytest.param(status(429, text="slow down"), UNAVAILABLE, id="429"),
    pytest.param(status(502, text="bad gateway"), UNAVAILABLE, id="502"),
    pytest.param(status(503, text="no healthy upstream"), UNAVAILABLE, id="503"),
    pytest.param(status(400, {"error": LOADING}), UNAVAILABLE, id="400 while loading"),
    pytest.param(status(500, text="Internal Server Error"), UNAVAILABLE, id="500 while stopping"),
    pytest.param(status(500, {"error": REFUSED_NAMES}), UNAVAILABLE, id="other feature names"),
    pytest.param(status(500, {"error": REFUSED_ORDER}), UNAVAILABLE, id="another order"),
    pytest.param(status(500, {"error": REFUSED_WIDTH}), UNAVAILABLE, id="another width"),
    pytest.param(status(500, {"error": "KeyError: 'x'"}), NONSENSE, id="500"),
    pytest.param(status(400, {"error": "no"}), NONSENSE, id="400"),
    pytest.param(status(403, text="RBAC: access denied"), NONSENSE, id="403"),
    pytest.param(redirects, NONSENSE, id="redirect"),
    pytest.param(status(204, text=""), NONSENSE, id="204"),
    pytest.param(status(200, text=""), NONSENSE, id="empty"),
    pytest.param(status(200, text="<html>"), NONSENSE, id="not JSON"),
    pytest.param(status(200, []), NONSENSE, id="a list"),
    pytest.param(status(200, {"predictions": None, "outputs": None}), NONSENSE, id="null"),
    pytest.param(status(200, {"error": "oh"}), NONSENSE, id="an error as success"),
]


@pytest.mark.parametrize(("fault", "expected"), HTTP_FAULTS)
async def test_a_fault_of_the_predictor_has_its_status(fault, expected, transformer, predictor):
    predictor.always = fault
    await check(transformer, expected)
    predictor.always = None
    await check(transformer, FINE)


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
    await check(transformer, NONSENSE)


@pytest.mark.parametrize("transformer", ["v1"], indirect=True)
@pytest.mark.parametrize("labels", [[0, 1], ["Placed", "Not Placed"], [True, False]])
async def test_a_v1_predictor_without_predict_proba_is_told_from_one_with(labels, transformer, predictor):
    predictor.always = status(200, {"predictions": labels})
    await check(transformer, NONSENSE)


TENSOR = {"name": "predict_proba", "datatype": "FP64", "shape": [2, 2], "data": [*GOOD, *GOOD]}
OUTPUTS = [
    pytest.param([{**TENSOR, "name": "predict", "datatype": "INT64"}], id="another output"),
    pytest.param([{**TENSOR, "shape": [2, 3]}], id="a shape that the data does not fill"),
    pytest.param([{**TENSOR, "shape": [4]}], id="flat"),
    pytest.param([{**TENSOR, "shape": "2, 2"}], id="a shape that is none"),
    pytest.param([{"name": "predict_proba"}], id="no data"),
    pytest.param([], id="no outputs"),
    pytest.param([None], id="null"),
]


@pytest.mark.parametrize("transformer", ["v2"], indirect=True)
@pytest.mark.parametrize("outputs", OUTPUTS)
async def test_a_v2_answer_without_the_asked_output_is_nonsense(outputs, transformer, predictor):
    predictor.always = status(200, {"model_name": "placement", "outputs": outputs})
    await check(transformer, NONSENSE)


@pytest.mark.parametrize("hop", ["v1", "v2", "grpc-v2"])
async def test_a_predictor_that_is_not_there_is_503_and_try_again(hop, trained_bundle):
    async with serving(trained_bundle, NOBODY, f"--predictor_protocol={hop}") as transformer:
        await check(transformer, UNAVAILABLE)


ONCE = [hangs_up, breaks_off, status(503, text="moving"), status(500, text="Internal Server Error")]


@pytest.mark.parametrize("fault", ONCE, ids=["hangs up", "breaks off", "503", "500 while stopping"])
async def test_a_call_that_was_dropped_is_sent_once_more(fault, transformer, predictor):
    predictor.faults.append(fault)
    assert (await v1_status(transformer, SAMPLE))[0] == "200"
    assert len(predictor.requests) == 2


async def test_a_call_that_was_dropped_twice_is_not_sent_again(transformer, predictor):
    predictor.faults += [hangs_up] * 2
    assert (await v1_status(transformer, SAMPLE))[0] == "503"
    assert len(predictor.requests) == 2
    assert (await v1_status(transformer, SAMPLE))[0] == "200"


async def test_a_second_try_does_not_get_a_second_deadline(transformer, predictor):
    predictor.faults += [hangs_up, never_answers]
    assert (await v1_status(transformer, SAMPLE))[0] == "504"
    assert len(predictor.requests) == 2


@pytest.mark.parametrize(
    "fault",
    [status(500, {"error": REFUSED_NAMES}), status(500, {"error": "KeyError"}), status(200, {})],
    ids=["other feature names", "500", "nonsense"],
)
async def test_an_answer_that_would_be_the_same_again_is_not_asked_for_again(fault, transformer, predictor):
    predictor.faults.append(fault)
    assert (await v1_status(transformer, SAMPLE))[0] in {"502", "503"}
    assert len(predictor.requests) == 1


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
                output.contents.fp64_contents[:] = value
            elif name == "shape":
                output.shape[:] = value
            else:
                setattr(output, name, value)

    return fault


async def answers_labels(context, answer):
    output = answer.outputs[0]
    output.contents.Clear()
    output.datatype = "INT64"
    output.contents.int64_contents.extend([1, 0])
    output.shape[:] = [2]


async def answers_raw_bytes_that_are_too_few(context, answer):
    answer.outputs[0].contents.Clear()
    answer.raw_output_contents.append(bytes(8))


async def answers_without_outputs(context, answer):
    del answer.outputs[:]


GRPC_FAULTS = [
    pytest.param(aborts("UNAVAILABLE", "moving"), UNAVAILABLE, id="UNAVAILABLE"),
    pytest.param(aborts("NOT_FOUND", "Model placement not found"), UNAVAILABLE, id="NOT_FOUND"),
    pytest.param(aborts("RESOURCE_EXHAUSTED", "slow down"), UNAVAILABLE, id="RESOURCE_EXHAUSTED"),
    pytest.param(aborts("INVALID_ARGUMENT", LOADING), UNAVAILABLE, id="loading"),
    pytest.param(aborts("INTERNAL", "1"), UNAVAILABLE, id="stopping"),
    pytest.param(aborts("INTERNAL", f"ValueError: {REFUSED_NAMES}"), UNAVAILABLE, id="other feature names"),
    pytest.param(aborts("INVALID_ARGUMENT", REFUSED_ORDER), UNAVAILABLE, id="another order"),
    pytest.param(aborts("INVALID_ARGUMENT", REFUSED_WIDTH), UNAVAILABLE, id="another width"),
    pytest.param(aborts("INTERNAL", "KeyError: 'x'"), NONSENSE, id="INTERNAL"),
    pytest.param(aborts("INVALID_ARGUMENT", "no"), NONSENSE, id="INVALID_ARGUMENT"),
    pytest.param(aborts("UNKNOWN", "oh"), NONSENSE, id="UNKNOWN"),
    pytest.param(aborts("PERMISSION_DENIED", "RBAC"), NONSENSE, id="PERMISSION_DENIED"),
    pytest.param(is_stuck, TOO_SLOW, id="never answers"),
    pytest.param(answers(name="predict"), NONSENSE, id="another output"),
    pytest.param(answers(datatype="FP32"), NONSENSE, id="another datatype"),
    pytest.param(answers(shape=[1, 2]), NONSENSE, id="too few candidates"),
    pytest.param(answers(shape=[4]), NONSENSE, id="flat"),
    pytest.param(answers(values=[NAN] * 4), NONSENSE, id="NaN"),
    pytest.param(answers(values=[-0.5, 1.5] * 2), NONSENSE, id="below 0 and above 1"),
    pytest.param(answers_labels, NONSENSE, id="labels"),
    pytest.param(answers_raw_bytes_that_are_too_few, NONSENSE, id="too few bytes"),
    pytest.param(answers_without_outputs, NONSENSE, id="no outputs"),
]


@pytest.mark.parametrize(("fault", "expected"), GRPC_FAULTS)
async def test_a_fault_of_a_grpc_predictor_has_the_same_status(
    fault, expected, grpc_transformer, grpc_predictor
):
    grpc_predictor.fault = fault
    await check(grpc_transformer, expected)
    grpc_predictor.fault = None
    await check(grpc_transformer, FINE)


async def test_a_grpc_call_that_was_dropped_is_sent_once_more(grpc_transformer, grpc_predictor):
    async def once(context, answer):
        grpc_predictor.fault = None
        await context.abort(grpc.StatusCode.UNAVAILABLE, "moving")

    grpc_predictor.fault = once
    assert (await v1_status(grpc_transformer, SAMPLE))[0] == "200"
    assert len(grpc_predictor.metadata) == 2


async def test_a_grpc_call_that_is_given_up_is_cancelled(grpc_transformer, grpc_predictor):
    """Or a predictor that is too slow would go on working for nobody."""
    cancelled = asyncio.Event()

    async def fault(context, answer):
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    grpc_predictor.fault = fault
    assert (await v1_status(grpc_transformer, SAMPLE))[0] == "504"
    await asyncio.wait_for(cancelled.wait(), 10)


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


async def test_what_a_predictor_sets_for_one_caller_is_not_sent_for_another(transformer, predictor):
    async def sets_a_cookie(request: web.Request) -> web.Response:
        response = web.json_response(predictions(transformer.hop, [GOOD]))
        response.set_cookie("session", "secret")
        return response

    predictor.always = sets_a_cookie
    for _ in range(2):
        await ask_over_rest(transformer, {})
    assert [request.headers.get("cookie") for request in predictor.requests] == [None, None]


@pytest.mark.parametrize("hop", ["v1", "grpc-v2"])
async def test_no_proxy_of_the_environment_comes_between(
    hop, trained_bundle, predictor, grpc_predictor, monkeypatch
):
    address = grpc_predictor.address if hop == "grpc-v2" else predictor.address
    async with serving(trained_bundle, address, f"--predictor_protocol={hop}") as transformer:
        # Only now, since the test's own channel would use it, too.
        for variable in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
            monkeypatch.setenv(variable, f"http://{NOBODY}")
            monkeypatch.setenv(variable.upper(), f"http://{NOBODY}")
        assert (await v1_status(transformer, SAMPLE))[0] == "200"


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
    import httpx

    log = tmp_path / "transformer.log"

    class Fake:
        """As much of a model server's process as a transformer's needs to know."""

        http_port = int(predictor.address.rpartition(":")[2])

    process = await asyncio.to_thread(
        TransformerProcess, spec.read("inferenceservice/placement.yaml"), trained_bundle, Fake(), log
    )
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{process.grpc_port}")
    try:
        await asyncio.wait_for(channel.channel_ready(), 30)
        stub = services.GRPCInferenceServiceStub(channel)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{process.http_port}") as http:
            while True:
                with contextlib.suppress(httpx.ConnectError):
                    assert (await http.get("/v2/health/live")).status_code == 200
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
