"""Addresses in front of several predictors: by connection (layer 4) and by request (layer 7)."""

import contextlib
import random
from collections.abc import AsyncIterator, Sequence

import aiohttp
from aiohttp import web

from inferenceservice.local.forwarder import Backend, Forwarder
from predictor.process import PredictorProcess
from tests.support.waiting import wait_until

#: Seconds in which connections must leave a pod before it is stopped, as in the spec.
PRE_STOP_S = 10


def backend(process: PredictorProcess, share: float = 1.0) -> Backend:
    """Return a predictor's REST address and its share of the connections."""
    return Backend(f"127.0.0.1:{process.http_port}", share)


@contextlib.asynccontextmanager
async def balanced_by_connection(*backends: Backend) -> AsyncIterator[tuple[Forwarder, int]]:
    """Run a layer-4 forwarder in front of the backends, and return its port too."""
    forwarder = Forwarder(backends)
    port = await forwarder.start()
    try:
        yield forwarder, port
    finally:
        await forwarder.close()


async def wait_until_drained(forwarder: Forwarder, address: str) -> None:
    """Wait until a backend has no connections, but no longer than a preStop pause lasts."""
    with contextlib.suppress(TimeoutError):
        await wait_until(lambda: not forwarder.connections[address], timeout_s=PRE_STOP_S, poll_s=0.1)


@contextlib.asynccontextmanager
async def balanced_by_request(backends: Sequence[str]) -> AsyncIterator[int]:
    """Run a layer-7 proxy that sends each request to a random backend, and return its port."""
    async with aiohttp.ClientSession() as session:

        async def handle(request: web.Request) -> web.Response:
            url = f"http://{random.choice(backends)}{request.path_qs}"
            body = await request.read()
            headers = {"content-type": request.content_type}
            try:
                async with session.request(request.method, url, data=body, headers=headers) as response:
                    return web.Response(
                        status=response.status, body=await response.read(), content_type=response.content_type
                    )
            except aiohttp.ClientError as error:
                # As a mesh does. uvicorn closes a connection after the 500 of an application that failed.
                return web.Response(status=503, text=str(error))

        application = web.Application(client_max_size=2**26)
        application.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield runner.addresses[0][1]
        finally:
            await runner.cleanup()
