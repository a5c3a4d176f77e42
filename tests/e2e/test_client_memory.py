"""Clients cannot fill the memory over REST, and the memory of closed connections goes back to the system."""

import contextlib
import json
import resource
from collections.abc import Iterator
from contextlib import AsyncExitStack

import psutil
import pytest

from tests.support.async_processes import running_transformer
from tests.support.fake_mlserver import FakeMLServer
from tests.support.raw_http import post_request, raw_connection
from tests.support.sklearn_reference import SklearnReference
from tests.support.waiting import wait_until
from training.candidates import SAMPLE
from transformer.server.freed_memory import GROWTH

#: Clients, and bytes of the body that each of them has sent before it leaves: together 150 MB.
CLIENTS, SIZE = 4_000, 40_000
#: Memory in bytes that other parts of the process may have taken meanwhile.
OTHERS = 16 * 2**20


#: Bodies that never end, and bytes of each: 1.6 GB in all.
UNFINISHED, LARGE = 200, 8_000_000
#: Memory in bytes that they may take: twice the budget of 16 bodies of 8 MiB, because of pieces and buffers.
TAKEN = 2 * 16 * 8 * 2**20


@pytest.fixture
def many_open_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2 * CLIENTS:
        pytest.skip(f"the hard limit on open files is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("part", ["head", "body"])
async def test_the_memory_of_closed_connections_is_released(part, trained_bundle, many_open_files, tmp_path):
    request = post_request(b" " * SIZE, "long: " + "a" * SIZE)
    sent = request[:-5] if part == "body" else request[: SIZE // 2]
    async with FakeMLServer(SklearnReference(trained_bundle)).running() as predictor:
        port = int(predictor.address.rpartition(":")[2])
        log = tmp_path / "transformer.log"
        async with running_transformer(trained_bundle, port, log, "--predictor_protocol=v2") as process:
            of_process = psutil.Process(process.pid)

            def memory() -> int:
                return of_process.memory_info().rss

            before = memory()
            async with AsyncExitStack() as stack:
                for _ in range(CLIENTS):
                    client = await stack.enter_async_context(raw_connection(process.http_port))
                    client.send(sent)
                    with contextlib.suppress(ConnectionError):
                        await client.writer.drain()
                await wait_until(lambda: memory() > before + GROWTH + OTHERS)
            await wait_until(lambda: memory() < before + GROWTH + OTHERS)


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8"])
async def test_bodies_that_never_end_take_bounded_memory(content_type, trained_bundle, tmp_path):
    """Honest clients are answered meanwhile."""
    sent = post_request(b" " * LARGE, content_type=content_type)[:-1]
    honest = post_request(
        json.dumps({"instances": [SAMPLE]}).encode(), "connection: close", content_type=content_type
    )
    async with FakeMLServer(SklearnReference(trained_bundle)).running() as predictor:
        port = int(predictor.address.rpartition(":")[2])
        log = tmp_path / "transformer.log"
        async with running_transformer(trained_bundle, port, log, "--predictor_protocol=v2") as process:
            of_process = psutil.Process(process.pid)
            before = of_process.memory_info().rss
            most, statuses = 0, []
            async with AsyncExitStack() as stack:
                clients = []
                for _ in range(UNFINISHED):
                    client = await stack.enter_async_context(raw_connection(process.http_port))
                    clients.append(client)
                    client.send(sent)
                    with contextlib.suppress(ConnectionError):
                        await client.writer.drain()
                    most = max(most, of_process.memory_info().rss)
                for _ in range(10):
                    async with raw_connection(process.http_port) as another:
                        another.send(honest)
                        ((status, _),) = await another.responses()
                        statuses.append(status)
                    most = max(most, of_process.memory_info().rss)
                ((refused, text),) = await clients[-1].responses()
            assert statuses == [200] * 10
            assert refused == 503
            assert text["error"].startswith("too many bytes in flight: limit ")
            assert most < before + TAKEN
