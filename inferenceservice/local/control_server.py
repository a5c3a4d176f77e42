"""The control endpoint of `placement up`: how `placement rollout` and the like reach the local service.

It listens on loopback only, and answers whoever holds the token of a file that only the user can read.
Answers are lines of JSON: progress while it works, then the result or the error.
"""

import asyncio
import contextlib
import hmac
import json
import logging
import os
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import aiohttp
from aiohttp import web

from inferenceservice import spec
from inferenceservice.local.local_service import LocalService
from inferenceservice.rollout_target import Canary, Progress, Scored, State, TargetError
from inferenceservice.spec import SpecError
from transformer.bundle.format import Bundle, parse_bundle

#: Name of the file, in the directory that `placement up` runs in.
CONTROL_FILE = "control.json"
#: Seconds in which clients must take what is left of their answers when the endpoint closes.
_CLOSE_TIMEOUT_S = 2

_Work = Callable[[dict[str, Any], Progress], Awaitable[Any]]
_Line = dict[str, Any]
logger = logging.getLogger(__name__)


class NotRunningError(TargetError):
    """No local service is running here."""


class ControlEndpoint:
    """Serves a `LocalService`'s steps over HTTP.

    Parameters
    ----------
    local
        The service.
    file
        Where its address and its token are written.
    """

    def __init__(self, local: LocalService, file: Path) -> None:
        self._local = local
        self._file = file
        self._token = secrets.token_urlsafe(32)
        self._address = ""
        self._runner: web.AppRunner | None = None
        self._steps: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen on a free port of loopback, and write the file."""
        application = web.Application(middlewares=[self._guard], client_max_size=2**26)
        for name, work in _works(self._local).items():
            application.router.add_post(f"/{name}", self._handler(work))
        application.on_shutdown.append(self._interrupt)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=_CLOSE_TIMEOUT_S)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self._address = f"{host}:{port}"
        self._write()

    async def close(self) -> None:
        """Stop listening, end the steps that are under way, and remove the file if it is still ours."""
        with contextlib.suppress(OSError, ValueError):
            if self._file.read_text() == self._content():
                self._file.unlink()
        if self._runner is not None:
            await self._runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _write(self) -> None:
        """Write the file so that nobody else can read it, not even for a moment."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.unlink(missing_ok=True)
        descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(self._content())

    def _content(self) -> str:
        return json.dumps({"address": self._address, "token": self._token})

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        # A page in a browser can reach loopback, too: by another name (DNS rebinding) or from another origin.
        if request.host != self._address or "origin" in request.headers:
            return _refused(403, f"must be asked as {self._address}, and by no web page")
        given = request.headers.get("authorization", "").encode(errors="surrogateescape")
        if not hmac.compare_digest(given, f"Bearer {self._token}".encode()):
            return _refused(401, "authorization: must be the token of the control file")
        return await handler(request)

    def _handler(self, work: _Work) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                arguments = await request.json()
            except ValueError:
                return _refused(400, "body: is not JSON")
            if not isinstance(arguments, dict):
                return _refused(400, "body: must be an object")
            response = web.StreamResponse(headers={"content-type": "application/x-ndjson"})
            # A client that has gone does not interrupt a step: half a step is nobody's wish.
            with contextlib.suppress(ConnectionError):
                lines = self._begin(work, arguments)
                await response.prepare(request)
                while True:
                    line = await lines.get()
                    await response.write(json.dumps(line).encode() + b"\n")
                    if "progress" not in line:
                        break
            return response

        return handle

    def _begin(self, work: _Work, arguments: dict[str, Any]) -> "asyncio.Queue[_Line]":
        """Begin a step, and return where it tells what becomes of it."""
        lines: asyncio.Queue[_Line] = asyncio.Queue()
        step = asyncio.create_task(_perform(work, arguments, lines))
        self._steps.add(step)
        step.add_done_callback(self._steps.discard)
        return lines

    async def _interrupt(self, _: web.Application) -> None:
        """End the steps that are under way."""
        for step in self._steps:
            step.cancel()
        await asyncio.gather(*self._steps, return_exceptions=True)


def _works(local: LocalService) -> dict[str, _Work]:
    """What can be asked for, by the names of `LocalTarget`'s methods."""

    async def apply(given: dict[str, Any], progress: Progress) -> None:
        await local.apply(await asyncio.to_thread(spec.read, given["file"]), progress)

    return {
        "state": lambda _, __: local.state(),
        "read_bundle": lambda given, _: local.read_bundle(given["uri"]),
        "set_transformer": lambda given, progress: local.set_transformer(given["uri"], progress),
        "set_predictor": lambda given, progress: local.set_predictor(given["uri"], progress),
        "set_both": lambda given, progress: local.set_both(given["uri"], progress),
        "set_canary": lambda given, progress: local.set_canary(Canary(**given), progress),
        "end_canary": lambda _, progress: local.end_canary(progress),
        "settle": lambda _, __: local.settle(),
        "score": lambda given, _: local.score(given["candidates"], given["name"]),
        "apply": apply,
        "metrics": lambda _, __: local.metrics(),
    }


def _refused(status: int, error: str) -> web.Response:
    return web.json_response({"error": error}, status=status)


async def _perform(work: _Work, arguments: dict[str, Any], lines: "asyncio.Queue[_Line]") -> None:
    """Do a step, and tell its progress and at last its result or its error."""
    loop = asyncio.get_running_loop()

    def tell(what: str, content: object) -> None:
        # From any thread, and in order.
        loop.call_soon_threadsafe(lines.put_nowait, {what: content})

    try:
        result = await work(arguments, lambda text: tell("progress", text))
    except (TargetError, SpecError) as error:
        tell("error", str(error))
    except asyncio.CancelledError:
        tell("error", "the local service was stopped")
        raise
    except Exception as error:
        tell("error", f"{type(error).__name__}: {error}")
        logger.exception("a step of the local service failed")
    else:
        tell("result", _json(result))


def _json(result: object) -> object:
    if isinstance(result, Bundle):
        return result.to_json()
    return asdict(result) if isinstance(result, State | Scored) else result


class LocalTarget:
    """The local service of a directory, reached through its control endpoint; see `RolloutTarget`.

    Raises
    ------
    NotRunningError
        If none is running there.
    """

    def __init__(self, file: Path) -> None:
        try:
            control = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise NotRunningError(f"{file}: no local service runs here; start one with `make run`") from error
        self._address = control["address"]
        self._headers = {"authorization": f"Bearer {control['token']}"}

    async def state(self) -> State:
        """What is served now."""
        content = await self._do("state")
        canary = content.pop("canary")
        return State(**content, canary=Canary(**canary) if canary else None)

    async def read_bundle(self, uri: str) -> Bundle:
        """See `RolloutTarget`."""
        return parse_bundle(await self._do("read_bundle", uri=uri))

    async def set_transformer(self, uri: str, progress: Progress) -> None:
        """See `RolloutTarget`."""
        await self._do("set_transformer", progress, uri=uri)

    async def set_predictor(self, uri: str, progress: Progress) -> None:
        """See `RolloutTarget`."""
        await self._do("set_predictor", progress, uri=uri)

    async def set_both(self, uri: str, progress: Progress) -> None:
        """See `RolloutTarget`."""
        await self._do("set_both", progress, uri=uri)

    async def check_canary(self) -> None:
        """See `RolloutTarget`."""

    async def set_canary(self, canary: Canary, progress: Progress) -> None:
        """See `RolloutTarget`."""
        await self._do("set_canary", progress, **asdict(canary))

    async def end_canary(self, progress: Progress) -> None:
        """See `RolloutTarget`."""
        await self._do("end_canary", progress)

    async def settle(self) -> None:
        """See `RolloutTarget`."""
        await self._do("settle")

    async def score(self, candidates: Sequence[dict[str, Any]], name: str) -> Scored:
        """See `RolloutTarget`."""
        content = await self._do("score", candidates=list(candidates), name=name)
        return Scored(tuple(content["probabilities"]), content["version"])

    async def apply(self, file: Path, progress: Progress) -> None:
        """Change both components at once to what the spec of an absolute path says."""
        await self._do("apply", progress, file=str(file))

    async def metrics(self) -> dict[str, str]:
        """Metrics as Prometheus reads them, of the `transformer` and of a `canary`'s."""
        texts: dict[str, str] = await self._do("metrics")
        return texts

    async def _do(self, work: str, progress: Progress | None = None, **arguments: object) -> Any:  # noqa: ANN401 (JSON)
        url = f"http://{self._address}/{work}"
        try:
            async with contextlib.aclosing(_lines(url, self._headers, arguments)) as lines:
                async for line in lines:
                    if "result" in line:
                        return line["result"]
                    if "error" in line:
                        raise TargetError(line["error"])
                    if progress is not None:
                        progress(line["progress"])
        except aiohttp.ClientError as error:
            raise NotRunningError(f"the local service at {self._address} does not answer: {error}") from error
        raise NotRunningError(f"the local service at {self._address} was stopped in the middle of {work}")


async def _lines(url: str, headers: dict[str, str], arguments: object) -> AsyncGenerator[_Line, None]:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
    async with (
        aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
        session.post(url, json=arguments, headers=headers) as response,
    ):
        if response.status != 200:
            raise TargetError(
                f"the control endpoint answered with {response.status}: {await response.text()}"
            )
        # A bundle is one line, and longer than what readline() takes.
        rest = b""
        async for part in response.content.iter_any():
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                yield json.loads(line)
