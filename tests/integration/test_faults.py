"""Every fault of the predictor has a status; retries, deadlines and headers keep their rules."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from tests.support.connected_transformer import (
    CONNECTIONS_EACH,
    connected_transformer,
    usable_connections,
)
from tests.support.endpoints import READINESS
from tests.support.faulty_predictor import (
    GOOD,
    LOADING,
    REFUSALS,
    REFUSED_NAMES,
    REFUSED_ORDER,
    REFUSED_WIDTH,
    breaks_off,
    hangs_up,
    has_status,
    never_answers,
    never_ends,
    predictions,
    redirects,
)
from tests.support.in_process_transformer import InProcessTransformer, in_process_transformer
from tests.support.request_outcomes import (
    DROPPED,
    INVALID_RESPONSE,
    REFUSED,
    SLOW,
    UNAVAILABLE,
    WRONG,
    check_fault,
    check_recovery,
    check_statuses,
    v1_outcome,
)
from tests.support.waiting import wait_until
from training.candidates import SAMPLE
from transformer.batching import connection_worker, pool, retry_budget
from transformer.batching.scorer import Scorer
from transformer.bundle.candidates import Rows
from transformer.bundle.prediction import Prediction
from transformer.errors import PredictorUnavailable
from transformer.settings import Settings
from transformer.upstream.client import PredictorAddress, connect

#: A port without a server: it refuses connections at once.
NOBODY = "127.0.0.1:1"


HTTP_FAULTS = [
    pytest.param(hangs_up, *DROPPED, id="hangs up"),
    pytest.param(breaks_off, *DROPPED, id="breaks off"),
    pytest.param(never_answers, *SLOW, id="never answers"),
    pytest.param(never_ends, *SLOW, id="never ends"),
    pytest.param(has_status(504, text="upstream request timeout"), *SLOW, id="504"),
    pytest.param(has_status(404, {"error": "Model placement not found"}), *DROPPED, id="404"),
    pytest.param(has_status(429, text="slow down"), *DROPPED, id="429"),
    pytest.param(has_status(502, text="bad gateway"), *DROPPED, id="502"),
    pytest.param(has_status(503, text="no healthy upstream"), *DROPPED, id="503"),
    pytest.param(has_status(400, {"error": LOADING}), *DROPPED, id="400 while loading"),
    pytest.param(has_status(500, text="Internal Server Error"), *DROPPED, id="500 while stopping"),
    pytest.param(has_status(500, {"error": REFUSED_NAMES}), *REFUSED, id="other feature names"),
    pytest.param(has_status(500, {"error": REFUSED_ORDER}), *REFUSED, id="another order"),
    pytest.param(has_status(500, {"error": REFUSED_WIDTH}), *REFUSED, id="another width"),
    pytest.param(has_status(500, {"error": "KeyError: 'x'"}), *WRONG, id="500"),
    pytest.param(has_status(400, {"error": "no"}), *WRONG, id="400"),
    pytest.param(has_status(403, text="RBAC: access denied"), *WRONG, id="403"),
    pytest.param(redirects, *WRONG, id="redirect"),
    pytest.param(has_status(204, text=""), *WRONG, id="204"),
    pytest.param(has_status(200, text=""), *WRONG, id="empty"),
    pytest.param(has_status(200, text="<html>"), *WRONG, id="not JSON"),
    pytest.param(has_status(200, []), *WRONG, id="a list"),
    pytest.param(has_status(200, {"predictions": None, "outputs": None}), *WRONG, id="null"),
    pytest.param(has_status(200, {"error": "oh"}), *WRONG, id="an error as success"),
]


@pytest.mark.parametrize(("fault", "statuses", "calls_each", "request_timeout_s"), HTTP_FAULTS)
async def test_a_fault_of_the_predictor_gets_its_status_and_leaves_nothing(
    fault, statuses, calls_each, transformer, predictor
):
    await check_fault(transformer, predictor, fault, statuses, calls_each)


@pytest.mark.parametrize("transformer", ["v2 by request"], indirect=True)
@pytest.mark.parametrize(
    ("fault", "statuses", "calls_each", "request_timeout_s"),
    [
        pytest.param(hangs_up, *DROPPED, id="hangs up"),
        pytest.param(has_status(400, {"error": LOADING}), *DROPPED, id="400 while loading"),
        pytest.param(has_status(500, {"error": REFUSED_NAMES}), *REFUSED, id="other feature names"),
        pytest.param(never_answers, *SLOW, id="never answers"),
        pytest.param(has_status(500, {"error": "KeyError: 'x'"}), *WRONG, id="500"),
    ],
)
async def test_a_fault_gets_the_same_status_with_verification_by_request(
    fault, statuses, calls_each, transformer, predictor
):
    await check_fault(transformer, predictor, fault, statuses, calls_each)


async def check_one_by_one(transformer, predictor, content):
    """Check that an invalid response is refused; each call has the rows of one request."""
    fault = has_status(200, content)
    await check_fault(transformer, predictor, fault, INVALID_RESPONSE, 1, together=False)


NAN = float("nan")
ROWS = [
    pytest.param([GOOD], id="too few candidates"),
    pytest.param([GOOD] * 3, id="too many candidates"),
    pytest.param([(0.25,)] * 2, id="too few classes"),
    pytest.param([(0.2, 0.3, 0.5)] * 2, id="too many classes"),
    pytest.param([GOOD, (NAN, NAN)], id="NaN"),
    pytest.param([GOOD, (None, None)], id="null"),
    pytest.param([GOOD, (-0.25, 1.25)], id="below 0 and above 1"),
    pytest.param([GOOD, (0.25, 0.25)], id="not 1 in all"),
    pytest.param([GOOD, (1e308, 1e308)], id="infinite in all"),
    pytest.param([GOOD, ("Not Placed", "Placed")], id="text"),
    pytest.param([(0,), (1,)], id="labels"),
    pytest.param([("Placed",), ("Not Placed",)], id="names of labels"),
]


@pytest.mark.parametrize("rows", ROWS)
async def test_only_valid_probabilities_for_each_candidate_are_accepted(rows, transformer, predictor):
    await check_one_by_one(transformer, predictor, predictions(transformer.hop, rows))


@pytest.mark.parametrize("transformer", ["v1"], indirect=True)
@pytest.mark.parametrize("labels", [[0, 1], ["Placed", "Not Placed"], [True, False]])
async def test_class_labels_from_a_v1_predictor_are_refused(labels, transformer, predictor):
    await check_one_by_one(transformer, predictor, {"predictions": labels})


TENSOR = {"name": "predict_proba", "datatype": "FP64", "shape": [2, 2], "data": [*GOOD, *GOOD]}
OUTPUTS = [
    pytest.param([{**TENSOR, "name": "predict", "datatype": "INT64"}], id="another output"),
    pytest.param([{**TENSOR, "shape": [2, 3]}], id="a shape that the data does not fill"),
    pytest.param([{**TENSOR, "shape": [4]}], id="flat"),
    pytest.param([{**TENSOR, "shape": "2, 2"}], id="a shape that is none"),
    pytest.param([{**TENSOR, "shape": [2**63, 2]}], id="a shape beyond all numbers"),
    pytest.param([{"name": "predict_proba"}], id="no data"),
    pytest.param([], id="no outputs"),
    pytest.param([None], id="null"),
]


@pytest.mark.parametrize("transformer", ["v2"], indirect=True)
@pytest.mark.parametrize("outputs", OUTPUTS)
async def test_a_v2_response_without_the_requested_output_is_refused(outputs, transformer, predictor):
    await check_one_by_one(transformer, predictor, {"model_name": "placement", "outputs": outputs})


HOPS = ["v1", "v2", "v2 by request", "grpc-v2"]


async def readiness(service: InProcessTransformer) -> set[int]:
    return {(await service.http.get(path)).status_code for path in READINESS}


async def is_ready(service: InProcessTransformer) -> bool:
    return await readiness(service) == {200}


@pytest.mark.parametrize("hop", ["v1", "v2", "grpc-v2"])
async def test_a_missing_predictor_gives_503_with_retry_after(hop, trained_bundle, monkeypatch):
    monkeypatch.setattr(pool, "GRACE_S", 0.2)
    async with (
        in_process_transformer(
            trained_bundle, NOBODY, f"--predictor_protocol={hop}", ready=False
        ) as transformer,
        asyncio.timeout(5),
    ):  # The deadline is 10 s.
        await check_statuses(transformer, UNAVAILABLE)
        assert await readiness(transformer) == {503}
        assert (await transformer.http.get("/v2/health/live")).status_code == 200


@pytest.mark.parametrize("hop", HOPS)
async def test_the_transformer_notices_that_the_predictor_stops_and_starts_again(
    hop, trained_bundle, predictor, grpc_predictor, monkeypatch
):
    monkeypatch.setattr(connection_worker, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(pool, "GRACE_S", 0.2)
    faulty = grpc_predictor if hop == "grpc-v2" else predictor
    async with connected_transformer(faulty, trained_bundle, hop) as transformer:
        await faulty.stop()
        await check_statuses(transformer, UNAVAILABLE)
        await wait_until(lambda: not usable_connections())
        assert await readiness(transformer) == {503}
        await faulty.start()
        await wait_until(lambda: is_ready(transformer), timeout_s=5)
        await check_recovery(transformer, faulty)


async def test_a_lost_request_checks_the_idle_connections(trained_bundle, predictor, monkeypatch):
    monkeypatch.setattr(connection_worker, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(pool, "GRACE_S", 0.2)
    async with connected_transformer(predictor, trained_bundle, "v2 by request") as transformer:
        await predictor.stop()
        async with asyncio.timeout(10):  # The deadline is 30 s.
            assert (await v1_outcome(transformer, SAMPLE))[0] == "503"
        assert not usable_connections()


ONCE = [hangs_up, breaks_off, has_status(503, text="moving"), has_status(500, text="Internal Server Error")]


@pytest.mark.parametrize("fault", ONCE, ids=["hangs up", "breaks off", "503", "500 while stopping"])
async def test_a_dropped_call_is_sent_once_more_over_a_newly_verified_connection(
    fault, transformer, predictor
):
    predictor.faults.append(fault)
    assert await v1_outcome(transformer, SAMPLE) == transformer.answer
    first, second = predictor.requests
    scored = [request for request, _ in predictor.calls]
    since = predictor.calls[scored.index(first) + 1 : scored.index(second)]
    assert second.transport in [request.transport for request, scored in since if not scored]


async def test_a_call_that_is_dropped_twice_is_not_sent_a_third_time(transformer, predictor):
    predictor.faults += [hangs_up] * 2
    assert (await v1_outcome(transformer, SAMPLE))[0] == "503"
    assert len(predictor.requests) == 2
    assert await v1_outcome(transformer, SAMPLE) == transformer.answer


async def test_the_retry_budget_limits_retries_to_a_predictor_that_drops_all_calls(
    trained_bundle, predictor, monkeypatch
):
    monkeypatch.setattr(retry_budget, "MAX_SAVED", 3.0)
    async with connected_transformer(predictor, trained_bundle, "v2") as transformer:
        predictor.faults += [hangs_up] * 100
        for _ in range(10):
            assert (await v1_outcome(transformer, SAMPLE))[0] == "503"
        assert len(predictor.requests) == 10 + 3
        predictor.faults.clear()
        assert await v1_outcome(transformer, SAMPLE) == transformer.answer


@pytest.mark.parametrize("request_timeout_s", [1])
async def test_a_retry_keeps_the_deadline_of_its_request(transformer, predictor):
    async def hangs_up_after_a_while(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.5)
        return await hangs_up(request)

    predictor.faults += [hangs_up_after_a_while, never_answers, never_answers]
    first = asyncio.create_task(v1_outcome(transformer, SAMPLE))
    await wait_until(lambda: len(predictor.requests) == 2)
    # A request that arrives during the retry has a later deadline.
    second = asyncio.create_task(v1_outcome(transformer, SAMPLE))
    ended, _ = await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
    assert ended == {first}
    assert (await first)[0] == (await second)[0] == "504"


@pytest.mark.parametrize("request_timeout_s", [1])
async def test_a_call_is_cancelled_at_the_deadline(transformer, predictor):
    """Otherwise a slow predictor would keep working on it."""
    cancelled = asyncio.Event()

    async def fault(request: web.Request) -> web.StreamResponse:
        try:
            return await never_answers(request)
        finally:
            cancelled.set()

    predictor.always = fault
    assert (await v1_outcome(transformer, SAMPLE))[0] == "504"
    await asyncio.wait_for(cancelled.wait(), 10)
    await check_recovery(transformer, predictor)


@pytest.mark.parametrize("refusal", REFUSALS, ids=["other feature names", "another order", "another width"])
@pytest.mark.parametrize("transformer", ["v1", "v2", "v2 by request"], indirect=True)
async def test_a_call_with_a_refused_encoding_is_sent_again_until_a_model_accepts_it(
    refusal, transformer, predictor
):
    predictor.faults += [has_status(500, {"error": refusal})] * 3
    assert await v1_outcome(transformer, SAMPLE) == transformer.answer
    assert len(predictor.requests) == 4


@pytest.mark.parametrize("request_timeout_s", [1])
async def test_a_retried_call_that_takes_too_long_gets_504(transformer, predictor):
    predictor.faults += [has_status(500, {"error": REFUSED_WIDTH}), never_answers]
    assert (await v1_outcome(transformer, SAMPLE))[0] == "504"
    assert len(predictor.requests) == 2


@pytest.mark.parametrize(
    "fault", [has_status(500, {"error": "KeyError"}), has_status(200, {})], ids=["500", "nonsense"]
)
async def test_a_call_that_would_fail_again_is_not_retried(fault, transformer, predictor):
    predictor.faults.append(fault)
    assert (await v1_outcome(transformer, SAMPLE))[0] == "502"
    assert len(predictor.requests) == 1
    assert await v1_outcome(transformer, SAMPLE) == transformer.answer


async def test_invalid_responses_do_not_slow_down_later_requests(transformer, predictor):
    """Such responses do not increase the delay before the next connection."""
    predictor.faults += [has_status(500, {"error": "KeyError"})] * 30
    ended = [(await v1_outcome(transformer, SAMPLE))[0] for _ in range(30)]
    assert ended == ["502"] * 30
    assert await v1_outcome(transformer, SAMPLE) == transformer.answer


async def test_no_candidate_is_sent_over_an_unverified_connection(trained_bundle, predictor):
    """When the predictor closes an idle connection, a new one may lead to another version."""
    async with connected_transformer(predictor, trained_bundle, "v2", connections=1) as transformer:
        for calls in range(1, 5):
            (used,) = [one for one in predictor.transports if not one.is_closing()]
            used.close()
            # The transformer notices the closed connection before the request arrives.
            await asyncio.sleep(0.05)
            assert await v1_outcome(transformer, SAMPLE) == transformer.answer
            assert len(predictor.requests) == calls
            carried = predictor.requests[-1].transport
            assert any(one.transport is carried for one, scored in predictor.calls if not scored)


async def test_a_failed_attempt_to_connect_is_repeated(trained_bundle, predictor, monkeypatch):
    """For example, while certificates are not mounted yet."""
    missing = iter([FileNotFoundError("ca.crt")] * 2 * CONNECTIONS_EACH)

    def connect_later(address: PredictorAddress, **how: bool):
        if error := next(missing, None):
            raise error
        return connect(address, **how)

    monkeypatch.setattr(pool, "connect", connect_later)
    async with connected_transformer(predictor, trained_bundle, "v2") as transformer:
        await check_recovery(transformer, predictor)


@pytest.fixture
async def scorer(sklearn_reference, predictor) -> AsyncIterator[Scorer]:
    settings = Settings(
        predictor_host=predictor.address, predictor_protocol="v2", predictor_request_timeout_seconds=60
    )
    scorer = Scorer(sklearn_reference.bundle, settings, "placement")
    yield scorer
    await scorer.close()


def score(scorer: Scorer) -> asyncio.Task[Any]:
    async def answer() -> Prediction:
        job = scorer.submit(Rows([SAMPLE], "instances"), {})
        try:
            return await job.answer
        finally:
            scorer.release(job)

    return asyncio.create_task(answer())


async def test_a_request_whose_caller_disconnected_is_not_retried(scorer, predictor):
    gone = asyncio.Event()

    async def hangs_up_then(request: web.Request) -> web.StreamResponse:
        await gone.wait()
        return await hangs_up(request)

    predictor.faults += [hangs_up_then]
    pending = [score(scorer) for _ in range(3)]
    # The requests wait for a connection, and then share a call.
    await wait_until(lambda: predictor.requests)
    for one in pending:
        one.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    gone.set()
    await score(scorer)
    await wait_until(lambda: usable_connections() == Settings.predictor_connections)
    assert len(scorer._pool._queue) == 0
    assert len(predictor.requests) == 2


async def test_queued_requests_fail_at_once_when_the_transformer_closes(scorer, predictor):
    predictor.always = never_answers
    pending = [score(scorer)]
    await wait_until(lambda: predictor.requests)
    pending += [score(scorer) for _ in range(9)]
    await asyncio.sleep(0)
    await scorer.close()
    for one in pending:
        with pytest.raises(PredictorUnavailable):
            await asyncio.wait_for(one, 5)
