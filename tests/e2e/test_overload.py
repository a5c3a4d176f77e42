"""Ten times as much as can be taken: what is accepted is answered in time, the rest told to come back.

Real processes, but where it is to be seen that a refusal waits for nothing. A client that does not get an
answer within its own deadline counts as one without an answer.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import psutil
import pytest
import pytest_asyncio

from inferenceservice.local.launch import TransformerProcess
from tests.support.answer_checker import AnswerChecker
from tests.support.async_processes import (
    addresses,
    running_predictor,
    running_transformer,
    wait_until_healthy,
)
from tests.support.load import TRY_AGAIN, Tally, at_once, checker_for, status_of, under_load

#: Candidates that may wait, and how many a request has: ten times as many come at once.
WAITING, SIZE = 100, 10
REQUESTS = 10 * WAITING // SIZE
#: Rounds until memory is measured first, and in all.
FIRST, ROUNDS = 20, 100
#: 8,000 requests lie between the two measurements, each with 2.5 KB of candidates. If only the bytes of each
#: stayed, these were 20 MB; what the allocator keeps does not grow with their number.
GROWTH = 16 * 2**20


@dataclass
class Front:
    """A transformer that few may wait for, and who knows what it is to answer."""

    process: TransformerProcess
    checker: AnswerChecker

    @property
    def memory(self) -> int:
        """Bytes."""
        return psutil.Process(self.process.pid).memory_info().rss

    async def all_at_once(self, requests: int = REQUESTS) -> Tally:
        """What becomes of ten times as many candidates as may wait."""
        return await at_once(self.checker, *addresses(self.process), requests=requests, size=SIZE)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(pair, tmp_path_factory) -> AsyncIterator[Front]:
    run = tmp_path_factory.mktemp("overload")
    options = (f"--max_waiting_rows={WAITING}", f"--max_batch_rows={WAITING}")
    async with (
        running_predictor(pair.old, run / "predictor.log") as behind,
        running_transformer(pair.old, behind.http_port, run / "transformer.log", *options) as process,
    ):
        yield Front(process, checker_for(pair))


def check(tally: Tally) -> None:
    """Each was answered: rightly, or told to come back, or at its deadline; some of the first two."""
    assert tally.faults == {}
    assert {status_of(reason) for reason in tally.failed} <= {TRY_AGAIN, "504"}, dict(tally.failed)
    assert tally.failed[TRY_AGAIN]
    assert tally.answered.total()


async def check_recovered(front: Front) -> None:
    """All that can be taken is answered."""
    await wait_until_healthy(front.process, front.process.http_port, "ready")
    for _ in range(3):
        tally = await front.all_at_once(WAITING // SIZE)
        assert (tally.faults, dict(tally.failed)) == ({}, {})


@pytest.mark.asyncio(loop_scope="module")
async def test_ten_times_the_queue_limit_at_once_is_answered_without_growing_memory(front):
    first = 0
    for number in range(ROUNDS):
        tally = await front.all_at_once()
        assert tally.requests == REQUESTS
        check(tally)
        if number == FIRST:
            first = front.memory
    print(f"\nmemory: {first >> 20} MiB, after {ROUNDS * REQUESTS} requests {front.memory >> 20} MiB")
    assert front.memory <= first + GROWTH
    await check_recovered(front)


@pytest.mark.asyncio(loop_scope="module")
async def test_hundreds_of_clients_without_pauses_are_all_answered(front, pair):
    url, grpc_address = addresses(front.process)
    async with under_load(pair, url, grpc_address, clients=100, pause_s=0.0) as tally:
        await tally.reach(lambda now: now.requests >= 5000)
    print(f"\n{tally}; slowest: {tally.slowest_s}")
    check(tally)
    await check_recovered(front)
