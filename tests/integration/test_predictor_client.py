"""The predictor's client reports errors of HTTP connections, and never resends a call by itself."""

import asyncio

import pytest

from tests.support.raw_http_server import ANSWER_V2, OK, SCORES_V2, call, raw_http_server, rest_client, sends
from transformer.errors import InvalidPredictorResponse, PredictorUnavailable
from transformer.upstream.client import PredictorAddress, Reconnected, connect


async def test_a_client_connects_at_its_first_call_and_never_reconnects():
    async with raw_http_server(ANSWER_V2) as server:
        client = rest_client(f"127.0.0.1:{server.port}")
        await asyncio.sleep(0.01)
        assert server.connections == 0
        await client.ping()
        assert [await call(client) for _ in range(3)] == [SCORES_V2] * 3
        server.hang_up()
        await asyncio.wait_for(server.left.wait(), 10)
        for _ in range(2):
            with pytest.raises(Reconnected):
                await call(client)
        with pytest.raises(Reconnected):
            await client.ping()
        await client.close()
    assert server.connections == 1
    assert server.requests[0].startswith(b"GET /v2/health/live HTTP/1.1\r\n")
    assert server.requests[1].startswith(b"POST /v2/models/placement/infer HTTP/1.1\r\n")


async def test_a_client_that_may_reconnect_does():
    async with raw_http_server(ANSWER_V2) as server:
        client = rest_client(f"127.0.0.1:{server.port}", reconnects=True)
        for number in range(1, 4):
            assert await call(client) == SCORES_V2
            assert server.connections == number
            server.left.clear()
            server.hang_up()
            await asyncio.wait_for(server.left.wait(), 10)
        await client.close()


@pytest.mark.parametrize("reconnects", [False, True])
async def test_a_call_that_breaks_off_is_not_resent(reconnects):
    async with raw_http_server(sends(ANSWER_V2[:-1], hangs_up=True)) as server:
        client = rest_client(f"127.0.0.1:{server.port}", reconnects=reconnects)
        with pytest.raises(PredictorUnavailable, match=r"127\.0\.0\.1:\d+ cannot be reached") as raised:
            await call(client)
        assert not isinstance(raised.value, Reconnected)
        await client.close()
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("answer", "error_text"),
    [
        (b"garbage", "invalid response from the predictor: not HTTP"),
        (
            OK + b"content-encoding: gzip\r\n\r\n",
            "invalid response from the predictor: an encoding",
        ),
        (b"HTTP/1.1 307 X\r\nlocation: /\r\ncontent-length: 0\r\n\r\n", "answered with status 307"),
    ],
)
async def test_an_invalid_response_is_reported_as_the_predictors(answer, error_text):
    async with raw_http_server(answer) as server:
        client = rest_client(f"127.0.0.1:{server.port}")
        with pytest.raises(InvalidPredictorResponse, match=error_text):
            await call(client)
        await client.close()


async def test_a_request_with_invalid_headers_fails_and_the_next_one_succeeds():
    async with raw_http_server(ANSWER_V2) as server:
        client = rest_client(f"127.0.0.1:{server.port}")
        with pytest.raises(InvalidPredictorResponse, match="'x-request-id' has invalid characters"):
            await call(client, {"x-request-id": "1\r\nx-admin: 1"})
        assert await call(client, {"x-request-id": "1"}) == SCORES_V2
        await client.close()
    assert len(server.requests) == server.connections == 1


async def test_the_models_name_is_quoted_in_the_path():
    async with raw_http_server(ANSWER_V2) as server:
        client = rest_client(f"127.0.0.1:{server.port}", name="a b?c\r\nd")
        assert await call(client) == SCORES_V2
        await client.close()
    assert server.requests[0].startswith(b"POST /v2/models/a%20b%3Fc%0D%0Ad/infer HTTP/1.1\r\n")


async def test_a_predictor_may_have_an_ipv6_address():
    try:
        async with raw_http_server(ANSWER_V2, host="::1") as server:
            client = rest_client(f"[::1]:{server.port}")
            assert await call(client) == SCORES_V2
            await client.close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    assert f"host: [::1]:{server.port}\r\n".encode() in server.requests[0]


@pytest.mark.parametrize("host", ["", ":8080", "predictor:http", "predictor:99999"])
def test_an_invalid_address_is_refused(host):
    with pytest.raises(ValueError, match=r"(?i)port"):
        rest_client(host)


def test_a_grpc_client_cannot_promise_never_to_reconnect():
    with pytest.raises(ValueError, match="every call must be verified"):
        connect(PredictorAddress("127.0.0.1:1", "grpc-v2", "placement", "predict_proba"), reconnects=False)
