"""Requests that wait together go together, each with its own answer and nobody else's credentials."""

import asyncio
import functools
import gc
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from placement.client import Busy, connect
from tests.support.fake_mlserver import StockServer
from tests.support.in_process_transformer import Serving, serving
from tests.support.sklearn_reference import Truth
from tests.support.version_pairs import Pair, make_pair
from transformer.batching.caller_wait import CALLS_WITHOUT, CallerWait
from transformer.batching.concurrency import ConcurrencyLimit, _Climb
from transformer.batching.connection_worker import ConnectionWorker
from transformer.batching.jobs import Job
from transformer.upstream.known_versions import UpstreamModel

V1 = "/v1/models/placement:predict"


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory):
    storage = tmp_path_factory.mktemp("pairs")
    return functools.cache(lambda name: make_pair(name, storage))


@pytest.fixture
def pair(pair_of) -> Pair:
    return pair_of("retrained")


@pytest.fixture
def truth(pair) -> Truth:
    return Truth(pair.new)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as entered:
        yield entered


@pytest.fixture
def start(stack, pair, truth):
    async def start(*arguments: str) -> tuple[Serving, StockServer]:
        stock = await stack.enter_async_context(StockServer(truth).running())
        front = await stack.enter_async_context(
            serving(pair.new, stock.address, "--predictor_protocol=v2", *arguments)
        )
        return front, stock

    return start


def asked(front: Serving, rows: list[dict], **headers: str) -> asyncio.Task:
    return asyncio.create_task(front.http.post(V1, json={"instances": rows}, headers=headers))


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def probabilities(response) -> list[float]:
    assert response.status_code == 200, response.text
    return [one["placement_probability"] for one in response.json()["predictions"]]


async def test_what_waits_goes_as_one_call(start, pair, truth):
    front, stock = await start("--predictor_connections=1")
    stock.open.clear()
    first = asked(front, pair.candidates[:1])
    await until(lambda: stock.plain)
    rest = [asked(front, [one]) for one in pair.candidates[1:40]]
    await asyncio.sleep(0.1)
    stock.open.set()
    answers = [probabilities(await one) for one in (first, *rest)]
    assert [one for (one,) in answers] == pytest.approx(truth.probabilities(pair.candidates[:40]), abs=1e-12)
    assert [len(matrix) for matrix, _ in stock.plain] == [1, 39]


async def test_what_was_answered_goes_without_the_garbage_collector(start, pair):
    front, _ = await start("--max_batch_rows=16")
    gc.collect()
    gc.disable()
    try:
        for rows in (pair.candidates[:1], pair.candidates[:50]):
            for _ in range(10):
                probabilities(await asked(front, rows))
        left = sum(isinstance(one, Job) for one in gc.get_objects())
    finally:
        gc.enable()
    # The connections' tasks may hold those of their last call.
    assert left <= 2


async def test_what_could_not_be_answered_goes_without_the_garbage_collector(start, pair):
    front, stock = await start("--max_waiting_rows=8", "--predictor_request_timeout_seconds=1")
    stock.open.clear()
    gc.collect()
    gc.disable()
    try:
        many = [asked(front, pair.candidates[:8]) for _ in range(60)]
        statuses = {(await one).status_code for one in many}
        many.clear()
        left = sum(isinstance(one, Job) for one in gc.get_objects())
    finally:
        gc.enable()
        stock.open.set()
    assert statuses == {503, 504}
    # The connections' tasks may hold those of their last call.
    assert left <= 8


async def test_callers_that_ask_again_at_once_share_calls_instead_of_taking_turns(start, pair):
    front, stock = await start("--predictor_connections=1")
    callers = 16

    async def asks_again(candidate: dict) -> None:
        for _ in range(20):
            probabilities(await asked(front, [candidate]))

    await asyncio.gather(*map(asks_again, pair.candidates[:callers]))
    full = sum(len(matrix) >= 0.9 * callers for matrix, _ in stock.plain)
    assert full > len(stock.plain) / 2, [len(matrix) for matrix, _ in stock.plain]


async def test_callers_that_do_not_ask_again_are_not_waited_for():
    returning = CallerWait(asyncio.get_running_loop())
    for _ in range(5):
        returning.expect(10, 60.0)
        assert returning.wait_s() > 0
        returning.came = 9
        assert returning.wait_s() <= 0
        returning.stop()
    for _ in range(10):
        returning.expect(10, 60.0)
        returning.stop()
    assert returning.wait_s() <= 0
    returning.expect(10, 60.0)
    assert returning.wait_s() <= 0
    for _ in range(CALLS_WITHOUT):
        returning.expect(10, 60.0)
    assert returning.wait_s() > 0


async def test_a_batch_has_a_limit(start, pair, truth):
    front, stock = await start("--predictor_connections=1", "--max_batch_rows=10")
    stock.open.clear()
    asking = [asked(front, [one]) for one in pair.candidates[:31]]
    await until(lambda: stock.plain)
    stock.open.set()
    answers = [probabilities(await one) for one in asking]
    assert [one for (one,) in answers] == pytest.approx(truth.probabilities(pair.candidates[:31]), abs=1e-12)
    assert max(len(matrix) for matrix, _ in stock.plain) == 10


async def test_a_large_request_is_cut_and_lets_small_ones_in(start, pair, truth):
    front, stock = await start("--predictor_connections=1", "--max_batch_rows=16")
    stock.open.clear()
    many = (pair.candidates * 5)[:300]
    large = asked(front, many)
    await until(lambda: stock.plain)
    small = [asked(front, [one]) for one in pair.candidates[:8]]
    await asyncio.sleep(0.1)
    stock.open.set()
    for one, candidate in zip(small, pair.candidates, strict=False):
        assert probabilities(await one) == pytest.approx(truth.probabilities([candidate]), abs=1e-12)
    assert not large.done()
    assert probabilities(await large) == pytest.approx(truth.probabilities(many), abs=1e-12)


async def test_a_call_never_mixes_credentials(start, pair, truth):
    front, stock = await start("--predictor_connections=2")
    stock.open.clear()
    callers = {f"Bearer {number}": pair.candidates[20 * number : 20 * number + 20] for number in range(4)}
    asking = {
        (caller, number): asked(front, [rows[number]], authorization=caller)
        for number in range(20)
        for caller, rows in callers.items()
    }
    await until(lambda: stock.plain)
    stock.open.set()
    for (caller, number), one in asking.items():
        expected = truth.probabilities([callers[caller][number]])
        assert probabilities(await one) == pytest.approx(expected, abs=1e-12)
    own = {caller: set(map(tuple, truth.encode(rows))) for caller, rows in callers.items()}
    for matrix, headers in stock.plain:
        assert set(map(tuple, matrix)) <= own[headers["authorization"]]
    # Each caller's own went together all the same.
    assert len(stock.plain) < len(asking) / 2


async def test_what_names_one_request_goes_along_with_that_one_only(start, pair):
    front, stock = await start("--predictor_connections=1")
    await asked(front, pair.candidates[:1], **{"x-request-id": "alone"})
    stock.open.clear()
    first = asked(front, pair.candidates[:1], **{"x-request-id": "first"})
    await until(lambda: len(stock.plain) == 2)
    others = [asked(front, [one], **{"x-request-id": "other"}) for one in pair.candidates[:3]]
    await asyncio.sleep(0.1)
    stock.open.set()
    await asyncio.gather(first, *others)
    assert [headers.get("x-request-id") for _, headers in stock.plain] == ["alone", "first", None]


async def test_more_than_may_wait_is_told_to_come_again(start, pair, truth):
    front, stock = await start("--predictor_connections=1", "--max_waiting_rows=5", "--max_batch_rows=1")
    stock.open.clear()
    asking = [asked(front, [one]) for one in pair.candidates[:20]]
    await until(lambda: sum(one.done() for one in asking) >= 10)
    stock.open.set()
    answers = await asyncio.gather(*asking)
    refused = [one for one in answers if one.status_code == 503]
    assert {one.headers["retry-after"] for one in refused} == {"1"}
    assert "waiting already" in refused[0].json()["error"]
    taken = [number for number, one in enumerate(answers) if one.status_code == 200]
    assert len(taken) + len(refused) == 20
    assert len(taken) >= 5
    for number in taken:
        expected = truth.probabilities([pair.candidates[number]])
        assert probabilities(answers[number]) == pytest.approx(expected, abs=1e-12)


async def test_over_grpc_it_is_told_the_same(start, pair, stack):
    front, stock = await start("--predictor_connections=1", "--max_waiting_rows=1", "--max_batch_rows=1")
    stock.open.clear()
    first = asked(front, pair.candidates[:1])
    await until(lambda: stock.plain)
    second = asked(front, pair.candidates[:1])
    await asyncio.sleep(0.1)
    client = connect(front.grpc_address, "placement", "grpc")
    stack.push_async_callback(client.close)
    with pytest.raises(Busy, match="waiting already") as busy:
        await client.predict(pair.candidates[:1])
    assert busy.value.after_s == 1
    stock.open.set()
    await asyncio.gather(first, second)


async def test_a_request_that_is_cancelled_leaves_its_place(start, pair):
    front, stock = await start("--predictor_connections=1", "--max_waiting_rows=5")
    stock.open.clear()
    first = asked(front, pair.candidates[:1])
    await until(lambda: stock.plain)
    waiting = [asked(front, [one]) for one in pair.candidates[:5]]
    await asyncio.sleep(0.05)
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    last = asked(front, pair.candidates[:5])
    await asyncio.sleep(0.05)
    stock.open.set()
    assert (await first).status_code == (await last).status_code == 200
    assert sum(len(matrix) for matrix, _ in stock.plain) == 6


async def test_a_large_request_is_answered_by_one_model_while_another_takes_over(start, pair):
    truths = pair.truths
    front, stock = await start("--predictor_connections=2", "--max_batch_rows=16")
    many = (pair.candidates * 5)[:400]
    versions = set()
    for number in range(6):
        asking = asked(front, many)
        calls = len(stock.plain)
        await until(lambda calls=calls: len(stock.plain) > calls + 3)
        stock.swap(truths["v1" if number % 2 else "v2"])
        response = await asking
        version = response.headers["x-model-version"]
        versions.add(version)
        assert probabilities(response) == pytest.approx(truths[version].probabilities(many), abs=1e-12)
    assert versions == {"v1", "v2"}


async def test_verified_by_request_a_large_request_is_answered_by_one_model_too(start, pair):
    truths = pair.truths
    front, stock = await start("--predictor_connections=2", "--max_batch_rows=64", "--verify=request")
    many = (pair.candidates * 5)[:200]
    calls = stock.calls
    for _ in range(4):
        asking = asked(front, many)
        while not asking.done():
            # As behind a proxy that gives each call to either.
            stock.serving = truths["v1" if stock.calls % 3 else "v2"]
            await asyncio.sleep(0)
        response = await asking
        version = response.headers["x-model-version"]
        assert probabilities(response) == pytest.approx(truths[version].probabilities(many), abs=1e-12)
    assert stock.calls > calls


async def in_front_of_a_canary(stack: AsyncExitStack, pair: Pair, share: float) -> Serving:
    """A transformer whose every call may meet another version: the new one for that share of them."""
    dice = random.Random(0)
    stock = await stack.enter_async_context(
        StockServer(lambda: pair.truths["v2" if dice.random() < share else "v1"]).running()
    )
    return await stack.enter_async_context(
        serving(pair.new, stock.address, "--predictor_protocol=v2", "--verify=request")
    )


async def test_verified_by_request_each_version_gives_its_share_of_the_answers(stack, pair_of):
    """A refused call is sent again, to whichever pod: that must not favour the version that has more."""
    pair = pair_of("category_renamed")
    truths = pair.truths
    front = await in_front_of_a_canary(stack, pair, 0.2)
    versions = Counter[str]()
    for _ in range(400):
        response = await front.http.post(V1, json={"instances": pair.candidates[:1]})
        version = response.headers["x-model-version"]
        versions[version] += 1
        expected = truths[version].probabilities(pair.candidates[:1])
        assert probabilities(response) == pytest.approx(expected, abs=1e-12)
    # 0.2, give or take four standard deviations; the square of it would be 0.06.
    assert 0.12 < versions["v2"] / versions.total() < 0.28


async def test_verified_by_request_a_request_of_thousands_is_answered_in_a_canary(stack, pair_of):
    """In one piece: parts of it would have to meet the same model again and again."""
    pair = pair_of("retrained")
    truths = pair.truths
    front = await in_front_of_a_canary(stack, pair, 0.5)
    many = (pair.candidates * 20)[:5000]
    response = await asked(front, many)
    expected = truths[response.headers["x-model-version"]].probabilities(many)
    assert probabilities(response) == pytest.approx(expected, abs=1e-12)


async def test_requests_for_a_newer_version_do_not_shut_out_the_others(stack, pair_of):
    pair = pair_of("category_added")
    truths = pair.truths
    stock = await stack.enter_async_context(StockServer(truths["v1"]).running())
    front = await stack.enter_async_context(
        serving(pair.new, stock.address, "--predictor_protocol=v2", "--max_waiting_rows=4")
    )
    waiting = [asked(front, [one]) for one in pair.newcomers[:3]]
    await asyncio.sleep(0.1)
    for one in pair.candidates[:10]:
        assert (await asked(front, [one])).headers["x-model-version"] == "v1"
    assert not any(one.done() for one in waiting)
    refused = [await asked(front, pair.newcomers[:2])]
    assert [one.status_code for one in refused] == [503]
    stock.swap(truths["v2"])
    for one, newcomer in zip(waiting, pair.newcomers, strict=False):
        response = await one
        assert response.headers["x-model-version"] == "v2"
        assert probabilities(response) == pytest.approx(truths["v2"].probabilities([newcomer]), abs=1e-12)


async def test_a_request_that_the_predictor_cannot_score_fails_alone(start, pair, truth):
    """What shares its call is halved until it is alone: 300 others lose nothing, for a few calls more."""
    front, stock = await start("--predictor_connections=1", "--max_batch_rows=4096")
    poison = {**pair.candidates[0], "ssc_p": 40.125}
    column = list(truth.bundle.vectorizer.feature_names).index("ssc_p")
    stock.refuses = lambda matrix: bool((matrix[:, column] == 40.125).any())
    stock.open.clear()
    first = asked(front, pair.candidates[:1])
    await until(lambda: stock.plain)
    others = (pair.candidates * 10)[:300]
    innocent = [asked(front, [one]) for one in others[:100]]
    guilty = asked(front, [poison])
    innocent += [asked(front, [one]) for one in others[100:]]
    await asyncio.sleep(0.5)
    stock.open.set()
    assert (await first).status_code == 200
    answered = [probabilities(await one)[0] for one in innocent]
    assert answered == pytest.approx(truth.probabilities(others), abs=1e-12)
    assert (await guilty).status_code == 502
    assert len(stock.plain) < 50


async def test_a_request_that_cannot_be_looked_at_keeps_no_other_waiting(start, pair, monkeypatch):
    front, stock = await start("--predictor_connections=1")
    stock.open.clear()
    first = asked(front, pair.candidates[:1])
    await until(lambda: stock.plain)
    broken = ConnectionWorker._can_answer

    def can_answer(slot: ConnectionWorker, job: Job, behind: UpstreamModel) -> bool:
        if job.headers.get("x-request-id") == "broken":
            raise ArithmeticError("a bug")
        return broken(slot, job, behind)

    monkeypatch.setattr(ConnectionWorker, "_can_answer", can_answer)
    bad = asked(front, pair.candidates[:1], **{"x-request-id": "broken"})
    others = [asked(front, [one]) for one in pair.candidates[:5]]
    await asyncio.sleep(0.1)
    stock.open.set()
    assert [one.status_code for one in await asyncio.gather(first, *others)] == [200] * 6
    assert (await bad).status_code == 500


async def test_a_call_that_hung_is_nothing_to_expect_of_others():
    limit = ConcurrencyLimit(4, lambda: None)
    limit.measure(0.01, 1, 0.01)
    for _ in range(10):
        limit.measure(10.0, 0, 0.0)
    assert limit.usual_s == 0.01


@pytest.mark.parametrize(
    ("power", "best"),
    [
        # One worker: another call at once makes batches smaller.
        ((1.0, 0.6, 0.4, 0.3), 1),
        # Four replicas.
        ((1.0, 3.8, 8.0, 15.0), 4),
        # Two.
        ((1.0, 3.5, 3.6, 3.0), 2),
    ],
)
def test_so_many_calls_are_made_at_once_as_do_best(power, best):
    climb = _Climb(len(power))
    seen = []
    for _ in range(400):
        climb.step(power[climb.limit - 1])
        seen.append(climb.limit)
    assert seen[200:].count(best) > 180
    assert all(1 <= limit <= len(power) for limit in seen)


def test_more_callers_are_not_taken_for_what_another_call_at_once_does():
    """One worker; the callers become ten times as many at any moment, again and again."""
    power = (1.0, 0.8, 0.6, 0.4)
    for moment in range(40):
        climb = _Climb(len(power))
        for number in range(200):
            callers = 10.0 if number % 40 >= moment else 1.0
            climb.step(callers * power[climb.limit - 1])
            assert climb.limit <= 2, "one is tried, and none kept"
