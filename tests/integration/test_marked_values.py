"""Values of candidates reach the predictor and, shortened and escaped, their caller: no log and no metric."""

import asyncio
import contextlib
import itertools
import json

import grpc
import pytest
from aiohttp import web
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from tests.support.connected_transformer import connected_transformer, transformer_log
from tests.support.endpoints import V1_PREDICT, V2_INFER
from tests.support.marked_candidates import EVENT, FAULTS, ask_malformed, ask_over_every_protocol, traces_in
from tests.support.request_bodies import grpc_objects, v2_objects
from training.candidates import SAMPLE

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("hop", ["v1", "v2"])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_no_value_of_a_candidate_is_logged(fault, hop, trained_bundle, predictor, caplog, capfd):
    async with connected_transformer(predictor, trained_bundle, hop, request_timeout_s=1) as transformer:
        predictor.always = fault
        with transformer_log(caplog):
            ended = await ask_over_every_protocol(transformer.http, transformer.grpc)
            if not fault:
                assert await ask_malformed(transformer.http) == {400, 404}
        metrics = (await transformer.http.get("/metrics")).text
    assert {"400", "INVALID_ARGUMENT"} <= set(ended)
    written = caplog.text + "".join(capfd.readouterr())
    if fault:
        assert "predictor" in written, "failures are logged, without the values"
    assert 'transformer_verifications_total{outcome="equal"}' in metrics
    assert traces_in(written + metrics) == []


async def repeats_what_it_got(request: web.Request) -> web.Response:
    """Respond with an error that contains the request."""
    return web.Response(status=500, text=json.dumps({"error": f"KeyError: {await request.text()}"}))


@pytest.mark.parametrize("hop", ["v1", "v2", "v2 by request"])
async def test_an_error_of_a_shared_call_has_no_values_of_other_callers(hop, trained_bundle, predictor):
    marks = [40 + (2 * number + 1) / 512 for number in range(60)]
    predictor.always = repeats_what_it_got
    async with connected_transformer(predictor, trained_bundle, hop) as transformer:
        calls = [
            transformer.grpc.ModelInfer(grpc_objects([{**SAMPLE, "ssc_p": mark}])) for mark in marks[1::2]
        ]
        rest = [
            transformer.http.post(V1_PREDICT, json={"instances": [{**SAMPLE, "ssc_p": mark}]})
            for mark in marks[::2]
        ]
        errors = [answer.text for answer in await asyncio.gather(*rest)]
        errors += [await call.details() for call in calls]
    assert max(len(rows) for rows, _ in predictor.carried) > 1, "they shared calls"
    assert all("predictor" in text for text in errors)
    assert [mark for mark in marks if any(str(mark) in text for text in errors)] == []


#: Values and names that a terminal, a log or a browser would interpret, and a long one.
ODD = {
    "a terminal's escape": "\x1b[31mred\x1b]0;title\x07",
    "another line": "no\r\n2026-01-01 kserve ERROR forged",
    "a null": "a\x00b",
    "right to left": "\u202eabc\u2066",
    "markup": "<script>alert(1)</script>",
    "half a pair": "\udce9",
    "long": "long" * 250_000,
}
#: Maximum length of an error with an odd value and twelve missing fields, and of the repeated part.
LONGEST, ECHO = 1000, 80


def check_echo(error: str, odd: str) -> None:
    assert len(error) <= LONGEST
    assert error.isprintable(), ascii(error)
    assert odd[: ECHO + 1] not in error or len(odd) <= ECHO


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
async def test_an_error_repeats_only_a_short_escaped_part_of_the_callers_value(
    odd, trained_bundle, predictor, caplog
):
    encoded = odd.encode("utf-8", "surrogatepass")
    named = {"name": odd, "datatype": "BYTES", "shape": [1], "data": ["x"]}
    gender = {"name": "gender", "datatype": "BYTES", "shape": [1], "data": [odd]}
    bodies = {
        V1_PREDICT: [
            {"instances": [{**SAMPLE, "gender": odd}]},
            {"instances": [{**SAMPLE, "ssc_p": odd}]},
            {"instances": [{odd: 1}]},
            {"instances": odd},
        ],
        V2_INFER: [
            {"inputs": [named]},
            {"inputs": [named, named]},
            {"inputs": [{**named, "shape": [2]}]},
            {"inputs": [{**named, "datatype": "FP64"}]},
            {"inputs": [{**gender, "datatype": odd}]},
            {"inputs": [{**gender, "shape": odd}]},
            {"inputs": [gender]},
            {"inputs": [{**gender, "data": odd}]},
            {"inputs": [{**gender, "name": "candidates"}]},
            {"inputs": [gender], "outputs": [{"name": odd}]},
        ],
    }
    messages = []
    for name, datatype, value, output in itertools.product(
        ("gender", odd), ("BYTES", "FP64", odd), (encoded, b"x"), ("placement", odd)
    ):
        request = pb.ModelInferRequest(model_name="placement")
        with contextlib.suppress(UnicodeEncodeError):
            tensor = request.inputs.add(name=name, datatype=datatype, shape=[1])
            tensor.contents.bytes_contents.append(value)
            request.outputs.add(name=output)
            messages.append(request)
    with transformer_log(caplog):
        async with connected_transformer(predictor, trained_bundle, "v2") as transformer:
            for path, some in bodies.items():
                for body in some:
                    answer = await transformer.http.post(path, content=json.dumps(body), headers=JSON)
                    assert answer.status_code == 400, answer.text
                    check_echo(answer.json()["error"], odd)
            for request in messages:
                call = transformer.grpc.ModelInfer(request)
                assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
                check_echo(await call.details(), odd)
    assert odd[:20] not in caplog.text


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
async def test_an_error_repeats_an_unknown_model_or_path_short_and_escaped(
    odd, trained_bundle, predictor, caplog
):
    quoted = "".join(f"%{byte:02x}" for byte in odd[:10_000].encode("utf-8", "surrogatepass"))
    paths = [f"/v1/models/{quoted}:predict", f"/v2/models/{quoted}/infer", f"/v2/models/placement/{quoted}"]
    with transformer_log(caplog):
        async with connected_transformer(predictor, trained_bundle, "v2") as transformer:
            for path in paths:
                answer = await transformer.without_sockets.post(path, json={"instances": [SAMPLE]})
                assert answer.status_code == 404, answer.text
                check_echo(answer.json()["error"], odd)
            with contextlib.suppress(UnicodeEncodeError):
                call = transformer.grpc.ModelInfer(pb.ModelInferRequest(model_name=odd))
                assert await call.code() is grpc.StatusCode.NOT_FOUND
                check_echo(await call.details(), odd)
                call = transformer.grpc.ModelReady(pb.ModelReadyRequest(name=odd))
                assert await call.code() is grpc.StatusCode.NOT_FOUND
                check_echo(await call.details(), odd)
    assert odd[:20] not in caplog.text


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
async def test_an_error_repeats_a_header_short_and_escaped(odd, trained_bundle, predictor, caplog):
    value = odd[:50_000].encode("utf-8", "surrogatepass")
    event = {name.encode(): text.encode() for name, text in EVENT.items()}
    names = (*event, b"content-type", b"content-encoding", b"inference-header-content-length")
    with transformer_log(caplog):
        async with connected_transformer(predictor, trained_bundle, "v2") as transformer:
            for path, body in ((V1_PREDICT, {"instances": [SAMPLE]}), (V2_INFER, v2_objects([SAMPLE]))):
                for name in names:
                    headers = [(b"content-type", b"application/json"), *event.items()]
                    headers = [*((one, text) for one, text in headers if one != name), (name, value)]
                    http = transformer.without_sockets
                    answer = await http.post(path, content=json.dumps(body), headers=headers)
                    assert answer.status_code in {200, 400, 415}, answer.text
                    if answer.status_code != 200:
                        check_echo(answer.json()["error"], odd)
    assert odd[:20] not in caplog.text
