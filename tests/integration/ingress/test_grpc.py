"""The local ingress forwards gRPC calls with metadata and status."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
import pytest

from tests.support.running_ingress import INGRESS_TIMEOUT_S, grpc_echo, in_time, raw_backend


@contextlib.asynccontextmanager
async def grpc_backend(behaviour) -> AsyncIterator[str]:
    handlers = {"Echo": grpc.unary_unary_rpc_method_handler(behaviour)}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def test_grpc_calls_metadata_and_status_pass_through(running):
    async def behaviour(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        metadata = dict(context.invocation_metadata())
        context.set_trailing_metadata([("x-model-version", "v3")])
        if request == b"bad":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "is bad")
        return metadata["x-request-id"].encode() + request

    async with grpc_backend(behaviour) as running.backends.transformer_grpc:
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(running.grpc_address, options) as channel:
            call = grpc_echo(channel)(b"hello", metadata=[("x-request-id", "7")], timeout=INGRESS_TIMEOUT_S)
            assert await call == b"7hello"
            assert dict(await call.trailing_metadata()) == {"x-model-version": "v3"}
            large = bytes(3 * 2**20)
            assert await grpc_echo(channel)(large, metadata=[("x-request-id", "7")]) == b"7" + large
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await grpc_echo(channel)(b"bad", metadata=[("x-request-id", "7")])
    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "is bad")


async def test_a_cancelled_grpc_call_is_cancelled_at_the_backend(running):
    begun, left = asyncio.Event(), asyncio.Event()

    async def behaviour(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        return b""

    async with (
        grpc_backend(behaviour) as running.backends.transformer_grpc,
        grpc.aio.insecure_channel(running.grpc_address) as channel,
    ):
        call = grpc_echo(channel)(b"")
        await in_time(begun.wait())
        call.cancel()
        await in_time(left.wait())


async def test_a_grpc_backend_that_is_down_is_unavailable(running):
    async with grpc.aio.insecure_channel(running.grpc_address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await grpc_echo(channel)(b"hello", timeout=INGRESS_TIMEOUT_S)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_backend_that_stops_ends_its_grpc_connections(running):
    """The client then reconnects, to the current backend."""

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        await writer.drain()

    async with raw_backend(conversation) as running.backends.transformer_grpc:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.grpc_port)
        with contextlib.closing(writer):
            assert await in_time(reader.read()) == b"bye"
