"""Client of a local service's control server: the rollout target for the local service."""

import contextlib
import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from inferenceservice.local.control_file import ControlFile
from inferenceservice.rollout_target import Canary, Progress, Scores, State, TargetError
from storage.uris import canonical, shown
from transformer.bundle.format import Bundle, parse_bundle

_CONNECT_TIMEOUT_S = 5


class NotRunningError(TargetError):
    """No local service is running in the directory."""


class LocalTarget:
    """The local service of a directory, reached through its control server; see `RolloutTarget`.

    URIs are shown as people type them (`storage.uris.shown`), and all spellings of one are equal.

    Parameters
    ----------
    file
        The service's control file.

    Raises
    ------
    NotRunningError
        If no service is running there.
    """

    def __init__(self, file: Path) -> None:
        try:
            self._control = ControlFile.read(file)
        except (OSError, ValueError) as error:
            raise NotRunningError(
                f"nothing runs here ({file} is missing); start it with `make run`, or with `placement up`. "
                "For a service in a cluster, add --namespace or --context"
            ) from error

    @contextlib.asynccontextmanager
    async def exclusive(self, change: str) -> AsyncIterator[None]:
        """See `RolloutTarget`. The service is held while this process keeps its connection."""
        hold = secrets.token_hex(8)
        arguments = {"change": change, "id": hold}
        async with contextlib.aclosing(self._messages("hold", arguments)) as messages:
            with self._connection_errors():
                message = await anext(messages, {"error": "the local service was stopped"})
            if "error" in message:
                raise TargetError(message["error"])
            try:
                yield
            finally:
                # Without an answer, the end of the connection releases the service.
                with contextlib.suppress(TargetError):
                    await self._call("release", id=hold)

    async def state(self) -> State:
        """See `RolloutTarget`."""
        content = await self._call("state")
        canary = content.pop("canary")
        for component in ("transformer_uri", "predictor_uri", "previous_uri"):
            content[component] = content[component] and shown(content[component])
        return State(**content, canary=Canary(shown(canary["uri"]), canary["percent"]) if canary else None)

    async def read_bundle(self, uri: str) -> Bundle:
        """See `RolloutTarget`."""
        return parse_bundle(await self._call("read_bundle", uri=canonical(uri)))

    async def set_transformer(self, uri: str, progress: Progress) -> None:
        """See `RolloutTarget`."""
        await self._call("set_transformer", progress, uri=canonical(uri))

    async def set_predictor(self, uri: str, progress: Progress) -> None:
        """See `RolloutTarget`."""
        await self._call("set_predictor", progress, uri=canonical(uri))

    async def set_both(self, uri: str, progress: Progress) -> None:
        """See `RolloutTarget`."""
        await self._call("set_both", progress, uri=canonical(uri))

    async def require_canary_support(self) -> None:
        """See `RolloutTarget`. Does nothing: the local ingress splits the traffic."""

    async def set_canary(self, canary: Canary, progress: Progress) -> None:
        """See `RolloutTarget`."""
        await self._call("set_canary", progress, uri=canonical(canary.uri), percent=canary.percent)

    async def end_canary(self, progress: Progress) -> None:
        """See `RolloutTarget`."""
        await self._call("end_canary", progress)

    async def wait_until_idle(self) -> None:
        """See `RolloutTarget`."""
        await self._call("wait_until_idle")

    async def score(self, candidates: Sequence[dict[str, Any]], name: str) -> Scores:
        """See `RolloutTarget`."""
        content = await self._call("score", candidates=list(candidates), name=name)
        answers = (tuple(one) if isinstance(one, list) else one for one in content["answers"])
        return Scores(tuple(answers), content["version"])

    async def apply(self, file: Path, progress: Progress) -> None:
        """Change both components at once to the spec at an absolute path."""
        await self._call("apply", progress, file=str(file))

    async def metrics(self) -> dict[str, str]:
        """Read the metrics of the `transformer`, and of a `canary`'s, in Prometheus' text format."""
        texts: dict[str, str] = await self._call("metrics")
        return texts

    async def processes(self) -> list[dict[str, Any]]:
        """Return the state of each process; see `LocalService.processes`."""
        processes: list[dict[str, Any]] = await self._call("processes")
        return processes

    async def _call(self, operation: str, progress: Progress | None = None, **arguments: object) -> Any:  # noqa: ANN401 (JSON)
        """Run an operation on the server, pass its progress on, and return its result."""
        with self._connection_errors():
            async with contextlib.aclosing(self._messages(operation, arguments)) as messages:
                async for message in messages:
                    if "result" in message:
                        return message["result"]
                    if "error" in message:
                        raise TargetError(message["error"])
                    if progress is not None:
                        progress(message["progress"])
        raise NotRunningError(
            f"the local service at {self._control.address} was stopped during {operation}; start it "
            "again with `make run`, or with `placement up`"
        )

    @contextlib.contextmanager
    def _connection_errors(self) -> Iterator[None]:
        try:
            yield
        except aiohttp.ClientError as error:
            raise NotRunningError(
                f"the local service at {self._control.address} does not answer; start it again with "
                "`make run`, or with `placement up`"
            ) from error

    async def _messages(self, operation: str, arguments: object) -> AsyncGenerator[dict[str, Any], None]:
        """Send a request, and yield each line of the response."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S)
        headers = {"authorization": f"Bearer {self._control.token}"}
        url = f"http://{self._control.address}/{operation}"
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
            session.post(url, json=arguments, headers=headers) as response,
        ):
            if response.status == 400:
                raise TargetError((await response.json())["error"])
            if response.status != 200:
                raise TargetError(
                    f"the control server answered with status {response.status}: {await response.text()}"
                )
            # A bundle is one line, and exceeds the limit of readline().
            rest = b""
            async for part in response.content.iter_any():
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    yield json.loads(line)
