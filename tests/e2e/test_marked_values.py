"""Candidates' values reach the predictor and, short and escaped, their own caller; and nothing else."""

import asyncio
import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from aiohttp import web
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as services

from inferenceservice.local.launch import TransformerProcess
from predictor.process import free_ports
from tests.support.connected_transformer import connected_transformer, transformer_log
from tests.support.endpoints import V1_PREDICT, V2_INFER
from tests.support.faulty_predictor import REFUSED_NAMES, FaultyHttpPredictor, hangs_up, status
from tests.support.inference_service import with_arguments
from tests.support.request_bodies import grpc_objects, v2_objects
from tests.support.waiting import wait_until
from training.candidates import SAMPLE

PLACEMENT = Path(sys.executable).with_name("placement")
TIMEOUT_S = 120
JSON = {"content-type": "application/json"}


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


PATHS = [
    V1_PREDICT,
    V2_INFER,
    "/v1/models/placement:explain",
    "/v1/models/other:predict",
    f"{V2_INFER[:-6]}/versions/1/infer",
]
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
        response = await http.post(V1_PREDICT, json={"instances": [candidate]})
        ended.append(str(response.status_code))
        response = await http.post(V2_INFER, json=v2_objects([candidate]))
        ended.append(str(response.status_code))
        ended.append((await stub.ModelInfer(grpc_objects([candidate])).code()).name)
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


@pytest.mark.parametrize("hop", ["v1", "v2"])
@pytest.mark.parametrize("fault", LOGGED.values(), ids=LOGGED)
async def test_no_value_of_a_candidate_is_logged(fault, hop, trained_bundle, predictor, caplog, capfd):
    async with connected_transformer(predictor, trained_bundle, hop) as transformer:
        predictor.always = fault
        with transformer_log(caplog):
            ended = await ask_in_every_way(transformer.http, transformer.grpc)
            if not fault:
                assert await ask_oddly(transformer.http) == {400, 404, 501}
        metrics = (await transformer.http.get("/metrics")).text
    assert {"400", "INVALID_ARGUMENT"} <= set(ended)
    written = caplog.text + "".join(capfd.readouterr())
    if fault:
        assert "predictor" in written, "failures are logged, without the values"
    assert 'transformer_requests_total{version="v1"}' in metrics
    assert traces_in(written + metrics) == []


def traces_in(text: str) -> list[str]:
    return [trace for trace in TRACES if trace in text]


async def test_no_value_of_a_candidate_is_in_the_output_of_the_process(
    trained_bundle: Path, predictor: FaultyHttpPredictor, tmp_path: Path
):
    log = tmp_path / "transformer.log"
    port = int(predictor.address.rpartition(":")[2])
    hurried = with_arguments("--predictor_request_timeout_seconds=1")
    process = await asyncio.to_thread(TransformerProcess, hurried, trained_bundle, (port, port), log)
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
            metrics = (await http.get("/metrics")).text
    finally:
        await channel.close()
        await asyncio.to_thread(process.stop)
    output = log.read_text()
    assert "the predictor is not ready" in output, "failures are logged, without the values"
    assert traces_in(output + metrics) == []


@contextlib.contextmanager
def local_service(bundle: Path, run: Path, temporary: Path) -> Iterator[tuple[str, str]]:
    """`placement up`: its URL and its gRPC address; all that it says goes to the run directory."""
    port, grpc_port = free_ports(2)
    ports = ("--port", str(port), "--grpc-port", str(grpc_port))
    run.mkdir()
    with (run / "said").open("wb") as said:
        process = subprocess.Popen(
            [PLACEMENT, "up", "--model", bundle, "--run", run, *ports],
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
    assert process.stdout is not None
    watchdog = threading.Timer(TIMEOUT_S, process.kill)
    watchdog.start()
    try:
        while not (line := process.stdout.readline()).startswith("ready"):
            assert line, (run / "said").read_text()
        yield f"http://127.0.0.1:{port}", f"127.0.0.1:{grpc_port}"
    finally:
        process.terminate()
        (run / "told").write_text(process.communicate()[0])
        watchdog.cancel()


def written_below(*directories: Path) -> dict[Path, str]:
    """Every file and what is in it."""
    files = [path for directory in directories for path in directory.rglob("*") if path.is_file()]
    return {path: path.read_bytes().decode("latin-1") for path in files}


async def test_no_value_of_a_candidate_is_in_anything_that_the_local_service_writes(trained_bundle, tmp_path):
    """Transformer, stock predictor, ingress and control endpoint: logs, metrics and temporary files."""
    run, temporary = tmp_path / "run", tmp_path / "temporary"
    temporary.mkdir()
    with local_service(trained_bundle, run, temporary) as (url, grpc_address):
        await wait_until((run / "control.json").exists)
        control = json.loads((run / "control.json").read_text())
        async with (
            httpx.AsyncClient(base_url=url, timeout=60) as http,
            grpc.aio.insecure_channel(grpc_address) as channel,
        ):
            ended = await ask_in_every_way(http, services.GRPCInferenceServiceStub(channel))
            assert {"200", "400", "OK", "INVALID_ARGUMENT"} == set(ended)
            assert await ask_oddly(http) == {400, 404, 501}
            token = {"authorization": f"Bearer {control['token']}"}
            for work, given in (
                ("score", {"candidates": [CANDIDATES["fine"]], "name": "placement"}),
                ("metrics", {}),
            ):
                answer = await http.post(f"http://{control['address']}/{work}", json=given, headers=token)
                assert '"result"' in answer.text
            metrics = answer.text + (await http.get("/metrics")).text
            to_predictor = {"host": "placement-predictor-default.example.com"}
            metrics += (await http.get("/metrics", headers=to_predictor)).text
        written = written_below(run, temporary)
    written |= written_below(run, temporary)
    names = " ".join(path.name for path in written)
    assert all(name in names for name in ("transformer-v1-", "predictor-v1-", "said", "told", "bundle.json"))
    assert {path: found for path, text in written.items() if (found := traces_in(text))} == {}
    assert traces_in(metrics) == []


# What callers are told


async def repeats_what_it_got(request: web.Request) -> web.Response:
    """As a server does that puts its input into its errors."""
    return web.Response(status=500, text=json.dumps({"error": f"KeyError: {await request.text()}"}))


@pytest.mark.parametrize("hop", ["v1", "v2", "v2 by request"])
async def test_callers_who_share_a_failing_call_are_not_told_each_others_values(
    hop, trained_bundle, predictor
):
    marks = [40 + (2 * number + 1) / 512 for number in range(60)]
    predictor.always = repeats_what_it_got
    async with connected_transformer(predictor, trained_bundle, hop) as front:
        calls = [front.grpc.ModelInfer(grpc_objects([{**SAMPLE, "ssc_p": mark}])) for mark in marks[1::2]]
        rest = [
            front.http.post(V1_PREDICT, json={"instances": [{**SAMPLE, "ssc_p": mark}]})
            for mark in marks[::2]
        ]
        told = [answer.text for answer in await asyncio.gather(*rest)]
        told += [await call.details() for call in calls]
    assert max(len(rows) for rows, _ in predictor.carried) > 1, "they shared calls"
    assert all("predictor" in text for text in told)
    assert [mark for mark in marks if any(str(mark) in text for text in told)] == []


#: Values and names that a terminal, a log or a browser would take for more than text, and long ones.
ODD = {
    "a terminal's escape": "\x1b[31mred\x1b]0;title\x07",
    "another line": "no\r\n2026-01-01 kserve ERROR forged",
    "a null": "a\x00b",
    "right to left": "\u202eabc\u2066",
    "markup": "<script>alert(1)</script>",
    "half a pair": "\udce9",
    "long": "long" * 250_000,
}
#: Longest error for an odd value, with all twelve fields missing beside it; longest part of that value.
LONGEST, ECHO = 1000, 80


def check_echo(told: str, odd: str) -> None:
    assert len(told) <= LONGEST
    assert told.isprintable(), ascii(told)
    assert odd[: ECHO + 1] not in told or len(odd) <= ECHO


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
async def test_an_error_repeats_a_short_and_escaped_part_of_the_callers_own_value(
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
        async with connected_transformer(predictor, trained_bundle, "v2") as front:
            for path, some in bodies.items():
                for body in some:
                    answer = await front.http.post(path, content=json.dumps(body), headers=JSON)
                    assert answer.status_code == 400, answer.text
                    check_echo(answer.json()["error"], odd)
            for request in messages:
                call = front.grpc.ModelInfer(request)
                assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
                check_echo(await call.details(), odd)
    assert odd[:20] not in caplog.text


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
async def test_a_model_or_a_path_that_is_not_there_is_told_short_and_escaped(
    odd, trained_bundle, predictor, caplog
):
    quoted = "".join(f"%{byte:02x}" for byte in odd[:10_000].encode("utf-8", "surrogatepass"))
    paths = [f"/v1/models/{quoted}:predict", f"/v2/models/{quoted}/infer", f"/v2/models/placement/{quoted}"]
    with transformer_log(caplog):
        async with connected_transformer(predictor, trained_bundle, "v2") as front:
            for path in paths:
                answer = await front.http.post(path, json={"instances": [SAMPLE]})
                assert answer.status_code == 404, answer.text
                check_echo(answer.json()["error"], odd)
            with contextlib.suppress(UnicodeEncodeError):
                call = front.grpc.ModelInfer(pb.ModelInferRequest(model_name=odd))
                assert await call.code() is grpc.StatusCode.NOT_FOUND
                check_echo(await call.details(), odd)
                call = front.grpc.ModelReady(pb.ModelReadyRequest(name=odd))
                assert await call.code() is grpc.StatusCode.NOT_FOUND
                check_echo(await call.details(), odd)
    assert odd[:20] not in caplog.text


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
async def test_a_header_is_told_short_and_escaped(odd, trained_bundle, predictor, caplog):
    value = odd[:50_000].encode("utf-8", "surrogatepass")
    event = {name.encode(): text.encode() for name, text in EVENT.items()}
    names = (*event, b"content-type", b"content-encoding", b"inference-header-content-length")
    with transformer_log(caplog):
        async with connected_transformer(predictor, trained_bundle, "v2") as front:
            for path, body in ((V1_PREDICT, {"instances": [SAMPLE]}), (V2_INFER, v2_objects([SAMPLE]))):
                for name in names:
                    headers = [(b"content-type", b"application/json"), *event.items()]
                    headers = [*((one, text) for one, text in headers if one != name), (name, value)]
                    answer = await front.http.post(path, content=json.dumps(body), headers=headers)
                    assert answer.status_code in {200, 400, 415}, answer.text
                    if answer.status_code != 200:
                        check_echo(answer.json()["error"], odd)
    assert odd[:20] not in caplog.text
