"""Steady load over V1, V2 and gRPC, every answer held against the version that it claims."""

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import grpc
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from tests.pairs import Pair
from transformer.versions import UNVERIFIED

#: Two models that agree to this are the same; the four pairs' models differ by far more.
TOLERANCE = 1e-9
#: What a client that is told to come back does not count as a failure of the guarantee.
TRY_AGAIN = "503 with Retry-After"


@dataclass
class Tally:
    """What became of the requests."""

    answered: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """All of them."""
        return self.answered.total() + self.failed.total()

    def __str__(self) -> str:
        answered = ", ".join(f"{count} by {version}" for version, count in sorted(self.answered.items()))
        failed = ", ".join(f"{count} {reason}" for reason, count in self.failed.items()) or "0"
        return f"{self.requests} requests: answered {answered or 0}; failed {failed}; wrong {len(self.wrong)}"


class Judge:
    """Holds answers against what scikit-learn says in this process."""

    def __init__(self, pair: Pair) -> None:
        self.candidates = pair.candidates
        self._scores = {
            version: truth.probabilities(pair.candidates) for version, truth in pair.truths.items()
        }

    def wrong(self, chosen: Sequence[int], version: str, probabilities: Sequence[float]) -> str | None:
        """Why an answer is wrong; None if it is right.

        An answer that claims no version must be one model's all the same, and only one's.
        """
        claimed = self._scores if version == UNVERIFIED else {version: self._scores.get(version)}
        for name, scores in claimed.items():
            if scores is None:
                return f"{name} is no version of this pair"
            if len(probabilities) == len(chosen) and all(
                abs(probability - scores[number]) <= TOLERANCE
                for number, probability in zip(chosen, probabilities, strict=True)
            ):
                return None
        return f"{version} said {list(probabilities)} of candidates {list(chosen)}"


Ask = Callable[[list[dict[str, Any]]], Awaitable[tuple[str, list[float]]]]


class Refused(Exception):
    """An answer that is no prediction; the message says which one."""


def over_v1(session: aiohttp.ClientSession, url: str) -> Ask:
    """A V1 client."""

    async def ask(rows: list[dict[str, Any]]) -> tuple[str, list[float]]:
        async with session.post(f"{url}/v1/models/placement:predict", json={"instances": rows}) as response:
            content = await checked(response)
            return (
                response.headers["x-model-version"],
                [one["placement_probability"] for one in content["predictions"]],
            )

    return ask


def over_v2(session: aiohttp.ClientSession, url: str) -> Ask:
    """A V2 client, with one tensor for each field."""

    async def ask(rows: list[dict[str, Any]]) -> tuple[str, list[float]]:
        inputs = [
            {
                "name": name,
                "datatype": "BYTES" if isinstance(value, str) else "FP64",
                "shape": [len(rows)],
                "data": [row.get(name) for row in rows],
            }
            # Every field that any of them has.
            for name, value in {name: value for row in rows for name, value in row.items()}.items()
        ]
        async with session.post(f"{url}/v2/models/placement/infer", json={"inputs": inputs}) as response:
            content = await checked(response)
            assert content["model_version"] == response.headers["x-model-version"]
            return content["model_version"], content["outputs"][1]["data"]

    return ask


async def checked(response: aiohttp.ClientResponse) -> Any:
    """The answer, if it is a prediction."""
    if response.status == 503 and "retry-after" in response.headers:
        raise Refused(TRY_AGAIN)
    if response.status != 200:
        raise Refused(f"{response.status} {await response.text()}")
    return await response.json()


def over_grpc(stub: GRPCInferenceServiceStub) -> Ask:
    """A gRPC client, with one tensor of JSON objects."""

    async def ask(rows: list[dict[str, Any]]) -> tuple[str, list[float]]:
        message = pb.ModelInferRequest(model_name="placement")
        tensor = message.inputs.add(name="candidates", datatype="BYTES", shape=[len(rows)])
        tensor.contents.bytes_contents.extend(json.dumps(row).encode() for row in rows)
        call = stub.ModelInfer(message, timeout=30)
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            retry = "retry-after" in dict(error.trailing_metadata() or ())
            if error.code() is grpc.StatusCode.UNAVAILABLE and retry:
                raise Refused(TRY_AGAIN) from error
            raise Refused(f"{error.code().name} {error.details()}") from error
        assert dict(await call.trailing_metadata())["x-model-version"] == answer.model_version
        return answer.model_version, list(answer.outputs[1].contents.fp64_contents)

    return ask


@contextlib.asynccontextmanager
async def under_load(
    pair: Pair, url: str, grpc_address: str | None, *, clients: int = 2, pause_s: float = 0.02
) -> AsyncIterator[Tally]:
    """Load for as long as the block lasts; its tally, complete when the block has ended.

    Parameters
    ----------
    clients
        Of each protocol.
    pause_s
        Between one client's requests.
    """
    judge = Judge(pair)
    tally = Tally()
    stop = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        asks = [over_v1(session, url), over_v2(session, url)]
        if grpc_address is not None:
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(grpc_address))
            asks.append(over_grpc(GRPCInferenceServiceStub(channel)))
        tasks = [
            asyncio.create_task(_client(ask, judge, tally, stop, random.Random(number), pause_s))
            for number, ask in enumerate(asks * clients)
        ]
        try:
            yield tally
        finally:
            stop.set()
            await asyncio.gather(*tasks)


async def _client(
    ask: Ask, judge: Judge, tally: Tally, stop: asyncio.Event, dice: random.Random, pause_s: float
) -> None:
    while not stop.is_set():
        chosen = dice.sample(range(len(judge.candidates)), dice.randint(1, 5))
        try:
            version, probabilities = await ask([judge.candidates[number] for number in chosen])
        except Refused as refused:
            tally.failed[str(refused)] += 1
            # What Retry-After asks for, in a test's time.
            await asyncio.sleep(0.05)
            continue
        except (aiohttp.ClientError, TimeoutError) as error:
            tally.failed[f"{type(error).__name__} {error}"] += 1
            continue
        tally.answered[version] += 1
        reason = judge.wrong(chosen, version, probabilities)
        if reason is not None:
            tally.wrong.append(reason)
        await asyncio.sleep(pause_s)


async def until(tally: Tally, enough: Callable[[Tally], bool], timeout_s: float = 60) -> None:
    """Wait until the load has met a condition."""
    async with asyncio.timeout(timeout_s):
        while not enough(tally):
            await asyncio.sleep(0.05)
