"""Faults of the predictor, of the network to it, and of clients, with the statuses that each allows.

The allowed statuses beside 200 are those of the table in docs/api.md.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import aiohttp
import grpc
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from inferenceservice.local.launch import TransformerProcess
from predictor.process import PredictorProcess
from tests.support import faulty_proxy as proxy
from tests.support.answer_checker import AnswerChecker
from tests.support.async_clients import TRY_AGAIN
from tests.support.async_processes import addresses
from tests.support.endpoints import V1_PREDICT, V2_INFER
from tests.support.faulty_proxy import FaultyProxy, Spoil
from tests.support.load import Tally, at_once, checker_for
from tests.support.request_bodies import grpc_objects, objects_tensor
from tests.support.sklearn_reference import SklearnReference
from tests.support.version_pairs import VersionPair

#: Deadline of a request, in seconds.
DEADLINE_S = 2
#: Seconds that a client waits for a response: the deadline and the delay of a busy machine.
GIVE_UP_S = DEADLINE_S + 8
#: Candidates that fit into the queue, and candidates of each request of a burst.
WAITING, SIZE = 2000, 100


@dataclass
class Scene:
    """The processes that faults happen to.

    Attributes
    ----------
    acts
        Number of times that the current fault has acted, without the responses that the proxy has replaced.
    unheard
        Number of requests whose clients disconnected.
    tally
        Requests of the load, and those that the current fault sends.
    bad
        Unexpected results.
    """

    pair: VersionPair
    transformer: TransformerProcess
    proxy: FaultyProxy
    predictor: PredictorProcess
    start_predictor: Callable[[], Awaitable[PredictorProcess]]
    acts: int = 0
    unheard: int = 0
    tally: Tally = field(default_factory=Tally)
    bad: list[str] = field(default_factory=list)

    @property
    def may_answer(self) -> dict[str, list[SklearnReference]]:
        """Return the models that may answer: only the old version is served."""
        label, sklearn_reference = next(iter(self.pair.references.items()))
        return {label: [sklearn_reference]}

    def checker(self) -> AnswerChecker:
        """Return the checker of its answers."""
        return checker_for(self.pair, self.may_answer)


Happening = Callable[[Scene], AbstractAsyncContextManager[None]]


@dataclass(frozen=True)
class Fault:
    """A fault that lasts for a while.

    Attributes
    ----------
    statuses
        Allowed statuses during the fault, beside 200.
    lasts
        Duration in requests, as a multiple of `REQUESTS`.
    few
        Minimum number of requests that meet the fault.
    """

    name: str
    happens: Happening
    statuses: frozenset[str] = frozenset()
    lasts: float = 1
    few: int = 5


# Faults between the transformer and the predictor


def spoiled(name: str, spoil: Spoil, *statuses: str, everywhere: bool = False, lasts: float = 1) -> Fault:
    """Return a fault that replaces responses of the predictor: all of them, or some.

    It replaces responses to scoring calls. With `everywhere`, it sometimes also replaces responses to
    verifications, so that there are no new connections.
    """

    @contextlib.asynccontextmanager
    async def happens(scene: Scene) -> AsyncIterator[None]:
        scene.proxy.part = random.choice((0.3, 1.0))
        scene.proxy.verifications = everywhere and random.random() < 0.5
        scene.proxy.spoil = spoil
        try:
            yield
        finally:
            scene.proxy.spoil = None

    return Fault(name, happens, frozenset(statuses), lasts)


@contextlib.asynccontextmanager
async def killed(scene: Scene) -> AsyncIterator[None]:
    """Kill the predictor, and start it again later."""
    os.killpg(scene.predictor.pid, signal.SIGKILL)
    await asyncio.to_thread(scene.predictor.stop)
    scene.acts += 1
    yield
    scene.predictor = await scene.start_predictor()


@contextlib.asynccontextmanager
async def frozen(scene: Scene) -> AsyncIterator[None]:
    """Suspend the predictor, and resume it later."""
    os.killpg(scene.predictor.pid, signal.SIGSTOP)
    scene.acts += 1
    try:
        yield
    finally:
        os.killpg(scene.predictor.pid, signal.SIGCONT)


@contextlib.asynccontextmanager
async def refused(scene: Scene) -> AsyncIterator[None]:
    """Reset connections, and refuse new ones."""
    await scene.proxy.stop()
    scene.acts += 1
    yield
    await scene.proxy.start()


# Faults of clients


def beside(act: Callable[[Scene], Awaitable[None]]) -> Happening:
    """Return a fault that repeats an action beside the load."""

    @contextlib.asynccontextmanager
    async def happens(scene: Scene) -> AsyncIterator[None]:
        stop = asyncio.Event()

        async def again_and_again() -> None:
            while not stop.is_set():
                await act(scene)
                scene.acts += 1

        async with asyncio.TaskGroup() as group:
            group.create_task(again_and_again())
            yield
            stop.set()

    return happens


async def bursts(scene: Scene) -> None:
    """Send ten times as many candidates at once as fit into the queue."""
    requests = 10 * WAITING // SIZE
    tally = await at_once(
        scene.checker(), *addresses(scene.transformer), requests=requests, size=SIZE, give_up_s=GIVE_UP_S
    )
    scene.tally.add(tally)


async def leave(scene: Scene) -> None:
    """Disconnect in the middle of a request and right after it, over REST and gRPC."""
    rows = random.choices(scene.pair.candidates, k=random.choice((1, 40, 400)))
    body = json.dumps({"instances": rows}).encode()
    head = f"POST {V1_PREDICT} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n"
    for sent in (random.randrange(len(body)), len(body)):
        _, writer = await asyncio.open_connection("127.0.0.1", scene.transformer.http_port)
        writer.write(head.encode() + body[:sent])
        await writer.drain()
        await asyncio.sleep(random.random() * 0.02)
        writer.transport.abort()
    async with grpc.aio.insecure_channel(addresses(scene.transformer)[1]) as channel:
        call = GRPCInferenceServiceStub(channel).ModelInfer(grpc_objects(rows))
        await asyncio.sleep(random.random() * 0.02)
        call.cancel()
        await asyncio.wait([asyncio.ensure_future(call.code())])
    scene.unheard += 2


async def send_what_is_wrong(scene: Scene) -> None:
    """Send invalid requests over each protocol, and check their statuses."""
    url, grpc_address = addresses(scene.transformer)
    good = random.choice(scene.pair.candidates)
    rows = [{**good, **random.choice(WRONG_FIELDS)}]
    expected = {"v1": 400, "v2": 400, "no JSON": 400, "too long": 413, "unknown": 404}
    bodies = {
        "v1": (V1_PREDICT, json.dumps({"instances": rows})),
        "v2": (V2_INFER, json.dumps({"inputs": [objects_tensor(rows)]})),
        "no JSON": (V1_PREDICT, json.dumps({"instances": [good]})[: -random.randrange(1, 20)]),
        "too long": (V2_INFER, "[" * (9 * 2**20)),
        "unknown": ("/v1/models/nobody:predict", json.dumps({"instances": [good]})),
    }
    async with aiohttp.ClientSession() as session:
        for name, (path, body) in bodies.items():
            async with session.post(url + path, data=BytesIO(body.encode())) as response:
                if response.status != expected[name]:
                    scene.bad.append(f"{name} got {response.status} {await response.text()}")
                scene.tally.failed[f"{response.status}"] += 1
    async with grpc.aio.insecure_channel(grpc_address) as channel:
        code = await GRPCInferenceServiceStub(channel).ModelInfer(grpc_objects(rows)).code()
    scene.tally.failed["400"] += 1
    if code is not grpc.StatusCode.INVALID_ARGUMENT:
        scene.bad.append(f"gRPC got {code.name}")


#: Values that make a candidate invalid.
WRONG_FIELDS: list[dict[str, Any]] = [
    {"ssc_p": 710},
    {"ssc_p": None},
    {"ssc_p": float("nan")},
    {"ssc_p": [[[[]]]]},
    {"ssc_p": 10**400},
    {"gender": "\ud800"},
    {"gender": "X" * 10_000},
    {"gender": {"$ne": 1}},
]

SLOW = (TRY_AGAIN, "504")
#: The call is sent again, perhaps just before the deadline.
SHUT = SLOW
NONSENSE = (TRY_AGAIN, "502")
FAULTS = (
    Fault("killed, started again", killed, frozenset(SHUT), few=1),
    Fault("frozen (SIGSTOP)", frozen, frozenset(SLOW), few=1),
    Fault("refuses connections", refused, frozenset(SHUT), few=1),
    spoiled("hangs up", proxy.hangs_up, *SHUT, everywhere=True, lasts=3),
    spoiled("resets", proxy.resets, *SHUT, everywhere=True),
    spoiled("breaks off in mid-answer", proxy.breaks_off, *SHUT, everywhere=True),
    spoiled("never ends its answer", proxy.never_ends, *SLOW, lasts=0.5),
    spoiled("is late, in time", proxy.is_late(0.2)),
    spoiled("is later than the deadline", proxy.is_late(1.5 * DEADLINE_S), *SLOW, lasts=0.5),
    spoiled("garbage", proxy.is_garbage, *NONSENSE, everywhere=True),
    spoiled("answers twice", proxy.comes_twice),
    spoiled("JSON that is cut off", proxy.is_cut_short, "502"),
    spoiled("NaN", proxy.has_nan, "502"),
    spoiled("a candidate too few", proxy.of_another_length(-1), "502"),
    spoiled("a candidate too many", proxy.of_another_length(1), "502"),
    spoiled(
        "no probabilities", proxy.has_output(lambda one: one.update(data=[2.0] * len(one["data"]))), "502"
    ),
    spoiled("400", proxy.has_status(400, {"error": "no"}), "502"),
    spoiled("429", proxy.has_status(429, "slow down"), *SHUT, everywhere=True),
    spoiled("500", proxy.has_status(500, {"error": "KeyError: 'x'"}), "502"),
    spoiled("500 while stopping", proxy.has_status(500, "Internal Server Error"), *SHUT, everywhere=True),
    spoiled("502", proxy.has_status(502, "bad gateway"), *SHUT, everywhere=True),
    spoiled("503", proxy.has_status(503, "no healthy upstream"), *SHUT, everywhere=True),
    spoiled("504", proxy.has_status(504, "upstream request timeout"), *SLOW, everywhere=True),
)
#: Faults of clients do not affect other clients, except bursts.
CLIENTS = (
    Fault("bursts of 10 times capacity", beside(bursts), frozenset(SLOW), few=2),
    Fault("clients leave", beside(leave)),
    Fault("invalid requests", beside(send_what_is_wrong), frozenset({"400", "404", "413"})),
)
