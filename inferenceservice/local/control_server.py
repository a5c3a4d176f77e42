"""Control server of `placement up`, through which `placement rollout` and others change the local service.

It listens on loopback only, and requires the token of the control file, which only the user can read. A
response is lines of JSON: progress messages, then the result or the error.
"""

import asyncio
import contextlib
import hmac
import json
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from inferenceservice import spec_file
from inferenceservice.local.control_arguments import ArgumentError, check_arguments
from inferenceservice.local.control_file import ControlFile
from inferenceservice.local.local_service import LocalService
from inferenceservice.rollout_target import Canary, Progress, Scores, State, TargetError
from inferenceservice.spec import SpecError
from transformer.bundle.format import Bundle

#: Seconds in which clients must read the rest of their responses when the server closes.
_CLOSE_TIMEOUT_S = 2
_MAX_BODY_BYTES = 2**26

_Operation = Callable[[dict[str, Any], Progress], Awaitable[Any]]
_Message = dict[str, Any]
logger = logging.getLogger(__name__)


class ControlServer:
    """HTTP server for the operations of a `LocalService`.

    Parameters
    ----------
    local
        The service.
    file
        Path of the control file to write.
    """

    def __init__(self, local: LocalService, file: Path) -> None:
        self._local = local
        self._file = file
        self._control = ControlFile("", secrets.token_urlsafe(32))
        self._runner: web.AppRunner | None = None
        self._running: set[asyncio.Task[None]] = set()
        #: Tasks that hold the service for a client's rollout, by the client's id.
        self._holds: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Listen on a free port of loopback, and write the control file."""
        application = web.Application(middlewares=[self._authenticate], client_max_size=_MAX_BODY_BYTES)
        operations = {**_operations(self._local), "hold": self._hold, "release": self._release}
        for name, operation in operations.items():
            application.router.add_post(f"/{name}", self._handler(name, operation))
        application.on_shutdown.append(self._cancel_operations)
        self._runner = web.AppRunner(
            application, access_log=None, shutdown_timeout=_CLOSE_TIMEOUT_S, handler_cancellation=True
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self._control = ControlFile(f"{host}:{port}", self._control.token)
        self._control.write(self._file)

    async def close(self) -> None:
        """Stop listening, cancel running operations, and remove the control file if it is still ours."""
        self._control.remove(self._file)
        if self._runner is not None:
            await self._runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @web.middleware
    async def _authenticate(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        # A web page can reach loopback, too: under another name (DNS rebinding) or from another origin.
        if request.host != self._control.address or "origin" in request.headers:
            return _error_response(
                403, f"the host must be {self._control.address}, and requests from web pages are refused"
            )
        given = request.headers.get("authorization", "").encode(errors="surrogateescape")
        if not hmac.compare_digest(given, f"Bearer {self._control.token}".encode()):
            return _error_response(401, "authorization: must be the token of the control file")
        return await handler(request)

    def _handler(
        self, name: str, operation: _Operation
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                arguments = json.loads(await request.read())
            except (ValueError, RecursionError):
                return _error_response(400, "body: is not JSON")
            if not isinstance(arguments, dict):
                return _error_response(400, "body: must be an object")
            try:
                check_arguments(name, arguments)
            except ArgumentError as error:
                return _error_response(400, str(error))
            response = web.StreamResponse(headers={"content-type": "application/x-ndjson"})
            task, messages = self._start_operation(operation, arguments)
            # A client that disconnects cancels this handler, but not the operation: a half-finished change
            # helps no one. It ends only the hold of the client's rollout.
            try:
                with contextlib.suppress(ConnectionError):
                    await _send(request, response, messages)
            finally:
                if name == "hold":
                    task.cancel()
            return response

        return handle

    def _start_operation(
        self, operation: _Operation, arguments: dict[str, Any]
    ) -> "tuple[asyncio.Task[None], asyncio.Queue[_Message]]":
        """Start an operation in a task, and return the task and the queue of its messages."""
        messages: asyncio.Queue[_Message] = asyncio.Queue()
        task = asyncio.create_task(_run_operation(operation, arguments, messages))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task, messages

    async def _hold(self, given: dict[str, Any], progress: Progress) -> None:
        """Hold the service for a rollout until the client releases it or disconnects."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (operations run in tasks)
        async with self._local.exclusive(given["change"]):
            self._holds[given["id"]] = task
            try:
                progress("held")
                await asyncio.Event().wait()
            finally:
                del self._holds[given["id"]]

    async def _release(self, given: dict[str, Any], _: Progress) -> None:
        """End a hold; without an effect if it has ended."""
        task = self._holds.get(given["id"])
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _cancel_operations(self, _: web.Application) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)


async def _send(
    request: web.Request, response: web.StreamResponse, messages: "asyncio.Queue[_Message]"
) -> None:
    """Send the messages of an operation until the last one."""
    await response.prepare(request)
    while True:
        message = await messages.get()
        await response.write(json.dumps(message).encode() + b"\n")
        if "progress" not in message:
            break


def _operations(local: LocalService) -> dict[str, _Operation]:
    """Return the operations of the service, by the names of `LocalTarget`'s methods."""

    async def apply(given: dict[str, Any], progress: Progress) -> None:
        async with local.exclusive(f"an apply of {given['file']}"):
            await local.apply(await spec_file.read(given["file"]), progress)

    return {
        "state": lambda _, __: local.state(),
        "read_bundle": lambda given, _: local.read_bundle(given["uri"]),
        "set_transformer": lambda given, progress: local.set_transformer(given["uri"], progress),
        "set_predictor": lambda given, progress: local.set_predictor(given["uri"], progress),
        "set_both": lambda given, progress: local.set_both(given["uri"], progress),
        "set_canary": lambda given, progress: local.set_canary(Canary(**given), progress),
        "end_canary": lambda _, progress: local.end_canary(progress),
        "wait_until_idle": lambda _, __: local.wait_until_idle(),
        "score": lambda given, _: local.score(given["candidates"], given["name"]),
        "apply": apply,
        "metrics": lambda _, __: local.metrics(),
        "processes": lambda _, __: local.processes(),
    }


async def _run_operation(
    operation: _Operation, arguments: dict[str, Any], messages: "asyncio.Queue[_Message]"
) -> None:
    """Run an operation, and put its progress and finally its result or error into the queue."""
    loop = asyncio.get_running_loop()

    def send(kind: str, content: object) -> None:
        # Progress may come from any thread; this keeps the order.
        loop.call_soon_threadsafe(messages.put_nowait, {kind: content})

    try:
        result = await operation(arguments, lambda text: send("progress", text))
    except (TargetError, SpecError) as error:
        send("error", str(error))
    except asyncio.CancelledError:
        send("error", "the local service was stopped")
        raise
    except Exception as error:
        send("error", f"{type(error).__name__}: {error}")
        logger.exception("an operation of the local service failed")
    else:
        send("result", _to_json(result))


def _to_json(result: object) -> object:
    if isinstance(result, Bundle):
        return result.to_json()
    return asdict(result) if isinstance(result, State | Scores) else result


def _error_response(status: int, error: str) -> web.Response:
    return web.json_response({"error": error}, status=status)
