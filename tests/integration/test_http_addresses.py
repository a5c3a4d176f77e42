"""An HTTP connection tries all addresses of a host, and checks certificates over TLS."""

import asyncio
import ssl

import pytest

from tests.support.certificate_authority import self_signed, server_side
from tests.support.raw_http_server import (
    ANSWER_V2,
    HELLO,
    SCORES_V2,
    call,
    connection_to,
    get,
    raw_http_server,
    rest_client,
    sends,
)
from tests.support.waiting import wait_until
from transformer.errors import PredictorUnavailable
from transformer.upstream import http_connection
from transformer.upstream.http_connection import HttpConnection


async def test_a_missing_or_invalid_host_is_an_os_error():
    for host in ("127.0.0.1", "a..b"):
        with pytest.raises(OSError, match=r"(?i)connect|not a valid host name"):
            await HttpConnection.open(host, 1)


async def test_all_addresses_of_a_host_are_tried(monkeypatch):
    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.2", "127.0.0.3", "127.0.0.1"]

    monkeypatch.setattr(http_connection, "_addresses", resolve)
    async with raw_http_server(HELLO) as server:
        connection = await HttpConnection.open("predictor", server.port)
        assert await get(connection) == (200, b"hello")
        connection.close()
    assert f"host: predictor:{server.port}\r\n".encode() in server.requests[0]


def test_the_first_address_is_chosen_at_random_within_the_preferred_ip_version():
    found = [(6, "::1"), (6, "::2"), (6, "::3"), (4, "10.0.0.1"), (4, "10.0.0.2")]
    tried = [http_connection._shuffled(found) for _ in range(200)]
    assert {addresses[0] for addresses in tried} == {"::1", "::2", "::3"}
    assert all(set(addresses[3:]) == {"10.0.0.1", "10.0.0.2"} for addresses in tried)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_requests_over_tls_are_the_same(host, certificate, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    async with raw_http_server(ANSWER_V2, tls=server_side(certificate)) as server:
        client = rest_client(f"{host}:{server.port}", use_ssl=True)
        for _ in range(3):
            assert await call(client) == SCORES_V2
        await client.close()
        await asyncio.wait_for(server.left.wait(), 10)
    assert server.connections == 1
    assert f"host: {host}:{server.port}\r\n".encode() in server.requests[0]


async def test_tls_uses_the_host_name_as_server_name(certificate):
    sent = []
    context = server_side(certificate)
    context.sni_callback = lambda _, name, __: sent.append(name)
    ours = ssl.create_default_context(cafile=certificate)
    async with raw_http_server(HELLO, tls=context) as server:
        connection = await HttpConnection.open("localhost", server.port, ours)
        assert await get(connection) == (200, b"hello")
        connection.close()
    assert sent == ["localhost"]


async def test_a_trailing_dot_of_a_host_name_is_used_only_for_resolution(certificate, monkeypatch):
    resolved = []

    async def resolve(host: str, port: int) -> list[str]:
        resolved.append(host)
        return ["127.0.0.1"]

    monkeypatch.setattr(http_connection, "_addresses", resolve)
    ours = ssl.create_default_context(cafile=certificate)
    async with raw_http_server(HELLO, tls=server_side(certificate)) as server:
        connection = await HttpConnection.open("localhost.", server.port, ours)
        assert await get(connection) == (200, b"hello")
        connection.close()
    assert resolved == ["localhost."]
    assert f"host: localhost:{server.port}\r\n".encode() in server.requests[0]


async def test_a_server_that_hangs_up_over_tls_has_closed_the_connection(certificate):
    ours = ssl.create_default_context(cafile=certificate)
    async with (
        raw_http_server(HELLO, tls=server_side(certificate)) as server,
        connection_to(server, ours) as connection,
    ):
        assert await get(connection) == (200, b"hello")
        server.hang_up()
        await wait_until(lambda: connection.closed)
        with pytest.raises(ConnectionError):
            await get(connection)
    async with (
        raw_http_server(sends(HELLO[:-1], hangs_up=True), tls=server_side(certificate)) as server,
        connection_to(server, ours) as connection,
    ):
        with pytest.raises(ConnectionError):
            await get(connection)


@pytest.mark.parametrize("trusted", ["its authority", "another authority"])
async def test_a_certificate_of_another_host_is_refused(trusted, certificate, tmp_path, monkeypatch):
    others = self_signed(tmp_path, "elsewhere")
    shown, known = (others, others) if trusted == "its authority" else (certificate, others)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(known))
    async with raw_http_server(ANSWER_V2, tls=server_side(shown)) as server:
        client = rest_client(f"localhost:{server.port}", use_ssl=True)
        with pytest.raises(PredictorUnavailable):
            await call(client)
        await client.close()
    assert server.requests == []
