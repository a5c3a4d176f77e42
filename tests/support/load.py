"""Steady load over V1, V2 and gRPC, every answer held against the version that it claims."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import grpc
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from tests.support.answer_checker import Answer, AnswerChecker
from tests.support.endpoints import V1_PREDICT, V2_INFER
from tests.support.request_bodies import grpc_objects
from tests.support.sklearn_reference import SklearnReference
from tests.support.version_pairs import VersionPair
from tests.support.waiting import wait_until

#: What a client that is told to come back does not count as a failure of the guarantee.
TRY_AGAIN = "503 with Retry-After"
#: How a reason begins where nobody has answered, whatever the reason.
NO_ANSWER = "no answer"
#: Seconds after which a client does not wait any longer.
GIVE_UP_S = 30
#: What gRPC's codes are over REST; where the answer tells of the predictor, the second ones go first.
STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: "400",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "413",
    grpc.StatusCode.INTERNAL: "500",
}
OF_THE_PREDICTOR = {grpc.StatusCode.DEADLINE_EXCEEDED: "504", grpc.StatusCode.INTERNAL: "502"}
#: Candidates of one request: one, several (only those can be mixed), now and then as many as go in parts.
SIZES = (1, 2, 3, 4, 5) * 7 + (40, 40, 40, 200)


@dataclass
class Tally:
    """What became of the requests.

    Attributes
    ----------
    answered
        By the version that the answer claims.
    failed
        By the reason, which begins with the status that it has over REST, whatever the protocol.
    several
        How many answers were to more than one candidate.
    faults
        Answers that are not what they should be, by the judge's verdict.
    slowest_s
        The longest time that one took, as its client saw it, by status over REST.
    """

    answered: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    several: int = 0
    faults: dict[str, list[str]] = field(default_factory=dict)
    slowest_s: dict[str, float] = field(default_factory=dict)

    @property
    def requests(self) -> int:
        """All of them."""
        return self.answered.total() + self.failed.total()

    @property
    def wrong(self) -> list[str]:
        """Answers that are not the claimed version's."""
        return self.faults.get("wrong", [])

    @property
    def mixed(self) -> list[str]:
        """Answers of which one part is one version's and another part is another's."""
        return self.faults.get("mixed", [])

    def add(self, other: "Tally") -> None:
        """Count another one's requests, too."""
        self.answered += other.answered
        self.failed += other.failed
        self.several += other.several
        for verdict, answers in other.faults.items():
            self.faults.setdefault(verdict, []).extend(answers)
        for status, seconds in other.slowest_s.items():
            self.took(status, seconds)

    async def reach(self, enough: Callable[["Tally"], bool]) -> None:
        """Wait until the load meets a condition."""
        await wait_until(lambda: enough(self), timeout_s=120, poll_s=0.05)

    def took(self, status: str, seconds: float) -> None:
        """Note how long a request with this status took."""
        self.slowest_s[status] = max(seconds, self.slowest_s.get(status, 0.0))

    def __str__(self) -> str:
        answered = ", ".join(f"{count} by {version}" for version, count in sorted(self.answered.items()))
        failed = ", ".join(f"{count} {reason}" for reason, count in self.failed.items())
        return (
            f"{self.requests} requests: answered {answered or 0}; failed {failed or 0}; "
            f"wrong {len(self.wrong)}; mixed {len(self.mixed)} of {self.several}"
        )


def status_of(reason: str) -> str:
    """The status that a reason begins with, as a fault may allow it."""
    return reason if reason == TRY_AGAIN else reason.split()[0]


Ask = Callable[[list[dict[str, Any]]], Awaitable[Answer]]


class Refused(Exception):
    """An answer that is no prediction, or none; the message begins with its status over REST."""


def over_v1(session: aiohttp.ClientSession, url: str) -> Ask:
    """A V1 client."""

    async def ask(rows: list[dict[str, Any]]) -> Answer:
        async with session.post(url + V1_PREDICT, json={"instances": rows}) as response:
            predictions = (await checked(response))["predictions"]
            return Answer(
                response.headers.get("x-model-version", "no version"),
                [one["placement_probability"] for one in predictions],
                [one["placement"] for one in predictions],
            )

    return ask


def over_v2(session: aiohttp.ClientSession, url: str) -> Ask:
    """A V2 client, with one tensor for each field."""

    async def ask(rows: list[dict[str, Any]]) -> Answer:
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
        async with session.post(url + V2_INFER, json={"inputs": inputs}) as response:
            content = await checked(response)
            positive, probabilities = (output["data"] for output in content["outputs"])
            header = response.headers.get("x-model-version")
            return Answer(agreed(content["model_version"], header), probabilities, positive)

    return ask


def agreed(version: str, header: object) -> str:
    """The version that an answer and its header (or metadata) name."""
    return version if version == header else f"{version}, but {header} in the header"


async def checked(response: aiohttp.ClientResponse) -> Any:
    """The answer, if it is a prediction."""
    if response.status == 503 and "retry-after" in response.headers:
        raise Refused(TRY_AGAIN)
    if response.status != 200:
        raise Refused(f"{response.status} {await response.text()}")
    return await response.json()


def over_grpc(stub: GRPCInferenceServiceStub, give_up_s: float) -> Ask:
    """A gRPC client, with one tensor of JSON objects."""

    async def ask(rows: list[dict[str, Any]]) -> Answer:
        call = stub.ModelInfer(grpc_objects(rows), timeout=give_up_s)
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            raise Refused(reason(error)) from error
        header = dict(await call.trailing_metadata()).get("x-model-version")
        positive, probabilities = (output.contents for output in answer.outputs)
        return Answer(
            agreed(answer.model_version, header),
            list(probabilities.fp64_contents),
            list(positive.bool_contents),
        )

    return ask


def reason(error: grpc.aio.AioRpcError) -> str:
    """Why there is no prediction, as REST would say it."""
    code, details = error.code(), error.details() or ""
    if "retry-after" in dict(error.trailing_metadata() or ()):
        return TRY_AGAIN
    # The client's own library says DEADLINE_EXCEEDED, too, when nobody has answered.
    told = (
        OF_THE_PREDICTOR
        if details.startswith(("the predictor", "invalid response from the predictor"))
        else {}
    )
    return f"{told.get(code) or STATUSES.get(code, NO_ANSWER)} {code.name} {details}"


@contextlib.asynccontextmanager
async def three_ways(url: str, grpc_address: str, give_up_s: float) -> AsyncIterator[list[Ask]]:
    """A client of each protocol; of REST, as many connections as there are requests at once."""
    timeout = aiohttp.ClientTimeout(total=give_up_s)
    async with (
        aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session,
        grpc.aio.insecure_channel(grpc_address) as channel,
    ):
        yield [
            over_v1(session, url),
            over_v2(session, url),
            over_grpc(GRPCInferenceServiceStub(channel), give_up_s),
        ]


def checker_for(
    pair: VersionPair,
    may_answer: Mapping[str, Sequence[SklearnReference]] | None = None,
    *,
    new_only_candidates: bool = False,
) -> AnswerChecker:
    """Who knows what each candidate's score is; the parameters are those of `under_load`."""
    versions = {label: [reference] for label, reference in pair.references.items()}
    may_answer = versions if may_answer is None else may_answer
    offered = pair.new_only_candidates + pair.candidates if new_only_candidates else pair.candidates
    others = [pair.references[label] for label in versions if label not in may_answer]
    return AnswerChecker(offered, may_answer, others)


@contextlib.asynccontextmanager
async def under_load(
    pair: VersionPair,
    url: str,
    grpc_address: str,
    *,
    may_answer: Mapping[str, Sequence[SklearnReference]] | None = None,
    new_only_candidates: bool = False,
    clients: int = 2,
    pause_s: float = 0.05,
    give_up_s: float = GIVE_UP_S,
) -> AsyncIterator[Tally]:
    """Load for as long as the block lasts; its tally, complete when the block has ended.

    Parameters
    ----------
    may_answer
        The models that may answer, by the label that their answers must carry; by default both versions.
    newcomers
        Whether each request has a candidate that only the new version takes.
    clients
        Of each protocol.
    pause_s
        Between one client's requests.
    give_up_s
        How long a client waits for an answer; then it counts as none.
    """
    checker = checker_for(pair, may_answer, new_only_candidates=new_only_candidates)
    first = len(pair.new_only_candidates) if new_only_candidates else len(checker.candidates)
    tally = Tally()
    stop = asyncio.Event()
    async with three_ways(url, grpc_address, give_up_s) as asks:
        tasks = [
            asyncio.create_task(_Client(ask, checker, tally, first).run(stop, pause_s))
            for ask in asks * clients
        ]
        try:
            yield tally
        finally:
            stop.set()
            await asyncio.gather(*tasks)


async def at_once(
    checker: AnswerChecker,
    url: str,
    grpc_address: str,
    *,
    requests: int,
    size: int,
    give_up_s: float = GIVE_UP_S,
) -> Tally:
    """What becomes of many requests of one size that come at the same time, a third over each protocol."""
    tally = Tally()
    async with three_ways(url, grpc_address, give_up_s) as asks:
        clients = [_Client(ask, checker, tally, len(checker.candidates)) for ask in asks]
        await asyncio.gather(*(clients[number % 3].once(size) for number in range(requests)))
    return tally


class _Client:
    """Asks about candidates, the first of them one of the first ones that are offered, and counts."""

    def __init__(self, ask: Ask, checker: AnswerChecker, tally: Tally, first: int) -> None:
        self._ask = ask
        self._checker = checker
        self._tally = tally
        self._first = first
        # A client of its own draws the same, whatever the others do.
        self._dice = random.Random(random.randrange(2**32))

    async def run(self, stop: asyncio.Event, pause_s: float) -> None:
        """Ask until told to stop."""
        while not stop.is_set():
            if not await self.once():
                # What Retry-After asks for, in a test's time.
                await asyncio.sleep(0.05)
            await asyncio.sleep(pause_s)

    async def once(self, size: int | None = None) -> bool:
        """Ask about so many candidates, or any number of them; whether there was a prediction."""
        chosen = self._choose(self._dice.choice(SIZES) if size is None else size)
        start = time.monotonic()
        status = NO_ANSWER
        try:
            answer = await self._ask([self._checker.candidates[number] for number in chosen])
        except Refused as refused:
            self._tally.failed[str(refused)] += 1
            status = status_of(str(refused))
            return False
        except (aiohttp.ClientError, TimeoutError) as error:
            self._tally.failed[f"{NO_ANSWER} {type(error).__name__} {error}"] += 1
            return False
        else:
            status = "200"
        finally:
            self._tally.took(status, time.monotonic() - start)
        self._tally.answered[answer.version] += 1
        self._tally.several += len(chosen) > 1
        verdict = self._checker.verdict(chosen, answer)
        if verdict != "right":
            text = f"{time.strftime('%H:%M:%S')} {answer} of candidates {chosen}"
            self._tally.faults.setdefault(verdict, []).append(text)
        return True

    def _choose(self, size: int) -> list[int]:
        others = range(len(self._checker.candidates))
        return [self._dice.randrange(self._first), *self._dice.choices(others, k=size - 1)]
