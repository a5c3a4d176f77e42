"""Ten times the load that the transformer accepts: each request is answered in time or refused with 503.

A request without a response within the client's timeout counts as one without an answer.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import psutil
import pytest
import pytest_asyncio

from inferenceservice.local.launch import TransformerProcess
from tests.support.answer_checker import AnswerChecker
from tests.support.async_clients import TRY_AGAIN, status_of
from tests.support.async_processes import (
    addresses,
    running_predictor,
    running_transformer,
    wait_until_healthy,
)
from tests.support.load import Tally, at_once, checker_for, under_load

#: Candidates that fit into the queue, and candidates of a request. Ten times as many are sent at once.
WAITING, SIZE = 100, 10
REQUESTS = 10 * WAITING // SIZE
#: Rounds before the first measurement of memory, and all rounds.
FIRST, ROUNDS = 20, 100
#: There are 8,000 requests between the two measurements, each with 2.5 KB of candidates. A leak of only these
#: bytes would be 20 MB. The memory that the allocator keeps does not grow with the number of requests.
GROWTH = 16 * 2**20


@dataclass
class OverloadedTransformer:
    """A transformer with a small queue, and the checker of its answers."""

    process: TransformerProcess
    checker: AnswerChecker

    @property
    def memory(self) -> int:
        """Memory of the process in bytes."""
        return psutil.Process(self.process.pid).memory_info().rss

    async def all_at_once(self, requests: int = REQUESTS) -> Tally:
        """Send ten times as many candidates at once as fit into the queue."""
        return await at_once(self.checker, *addresses(self.process), requests=requests, size=SIZE)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def transformer(pair, tmp_path_factory) -> AsyncIterator[OverloadedTransformer]:
    run = tmp_path_factory.mktemp("overload")
    options = (f"--max_waiting_rows={WAITING}", f"--max_batch_rows={WAITING}")
    async with (
        running_predictor(pair.old, run / "predictor.log") as behind,
        running_transformer(pair.old, behind.http_port, run / "transformer.log", *options) as process,
    ):
        yield OverloadedTransformer(process, checker_for(pair))


def check(tally: Tally) -> None:
    """Check that each request got the right answer, 503 or 504, and that there are some of the first."""
    assert tally.faults == {}
    assert {status_of(reason) for reason in tally.failed} <= {TRY_AGAIN, "504"}, dict(tally.failed)
    assert tally.answered.total()


async def check_recovered(transformer: OverloadedTransformer) -> None:
    """Check that a load within the limits is answered."""
    await wait_until_healthy(transformer.process, transformer.process.http_port, "ready")
    for _ in range(3):
        tally = await transformer.all_at_once(WAITING // SIZE)
        assert (tally.faults, dict(tally.failed)) == ({}, {})


@pytest.mark.asyncio(loop_scope="module")
async def test_ten_times_the_queue_limit_at_once_is_answered_without_growing_memory(transformer):
    first = refused = 0
    for number in range(ROUNDS):
        tally = await transformer.all_at_once()
        assert tally.requests == REQUESTS
        check(tally)
        refused += tally.failed[TRY_AGAIN]
        if number == FIRST:
            first = transformer.memory
    print(f"\nmemory: {first >> 20} MiB, after {ROUNDS * REQUESTS} requests {transformer.memory >> 20} MiB")
    assert transformer.memory <= first + GROWTH
    # Not in each round: a fast transformer may answer all while they are sent.
    assert refused
    await check_recovered(transformer)


@pytest.mark.asyncio(loop_scope="module")
async def test_hundreds_of_clients_without_pauses_are_all_answered(transformer, pair):
    url, grpc_address = addresses(transformer.process)
    async with under_load(pair, url, grpc_address, clients=100, pause_s=0.0) as tally:
        await tally.reach(lambda now: now.requests >= 5000)
    print(f"\n{tally}; slowest: {tally.slowest_s}")
    check(tally)
    assert tally.failed[TRY_AGAIN]
    await check_recovered(transformer)
