"""Queued requests are sent as one call; each gets its own answer, and no call mixes credentials."""

import asyncio
import gc
import random
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from placement.client import Busy, connect
from tests.support.endpoints import V1_PREDICT
from tests.support.fake_mlserver import FakeMLServer
from tests.support.fake_service import start_fake_service
from tests.support.in_process_transformer import InProcessTransformer
from tests.support.sklearn_reference import SklearnReference
from tests.support.version_pairs import VersionPair
from tests.support.waiting import wait_until
from transformer.batching.caller_wait import CALLS_WITHOUT, CallerWait
from transformer.batching.concurrency import ConcurrencyLimit, _HillClimb
from transformer.batching.connection_worker import ConnectionWorker
from transformer.batching.jobs import Job
from transformer.upstream.known_versions import UpstreamModel


@pytest.fixture
def pair(version_pair) -> VersionPair:
    return version_pair("retrained")


@pytest.fixture
def sklearn_reference(pair) -> SklearnReference:
    return SklearnReference(pair.new)


@pytest.fixture
def start(stack, pair, sklearn_reference):
    async def start(*arguments: str) -> tuple[InProcessTransformer, FakeMLServer]:
        return await start_fake_service(stack, pair.new, sklearn_reference, *arguments)

    return start


def send(transformer: InProcessTransformer, rows: list[dict], **headers: str) -> asyncio.Task:
    return asyncio.create_task(transformer.http.post(V1_PREDICT, json={"instances": rows}, headers=headers))


def probabilities(response) -> list[float]:
    assert response.status_code == 200, response.text
    return [one["placement_probability"] for one in response.json()["predictions"]]


async def test_queued_requests_are_sent_as_one_call(start, pair, sklearn_reference):
    transformer, predictor = await start("--predictor_connections=1")
    predictor.may_answer.clear()
    first = send(transformer, pair.candidates[:1])
    await wait_until(lambda: predictor.plain_calls)
    rest = [send(transformer, [one]) for one in pair.candidates[1:40]]
    await asyncio.sleep(0.1)
    predictor.may_answer.set()
    answers = [probabilities(await one) for one in (first, *rest)]
    assert [one for (one,) in answers] == pytest.approx(
        sklearn_reference.probabilities(pair.candidates[:40]), abs=1e-12
    )
    assert [len(matrix) for matrix, _ in predictor.plain_calls] == [1, 39]


async def test_answered_requests_are_freed_without_the_garbage_collector(start, pair):
    transformer, _ = await start("--max_batch_rows=16")
    gc.collect()
    gc.disable()
    try:
        for rows in (pair.candidates[:1], pair.candidates[:50]):
            for _ in range(10):
                probabilities(await send(transformer, rows))
        left = sum(isinstance(one, Job) for one in gc.get_objects())
    finally:
        gc.enable()
    # The connections' tasks may hold the jobs of their last call.
    assert left <= 2


async def test_failed_requests_are_freed_without_the_garbage_collector(start, pair):
    transformer, predictor = await start("--max_waiting_rows=8", "--predictor_request_timeout_seconds=1")
    predictor.may_answer.clear()
    gc.collect()
    gc.disable()
    try:
        many = [send(transformer, pair.candidates[:8]) for _ in range(60)]
        statuses = {(await one).status_code for one in many}
        many.clear()
        left = sum(isinstance(one, Job) for one in gc.get_objects())
    finally:
        gc.enable()
        predictor.may_answer.set()
    assert statuses == {503, 504}
    # The connections' tasks may hold the jobs of their last call.
    assert left <= 8


async def test_callers_that_resend_at_once_share_calls(start, pair):
    transformer, predictor = await start("--predictor_connections=1")
    # Over sockets, this client would take longer to resend than a call takes.
    transformer = replace(transformer, http=transformer.without_sockets)
    callers = 16

    async def asks_again(candidate: dict) -> None:
        for _ in range(20):
            probabilities(await send(transformer, [candidate]))

    await asyncio.gather(*map(asks_again, pair.candidates[:callers]))
    full = sum(len(matrix) >= 0.9 * callers for matrix, _ in predictor.plain_calls)
    assert full > len(predictor.plain_calls) / 2, [len(matrix) for matrix, _ in predictor.plain_calls]


async def test_callers_that_do_not_resend_are_not_waited_for():
    caller_wait = CallerWait(asyncio.get_running_loop())
    for _ in range(5):
        caller_wait.start(10, 60.0)
        assert caller_wait.remaining_s() > 0
        caller_wait.arrived = 9
        assert caller_wait.remaining_s() <= 0
        caller_wait.stop()
    for _ in range(10):
        caller_wait.start(10, 60.0)
        caller_wait.stop()
    assert caller_wait.remaining_s() <= 0
    caller_wait.start(10, 60.0)
    assert caller_wait.remaining_s() <= 0
    for _ in range(CALLS_WITHOUT):
        caller_wait.start(10, 60.0)
    assert caller_wait.remaining_s() > 0


async def test_a_call_has_at_most_max_batch_rows_candidates(start, pair, sklearn_reference):
    transformer, predictor = await start("--predictor_connections=1", "--max_batch_rows=10")
    predictor.may_answer.clear()
    responses = [send(transformer, [one]) for one in pair.candidates[:31]]
    await wait_until(lambda: predictor.plain_calls)
    predictor.may_answer.set()
    answers = [probabilities(await one) for one in responses]
    assert [one for (one,) in answers] == pytest.approx(
        sklearn_reference.probabilities(pair.candidates[:31]), abs=1e-12
    )
    assert max(len(matrix) for matrix, _ in predictor.plain_calls) == 10


async def test_a_large_request_is_split_so_that_small_ones_do_not_wait_for_it(start, pair, sklearn_reference):
    transformer, predictor = await start("--predictor_connections=1", "--max_batch_rows=16")
    predictor.may_answer.clear()
    many = (pair.candidates * 5)[:300]
    large = send(transformer, many)
    await wait_until(lambda: predictor.plain_calls)
    small = [send(transformer, [one]) for one in pair.candidates[:8]]
    await asyncio.sleep(0.1)
    predictor.may_answer.set()
    for one, candidate in zip(small, pair.candidates, strict=False):
        assert probabilities(await one) == pytest.approx(
            sklearn_reference.probabilities([candidate]), abs=1e-12
        )
    assert not large.done()
    assert probabilities(await large) == pytest.approx(sklearn_reference.probabilities(many), abs=1e-12)


async def test_a_call_never_mixes_credentials(start, pair, sklearn_reference):
    transformer, predictor = await start("--predictor_connections=2")
    predictor.may_answer.clear()
    callers = {f"Bearer {number}": pair.candidates[20 * number : 20 * number + 20] for number in range(4)}
    responses = {
        (caller, number): send(transformer, [rows[number]], authorization=caller)
        for number in range(20)
        for caller, rows in callers.items()
    }
    await wait_until(lambda: predictor.plain_calls)
    predictor.may_answer.set()
    for (caller, number), one in responses.items():
        expected = sklearn_reference.probabilities([callers[caller][number]])
        assert probabilities(await one) == pytest.approx(expected, abs=1e-12)
    own = {caller: set(map(tuple, sklearn_reference.encode(rows))) for caller, rows in callers.items()}
    for matrix, headers in predictor.plain_calls:
        assert set(map(tuple, matrix)) <= own[headers["authorization"]]
    # Requests of the same caller shared calls.
    assert len(predictor.plain_calls) < len(responses) / 2


async def test_headers_that_identify_a_request_are_sent_only_if_the_call_has_no_other_request(start, pair):
    transformer, predictor = await start("--predictor_connections=1")
    await send(transformer, pair.candidates[:1], **{"x-request-id": "alone"})
    predictor.may_answer.clear()
    first = send(transformer, pair.candidates[:1], **{"x-request-id": "first"})
    await wait_until(lambda: len(predictor.plain_calls) == 2)
    others = [send(transformer, [one], **{"x-request-id": "other"}) for one in pair.candidates[:3]]
    await asyncio.sleep(0.1)
    predictor.may_answer.set()
    await asyncio.gather(first, *others)
    assert [headers.get("x-request-id") for _, headers in predictor.plain_calls] == ["alone", "first", None]


async def test_a_full_queue_answers_503_with_retry_after(start, pair, sklearn_reference):
    transformer, predictor = await start(
        "--predictor_connections=1", "--max_waiting_rows=5", "--max_batch_rows=1"
    )
    predictor.may_answer.clear()
    responses = [send(transformer, [one]) for one in pair.candidates[:20]]
    await wait_until(lambda: sum(one.done() for one in responses) >= 10)
    predictor.may_answer.set()
    answers = await asyncio.gather(*responses)
    refused = [one for one in answers if one.status_code == 503]
    assert {one.headers["retry-after"] for one in refused} == {"1"}
    assert "the queue is full: limit 5 rows" in refused[0].json()["error"]
    taken = [number for number, one in enumerate(answers) if one.status_code == 200]
    assert len(taken) + len(refused) == 20
    assert len(taken) >= 5
    for number in taken:
        expected = sklearn_reference.probabilities([pair.candidates[number]])
        assert probabilities(answers[number]) == pytest.approx(expected, abs=1e-12)


async def test_a_full_queue_answers_over_grpc_with_retry_after(start, pair, stack):
    transformer, predictor = await start(
        "--predictor_connections=1", "--max_waiting_rows=1", "--max_batch_rows=1"
    )
    predictor.may_answer.clear()
    first = send(transformer, pair.candidates[:1])
    await wait_until(lambda: predictor.plain_calls)
    second = send(transformer, pair.candidates[:1])
    await asyncio.sleep(0.1)
    client = connect(transformer.grpc_address, "placement", "grpc")
    stack.push_async_callback(client.close)
    with pytest.raises(Busy, match="the queue is full: limit 1 rows") as busy:
        await client.predict(pair.candidates[:1])
    assert busy.value.after_s == 1
    predictor.may_answer.set()
    await asyncio.gather(first, second)


async def test_a_cancelled_request_leaves_the_queue(start, pair):
    transformer, predictor = await start("--predictor_connections=1", "--max_waiting_rows=5")
    predictor.may_answer.clear()
    first = send(transformer, pair.candidates[:1])
    await wait_until(lambda: predictor.plain_calls)
    waiting = [send(transformer, [one]) for one in pair.candidates[:5]]
    await asyncio.sleep(0.05)
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    last = send(transformer, pair.candidates[:5])
    await asyncio.sleep(0.05)
    predictor.may_answer.set()
    assert (await first).status_code == (await last).status_code == 200
    assert sum(len(matrix) for matrix, _ in predictor.plain_calls) == 6


async def wait_for_calls(predictor: FakeMLServer, calls: int) -> None:
    """Wait until so many more calls have come."""
    enough = len(predictor.plain_calls) + calls
    await wait_until(lambda: len(predictor.plain_calls) >= enough)


async def test_a_large_request_is_answered_by_one_model_during_a_swap(start, pair):
    references = pair.references
    transformer, predictor = await start("--predictor_connections=2", "--max_batch_rows=16")
    many = (pair.candidates * 5)[:400]
    versions = set()
    # On a busy machine, a request may be over before the swap.
    for number in range(50):
        pending = send(transformer, many)
        await wait_for_calls(predictor, 4)
        predictor.swap(references["v1" if number % 2 else "v2"])
        response = await pending
        version = response.headers["x-model-version"]
        versions.add(version)
        assert probabilities(response) == pytest.approx(references[version].probabilities(many), abs=1e-12)
        if number >= 2 and versions == {"v1", "v2"}:
            return
    pytest.fail(f"only {versions} has answered")


async def test_with_verification_by_request_a_large_request_is_answered_by_one_model(start, pair):
    references = pair.references
    transformer, predictor = await start(
        "--predictor_connections=2", "--max_batch_rows=64", "--verify=request"
    )
    many = (pair.candidates * 5)[:200]
    calls = predictor.calls
    for _ in range(4):
        pending = send(transformer, many)
        while not pending.done():
            # A proxy would send each call to either version.
            predictor.served = references["v1" if predictor.calls % 3 else "v2"]
            await asyncio.sleep(0)
        response = await pending
        version = response.headers["x-model-version"]
        assert probabilities(response) == pytest.approx(references[version].probabilities(many), abs=1e-12)
    assert predictor.calls > calls


async def canary_transformer(stack: AsyncExitStack, pair: VersionPair, share: float) -> InProcessTransformer:
    """Start a transformer whose calls reach the new version with a given probability."""
    dice = random.Random(0)

    def chosen() -> SklearnReference:
        return pair.references["v2" if dice.random() < share else "v1"]

    transformer, _ = await start_fake_service(stack, pair.new, chosen, "--verify=request")
    return transformer


async def test_with_verification_by_request_a_canary_gives_its_share_of_the_answers(stack, version_pair):
    """A refused call is sent again to a random pod, which must not favour the version with more pods."""
    pair = version_pair("category_renamed")
    references = pair.references
    transformer = await canary_transformer(stack, pair, 0.2)
    versions = Counter[str]()
    for _ in range(400):
        response = await transformer.http.post(V1_PREDICT, json={"instances": pair.candidates[:1]})
        version = response.headers["x-model-version"]
        versions[version] += 1
        expected = references[version].probabilities(pair.candidates[:1])
        assert probabilities(response) == pytest.approx(expected, abs=1e-12)
    # 0.2 with four standard deviations. If retries favoured v1, the share would be about 0.06.
    assert 0.12 < versions["v2"] / versions.total() < 0.28


async def test_with_verification_by_request_thousands_of_candidates_are_answered_in_a_canary(
    stack, version_pair
):
    """They are one call; parts would have to reach the same model several times."""
    pair = version_pair("retrained")
    references = pair.references
    transformer = await canary_transformer(stack, pair, 0.5)
    many = (pair.candidates * 20)[:5000]
    response = await send(transformer, many)
    expected = references[response.headers["x-model-version"]].probabilities(many)
    assert probabilities(response) == pytest.approx(expected, abs=1e-12)


async def test_requests_that_wait_for_a_newer_version_do_not_block_others(stack, version_pair):
    pair = version_pair("category_added")
    references = pair.references
    transformer, predictor = await start_fake_service(
        stack, pair.new, references["v1"], "--max_waiting_rows=4"
    )
    waiting = [send(transformer, [one]) for one in pair.new_only_candidates[:3]]
    await asyncio.sleep(0.1)
    for one in pair.candidates[:10]:
        assert (await send(transformer, [one])).headers["x-model-version"] == "v1"
    assert not any(one.done() for one in waiting)
    refused = [await send(transformer, pair.new_only_candidates[:2])]
    assert [one.status_code for one in refused] == [503]
    predictor.swap(references["v2"])
    for one, newcomer in zip(waiting, pair.new_only_candidates, strict=False):
        response = await one
        assert response.headers["x-model-version"] == "v2"
        assert probabilities(response) == pytest.approx(references["v2"].probabilities([newcomer]), abs=1e-12)


async def test_a_request_that_the_predictor_cannot_score_does_not_fail_others(start, pair, sklearn_reference):
    """Its call is halved until it is alone; 300 other requests succeed with a few more calls."""
    transformer, predictor = await start("--predictor_connections=1", "--max_batch_rows=4096")
    poison = {**pair.candidates[0], "ssc_p": 40.125}
    column = list(sklearn_reference.bundle.vectorizer.feature_names).index("ssc_p")
    predictor.refuses = lambda matrix: bool((matrix[:, column] == 40.125).any())
    predictor.may_answer.clear()
    first = send(transformer, pair.candidates[:1])
    await wait_until(lambda: predictor.plain_calls)
    others = (pair.candidates * 10)[:300]
    innocent = [send(transformer, [one]) for one in others[:100]]
    guilty = send(transformer, [poison])
    innocent += [send(transformer, [one]) for one in others[100:]]
    await asyncio.sleep(0.5)
    predictor.may_answer.set()
    assert (await first).status_code == 200
    answered = [probabilities(await one)[0] for one in innocent]
    assert answered == pytest.approx(sklearn_reference.probabilities(others), abs=1e-12)
    assert (await guilty).status_code == 502
    assert len(predictor.plain_calls) < 50


async def test_a_request_that_raises_an_exception_does_not_block_others(start, pair, monkeypatch):
    transformer, predictor = await start("--predictor_connections=1")
    predictor.may_answer.clear()
    first = send(transformer, pair.candidates[:1])
    await wait_until(lambda: predictor.plain_calls)
    broken = ConnectionWorker._can_answer

    def can_answer(worker: ConnectionWorker, job: Job, model: UpstreamModel) -> bool:
        if job.headers.get("x-request-id") == "broken":
            raise ArithmeticError("a bug")
        return broken(worker, job, model)

    monkeypatch.setattr(ConnectionWorker, "_can_answer", can_answer)
    bad = send(transformer, pair.candidates[:1], **{"x-request-id": "broken"})
    others = [send(transformer, [one]) for one in pair.candidates[:5]]
    await asyncio.sleep(0.1)
    predictor.may_answer.set()
    assert [one.status_code for one in await asyncio.gather(first, *others)] == [200] * 6
    assert (await bad).status_code == 500


async def test_calls_that_hang_do_not_change_the_usual_duration():
    limit = ConcurrencyLimit(4, lambda: None)
    limit.measure(0.01, 1, 0.01)
    for _ in range(10):
        limit.measure(10.0, 0, 0.0)
    assert limit.usual_s == 0.01


@pytest.mark.parametrize(
    ("power", "best"),
    [
        # One worker: a second call at the same time only makes batches smaller.
        ((1.0, 0.6, 0.4, 0.3), 1),
        # Four replicas.
        ((1.0, 3.8, 8.0, 15.0), 4),
        # Two replicas.
        ((1.0, 3.5, 3.6, 3.0), 2),
    ],
)
def test_the_concurrency_limit_settles_where_throughput_is_best(power, best):
    climb = _HillClimb(len(power))
    seen = []
    for _ in range(400):
        climb.step(power[climb.limit - 1])
        seen.append(climb.limit)
    assert seen[200:].count(best) > 180
    assert all(1 <= limit <= len(power) for limit in seen)


def test_a_rising_number_of_callers_does_not_raise_the_concurrency_limit():
    """There is one worker, and the number of callers grows tenfold at different moments."""
    power = (1.0, 0.8, 0.6, 0.4)
    for moment in range(40):
        climb = _HillClimb(len(power))
        for number in range(200):
            callers = 10.0 if number % 40 >= moment else 1.0
            climb.step(callers * power[climb.limit - 1])
            assert climb.limit <= 2, "one is tried, and none kept"
