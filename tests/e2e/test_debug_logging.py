"""With every logger at its lowest level, the log has no candidate's value and no credentials."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as services

from inferenceservice.local.launch import TransformerProcess
from tests.support.async_processes import addresses, wait_until_healthy
from tests.support.endpoints import V1_PREDICT, V2_INFER
from tests.support.faulty_predictor import FaultyGrpcPredictor, FaultyHttpPredictor, FaultyPredictor
from tests.support.inference_service import SPEC, with_arguments
from tests.support.marked_candidates import (
    CANDIDATES,
    FAULTS,
    ask_malformed,
    ask_over_every_protocol,
    traces_in,
)
from tests.support.raw_http import post_request, raw_connection
from tests.support.request_bodies import grpc_objects, v2_objects

#: Credentials that occur nowhere else.
SECRET = "Trillian42"
BEARER = f"Bearer {SECRET}"
LOGGERS = (
    "asyncio", "concurrent", "fastapi", "grpc", "httpx", "kserve", "kserve.trace", "kserve.transformer",
    "uvicorn", "uvicorn.access", "uvicorn.asgi", "uvicorn.error",
)  # fmt: skip
LOG_EVERYTHING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"all": {"format": "%(name)s %(levelname)s %(message)s %(pathname)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "all"}},
    "loggers": {name: {"level": 1, "propagate": True} for name in LOGGERS},
    "root": {"level": 1, "handlers": ["console"]},
}
#: asyncio's debug mode logs slow callbacks with their arguments. gRPC's core writes to the same output.
DEBUG = {"PYTHONASYNCIODEBUG": "1", "GRPC_VERBOSITY": "debug"}


async def ask_with_credentials(http: httpx.AsyncClient, stub: services.GRPCInferenceServiceStub) -> None:
    """Send good and bad candidates with credentials over every protocol."""
    for candidate in CANDIDATES.values():
        for path, body in ((V1_PREDICT, {"instances": [candidate]}), (V2_INFER, v2_objects([candidate]))):
            for content_type in ("application/json", "application/json; charset=utf-8"):
                headers = {"authorization": BEARER, "content-type": content_type}
                await http.post(path, content=json.dumps(body), headers=headers)
        await stub.ModelInfer(grpc_objects([candidate]), metadata=(("authorization", BEARER),)).code()


async def attack(port: int) -> None:
    """Send what is refused, and what ends in the middle, with values and credentials in it."""
    body = json.dumps({"instances": [CANDIDATES["fine"]]}).encode()
    request = post_request(body, f"authorization: {BEARER}")
    attacks = [
        request[:-5],
        request[: request.index(b"content-type")],
        request.replace(b"host: a", b"most: a"),
        request.replace(b"host: a", b"host: a\r\nhost: " + BEARER.encode()),
        request.replace(b"content-length", b"transfer-encoding: gzip, chunked\r\nx"),
        request.replace(b"content-length", b"transfer-encoding: chunked\r\nx"),
        request.replace(b" HTTP/1.1", b" HTTP/2.0"),
        request.replace(b"\r\nauthorization", b"\r\n authorization"),
        request * 3 + request[:-5],
        post_request(body, f"authorization: {BEARER}", f"authorization: {BEARER}x"),
        post_request(body, f"authorization: {BEARER} \xe9"),
    ]
    for sent in attacks:
        async with raw_connection(port) as client:
            client.send(sent)
            await asyncio.sleep(0.05)


async def written_by(
    bundle: Path, predictor: FaultyPredictor, directory: Path, faults: Mapping[str, Any], *arguments: str
) -> str:
    """Return everything that a transformer process writes while it is asked and attacked."""
    configuration, log = directory / "log.json", directory / "transformer.log"
    configuration.write_text(json.dumps(LOG_EVERYTHING))
    port = int(predictor.address.rpartition(":")[2])
    service = with_arguments(
        f"--log_config_file={configuration}",
        "--predictor_request_timeout_seconds=1",
        *arguments,
        transformer_env={**SPEC.transformer_env, **DEBUG},
    )
    process = await asyncio.to_thread(TransformerProcess, service, bundle, (port, port), log)
    try:
        await wait_until_healthy(process, process.http_port, "ready")
        url, grpc_address = addresses(process)
        async with (
            httpx.AsyncClient(base_url=url, timeout=60) as http,
            grpc.aio.insecure_channel(grpc_address) as channel,
        ):
            await asyncio.wait_for(channel.channel_ready(), 30)
            stub = services.GRPCInferenceServiceStub(channel)
            for predictor.always in faults.values():
                await ask_over_every_protocol(http, stub)
                await ask_with_credentials(http, stub)
                await attack(process.http_port)
            predictor.always = None
            await ask_malformed(http)
            metrics = (await http.get("/metrics")).text
    finally:
        predictor.always = None
        await asyncio.to_thread(process.stop)
    return log.read_text() + metrics


def check(written: str) -> None:
    assert traces_in(written) == []
    assert SECRET not in written


@pytest.mark.parametrize("hop", ["v1", "v2"])
@pytest.mark.parametrize("workers", [1, 2])
async def test_no_value_and_no_credentials_are_logged_at_any_level(
    workers, hop, trained_bundle, predictor: FaultyHttpPredictor, tmp_path
):
    arguments = (f"--workers={workers}", f"--predictor_protocol={hop}")
    written = await written_by(trained_bundle, predictor, tmp_path, FAULTS, *arguments)
    for logger in ("uvicorn.asgi ", "uvicorn.access INFO", "kserve INFO", "kserve.transformer WARNING"):
        assert logger in written
    check(written)


async def test_no_value_and_no_credentials_are_logged_over_grpc_to_the_predictor(
    trained_bundle, sklearn_reference, tmp_path
):
    predictor = FaultyGrpcPredictor(sklearn_reference)
    await predictor.start()
    try:
        written = await written_by(
            trained_bundle, predictor, tmp_path, {"fine": None}, "--predictor_protocol=grpc-v2"
        )
    finally:
        await predictor.stop()
    assert "kserve.transformer " in written
    check(written)
