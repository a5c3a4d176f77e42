"""Limits on gRPC calls, and on the large requests that are read at the same time."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from tests.support.endpoints import GRPC_INFER, GRPC_LIVE
from tests.support.fake_mlserver import FakeMLServer
from tests.support.http2_client import grpc_message, http2_connection
from tests.support.in_process_transformer import InProcessTransformer, in_process_transformer
from tests.support.request_bodies import grpc_objects
from tests.support.waiting import wait_until
from training.candidates import SAMPLE
from transformer.errors import QueueFull, RequestTooSlow
from transformer.server import fair_reader
from transformer.server import grpc as grpc_server
from transformer.server.fair_reader import MAX_READING, FairLimit, FairReader
from transformer.server.grpc import UNREAD_BYTES

MAX_MESSAGE = 1_000_000


class Message:
    """A message that is complete when a test says so."""

    def __init__(self) -> None:
        self.begun = False
        self.complete = asyncio.Event()

    async def read(self) -> str:
        self.begun = True
        await self.complete.wait()
        return "content"


async def begin(reader: FairReader, connection: str, count: int) -> list[tuple[Message, asyncio.Task[str]]]:
    messages = [Message() for _ in range(count)]
    tasks = [asyncio.create_task(reader.read(connection, message.read)) for message in messages]
    await asyncio.sleep(0)
    return list(zip(messages, tasks, strict=True))


def reading(messages: list[tuple[Message, asyncio.Task[str]]]) -> int:
    return sum(message.begun for message, _ in messages)


async def stop(*messages: tuple[Message, asyncio.Task[str]]) -> None:
    for _, task in messages:
        task.cancel()
    await asyncio.gather(*(task for _, task in messages), return_exceptions=True)


async def test_a_connection_reads_half_of_the_limit_and_the_next_one_does_not_wait():
    reader = FairReader()
    first = await begin(reader, "first", 100)
    second = await begin(reader, "second", 1)
    assert (reading(first), reading(second)) == (MAX_READING // 2, 1)
    await stop(*first, *second)


async def test_every_message_is_read_in_the_end():
    reader = FairReader()
    messages = [pair for name in "abcdef" for pair in await begin(reader, name, 20)]
    for message, _ in messages:
        message.complete.set()
    assert await asyncio.gather(*(task for _, task in messages)) == ["content"] * 120


async def test_connections_that_wait_take_turns():
    reader = FairReader()
    # Each reads one message, so that no other connection may begin.
    others = [pair for number in range(MAX_READING) for pair in await begin(reader, f"other {number}", 1)]
    many = await begin(reader, "many", 3)
    one = await begin(reader, "one", 1)
    for message, task in others[:2]:
        message.complete.set()
        await task
    await asyncio.sleep(0)
    assert (reading(many), reading(one)) == (1, 1)
    await stop(*others, *many, *one)


async def test_a_slow_message_is_refused_only_while_other_calls_wait(monkeypatch):
    monkeypatch.setattr(fair_reader, "MAX_READING_S", 0.1)
    reader = FairReader()
    slow = await begin(reader, "slow", MAX_READING // 2)
    await asyncio.sleep(0.2)
    assert not any(task.done() for _, task in slow)
    ((message, waiting),) = await begin(reader, "slow", 1)
    for _, task in slow:
        with pytest.raises(QueueFull, match="too many requests arrive at the same time"):
            await task
    message.complete.set()
    assert await waiting == "content"


async def test_a_message_that_is_not_complete_in_time_is_refused():
    with pytest.raises(RequestTooSlow, match=r"not complete within 0\.05 s"):
        await FairReader().read("a", Message().read, 0.05)


async def test_calls_that_end_while_they_wait_leave_nothing():
    reader = FairReader()
    messages = await begin(reader, "a", 30)
    await stop(*messages)
    again = await begin(reader, "b", 100)
    assert reading(again) == MAX_READING // 2
    await stop(*again)


def test_a_limit_leaves_something_for_the_next_connection():
    limit = FairLimit(12)

    def take_all(connection: str) -> int:
        count = 0
        while limit.allows(connection):
            limit.add(connection)
            count += 1
        return count

    assert [take_all(name) for name in "abc"] == [6, 3, 2]
    for _ in range(6):
        limit.remove("a")
    assert take_all("d") == 4


@pytest.fixture
async def transformer(trained_bundle, sklearn_reference) -> AsyncIterator[InProcessTransformer]:
    async with (
        FakeMLServer(sklearn_reference).running() as predictor,
        in_process_transformer(
            trained_bundle,
            predictor.address,
            "--predictor_protocol=v2",
            f"--max_request_bytes={MAX_MESSAGE}",
            "--client_timeout_seconds=1",
        ) as running,
    ):
        yield running


async def test_only_the_messages_that_are_read_may_be_sent(transformer):
    """HTTP/2's flow control keeps the rest of the others in the client."""
    message = grpc_message(bytes(MAX_MESSAGE - 1), length=MAX_MESSAGE)
    async with http2_connection(int(transformer.grpc_address.rpartition(":")[2])) as connection:
        await connection.ready.wait()
        left = {connection.open_stream(GRPC_INFER): message for _ in range(40)}

        def sent() -> list[int]:
            for stream, data in left.items():
                left[stream] = connection.send(stream, data)
            return sorted((len(message) - len(data) for data in left.values()), reverse=True)

        await wait_until(lambda: sent()[MAX_READING // 2 - 1] == len(message))
        assert max(sent()[MAX_READING // 2 :]) <= UNREAD_BYTES
        # Other connections are served meanwhile.
        assert (await transformer.grpc.ModelInfer(grpc_objects([SAMPLE]), timeout=30)).model_version == "v1"


async def test_a_call_whose_message_stops_gets_a_status(transformer):
    channel = grpc.aio.insecure_channel(transformer.grpc_address)

    async def no_message() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await channel.stream_unary(GRPC_INFER)(no_message(), timeout=30)
    await channel.close()
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert raised.value.details() == "the message was not complete within 1 s"


async def test_a_call_without_a_message_is_invalid(transformer):
    channel = grpc.aio.insecure_channel(transformer.grpc_address)

    async def nothing() -> AsyncIterator[bytes]:
        for message in list[bytes]():
            yield message

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await channel.stream_unary(GRPC_INFER)(nothing(), timeout=30)
    await channel.close()
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert raised.value.details() == "the call has no message"


async def test_calls_beyond_the_limit_get_a_status_and_a_message(
    trained_bundle, sklearn_reference, monkeypatch
):
    monkeypatch.setattr(grpc_server, "MAX_CALLS", 8)
    async with (
        FakeMLServer(sklearn_reference).running() as predictor,
        in_process_transformer(trained_bundle, predictor.address, "--predictor_protocol=v2") as transformer,
    ):
        predictor.may_answer.clear()
        calls = [transformer.grpc.ModelInfer(grpc_objects([SAMPLE]), timeout=30) for _ in range(4)]
        await wait_until(lambda: predictor.plain_calls)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await transformer.grpc.ModelInfer(grpc_objects([SAMPLE]), timeout=30)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "limit 8, half of it for one connection" in raised.value.details()
        predictor.may_answer.set()
        for call in calls:
            assert (await call).model_version == "v1"


async def test_calls_count_until_their_responses_are_sent(trained_bundle, sklearn_reference, monkeypatch):
    """Calls of a client that reads no responses would take any memory. Those beyond the limit end at once."""
    monkeypatch.setattr(grpc_server, "MAX_CALLS", 8)
    async with (
        FakeMLServer(sklearn_reference).running() as predictor,
        in_process_transformer(trained_bundle, predictor.address, "--predictor_protocol=v2") as transformer,
        http2_connection(int(transformer.grpc_address.rpartition(":")[2]), window=0) as connection,
    ):
        await connection.ready.wait()
        streams = [connection.open_stream(GRPC_LIVE) for _ in range(20)]
        for stream in streams:
            connection.send(stream, grpc_message(b""), end=True)
        await wait_until(lambda: len(connection.ended) >= 16)
        # Other connections are served meanwhile.
        assert (await transformer.grpc.ModelInfer(grpc_objects([SAMPLE]), timeout=30)).model_version == "v1"
        assert len(connection.ended) == 16


@pytest.mark.parametrize(("value", "code"), [("x" * 7500, "OK"), ("x" * 8300, "RESOURCE_EXHAUSTED")])
async def test_metadata_is_limited(trained_bundle, sklearn_reference, value, code):
    async with (
        FakeMLServer(sklearn_reference).running() as predictor,
        in_process_transformer(trained_bundle, predictor.address, "--predictor_protocol=v2") as transformer,
    ):
        call = transformer.grpc.ModelInfer(
            grpc_objects([SAMPLE]), metadata=(("authorization", value),), timeout=30
        )
        assert (await call.code()).name == code


async def test_a_connection_is_closed_when_it_is_old(trained_bundle, sklearn_reference, monkeypatch):
    monkeypatch.setattr(grpc_server, "CONNECTION_AGE_S", 0.3)
    async with (
        FakeMLServer(sklearn_reference).running() as predictor,
        in_process_transformer(trained_bundle, predictor.address, "--predictor_protocol=v2") as transformer,
        http2_connection(int(transformer.grpc_address.rpartition(":")[2])) as connection,
    ):
        await asyncio.wait_for(connection.closed.wait(), 20)
