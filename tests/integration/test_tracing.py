"""Each request and each call to the predictor has a span, and no span has a candidate's value."""

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from opentelemetry import propagate
from opentelemetry.propagators.b3 import B3MultiFormat, B3SingleFormat
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id

from tests.support.connected_transformer import connected_transformer
from tests.support.endpoints import V1_EXPLAIN, V1_PREDICT, V2_INFER
from tests.support.fake_service import Start, start_fake_service
from tests.support.faulty_predictor import GOOD, has_status
from tests.support.in_process_transformer import InProcessTransformer
from tests.support.marked_candidates import FAULTS, ask_malformed, ask_over_every_protocol, traces_in
from tests.support.request_bodies import grpc_objects, v2_objects
from tests.support.waiting import wait_until
from training.candidates import SAMPLE

TRACE = "80f198ee56343ba864fe8b2a57d3eff7"
CALLER = "e457b5a2e4d86bd1"
W3C = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "vendor=1"}
UNSAMPLED = {"traceparent": f"00-{TRACE}-{CALLER}-00"}
ROUTE = "/v1/models/{model_name}:predict"
METHOD = "inference.GRPCInferenceService/ModelInfer"
#: Requests that share a call: more than the links that OpenTelemetry allows by default.
SHARED = 150


@pytest.fixture
def exported(monkeypatch) -> InMemorySpanExporter:
    """The spans of the transformers that start after this; complete once they have stopped."""
    exporter = InMemorySpanExporter()
    monkeypatch.setattr("transformer.tracing.environment.check_tracing", lambda: [lambda: exporter])
    return exporter


@pytest.fixture
def start(stack, exported, trained_bundle, sklearn_reference) -> Start:
    """Start a traced transformer in front of one connection."""

    async def start(*arguments: str) -> Any:
        return await start_fake_service(
            stack, trained_bundle, sklearn_reference, "--predictor_connections=1", *arguments
        )

    return start


async def spans_of(
    stack: AsyncExitStack, exported: InMemorySpanExporter
) -> tuple[list[ReadableSpan], list[ReadableSpan]]:
    """Stop the transformers, and return the spans of requests and those of calls, each in order."""
    await stack.aclose()
    spans = sorted(exported.get_finished_spans(), key=lambda span: span.start_time or 0)
    return (
        [span for span in spans if span.kind is SpanKind.SERVER],
        [span for span in spans if span.kind is SpanKind.CLIENT],
    )


def ids(span: ReadableSpan) -> tuple[str, str]:
    context = span.get_span_context()
    assert context is not None
    return format_trace_id(context.trace_id), format_span_id(context.span_id)


def parent_of(span: ReadableSpan) -> str | None:
    return None if span.parent is None else format_span_id(span.parent.span_id)


def linked(span: ReadableSpan) -> list[tuple[str, str]]:
    return [
        (format_trace_id(one.context.trace_id), format_span_id(one.context.span_id)) for one in span.links
    ]


async def predict(transformer: InProcessTransformer, headers: dict[str, str] | None = None) -> int:
    body = {"instances": [SAMPLE, SAMPLE]}
    return (await transformer.http.post(V1_PREDICT, json=body, headers=headers)).status_code


async def test_a_request_and_its_call_belong_to_the_callers_trace(start, stack, exported):
    transformer, predictor = await start()
    assert await predict(transformer, W3C) == 200
    ((_, forwarded),) = predictor.plain_calls
    (request,), (call,) = await spans_of(stack, exported)
    assert (request.name, call.name) == (f"POST {ROUTE}", f"POST {V2_INFER}")
    assert ids(request)[0] == ids(call)[0] == TRACE
    assert (parent_of(request), parent_of(call)) == (CALLER, ids(request)[1])
    assert linked(call) == [ids(request)]
    assert forwarded["traceparent"] == "00-{}-{}-01".format(*ids(call))
    assert forwarded["tracestate"] == "vendor=1"
    assert dict(request.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": ROUTE,
        "url.path": V1_PREDICT,
        "url.scheme": "http",
        "http.response.status_code": 200,
        "transformer.version": "v1",
        "transformer.candidates": 2,
    }
    host, _, port = predictor.address.partition(":")
    assert dict(call.attributes or {}) == {
        "http.request.method": "POST",
        "server.address": host,
        "server.port": int(port),
        "url.full": f"http://{predictor.address}{V2_INFER}",
        "http.response.status_code": 200,
        "transformer.requests": 1,
        "transformer.rows": 2,
    }
    assert request.resource.attributes["service.name"] == "placement-transformer"


@pytest.mark.parametrize(
    ("path", "route"),
    [
        (V2_INFER, "/v2/models/{model_name}/infer"),
        ("/v2/models/placement/versions/v1/infer", "/v2/models/{model_name}/versions/{version}/infer"),
    ],
)
async def test_a_v2_request_is_named_after_its_route(path, route, start, stack, exported):
    transformer, _ = await start()
    assert (await transformer.http.post(path, json=v2_objects([SAMPLE]))).status_code == 200
    (request,), _ = await spans_of(stack, exported)
    assert request.name == f"POST {route}"
    assert request.attributes is not None
    assert (request.attributes["http.route"], request.attributes["url.path"]) == (route, path)


async def test_a_grpc_request_and_a_grpc_call_follow_grpcs_conventions(
    stack, exported, trained_bundle, grpc_predictor
):
    transformer = await stack.enter_async_context(
        connected_transformer(grpc_predictor, trained_bundle, "grpc-v2", connections=1)
    )
    await transformer.grpc.ModelInfer(grpc_objects([SAMPLE]), metadata=tuple(W3C.items()))
    (request,), (call,) = await spans_of(stack, exported)
    assert request.name == call.name == METHOD
    assert (parent_of(request), parent_of(call)) == (CALLER, ids(request)[1])
    own = {"rpc.system.name": "grpc", "rpc.method": METHOD, "rpc.response.status_code": "OK"}
    assert request.attributes == {**own, "transformer.version": "v1", "transformer.candidates": 1}
    assert call.attributes is not None
    assert own.items() <= call.attributes.items()
    assert grpc_predictor.metadata[0]["traceparent"] == "00-{}-{}-01".format(*ids(call))


async def test_a_shared_call_has_links_to_all_its_requests_and_no_callers_headers(start, stack, exported):
    transformer, predictor = await start()
    predictor.may_answer.clear()
    first = asyncio.create_task(predict(transformer))
    await wait_until(lambda: len(predictor.plain_calls) == 1)
    waiting = f'transformer_queue_candidates{{state="waiting"}} {SHARED}.0'
    others = [
        transformer.grpc.ModelInfer(
            grpc_objects([SAMPLE]), metadata=(("x-request-id", str(number)), ("baggage", f"a={number}"))
        )
        for number in range(SHARED)
    ]

    async def are_queued() -> bool:
        return waiting in (await transformer.http.get("/metrics")).text

    await wait_until(are_queued)
    predictor.may_answer.set()
    assert await first == 200
    await asyncio.gather(*others)
    requests, calls = await spans_of(stack, exported)
    assert len(requests) == 1 + SHARED
    served = [one for call in calls for one in linked(call)]
    assert sorted(served) == sorted(ids(one) for one in requests), "each request is linked once"
    largest = max(calls, key=lambda one: len(one.links))
    assert len(largest.links) > 128
    assert largest.attributes is not None
    assert largest.attributes["transformer.requests"] == len(largest.links)
    of_call = {ids(one): one for one in requests if ids(one) in linked(largest)}
    (own,) = [one for one in of_call.values() if ids(one)[0] == ids(largest)[0]]
    assert parent_of(largest) == ids(own)[1]
    assert {tuple(linked(one)) for one in of_call.values() if one is not own} == {(ids(largest),)}
    (headers,) = [
        headers
        for _, headers in predictor.plain_calls
        if headers["traceparent"].startswith("00-{}-{}-".format(*ids(largest)))
    ]
    assert "x-request-id" not in headers
    assert "baggage" not in headers


async def test_a_trace_that_is_not_sampled_goes_on_unsampled(start, stack, exported):
    transformer, predictor = await start()
    assert await predict(transformer, {**UNSAMPLED, "baggage": "a=1"}) == 200
    ((_, forwarded),) = predictor.plain_calls
    assert await spans_of(stack, exported) == ([], [])
    version, trace, _, flags = forwarded["traceparent"].split("-")
    assert (version, trace, flags) == ("00", TRACE, "00")
    assert forwarded["baggage"] == "a=1"


@pytest.mark.parametrize(
    ("propagator", "sent"),
    [
        (B3SingleFormat(), {"b3": f"{TRACE}-{CALLER}-1"}),
        (B3MultiFormat(), {"x-b3-traceid": TRACE, "x-b3-spanid": CALLER, "x-b3-sampled": "1"}),
    ],
    ids=["single header", "several headers"],
)
async def test_b3_can_be_the_format_of_the_context(propagator, sent, start, stack, exported, monkeypatch):
    monkeypatch.setattr(propagate, "_HTTP_TEXT_FORMAT", propagator)
    transformer, predictor = await start()
    # Formats that are not configured are forwarded as they came.
    others = {"uber-trace-id": "1:2:0:1", "x-amzn-trace-id": "Root=1", **W3C}
    assert await predict(transformer, {**sent, **others}) == 200
    ((_, forwarded),) = predictor.plain_calls
    (request,), (call,) = await spans_of(stack, exported)
    assert (ids(request)[0], parent_of(request)) == (TRACE, CALLER)
    span_id = ids(call)[1]
    expected = {name: value.replace(CALLER, span_id) for name, value in sent.items()}
    assert {name: forwarded[name] for name in (*sent, *others)} == {**expected, **others}


async def test_an_explanations_calls_belong_to_its_trace(start, stack, exported):
    transformer, predictor = await start("--max_explanation_rows=2000")
    response = await transformer.http.post(V1_EXPLAIN, json={"instances": [SAMPLE]}, headers=W3C)
    assert response.status_code == 200, response.text
    made = len(predictor.plain_calls)
    (request,), calls = await spans_of(stack, exported)
    assert request.name == "POST /v1/models/{model_name}:explain"
    assert len(calls) == made > 3
    assert {(ids(call)[0], parent_of(call)) for call in calls} == {(TRACE, ids(request)[1])}


async def test_every_call_is_traced_where_each_is_verified(stack, exported, trained_bundle, predictor):
    transformer = await stack.enter_async_context(
        connected_transformer(predictor, trained_bundle, "v2 by request", connections=1)
    )
    predictor.faults.append(has_status(503))
    assert await predict(transformer) == 200
    (request,), calls = await spans_of(stack, exported)
    assert len(calls) == 2, "the call that failed, and the retry"
    assert [call.status.status_code for call in calls] == [StatusCode.ERROR, StatusCode.UNSET]
    assert [linked(call) for call in calls] == [[ids(request)]] * 2


@pytest.mark.parametrize(
    ("fault", "of_call"),
    [
        (has_status(400, {"error": "no"}), "PredictorError"),
        (has_status(200, {"predictions": [GOOD]}), "InvalidPredictorResponse"),
    ],
)
async def test_a_failed_call_and_its_request_say_so(
    fault, of_call, stack, exported, trained_bundle, predictor
):
    transformer = await stack.enter_async_context(
        connected_transformer(predictor, trained_bundle, "v1", connections=1)
    )
    predictor.always = fault
    got = await predict(transformer)
    (request,), calls = await spans_of(stack, exported)
    assert got >= 500
    assert request.attributes is not None
    assert request.attributes["http.response.status_code"] == got
    assert request.attributes["error.type"] == str(got)
    assert request.status.status_code is StatusCode.ERROR
    assert {(call.attributes or {})["error.type"] for call in calls} == {of_call}
    assert {call.status.status_code for call in calls} == {StatusCode.ERROR}


async def test_a_bad_request_is_not_the_servers_error(start, stack, exported):
    transformer, _ = await start()
    bad = {**SAMPLE, "ssc_p": 710}
    assert (await transformer.http.post(V1_PREDICT, json={"instances": [bad]})).status_code == 400
    assert await transformer.grpc.ModelInfer(grpc_objects([bad])).code() is grpc.StatusCode.INVALID_ARGUMENT
    twice = [("authorization", "a"), ("authorization", "b"), *W3C.items()]
    assert (await transformer.http.post(V1_PREDICT, json={}, headers=twice)).status_code == 400
    requests, calls = await spans_of(stack, exported)
    assert calls == []
    statuses = [
        {key: value for key, value in (one.attributes or {}).items() if "status" in key or "error" in key}
        for one in requests
    ]
    assert statuses == [
        {"http.response.status_code": 400},
        {"rpc.response.status_code": "INVALID_ARGUMENT", "error.type": "INVALID_ARGUMENT"},
        {"http.response.status_code": 400},
    ]
    assert {one.status.status_code for one in requests} == {StatusCode.UNSET}
    assert ids(requests[2])[0] == TRACE


async def test_a_request_whose_client_has_gone_ends_its_span(start, stack, exported):
    transformer, predictor = await start()
    predictor.may_answer.clear()
    asking = asyncio.create_task(predict(transformer))
    await wait_until(lambda: len(predictor.plain_calls) == 1)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    predictor.may_answer.set()
    await wait_until(transformer.is_ready)
    (request,), _ = await spans_of(stack, exported)
    assert request.attributes is not None
    assert request.attributes["error.type"] == "cancelled"
    assert "http.response.status_code" not in request.attributes


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_no_span_has_a_value_of_a_candidate(fault, stack, exported, trained_bundle, predictor):
    transformer = await stack.enter_async_context(
        connected_transformer(predictor, trained_bundle, "v2", request_timeout_s=1)
    )
    predictor.always = fault
    await ask_over_every_protocol(transformer.http, transformer.grpc)
    if not fault:
        await ask_malformed(transformer.http)
    requests, calls = await spans_of(stack, exported)
    assert requests
    assert calls
    written = json.dumps([json.loads(span.to_json()) for span in (*requests, *calls)])
    assert traces_in(written) == []
    assert [span.events for span in (*requests, *calls) if span.events] == []
