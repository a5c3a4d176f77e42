"""Steady load over V1, V2 and gRPC; every answer is compared with the version that it names."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp

from tests.support.answer_checker import AnswerChecker
from tests.support.async_clients import (
    NO_ANSWER,
    Ask,
    Refused,
    over_explain,
    protocol_clients,
    rest_session,
    status_of,
)
from tests.support.sklearn_reference import SklearnReference
from tests.support.version_pairs import VersionPair
from tests.support.waiting import wait_until

#: Seconds that a client waits for a response.
GIVE_UP_S = 30
#: Numbers of candidates in a request: one, several, and now and then so many that the request is split.
SIZES = (1, 2, 3, 4, 5) * 7 + (40, 40, 40, 200)


@dataclass
class Tally:
    """Counts of answers and failures.

    Attributes
    ----------
    answered
        Number of answers by the version that they name.
    failed
        Number of failures by reason. A reason begins with the REST status, also over gRPC.
    several
        Number of answers for more than one candidate.
    faults
        Answers that are not right, by the checker's verdict.
    slowest_s
        Longest time of a request, by REST status.
    """

    answered: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    several: int = 0
    faults: dict[str, list[str]] = field(default_factory=dict)
    slowest_s: dict[str, float] = field(default_factory=dict)

    @property
    def requests(self) -> int:
        """Number of all requests."""
        return self.answered.total() + self.failed.total()

    @property
    def wrong(self) -> list[str]:
        """Answers that are not from the version that they name."""
        return self.faults.get("wrong", [])

    @property
    def mixed(self) -> list[str]:
        """Answers with scores of more than one version."""
        return self.faults.get("mixed", [])

    def add(self, other: "Tally") -> None:
        """Add another tally's requests."""
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
        """Record how long a request with this status took."""
        self.slowest_s[status] = max(seconds, self.slowest_s.get(status, 0.0))

    def __str__(self) -> str:
        answered = ", ".join(f"{count} by {version}" for version, count in sorted(self.answered.items()))
        failed = ", ".join(f"{count} {reason}" for reason, count in self.failed.items())
        return (
            f"{self.requests} requests: answered {answered or 0}; failed {failed or 0}; "
            f"wrong {len(self.wrong)}; mixed {len(self.mixed)} of {self.several}"
        )


def checker_for(
    pair: VersionPair,
    may_answer: Mapping[str, Sequence[SklearnReference]] | None = None,
    *,
    new_only_candidates: bool = False,
) -> AnswerChecker:
    """Return the checker for a pair's candidates; the parameters are those of `under_load`."""
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
    explains: bool = False,
    host: str | None = None,
) -> AsyncIterator[Tally]:
    """Send requests while the block runs. The tally is complete when the block has ended.

    Parameters
    ----------
    may_answer
        Models that may answer, by the version that their answers must have; by default both versions.
    new_only_candidates
        True if each request has a candidate that only the new version accepts.
    clients
        Number of clients of each protocol.
    pause_s
        Seconds between the requests of a client.
    give_up_s
        Seconds that a client waits for a response.
    explains
        Also ask for explanations, of one candidate after another.
    host
        Host that requests name, if it is not that of the URL.
    """
    checker = checker_for(pair, may_answer, new_only_candidates=new_only_candidates)
    first = len(pair.new_only_candidates) if new_only_candidates else len(checker.candidates)
    tally = Tally()
    stop = asyncio.Event()
    async with (
        protocol_clients(url, grpc_address, give_up_s, host) as asks,
        rest_session(give_up_s, host) as session,
    ):
        senders = [_Client(ask, checker, tally, first) for ask in asks * clients]
        if explains:
            senders.append(_Client(over_explain(session, url), checker, tally, first, sizes=(1,)))
        tasks = [asyncio.create_task(sender.run(stop, pause_s)) for sender in senders]
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
    """Send many requests of one size at the same time, a third over each protocol."""
    tally = Tally()
    async with protocol_clients(url, grpc_address, give_up_s) as asks:
        clients = [_Client(ask, checker, tally, len(checker.candidates)) for ask in asks]
        await asyncio.gather(*(clients[number % 3].once(size) for number in range(requests)))
    return tally


class _Client:
    """Sends requests for random candidates and counts the answers.

    The first candidate of each request is one of the first `first` ones.
    """

    def __init__(
        self,
        ask: Ask,
        checker: AnswerChecker,
        tally: Tally,
        first: int,
        sizes: Sequence[int] = SIZES,
    ) -> None:
        self._ask = ask
        self._sizes = sizes
        self._checker = checker
        self._tally = tally
        self._first = first
        # Each client has its own generator, so the others do not change what it draws.
        self._dice = random.Random(random.randrange(2**32))

    async def run(self, stop: asyncio.Event, pause_s: float) -> None:
        """Send requests until `stop` is set."""
        while not stop.is_set():
            if not await self.once():
                # Retry-After asks for a second; tests have less time.
                await asyncio.sleep(0.05)
            await asyncio.sleep(pause_s)

    async def once(self, size: int | None = None) -> bool:
        """Send a request of a given or random size. Return True if it gets a prediction."""
        chosen = self._choose(self._dice.choice(self._sizes) if size is None else size)
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
