"""Situations in which versions meet: each under load, each with a verdict."""

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
from aiohttp import web

from inferenceservice import spec
from inferenceservice.local.components import TransformerProcess
from inferenceservice.local.forwarder import Backend, Forwarder
from inferenceservice.local.service import LocalService
from inferenceservice.rollout import rollback, rollout
from inferenceservice.spec import InferenceService
from predictor.child import ChildProcess
from predictor.environment import ensure
from predictor.process import PredictorProcess, free_ports
from predictor.runtimes import get_runtime
from tests.load import TOLERANCE, TRY_AGAIN, Tally, under_load, until
from tests.pairs import Pair

SPEC = Path(__file__).parent.parent / "inferenceservice" / "placement.yaml"
#: Requests between one change and the next.
SOME = 100


@dataclass
class Outcome:
    """What the load saw, and what should not have been."""

    tally: Tally
    unexpected: list[str] = field(default_factory=list)

    def expect(self, condition: bool, otherwise: str) -> None:
        if not condition:
            self.unexpected.append(otherwise)

    def __str__(self) -> str:
        return f"{self.tally}{' UNEXPECTED ' + '; '.join(self.unexpected) if self.unexpected else ''}"


Situation = Callable[[Pair, Path], Awaitable[Outcome]]


def service(**changes: object) -> InferenceService:
    """The project's own InferenceService."""
    return replace(spec.read(SPEC), **changes)  # type: ignore[arg-type]


def say_nothing(_: str) -> None:
    """Progress that nobody watches."""


@contextlib.asynccontextmanager
async def local_service(pair: Pair, run: Path, **changes: object) -> AsyncIterator[LocalService]:
    """The old version, served."""
    port, grpc_port = free_ports(2)
    async with LocalService(
        service(storage_uri=str(pair.old), **changes),
        port=port,
        grpc_port=grpc_port,
        logs=run / "logs",
        progress=say_nothing,
    ) as local:
        await local.start()
        yield local


async def some_more(tally: Tally) -> None:
    """Let the load go on for a while."""
    enough = tally.requests + SOME
    await until(tally, lambda now: now.requests >= enough)


async def rollout_and_rollback(pair: Pair, run: Path) -> Outcome:
    """`placement rollout` and `placement rollback`: no request fails."""
    async with (
        local_service(pair, run) as local,
        under_load(pair, local.url, local.grpc_address) as tally,
    ):
        await some_more(tally)
        new = await rollout(local, str(pair.new), say_nothing)
        await some_more(tally)
        old = await rollback(local, say_nothing)
        await some_more(tally)
    outcome = Outcome(tally)
    outcome.expect(not tally.failed, f"requests failed: {dict(tally.failed)}")
    for version in (old, new):
        outcome.expect(tally.answered[version] >= SOME, f"{version} gave {tally.answered[version]} answers")
    return outcome


def apply_both(transformer_late_s: float, predictor_late_s: float) -> Situation:
    """`kubectl apply` of both at once, one of them late: 503s at most, for as long as they do not fit."""

    async def situation(pair: Pair, run: Path) -> Outcome:
        late = (transformer_late_s, predictor_late_s)
        async with (
            local_service(pair, run) as local,
            under_load(pair, local.url, local.grpc_address) as tally,
        ):
            await some_more(tally)
            await local.apply(service(storage_uri=str(pair.new)), say_nothing, late_s=late)
            await some_more(tally)
            await local.apply(service(storage_uri=str(pair.old)), say_nothing, late_s=late)
            await some_more(tally)
        outcome = Outcome(tally)
        outcome.expect(set(tally.failed) <= {TRY_AGAIN}, f"requests failed: {dict(tally.failed)}")
        outcome.expect({"v1", "v2"} <= set(tally.answered), "a version never answered")
        return outcome

    situation.__name__ = "apply_transformer_late" if transformer_late_s else "apply_predictor_late"
    return situation


@contextlib.asynccontextmanager
async def predictor(
    bundle: Path, log: Path, runtime: str = "kserve-mlserver", **ports: int
) -> AsyncIterator[PredictorProcess]:
    """A stock server with a version, ready."""
    stock = get_runtime(runtime)
    python = await asyncio.to_thread(ensure, stock)
    process = await asyncio.to_thread(
        lambda: PredictorProcess(
            stock, bundle, python=python, model_name="placement", env=stock.probability_env, log=log, **ports
        )
    )
    try:
        await asyncio.to_thread(process.wait_ready)
        yield process
    finally:
        await asyncio.to_thread(process.stop)


@contextlib.asynccontextmanager
async def transformer(
    bundle: Path, predictor_port: int, log: Path, *arguments: str
) -> AsyncIterator[TransformerProcess]:
    """A transformer process, ready."""
    described = service()
    described = replace(described, transformer_args=(*described.transformer_args, *arguments))
    process = TransformerProcess(described, bundle, (predictor_port, predictor_port), log)
    try:
        url = f"http://127.0.0.1:{process.http_port}/v2/health/ready"
        async with aiohttp.ClientSession() as session, asyncio.timeout(60):
            while not await answers(session, url):
                assert process.poll() is None, process.tail()
                await asyncio.sleep(0.05)
        yield process
    finally:
        await asyncio.to_thread(process.stop)


async def answers(session: aiohttp.ClientSession, url: str) -> bool:
    """Whether a server says that it is ready."""
    with contextlib.suppress(aiohttp.ClientError):
        async with session.get(url) as response:
            return response.status == 200
    return False


def addresses(process: TransformerProcess) -> tuple[str, str]:
    """Where a transformer is reached over REST and gRPC."""
    return f"http://127.0.0.1:{process.http_port}", f"127.0.0.1:{process.grpc_port}"


async def canary_by_connection(pair: Pair, run: Path) -> Outcome:
    """Two predictor versions behind one address that gives each new connection to either (a Service)."""
    share = 0.3
    async with (
        predictor(pair.old, run / "old.log") as old,
        predictor(pair.new, run / "new.log") as new,
        forwarding(
            [Backend(f"127.0.0.1:{old.http_port}", 1 - share), Backend(f"127.0.0.1:{new.http_port}", share)]
        ) as port,
        # Connections that live shortly are many, so that the shares can be told.
        transformer(pair.new, port, run / "transformer.log", "--predictor_connection_age=0.3") as front,
        under_load(pair, *addresses(front)) as tally,
    ):
        await until(tally, lambda now: now.requests >= 8 * SOME)
    outcome = Outcome(tally)
    outcome.expect(not tally.failed, f"requests failed: {dict(tally.failed)}")
    served = tally.answered["v2"] / tally.answered.total()
    outcome.expect(0.12 < served < 0.5, f"v2 gave {served:.0%} of the answers instead of {share:.0%}")
    return outcome


@contextlib.asynccontextmanager
async def forwarding(backends: Sequence[Backend]) -> AsyncIterator[int]:
    """A layer-4 address in front of the backends."""
    forwarder = Forwarder(backends)
    port = await forwarder.start()
    try:
        yield port
    finally:
        await forwarder.close()


async def canary_by_request(pair: Pair, run: Path) -> Outcome:
    """The same behind a proxy that gives each request to either (Knative, a mesh): `--verify=request`."""
    async with (
        predictor(pair.old, run / "old.log") as old,
        predictor(pair.new, run / "new.log") as new,
        proxying([f"http://127.0.0.1:{old.http_port}", f"http://127.0.0.1:{new.http_port}"]) as port,
        transformer(pair.new, port, run / "transformer.log", "--verify=request") as front,
        under_load(pair, *addresses(front)) as tally,
    ):
        await until(tally, lambda now: now.requests >= 4 * SOME)
    outcome = Outcome(tally)
    outcome.expect(not tally.failed, f"requests failed: {dict(tally.failed)}")
    outcome.expect({"v1", "v2"} <= set(tally.answered), "a version never answered")
    return outcome


@contextlib.asynccontextmanager
async def proxying(backends: Sequence[str]) -> AsyncIterator[int]:
    """A layer-7 proxy that gives each request to a random backend."""
    async with aiohttp.ClientSession() as session:

        async def handle(request: web.Request) -> web.Response:
            url = random.choice(backends) + request.path_qs
            body = await request.read()
            headers = {"content-type": request.content_type}
            async with session.request(request.method, url, data=body, headers=headers) as response:
                return web.Response(
                    status=response.status, body=await response.read(), content_type=response.content_type
                )

        application = web.Application(client_max_size=2**26)
        application.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield runner.addresses[0][1]
        finally:
            await runner.cleanup()


async def killed_and_replaced(pair: Pair, run: Path) -> Outcome:
    """A predictor is killed in the middle of requests, and another version comes up on the same port."""
    (port,) = free_ports(1)
    async with contextlib.AsyncExitStack() as stack:
        async with predictor(pair.old, run / "old.log", http_port=port) as old:
            front = await stack.enter_async_context(transformer(pair.new, port, run / "transformer.log"))
            tally = await stack.enter_async_context(under_load(pair, *addresses(front)))
            await some_more(tally)
            os.killpg(old.pid, signal.SIGKILL)
        async with predictor(pair.new, run / "new.log", http_port=port) as new:
            await until(tally, lambda now: now.answered["v2"] >= SOME)
            os.killpg(new.pid, signal.SIGKILL)
        async with predictor(pair.old, run / "again.log", http_port=port):
            before = tally.answered["v1"]
            await until(tally, lambda now: now.answered["v1"] >= before + SOME)
    outcome = Outcome(tally)
    # A call that the killed one had may have come too late for a second try.
    allowed = all(reason == TRY_AGAIN or reason.startswith("504") for reason in tally.failed)
    outcome.expect(allowed, f"requests failed: {dict(tally.failed)}")
    return outcome


async def control_experiment(pair: Pair, run: Path, requests: int = 3 * SOME) -> int:
    """Wrong answers of the documented transformer in the situation of `canary_by_connection`.

    It has the new version's encoding, so an answer is wrong that is not the new version's score: the old
    model, fed with the new encoding.
    """
    (port,) = free_ports(1)
    new_scores = pair.truths["v2"].probabilities(pair.candidates)
    async with (
        predictor(pair.old, run / "old.log", "kserve-sklearnserver") as old,
        predictor(pair.new, run / "new.log", "kserve-sklearnserver") as new,
        forwarding(
            [Backend(f"127.0.0.1:{old.http_port}"), Backend(f"127.0.0.1:{new.http_port}")]
        ) as predictor_port,
        documented_transformer(pair.new, predictor_port, port, run / "documented.log"),
        aiohttp.ClientSession() as session,
    ):
        url = f"http://127.0.0.1:{port}/v1/models/placement:predict"

        async def wrong(chosen: int) -> bool:
            body = {"instances": [pair.candidates[chosen]]}
            async with at_once, session.post(url, json=body) as response:
                assert response.status == 200, await response.text()
                ((_, probability),) = (await response.json())["predictions"]
            return abs(probability - new_scores[chosen]) > TOLERANCE

        # Several at once, or all would share one connection, and so one predictor.
        at_once = asyncio.Semaphore(16)
        chosen = (number % len(pair.candidates) for number in range(requests))
        return sum(await asyncio.gather(*map(wrong, chosen)))


@contextlib.asynccontextmanager
async def documented_transformer(
    bundle: Path, predictor_port: int, port: int, log: Path
) -> AsyncIterator[None]:
    """The control, in a process of its own, ready."""
    script = Path(__file__).with_name("documented_transformer.py")
    command = [
        sys.executable,
        str(script),
        str(bundle),
        "--model_name=placement",
        f"--predictor_host=127.0.0.1:{predictor_port}",
        f"--http_port={port}",
    ]
    with ChildProcess(command, env=dict(os.environ), log=log) as process:
        async with aiohttp.ClientSession() as session, asyncio.timeout(60):
            while not await answers(session, f"http://127.0.0.1:{port}/v2/health/ready"):
                assert process.poll() is None, process.tail()
                await asyncio.sleep(0.05)
        yield


SITUATIONS: tuple[Situation, ...] = (
    rollout_and_rollback,
    apply_both(3.0, 0.0),
    apply_both(0.0, 3.0),
    canary_by_connection,
    canary_by_request,
    killed_and_replaced,
)
