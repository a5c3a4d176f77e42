"""The memory of closed connections goes back to the system."""

import contextlib
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
from transformer.server.freed_memory import GROWTH

#: Clients, and bytes of the body that each of them has sent before it leaves: together 150 MB.
CLIENTS, SIZE = 4_000, 40_000
#: Memory in bytes that other parts of the process may have taken meanwhile.
OTHERS = 16 * 2**20


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
