"""Web applications on free ports of this machine, and what proxies among them have in common."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
from aiohttp import web

#: Answers a request.
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
#: Largest body of a request.
MAX_BODY_BYTES = 2**30


@contextlib.asynccontextmanager
async def running_application(application: web.Application) -> AsyncIterator[int]:
    """Serve an application, and return its port."""
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def catch_all(handler: Handler) -> web.Application:
    """Return an application with one handler for all requests."""
    application = web.Application(client_max_size=MAX_BODY_BYTES)
    application.router.add_route("*", "/{path:.*}", handler)
    return application


async def passed_on(session: aiohttp.ClientSession, request: web.Request, url: str) -> web.Response:
    """Send a request to another URL, and return its response with the same status, type and body."""
    body = await request.read()
    headers = {"content-type": request.content_type}
    async with session.request(request.method, url, data=body, headers=headers) as response:
        return web.Response(
            status=response.status, body=await response.read(), content_type=response.content_type
        )
