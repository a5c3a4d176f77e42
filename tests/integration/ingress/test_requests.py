"""The local ingress chooses the component by host, and forwards requests unchanged."""

import asyncio
import contextlib
import json
import re

import aiohttp
import pytest
from aiohttp import web

from inferenceservice.local.forwarder import Backend
from tests.support.endpoints import V1_PREDICT
from tests.support.running_ingress import PREDICTOR, SERVICE, backend, in_time, raw_backend, says, send_raw

# Where requests go


@pytest.mark.parametrize(
    ("host", "component"),
    [
        (SERVICE, "transformer"),
        (f"{SERVICE}:8080", "transformer"),
        (SERVICE.upper(), "transformer"),
        ("placement-transformer-default.example.com", "transformer"),
        (PREDICTOR, "predictor"),
        ("localhost", "transformer"),
        ("localhost:8080", "transformer"),
        ("127.0.0.1", "transformer"),
        ("127.0.0.1:8080", "transformer"),
        ("[::1]:8080", "transformer"),
    ],
)
async def test_the_host_header_chooses_the_component(host, component, running, client):
    async with backend(says("transformer")) as transformer, backend(says("predictor")) as predictor:
        running.backends.transformer, running.backends.predictor = transformer, predictor
        async with client.get(running.url, headers={"host": host}) as response:
            assert (response.status, await response.text()) == (200, component)


@pytest.mark.parametrize(
    "host", ["example.com", "salary-default.example.com", "placement-default.example.org", "127.0.0.2"]
)
async def test_an_unknown_host_is_not_found(host, running, client):
    async with backend(says("transformer")) as running.backends.transformer:
        for body in (None, b"x" * 10**6):
            async with client.post(running.url, headers={"host": host}, data=body) as response:
                assert response.status == 404
                assert response.content_type == "application/json"
                assert await response.json() == {"error": f"no InferenceService has the host '{host}'"}


async def test_a_request_for_one_version_goes_to_the_transformer_that_has_it(running, client):
    async with backend(says("stable")) as stable, backend(says("canary")) as canary:
        running.backends.transformer = stable
        running.ingress.transformer_by_version = {"v1": [Backend(stable)], "v2": [Backend(canary)]}
        for path, expected in {
            "/v2/models/placement/versions/v2/infer": "canary",
            "/v2/models/placement/versions/v2?x=1": "canary",
            "/v2/models/placement/versions/v1/ready": "stable",
            "/v2/models/placement/versions/v9": "stable",
            "/v2/models/placement/infer": "stable",
        }.items():
            async with client.post(running.url + path) as response:
                assert await response.text() == expected, path


async def test_new_requests_follow_a_changed_backend(running, client):
    async with backend(says("old")) as old, backend(says("new")) as new:
        for running.backends.transformer, expected in ((old, "old"), (new, "new"), (old, "old")):
            async with client.get(running.url) as response:
                assert await response.text() == expected


# What reaches the backend


async def echo_request(request: web.Request) -> web.Response:
    """Respond with the request as the backend receives it."""
    body = await request.read()
    return web.json_response(
        {
            "method": request.method,
            "path": request.raw_path,
            "headers": [(name.lower(), value) for name, value in request.headers.items()],
            "body": body.decode(),
        }
    )


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_method_and_body_reach_the_backend(method, running, client):
    async with backend(echo_request) as running.backends.transformer:
        body = b"" if method == "GET" else b"a body"
        async with client.request(method, running.url, data=body or None) as response:
            request = await response.json()
    assert (request["method"], request["body"]) == (method, body.decode())


@pytest.mark.parametrize(
    "target",
    [
        "/",
        V1_PREDICT,
        "/a%2Fb%20c/%C3%A9?x=%26%3D&y=1+2&x=%2B",
        "//double//slashes",
        "/a/../b/./c",
        "/semi;colon,comma",
        "/?",
        "/?only=query",
        "/%7Etilde/~tilde",
    ],
)
async def test_the_path_reaches_the_backend_unchanged(target, running):
    async with backend(echo_request) as running.backends.transformer:
        answer = await send_raw(
            running, f"GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        )
    assert json.loads(answer.partition("\r\n\r\n")[2])["path"] == target


@pytest.mark.parametrize("target", ["http://127.0.0.1:1/", "@127.0.0.1:1/", ":1/", "*"])
async def test_no_request_line_reaches_another_host(target, running):
    async with backend(echo_request) as running.backends.transformer:
        answer = await send_raw(running, f"OPTIONS {target} HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert answer.startswith("HTTP/1.1 400 ")


async def test_only_end_to_end_headers_reach_the_backend(running):
    request = (
        "POST /x HTTP/1.1\r\nHost: localhost:8080\r\nContent-Length: 2\r\nContent-Type: application/json\r\n"
        "Authorization: Bearer x\r\nX-Request-Id: 7\r\nX-Twice: a\r\nX-Twice: b\r\nX-Empty:\r\n"
        "Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\n"
        "Proxy-Authorization: Basic x\r\nProxy-Connection: close\r\nUpgrade: h2c\r\n\r\n{}"
    )
    async with backend(echo_request) as running.backends.transformer:
        answer = await send_raw(running, request)
    assert sorted(json.loads(answer.partition("\r\n\r\n")[2])["headers"]) == [
        ["authorization", "Bearer x"],
        # Added by the ingress: it opens one connection to a backend per request.
        ["connection", "close"],
        ["content-length", "2"],
        ["content-type", "application/json"],
        ["host", "localhost:8080"],
        ["x-empty", ""],
        ["x-request-id", "7"],
        ["x-twice", "a"],
        ["x-twice", "b"],
    ]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "GET"])
async def test_a_chunked_body_stays_chunked(method, running, client):
    async def chunks():
        yield b"one "
        yield b"two"

    async with (
        backend(echo_request) as running.backends.transformer,
        client.request(method, running.url, data=chunks()) as response,
    ):
        request = await response.json()
    assert request["body"] == "one two"
    assert request["headers"].count(["transfer-encoding", "chunked"]) == 1


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "GET", "HEAD"])
async def test_a_request_without_a_body_has_no_content_length(method, running):
    received: list[str] = []

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append((await reader.readuntil(b"\r\n\r\n")).decode().lower())
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        received.append((await reader.read()).decode())

    async with raw_backend(conversation) as running.backends.transformer:
        await send_raw(running, f"{method} /x HTTP/1.1\r\nhost: localhost\r\n\r\n")
    head, rest = received
    assert rest == ""
    assert "transfer-encoding" not in head
    assert re.findall("content-length: (.*)\r", head) in ([], ["0"])


async def test_a_connection_option_cannot_remove_the_length_of_the_body(running):
    request = (
        "POST /x HTTP/1.1\r\nHost: localhost\r\nConnection: close, Content-Length\r\n"
        "Content-Length: 2\r\n\r\n{}"
    )
    async with backend(echo_request) as running.backends.transformer:
        answer = await send_raw(running, request)
    assert json.loads(answer.partition("\r\n\r\n")[2])["body"] == "{}"


async def test_a_repeated_content_length_is_sent_once(running):
    request = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}"
    async with backend(echo_request) as running.backends.transformer:
        answer = await send_raw(running, request)
    assert json.loads(answer.partition("\r\n\r\n")[2])["body"] == "{}"


async def test_bytes_of_a_path_that_are_not_ascii_are_escaped(running):
    async with backend(echo_request) as running.backends.transformer:
        answer = await send_raw(
            running, "GET /\u00e9?\u00e9=%C3 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        )
    assert json.loads(answer.partition("\r\n\r\n")[2])["path"] == "/%C3%A9?%C3%A9=%C3"


async def test_cookies_of_one_client_are_not_sent_for_another(running, client):
    async def handler(request: web.Request) -> web.Response:
        response = web.json_response(dict(request.cookies))
        response.set_cookie("session", "secret")
        return response

    async with backend(handler) as address:
        running.backends.transformer = address.replace("127.0.0.1", "localhost")
        for _ in range(2):
            async with aiohttp.ClientSession() as session, session.get(running.url) as response:
                assert await response.json() == {}
                assert "secret" in response.headers["set-cookie"]


async def test_a_client_that_waits_for_100_continue_need_not_wait_for_the_backend(running):
    """The backend here does not know `Expect`."""

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(4)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n" + body)
        await writer.drain()

    async with raw_backend(conversation) as running.backends.transformer:
        reader, writer = await running.connect()
        with contextlib.closing(writer):
            writer.write(
                b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4\r\nexpect: 100-continue\r\n\r\n"
            )
            assert (await in_time(reader.readuntil(b"\r\n\r\n"))).startswith(b"HTTP/1.1 100 ")
            writer.write(b"body")
            answer = await in_time(reader.readuntil(b"body"))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
