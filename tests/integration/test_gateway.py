"""The commands reach a service behind a gateway: TLS of a private authority, a Host header, a base path."""

import argparse
import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer

from inferenceservice.cluster.prediction import post, read_scores
from inferenceservice.gateway import Gateway, GatewayError
from inferenceservice.rollout_target import TargetError
from placement import cli
from placement.client import ClientError, connect
from placement.v2_grpc import messages as pb
from placement.v2_grpc import services
from tests.support.certificate_authority import Authority
from training.candidates import SAMPLE

NAME = "placement.example.com"
HEADERS = (("Host", NAME), ("authorization", "Bearer key"))
BASE = "/tenants/a"


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("gateway") / "own")


def gateway_application(seen):
    """Return a service that answers below a base path to its own name and key only."""

    async def answer(request):
        if (request.host, request.headers.get("authorization")) != (NAME, "Bearer key"):
            return web.json_response({"error": "no route"}, status=404)
        seen.append(request.path)
        paths = {
            "/v1/models": {"models": ["churn"]},
            "/v2/models/churn": {"inputs": [{"name": "ssc_p", "datatype": "FP64"}], "versions": ["v1", "v2"]},
            "/v2/models/churn/ready": {"ready": True},
            "/v1/models/churn:predict": {"predictions": [{"churn": True, "churn_probability": 0.5}]},
            "/v1/models/churn:explain": {
                "explanations": [
                    {
                        "churn": True,
                        "churn_probability": 0.5,
                        "baseline": 0.4,
                        "exact": True,
                        "contributions": {"ssc_p": 0.1},
                    }
                ]
            },
        }
        content = paths[request.path.removeprefix(BASE)]
        return web.json_response(content, headers={"x-model-version": "v1"})

    application = web.Application()
    application.router.add_route("*", BASE + "/{path:.*}", answer)
    return application


@pytest_asyncio.fixture
async def gateway(authority) -> AsyncIterator[tuple[str, list[str]]]:
    seen: list[str] = []
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.certificate(NAME))
    server = TestServer(gateway_application(seen), scheme="https")
    await server.start_server(ssl=context)
    try:
        yield f"https://127.0.0.1:{server.port}{BASE}/", seen
    finally:
        await server.close()


async def run(*arguments: object) -> int:
    return await asyncio.to_thread(cli.main, [str(one) for one in arguments])


async def test_predict_explain_and_status_go_through_a_gateway(gateway, authority, tmp_path, capsys):
    url, seen = gateway
    options = ["--url", url, "--ca-file", authority.file]
    for name, value in HEADERS:
        options += ["--header", f"{name}: {value}"]
    file = tmp_path / "a.json"
    file.write_text(json.dumps(SAMPLE))
    assert await run("predict", file, "--json", *options) == 0
    answer = {"churn": True, "churn_probability": 0.5, "model_version": "v1"}
    assert json.loads(capsys.readouterr().out) == [answer]
    assert await run("explain", file, "--json", *options) == 0
    assert json.loads(capsys.readouterr().out)[0]["contributions"] == {"ssc_p": 0.1}
    assert await run("status", "--json", *options) == 0
    models = [{"name": "churn", "ready": True, "versions": ["v1", "v2"]}]
    assert json.loads(capsys.readouterr().out) == {"url": url, "models": models}
    assert await run("status", *options) == 0
    assert capsys.readouterr().out == "model        churn, ready\nversions     v1, v2\n"
    assert set(seen) >= {f"{BASE}/v1/models/churn:predict", f"{BASE}/v1/models/churn:explain"}


async def test_a_rollouts_predictions_go_through_a_gateway(gateway, authority):
    url, _ = gateway
    path = f"{url.rstrip('/')}/v1/models/churn:predict"
    response = await post(path, {"instances": [SAMPLE]}, Gateway(HEADERS, authority.file))
    assert read_scores(response, "churn").answers == (0.5,)
    with pytest.raises(TargetError, match="does not answer: "):
        await post(path, {"instances": [SAMPLE]}, Gateway(HEADERS))


async def test_a_certificate_of_another_authority_is_an_error_that_says_so(gateway, authority, tmp_path):
    url, seen = gateway
    other = Authority(tmp_path / "other")
    for one in (Gateway(HEADERS), Gateway(HEADERS, other.file), Gateway((), authority.file)):
        client = connect(url, None, "v1", one)
        try:
            with pytest.raises(ClientError, match=r"the certificate is not trusted: .*; set --ca-file, or"):
                await client.fields()
        finally:
            await client.close()
    assert seen == []


@pytest.mark.parametrize(
    ("content", "problem"), [(b"no", "must have certificates in PEM"), (None, "No such file")]
)
async def test_a_file_without_certificates_is_an_error(content, problem, tmp_path):
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    for url, protocol in (("https://127.0.0.1:1", "v1"), ("127.0.0.1:1", "grpc")):
        with pytest.raises(GatewayError, match=f"--ca-file {file}: {problem}"):
            connect(url, None, protocol, Gateway((), file))


class _Service(services.GRPCInferenceServiceServicer):  # type: ignore[misc]
    async def ModelMetadata(self, _, context):  # noqa: N802
        metadata = dict(context.invocation_metadata())
        assert metadata["authorization"] == "Bearer key"
        answer = pb.ModelMetadataResponse(name="placement")
        answer.inputs.add(name="ssc_p", datatype="FP64")
        return answer


async def test_grpc_goes_through_a_gateway(authority):
    certificate, key = map(Path.read_bytes, authority.certificate(NAME))
    server = grpc.aio.server()
    services.add_GRPCInferenceServiceServicer_to_server(_Service(), server)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
    await server.start()
    client = connect(f"127.0.0.1:{port}", "placement", "grpc", Gateway(HEADERS, authority.file))
    try:
        assert await client.fields() == {"ssc_p": "FP64"}
    finally:
        await client.close()
        await server.stop(0)


async def test_a_port_without_tls_is_told_apart_from_one_that_does_not_answer():
    async with TestServer(gateway_application([])) as server:
        client = connect(str(server.make_url("")).replace("http:", "https:"), "churn", "v1", Gateway())
        try:
            with pytest.raises(ClientError, match="cannot connect over TLS; if it has no TLS, write http://"):
                await client.fields()
        finally:
            await client.close()


def test_a_header_is_a_name_and_a_value(capsys):
    parser = argparse.ArgumentParser()
    Gateway.add_arguments(parser)
    given = ["--header", "Host: a.example:80", "--header", "x-key:", "--header", "a:b:c"]
    parsed = Gateway.of(parser.parse_args(given))
    assert parsed.headers == (("Host", "a.example:80"), ("x-key", ""), ("a", "b:c"))
    assert parsed.server_hostname == "a.example"
    for text in ("Host", "a b: c", "a: b\nc: d", ": c"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--header", text])
        assert "must be NAME:VALUE on one line, got" in capsys.readouterr().err
