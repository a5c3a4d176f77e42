"""Ten times as much as can be taken: what is accepted is answered in time, the rest told to come back.

Real processes, but where it is to be seen that a refusal waits for nothing. A client that does not get an
answer within its own deadline counts as one without an answer.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import psutil
import pytest
import pytest_asyncio
from aiohttp import web

from inferenceservice.local.launch import TransformerProcess
from tests.support.answer_checker import AnswerChecker
from tests.support.async_processes import (
    addresses,
    running_predictor,
    running_transformer,
    wait_until_healthy,
)
from tests.support.connected_transformer import CONNECTIONS_EACH, connected_transformer
from tests.support.endpoints import V1_PREDICT, V2_INFER
from tests.support.faulty_predictor import FaultyHttpPredictor, instances, predictions
from tests.support.in_process_transformer import InProcessTransformer
from tests.support.load import TRY_AGAIN, Tally, at_once, checker_for, status_of, under_load
from tests.support.request_bodies import grpc_objects, v2_objects
from tests.support.waiting import wait_until
from training.candidates import SAMPLE
from transformer.server.byte_budget import LONGEST_REQUESTS

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
async def test_ten_times_as_many_at_once_as_may_wait_are_all_answered_and_cost_no_memory(front):
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
async def test_hundreds_of_clients_that_do_not_stop_asking_are_all_answered(front, pair):
    url, grpc_address = addresses(front.process)
    async with under_load(pair, url, grpc_address, clients=100, pause_s=0.0) as tally:
        await tally.reach(lambda now: now.requests >= 5000)
    print(f"\n{tally}; slowest: {tally.slowest_s}")
    check(tally)
    await check_recovered(front)


@pytest.fixture
def gate(predictor: FaultyHttpPredictor) -> asyncio.Event:
    """The predictor answers no call before it is set."""
    gate = asyncio.Event()

    async def waits(request: web.Request) -> web.StreamResponse:
        await gate.wait()
        rows = instances(await request.json())
        return web.json_response(predictions("v1", predictor.probabilities(rows)))

    predictor.always = waits
    return gate


async def test_what_cannot_be_taken_is_refused_before_anything_is_answered(
    predictor, gate, trained_bundle, sklearn_reference
):
    options = (
        f"--max_waiting_rows={WAITING}",
        f"--max_batch_rows={WAITING}",
        "--predictor_request_timeout_seconds=30",
    )
    async with connected_transformer(predictor, trained_bundle, "v1", *options) as front:
        body = {"instances": [SAMPLE] * SIZE}
        asked = [asyncio.create_task(front.http.post(V1_PREDICT, json=body)) for _ in range(REQUESTS)]
        # Each connection may carry as many candidates as may wait.
        taken = (CONNECTIONS_EACH + 1) * WAITING // SIZE
        await wait_until(lambda: sum(one.done() for one in asked) >= REQUESTS - taken)
        refused = [one.result() for one in asked if one.done()]
        assert {one.status_code for one in refused} == {503}
        assert all(one.headers["retry-after"] for one in refused)
        gate.set()
        answers = await asyncio.gather(*asked)
    assert {one.status_code for one in answers} == {200, 503}
    right = [one.json()["predictions"] for one in answers if one.status_code == 200]
    assert len(right) >= WAITING // SIZE
    probability = sklearn_reference.probabilities([SAMPLE] * SIZE)
    for rows in right:
        assert [row["placement_probability"] for row in rows] == pytest.approx(probability, abs=1e-12)


def long_requests(front: InProcessTransformer, size: int) -> list[asyncio.Task[str]]:
    """Requests for one candidate with much beside it, eight over every way, all sent at once."""
    row = {**SAMPLE, "notes": "x" * size}
    other = {"content-type": "application/json; charset=utf-8"}

    async def rest(path: str, body: dict[str, Any], headers: dict[str, str]) -> str:
        return str((await front.http.post(path, json=body, headers=headers)).status_code)

    async def rpc() -> str:
        code = await front.grpc.ModelInfer(grpc_objects([row])).code()
        return "200" if code is grpc.StatusCode.OK else "503" if "EXHAUSTED" in code.name else code.name

    over_rest = [
        (path, body, headers)
        for path, body in ((V1_PREDICT, {"instances": [row]}), (V2_INFER, v2_objects([row])))
        for headers in ({}, other)
    ]
    return [asyncio.create_task(one) for _ in range(8) for one in (*(rest(*one) for one in over_rest), rpc())]


async def test_more_bytes_than_there_is_room_for_are_refused_and_the_room_is_given_back(
    predictor, gate, trained_bundle
):
    options = ("--max_request_bytes=20000", "--predictor_request_timeout_seconds=30")
    taken = LONGEST_REQUESTS * 20_000 // 15_000
    async with connected_transformer(predictor, trained_bundle, "v1", *options) as front:
        asked = long_requests(front, 15_000)
        await wait_until(lambda: sum(one.done() for one in asked) >= len(asked) - taken)
        assert {one.result() for one in asked if one.done()} == {"503"}
        gate.set()
        assert set(await asyncio.gather(*asked)) == {"200", "503"}
        for _ in range(3):
            assert set(await asyncio.gather(*long_requests(front, 1000))) == {"200"}
