"""The log says why a predictor cannot be verified, in its own words but without values of candidates."""

import asyncio

import pytest
from aiohttp import web

from tests.support.connected_transformer import (
    transformer_log,
)
from tests.support.faulty_predictor import (
    FaultyHttpPredictor,
    aborts,
    has_status,
)
from tests.support.in_process_transformer import in_process_transformer
from tests.support.request_outcomes import INVALID_RESPONSE, UNAVAILABLE, check_statuses
from tests.support.sklearn_reference import SklearnReference
from tests.support.waiting import wait_until
from transformer.batching import pool
from transformer.upstream.messages import MAX_DETAIL


async def says_no_and_closes(request: web.Request) -> web.StreamResponse:
    response = web.Response(status=400, text="no such output")
    response.force_close()
    return response


async def talks_nonsense(request: web.Request) -> web.StreamResponse:
    assert isinstance(request.transport, asyncio.Transport)
    request.transport.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    return web.Response()


UNVERIFIED = [
    pytest.param(
        has_status(400, text="no such output: \x1b[31m\r\n" + "odds" * 100),
        r"the predictor answered with status 400: no such output: \x1b[31m\r\noddsodds",
        id="escaped and cut",
    ),
    pytest.param(
        has_status(403, text="RBAC: access denied"),
        "the predictor answered with status 403: RBAC: access denied",
        id="a mesh",
    ),
    pytest.param(
        has_status(503, text="no healthy upstream"),
        "the predictor is not ready: it answered with status 503: no healthy upstream",
        id="not ready",
    ),
    pytest.param(
        says_no_and_closes,
        "the predictor answered with status 400: no such output; then the predictor closed the connection",
        id="says why, and closes",
    ),
    pytest.param(
        talks_nonsense,
        "invalid response from the predictor: not HTTP; then the predictor closed the connection",
        id="not HTTP",
    ),
    pytest.param(has_status(204), "the predictor answered with status 204", id="nothing said"),
]


@pytest.mark.parametrize(("fault", "message"), UNVERIFIED)
async def test_the_log_says_once_and_in_the_predictors_words_why_it_cannot_be_verified(
    fault, message, pair, caplog, monkeypatch
):
    """The bundle has an earlier version, which is tried next."""
    monkeypatch.setattr(pool, "GRACE_S", 0.2)
    predictor = FaultyHttpPredictor(SklearnReference(pair.new))
    predictor.unverified = predictor.always = fault
    await predictor.start()
    try:
        with transformer_log(caplog):
            options = (predictor.address, "--predictor_protocol=v2")
            async with in_process_transformer(pair.new, *options, ready=False) as transformer:
                await check_statuses(transformer, UNAVAILABLE)
                # Every connection tries several times.
                await wait_until(lambda: len(predictor.calls) > 10)
    finally:
        await predictor.stop()
    about = f"predictor {predictor.address}: "
    (line,) = {one.getMessage() for one in caplog.records if one.getMessage().startswith(about)}
    assert line.startswith(about + message)
    assert line == about + message or len(line.partition("400: ")[2]) <= MAX_DETAIL


async def test_the_log_says_why_a_grpc_predictor_cannot_be_verified(
    trained_bundle, grpc_predictor, caplog, monkeypatch
):
    monkeypatch.setattr(pool, "GRACE_S", 0.2)
    grpc_predictor.unverified = aborts("INVALID_ARGUMENT", "no such output")
    with transformer_log(caplog):
        options = (grpc_predictor.address, "--predictor_protocol=grpc-v2")
        async with in_process_transformer(trained_bundle, *options, ready=False) as transformer:
            await check_statuses(transformer, UNAVAILABLE)
    message = "the predictor answered with INVALID_ARGUMENT: no such output"
    assert f"predictor {grpc_predictor.address}: {message}" in [one.getMessage() for one in caplog.records]


async def test_the_log_does_not_repeat_what_the_predictor_says_about_a_candidate(
    transformer, predictor, caplog
):
    predictor.always = has_status(400, text="bad: 67.8901")
    with transformer_log(caplog):
        await check_statuses(transformer, INVALID_RESPONSE)
    assert "the predictor answered with status 400" in caplog.text
    assert "67.89" not in caplog.text
