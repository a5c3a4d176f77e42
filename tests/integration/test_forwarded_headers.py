"""Only the listed headers of a caller reach the predictor, and none that the predictor cannot receive."""

import pytest
from aiohttp import web

from tests.support.connected_transformer import (
    connected_transformer,
)
from tests.support.endpoints import V1_PREDICT
from tests.support.faulty_predictor import (
    GOOD,
    aborts,
    hangs_up,
    predictions,
)
from tests.support.in_process_transformer import InProcessTransformer, in_process_transformer
from tests.support.request_bodies import grpc_objects
from tests.support.request_outcomes import v1_outcome
from training.candidates import SAMPLE

#: A port without a server: it refuses connections at once.
NOBODY = "127.0.0.1:1"


FORWARDED = {
    "authorization": "Bearer secret",
    "x-request-id": "7",
    "x-b3-traceid": "80f198ee56343ba864fe8b2a57d3eff7",
    "x-b3-spanid": "e457b5a2e4d86bd1",
    "x-b3-sampled": "1",
    "traceparent": "00-80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-01",
    "tracestate": "vendor=1",
    "b3": "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1",
    "baggage": "team=admissions",
    "x-cloud-trace-context": "105445aa7843bc8bf206b12000100000/1;o=1",
    "x-amzn-trace-id": "Root=1-5759e988-bd862e3fe1be46a994272793",
    "x-datadog-trace-id": "7277407061855694839",
    "uber-trace-id": "80f198ee56343ba8:e457b5a2e4d86bd1:0:1",
    "x-client-trace-id": "7",
    "x-ot-span-context": "80f198ee56343ba8;e457b5a2e4d86bd1;0;",
    "sw8": "1-ODBm-MQ==-0-YQ==-Yg==-Yw==-ZA==",
}
NOT_FORWARDED = {
    "cookie": "session=1",
    "x-forwarded-for": "10.0.0.1",
    "x-api-key": "secret",
    "accept-language": "de",
    "ce-id": "7",
    "x-b2-traceid": "1",
    "authorization-2": "secret",
}


async def ask_over_rest(service: InProcessTransformer, headers: dict[str, str]) -> None:
    response = await service.http.post(V1_PREDICT, json={"instances": [SAMPLE]}, headers=headers)
    assert response.status_code == 200, response.text


async def ask_over_grpc(service: InProcessTransformer, headers: dict[str, str]) -> None:
    await service.grpc.ModelInfer(grpc_objects([SAMPLE]), metadata=tuple(headers.items()))


@pytest.mark.parametrize("ask", [ask_over_rest, ask_over_grpc])
async def test_only_the_listed_headers_of_a_caller_reach_an_http_predictor(ask, transformer, predictor):
    await ask(transformer, {})
    await ask(transformer, {**FORWARDED, **NOT_FORWARDED})
    own, caller = [{name.lower(): v for name, v in r.headers.items()} for r in predictor.requests]
    assert {name: value for name, value in caller.items() if own.get(name) != value} == FORWARDED
    assert set(own) <= {"host", "accept", "accept-encoding", "user-agent", "content-length", "content-type"}


@pytest.mark.parametrize("ask", [ask_over_rest, ask_over_grpc])
async def test_only_the_listed_headers_of_a_caller_reach_a_grpc_predictor_as_metadata(
    ask, grpc_transformer, grpc_predictor
):
    await ask(grpc_transformer, {})
    await ask(grpc_transformer, {**FORWARDED, **NOT_FORWARDED})
    own, caller = grpc_predictor.metadata
    assert {name: value for name, value in caller.items() if own.get(name) != value} == FORWARDED


@pytest.mark.parametrize("hop", ["v1", "v2", "grpc-v2"])
async def test_every_call_has_the_headers_of_the_command_line(hop, trained_bundle, predictor, grpc_predictor):
    faulty = grpc_predictor if hop == "grpc-v2" else predictor
    header = "--predictor_header=Seldon-Model:placement"
    async with connected_transformer(faulty, trained_bundle, hop, header) as transformer:
        await ask_over_rest(transformer, {"traceparent": "1", "seldon-model": "another"})
    calls = grpc_predictor.metadata if hop == "grpc-v2" else [r.headers for r in predictor.requests]
    assert calls
    assert {call["seldon-model"] for call in calls} == {"placement"}
    assert calls[-1]["traceparent"] == "1"


async def test_headers_are_forwarded_in_any_case(transformer, predictor):
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
    async with in_process_transformer(trained_bundle, address, f"--predictor_protocol={hop}") as transformer:
        response = await transformer.http.post(
            V1_PREDICT, json={"instances": [SAMPLE]}, headers=[(name, value), (b"traceparent", b"1")]
        )
    assert response.status_code == 200, response.text
    seen = grpc_predictor.metadata[0] if hop == "grpc-v2" else predictor.requests[0].headers
    assert seen["traceparent"] == "1"


@pytest.mark.parametrize("hop", ["v2", "grpc-v2"])
async def test_tracing_headers_that_are_too_long_are_left_out(hop, trained_bundle, predictor, grpc_predictor):
    faulty = grpc_predictor if hop == "grpc-v2" else predictor
    headers = {
        "tracestate": "a=" + "x" * 30_000,
        "x-request-id": "7",
        "authorization": "Bearer " + "y" * 4000,
    }
    async with connected_transformer(faulty, trained_bundle, hop) as transformer:
        await ask_over_rest(transformer, headers)
    (seen,) = faulty.metadata
    assert seen["authorization"] == headers["authorization"]
    assert "tracestate" not in seen
    assert "x-request-id" not in seen


async def test_baggage_that_is_too_long_is_left_out_alone(transformer, predictor):
    await ask_over_rest(transformer, {"baggage": "a=" + "x" * 4000, "traceparent": "1", "b3": "0"})
    (seen,) = predictor.metadata
    assert (seen["traceparent"], seen["b3"]) == ("1", "0")
    assert "baggage" not in seen


async def test_binary_metadata_does_not_fail_the_request(transformer, predictor):
    await transformer.grpc.ModelInfer(grpc_objects([SAMPLE]), metadata=(("x-b3-flags-bin", b"\xff"),))
    assert not any(name.lower().startswith("x-b3-") for name in predictor.requests[0].headers)


@pytest.mark.parametrize("hop", ["v1", "v2"])
async def test_cookies_that_the_predictor_sets_are_not_sent_back(hop, trained_bundle, predictor):
    async def sets_a_cookie(request: web.Request) -> web.Response:
        response = web.json_response(predictions(hop, [GOOD]))
        response.set_cookie("session", "secret")
        return response

    predictor.always = sets_a_cookie
    # One connection, so that both requests use the same client.
    async with connected_transformer(predictor, trained_bundle, hop, connections=1) as transformer:
        for _ in range(2):
            await ask_over_rest(transformer, {})
    assert [request.headers.get("cookie") for request in predictor.requests] == [None, None]


@pytest.mark.parametrize("hop", ["v1", "grpc-v2"])
async def test_proxy_settings_of_the_environment_are_ignored(
    hop, trained_bundle, predictor, grpc_predictor, monkeypatch
):
    faulty, drop = (grpc_predictor, aborts("UNAVAILABLE", "")) if hop == "grpc-v2" else (predictor, hangs_up)
    async with connected_transformer(faulty, trained_bundle, hop) as transformer:
        # Set after the start, since the test's channel would use the proxy too.
        for variable in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
            monkeypatch.setenv(variable, f"http://{NOBODY}")
            monkeypatch.setenv(variable.upper(), f"http://{NOBODY}")
        # This request needs a new connection.
        faulty.faults.append(drop)
        assert await v1_outcome(transformer, SAMPLE) == transformer.answer
