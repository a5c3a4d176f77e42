"""A transformer process ends in time and without errors, although clients stop in the middle of requests."""

import asyncio
import json
import os
import signal
from contextlib import AsyncExitStack

from tests.support.async_processes import running_transformer
from tests.support.fake_mlserver import FakeMLServer
from tests.support.raw_http import RawConnection, post_request, raw_connection
from tests.support.sklearn_reference import SklearnReference
from tests.support.waiting import wait_until


async def test_a_stopped_transformer_ends_although_clients_stop_in_a_head_or_a_body(pair, tmp_path):
    """They get 408, and nothing is logged about it."""
    log = tmp_path / "transformer.log"
    arguments = ("--client_timeout_seconds=0.5", "--predictor_protocol=v2")
    body = json.dumps({"instances": pair.candidates[:1]}).encode()
    request = post_request(body)
    over_kserves_route = post_request(body, content_type="application/json; charset=utf-8")
    async with FakeMLServer(SklearnReference(pair.new)).running() as predictor:
        port = int(predictor.address.rpartition(":")[2])
        async with running_transformer(pair.new, port, log, *arguments) as process, AsyncExitStack() as stack:

            async def send(part: bytes) -> RawConnection:
                connection = await stack.enter_async_context(raw_connection(process.http_port))
                connection.send(part)
                return connection

            for client in [
                await send(request[:40]),
                await send(request[:-5]),
                await send(over_kserves_route[:-5]),
            ]:
                assert await status(client) == 408
            last = await send(request[:-5])
            await asyncio.sleep(0.1)
            os.kill(process.pid, signal.SIGTERM)
            assert await status(last) == 408
            await wait_until(lambda: process.poll() is not None)
    assert "Traceback" not in log.read_text()
    assert " ERROR " not in log.read_text()


async def status(client: RawConnection) -> int:
    ((found, _),) = await client.responses()
    return found
