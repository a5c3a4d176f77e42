"""Every fault of the predictor has a status; retries, deadlines and headers keep their rules."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import httpx
import pytest
from aiohttp import web

from tests.support.connected_transformer import (
    CONNECTIONS_EACH,
    ConnectedTransformer,
    connected_transformer,
    transformer_log,
    usable_connections,
)
from tests.support.endpoints import READINESS, V1_PREDICT, V2_INFER
from tests.support.faulty_predictor import (
    GOOD,
    LOADING,
    REFUSED_NAMES,
    REFUSED_ORDER,
    REFUSED_WIDTH,
    FaultyGrpcPredictor,
    FaultyHttpPredictor,
    FaultyPredictor,
    aborts,
    hangs_up,
    has_status,
    predictions,
)
from tests.support.in_process_transformer import InProcessTransformer, in_process_transformer
from tests.support.request_bodies import grpc_objects, v2_objects
from tests.support.sklearn_reference import SklearnReference
from tests.support.waiting import wait_until
from training.candidates import SAMPLE
from transformer.batching import connection_worker, pool, retry_budget
from transformer.batching.scorer import Scorer
from transformer.bundle.candidates import Rows
from transformer.errors import PredictorUnavailable
from transformer.settings import Settings
from transformer.upstream.client import PredictorAddress, connect
from transformer.upstream.messages import MAX_DETAIL

#: A port without a server: it refuses connections at once.
NOBODY = "127.0.0.1:1"


@pytest.fixture
async def grpc_predictor(sklearn_reference) -> AsyncIterator[FaultyGrpcPredictor]:
    predictor = FaultyGrpcPredictor(sklearn_reference)
    await predictor.start()
    yield predictor
    await predictor.stop()


@pytest.fixture(params=["v1", "v2"])
async def transformer(request, trained_bundle, predictor) -> AsyncIterator[ConnectedTransformer]:
    """A transformer in front of the HTTP predictor, over each protocol of the hop."""
    async with connected_transformer(predictor, trained_bundle, request.param) as running:
        yield running


@pytest.fixture
async def grpc_transformer(trained_bundle, grpc_predictor) -> AsyncIterator[ConnectedTransformer]:
    async with connected_transformer(grpc_predictor, trained_bundle, "grpc-v2") as running:
        yield running


async def recovers(transformer: ConnectedTransformer, predictor: FaultyPredictor) -> None:
    """Check that requests are answered, all connections are usable, and no task is left."""
    predictor.always = None
    await check(transformer, FINE)
    await wait_until(lambda: usable_connections() == CONNECTIONS_EACH)
    await wait_until(lambda: len(asyncio.all_tasks()) <= transformer.tasks)
    if isinstance(predictor, FaultyHttpPredictor):
        await wait_until(lambda: predictor.connections == CONNECTIONS_EACH)


# Responses to callers


#: Outcome of a request: status, probabilities or error, and True if it has Retry-After.
Outcome = tuple[str, Any, bool]


async def v1_status(service: InProcessTransformer, candidate: dict[str, Any]) -> Outcome:
    response = await service.http.post(V1_PREDICT, json={"instances": [candidate] * 2})
    return of_rest(response, lambda content: [p["placement_probability"] for p in content["predictions"]])


async def v2_status(service: InProcessTransformer, candidate: dict[str, Any]) -> Outcome:
    response = await service.http.post(V2_INFER, json=v2_objects([candidate, candidate]))
    return of_rest(response, lambda content: content["outputs"][1]["data"])


def of_rest(response: httpx.Response, probabilities: Callable[[Any], list[float]]) -> Outcome:
    content = response.json()
    message = probabilities(content) if response.status_code == 200 else content["error"]
    return str(response.status_code), message, response.headers.get("retry-after") == "1"


async def grpc_status(service: InProcessTransformer, candidate: dict[str, Any]) -> Outcome:
    call = service.grpc.ModelInfer(grpc_objects([candidate, candidate]))
    code, details = await call.code(), await call.details()
    if code is grpc.StatusCode.OK:
        details = list((await call).outputs[1].contents.fp64_contents)
    return code.name, details, ("retry-after", "1") in tuple(await call.trailing_metadata() or ())


async def outcomes(
    service: InProcessTransformer, candidate: dict[str, Any] = SAMPLE, *, together: bool = True
) -> list[Outcome]:
    """Send the same request over V1, V2 and gRPC, at once or one by one."""
    pending = [ask(service, candidate) for ask in (v1_status, v2_status, grpc_status)]
    if together:
        return await asyncio.gather(*pending)
    return [await one for one in pending]


#: Statuses over V1, V2 and gRPC, each with True if it has Retry-After.
UNAVAILABLE = [("503", True), ("503", True), ("UNAVAILABLE", True)]
NONSENSE = [("502", False), ("502", False), ("INTERNAL", False)]
TOO_SLOW = [("504", False), ("504", False), ("DEADLINE_EXCEEDED", False)]
FINE = [("200", False), ("200", False), ("OK", False)]
#: The same with the number of calls to the predictor; None: calls are repeated until the deadline.
DROPPED = (UNAVAILABLE, 2)
REFUSED = (UNAVAILABLE, None)
WRONG = (NONSENSE, 1)
SLOW = (TOO_SLOW, 1)


async def check(
    service: InProcessTransformer, expected: list[tuple[str, bool]], *, together: bool = True
) -> None:
    ended = await outcomes(service, together=together)
    assert [(status, again) for status, _, again in ended] == expected
    for _, message, _ in ended:
        if expected is FINE:
            assert isinstance(service, ConnectedTransformer)
            assert message == service.answer[1]
        else:
            assert "predictor" in message
    # Without a predictor, one request may get the reason of its failed call and another that of its wait.
    if expected is not UNAVAILABLE:
        assert len({str(message) for _, message, _ in ended}) == 1, "each protocol tells the same"


def check_asked(calls: int, often: int | None) -> None:
    """Check the number of calls for three requests, which may share calls first and are then sent alone."""
    assert often <= calls <= 3 * often + 1 if often else calls > 3


# Faults over REST


async def breaks_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-length": "1000"})
    await response.prepare(request)
    await response.write(b'{"predictions": [[0.25, 0')
    assert request.transport is not None
    request.transport.close()
    return response


async def never_answers(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def never_ends(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b'{"predictions": [')
    await asyncio.Event().wait()
    return response


async def redirects(request: web.Request) -> web.StreamResponse:
    return web.Response(status=307, headers={"location": str(request.url.with_path("/elsewhere"))})


HTTP_FAULTS = [
    pytest.param(hangs_up, DROPPED, id="hangs up"),
    pytest.param(breaks_off, DROPPED, id="breaks off"),
    pytest.param(never_answers, SLOW, id="never answers"),
    pytest.param(never_ends, SLOW, id="never ends"),
    pytest.param(has_status(504, text="upstream request timeout"), SLOW, id="504"),
    pytest.param(has_status(404, {"error": "Model placement not found"}), DROPPED, id="404"),
    pytest.param(has_status(429, text="slow down"), DROPPED, id="429"),
    pytest.param(has_status(502, text="bad gateway"), DROPPED, id="502"),
    pytest.param(has_status(503, text="no healthy upstream"), DROPPED, id="503"),
    pytest.param(has_status(400, {"error": LOADING}), DROPPED, id="400 while loading"),
    pytest.param(has_status(500, text="Internal Server Error"), DROPPED, id="500 while stopping"),
    pytest.param(has_status(500, {"error": REFUSED_NAMES}), REFUSED, id="other feature names"),
    pytest.param(has_status(500, {"error": REFUSED_ORDER}), REFUSED, id="another order"),
    pytest.param(has_status(500, {"error": REFUSED_WIDTH}), REFUSED, id="another width"),
    pytest.param(has_status(500, {"error": "KeyError: 'x'"}), WRONG, id="500"),
    pytest.param(has_status(400, {"error": "no"}), WRONG, id="400"),
    pytest.param(has_status(403, text="RBAC: access denied"), WRONG, id="403"),
    pytest.param(redirects, WRONG, id="redirect"),
    pytest.param(has_status(204, text=""), WRONG, id="204"),
    pytest.param(has_status(200, text=""), WRONG, id="empty"),
    pytest.param(has_status(200, text="<html>"), WRONG, id="not JSON"),
    pytest.param(has_status(200, []), WRONG, id="a list"),
    pytest.param(has_status(200, {"predictions": None, "outputs": None}), WRONG, id="null"),
    pytest.param(has_status(200, {"error": "oh"}), WRONG, id="an error as success"),
]


@pytest.mark.parametrize(("fault", "expected"), HTTP_FAULTS)
async def test_a_fault_of_the_predictor_gets_its_status_and_leaves_nothing(
    fault, expected, transformer, predictor
):
    statuses, often = expected
    predictor.always = fault
    await check(transformer, statuses)
    check_asked(len(predictor.requests), often)
    await recovers(transformer, predictor)


@pytest.mark.parametrize("transformer", ["v2 by request"], indirect=True)
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        pytest.param(hangs_up, DROPPED, id="hangs up"),
        pytest.param(has_status(400, {"error": LOADING}), DROPPED, id="400 while loading"),
        pytest.param(has_status(500, {"error": REFUSED_NAMES}), REFUSED, id="other feature names"),
        pytest.param(never_answers, SLOW, id="never answers"),
        pytest.param(has_status(500, {"error": "KeyError: 'x'"}), WRONG, id="500"),
    ],
)
async def test_a_fault_gets_the_same_status_with_verification_by_request(
    fault, expected, transformer, predictor
):
    statuses, often = expected
    predictor.always = fault
    await check(transformer, statuses)
    check_asked(len(predictor.requests), often)
    await recovers(transformer, predictor)


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
    predictor.always = has_status(200, predictions(transformer.hop, rows))
    # One by one, so that each call has the rows of one request.
    await check(transformer, NONSENSE, together=False)
    check_asked(len(predictor.requests), 1)
    await recovers(transformer, predictor)


@pytest.mark.parametrize("transformer", ["v1"], indirect=True)
@pytest.mark.parametrize("labels", [[0, 1], ["Placed", "Not Placed"], [True, False]])
async def test_class_labels_from_a_v1_predictor_are_refused(labels, transformer, predictor):
    predictor.always = has_status(200, {"predictions": labels})
    # One by one, so that each call has the rows of one request.
    await check(transformer, NONSENSE, together=False)
    check_asked(len(predictor.requests), 1)


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
    predictor.always = has_status(200, {"model_name": "placement", "outputs": outputs})
    # One by one, so that each call has the rows of one request.
    await check(transformer, NONSENSE, together=False)
    check_asked(len(predictor.requests), 1)


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
        await check(transformer, UNAVAILABLE)
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
        await check(transformer, UNAVAILABLE)
        await wait_until(lambda: not usable_connections())
        assert await readiness(transformer) == {503}
        await faulty.start(int(faulty.address.rpartition(":")[2]))
        await wait_until(lambda: is_ready(transformer), timeout_s=5)
        await recovers(transformer, faulty)


ONCE = [hangs_up, breaks_off, has_status(503, text="moving"), has_status(500, text="Internal Server Error")]


@pytest.mark.parametrize("fault", ONCE, ids=["hangs up", "breaks off", "503", "500 while stopping"])
async def test_a_dropped_call_is_sent_once_more_over_a_newly_verified_connection(
    fault, transformer, predictor
):
    predictor.faults.append(fault)
    assert await v1_status(transformer, SAMPLE) == transformer.answer
    first, second = predictor.requests
    scored = [request for request, _ in predictor.calls]
    since = predictor.calls[scored.index(first) + 1 : scored.index(second)]
    assert second.transport in [request.transport for request, scored in since if not scored]


async def test_a_call_that_is_dropped_twice_is_not_sent_a_third_time(transformer, predictor):
    predictor.faults += [hangs_up] * 2
    assert (await v1_status(transformer, SAMPLE))[0] == "503"
    assert len(predictor.requests) == 2
    assert await v1_status(transformer, SAMPLE) == transformer.answer


async def test_the_retry_budget_limits_retries_to_a_predictor_that_drops_all_calls(
    trained_bundle, predictor, monkeypatch
):
    monkeypatch.setattr(retry_budget, "MAX_SAVED", 3.0)
    async with connected_transformer(predictor, trained_bundle, "v2") as transformer:
        predictor.faults += [hangs_up] * 100
        for _ in range(10):
            assert (await v1_status(transformer, SAMPLE))[0] == "503"
        assert len(predictor.requests) == 10 + 3
        predictor.faults.clear()
        assert await v1_status(transformer, SAMPLE) == transformer.answer


async def test_a_retry_keeps_the_deadline_of_its_request(transformer, predictor):
    async def hangs_up_after_a_while(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.5)
        return await hangs_up(request)

    predictor.faults += [hangs_up_after_a_while, never_answers, never_answers]
    first = asyncio.create_task(v1_status(transformer, SAMPLE))
    await wait_until(lambda: len(predictor.requests) == 2)
    # A request that arrives during the retry has a later deadline.
    second = asyncio.create_task(v1_status(transformer, SAMPLE))
    ended, _ = await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
    assert ended == {first}
    assert (await first)[0] == (await second)[0] == "504"


async def test_a_call_is_cancelled_at_the_deadline(transformer, predictor):
    """Otherwise a slow predictor would keep working on it."""
    cancelled = asyncio.Event()

    async def fault(request: web.Request) -> web.StreamResponse:
        try:
            return await never_answers(request)
        finally:
            cancelled.set()

    predictor.always = fault
    assert (await v1_status(transformer, SAMPLE))[0] == "504"
    await asyncio.wait_for(cancelled.wait(), 10)
    await recovers(transformer, predictor)


REFUSALS = [REFUSED_NAMES, REFUSED_ORDER, REFUSED_WIDTH]


@pytest.mark.parametrize("refusal", REFUSALS, ids=["other feature names", "another order", "another width"])
@pytest.mark.parametrize("transformer", ["v1", "v2", "v2 by request"], indirect=True)
async def test_a_call_with_a_refused_encoding_is_sent_again_until_a_model_accepts_it(
    refusal, transformer, predictor
):
    predictor.faults += [has_status(500, {"error": refusal})] * 3
    assert await v1_status(transformer, SAMPLE) == transformer.answer
    assert len(predictor.requests) == 4


async def test_a_retried_call_that_takes_too_long_gets_504(transformer, predictor):
    predictor.faults += [has_status(500, {"error": REFUSED_WIDTH}), never_answers]
    assert (await v1_status(transformer, SAMPLE))[0] == "504"
    assert len(predictor.requests) == 2


@pytest.mark.parametrize(
    "fault", [has_status(500, {"error": "KeyError"}), has_status(200, {})], ids=["500", "nonsense"]
)
async def test_a_call_that_would_fail_again_is_not_retried(fault, transformer, predictor):
    predictor.faults.append(fault)
    assert (await v1_status(transformer, SAMPLE))[0] == "502"
    assert len(predictor.requests) == 1
    assert await v1_status(transformer, SAMPLE) == transformer.answer


async def test_invalid_responses_do_not_slow_down_later_requests(transformer, predictor):
    """Such responses do not increase the delay before the next connection."""
    predictor.faults += [has_status(500, {"error": "KeyError"})] * 30
    ended = [(await v1_status(transformer, SAMPLE))[0] for _ in range(30)]
    assert ended == ["502"] * 30
    assert await v1_status(transformer, SAMPLE) == transformer.answer


async def test_no_candidate_is_sent_over_an_unverified_connection(trained_bundle, predictor):
    """When the predictor closes an idle connection, a new one may lead to another version."""
    async with connected_transformer(predictor, trained_bundle, "v2", connections=1) as transformer:
        for calls in range(1, 5):
            (used,) = [one for one in predictor.transports if not one.is_closing()]
            used.close()
            # The transformer notices the closed connection before the request arrives.
            await asyncio.sleep(0.05)
            assert await v1_status(transformer, SAMPLE) == transformer.answer
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
        await recovers(transformer, predictor)


@pytest.fixture
async def scorer(sklearn_reference, predictor) -> AsyncIterator[Scorer]:
    settings = Settings(
        predictor_host=predictor.address, predictor_protocol="v2", predictor_request_timeout_seconds=60
    )
    scorer = Scorer(sklearn_reference.bundle, settings, "placement")
    yield scorer
    await scorer.close()


def score(scorer: Scorer) -> asyncio.Task[Any]:
    return asyncio.create_task(scorer.predict(Rows([SAMPLE], "instances"), {}))


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


# Faults over gRPC


async def is_stuck(context, answer):
    await asyncio.Event().wait()


def answers(**changed: Any):
    async def fault(context, answer):
        output = answer.outputs[0]
        for name, value in changed.items():
            if name == "values":
                output.contents.fp64_contents[:] = value * output.shape[0]
            elif name == "rows":
                output.shape[0] = value
                del output.contents.fp64_contents[2 * value :]
            elif name == "shape":
                output.shape[:] = value
            else:
                setattr(output, name, value)

    return fault


async def answers_labels(context, answer):
    output = answer.outputs[0]
    output.contents.Clear()
    output.datatype = "INT64"
    output.contents.int64_contents.extend([1] * output.shape[0])
    del output.shape[1]


async def answers_raw_bytes_that_are_too_few(context, answer):
    answer.outputs[0].contents.Clear()
    answer.raw_output_contents.append(bytes(8))


async def answers_without_outputs(context, answer):
    del answer.outputs[:]


GRPC_FAULTS = [
    pytest.param(aborts("UNAVAILABLE", "moving"), DROPPED, id="UNAVAILABLE"),
    pytest.param(aborts("NOT_FOUND", "Model placement not found"), DROPPED, id="NOT_FOUND"),
    pytest.param(aborts("RESOURCE_EXHAUSTED", "slow down"), DROPPED, id="RESOURCE_EXHAUSTED"),
    pytest.param(aborts("INVALID_ARGUMENT", LOADING), DROPPED, id="loading"),
    pytest.param(aborts("INTERNAL", "1"), DROPPED, id="stopping"),
    pytest.param(aborts("INTERNAL", f"ValueError: {REFUSED_NAMES}"), REFUSED, id="other feature names"),
    pytest.param(aborts("INVALID_ARGUMENT", REFUSED_ORDER), REFUSED, id="another order"),
    pytest.param(aborts("INVALID_ARGUMENT", REFUSED_WIDTH), REFUSED, id="another width"),
    pytest.param(aborts("INTERNAL", "KeyError: 'x'"), WRONG, id="INTERNAL"),
    pytest.param(aborts("INVALID_ARGUMENT", "no"), WRONG, id="INVALID_ARGUMENT"),
    pytest.param(aborts("UNKNOWN", "oh"), WRONG, id="UNKNOWN"),
    pytest.param(aborts("PERMISSION_DENIED", "RBAC"), WRONG, id="PERMISSION_DENIED"),
    pytest.param(aborts("DEADLINE_EXCEEDED", "upstream"), SLOW, id="DEADLINE_EXCEEDED"),
    pytest.param(is_stuck, SLOW, id="never answers"),
    pytest.param(answers(name="predict"), WRONG, id="another output"),
    pytest.param(answers(datatype="FP32"), WRONG, id="another datatype"),
    pytest.param(answers(rows=1), WRONG, id="too few candidates"),
    pytest.param(answers(shape=[20]), WRONG, id="flat"),
    pytest.param(answers(values=[NAN, NAN]), WRONG, id="NaN"),
    pytest.param(answers(values=[-0.5, 1.5]), WRONG, id="below 0 and above 1"),
    pytest.param(answers_labels, WRONG, id="labels"),
    pytest.param(answers_raw_bytes_that_are_too_few, WRONG, id="too few bytes"),
    pytest.param(answers_without_outputs, WRONG, id="no outputs"),
]


@pytest.mark.parametrize(("fault", "expected"), GRPC_FAULTS)
async def test_a_fault_of_a_grpc_predictor_gets_its_status_and_leaves_nothing(
    fault, expected, grpc_transformer, grpc_predictor
):
    statuses, often = expected
    grpc_predictor.always = fault
    await check(grpc_transformer, statuses)
    check_asked(len(grpc_predictor.metadata), often)
    await recovers(grpc_transformer, grpc_predictor)


async def test_a_dropped_grpc_call_is_sent_once_more(grpc_transformer, grpc_predictor):
    grpc_predictor.faults.append(aborts("UNAVAILABLE", "moving"))
    assert await v1_status(grpc_transformer, SAMPLE) == grpc_transformer.answer
    assert len(grpc_predictor.metadata) == 2


@pytest.mark.parametrize("refusal", REFUSALS, ids=["other feature names", "another order", "another width"])
async def test_a_grpc_call_with_a_refused_encoding_is_sent_again_until_a_model_accepts_it(
    refusal, grpc_transformer, grpc_predictor
):
    grpc_predictor.faults += [aborts("INTERNAL", f"ValueError: {refusal}")] * 3
    assert await v1_status(grpc_transformer, SAMPLE) == grpc_transformer.answer
    assert len(grpc_predictor.metadata) == 4


async def test_a_call_that_is_dropped_twice_is_split_into_its_requests(trained_bundle, predictor):
    predictor.always = hangs_up
    rows = [{**SAMPLE, "ssc_p": 50 + number} for number in range(3)]
    async with connected_transformer(predictor, trained_bundle, "v2", connections=1) as transformer:
        pending = [transformer.http.post(V1_PREDICT, json={"instances": [row]}) for row in rows]
        assert {answer.status_code for answer in await asyncio.gather(*pending)} == {503}
    assert [len(matrix) for matrix, _ in predictor.carried] == [3, 3, 1, 1, 1]


async def test_a_grpc_call_is_cancelled_at_the_deadline(grpc_transformer, grpc_predictor):
    """Otherwise a slow predictor would keep working on it."""
    cancelled = asyncio.Event()

    async def fault(context, answer):
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    grpc_predictor.always = fault
    assert (await v1_status(grpc_transformer, SAMPLE))[0] == "504"
    await asyncio.wait_for(cancelled.wait(), 10)
    await recovers(grpc_transformer, grpc_predictor)


# Headers that reach the predictor


INHERITED_VARIABLES = {
    "authorization": "Bearer secret",
    "x-request-id": "7",
    "x-b3-traceid": "80f198ee56343ba864fe8b2a57d3eff7",
    "x-b3-spanid": "e457b5a2e4d86bd1",
    "x-b3-sampled": "1",
    "traceparent": "00-80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-01",
    "tracestate": "vendor=1",
}
KEPT_BACK = {
    "cookie": "session=1",
    "x-forwarded-for": "10.0.0.1",
    "x-api-key": "secret",
    "accept-language": "de",
    "ce-id": "7",
    "x-b2-traceid": "1",
    "authorization-2": "secret",
}


async def ask_over_rest(service: InProcessTransformer, headers: dict[str, str]) -> None:
    response = await service.http.post(V1_PREDICT, json={"instances": [SAMPLE]}, headers=headers)
    assert response.status_code == 200, response.text


async def ask_over_grpc(service: InProcessTransformer, headers: dict[str, str]) -> None:
    await service.grpc.ModelInfer(grpc_objects([SAMPLE]), metadata=tuple(headers.items()))


@pytest.mark.parametrize("ask", [ask_over_rest, ask_over_grpc])
async def test_only_the_listed_headers_of_a_caller_reach_an_http_predictor(ask, transformer, predictor):
    await ask(transformer, {})
    await ask(transformer, {**INHERITED_VARIABLES, **KEPT_BACK})
    own, caller = [{name.lower(): v for name, v in r.headers.items()} for r in predictor.requests]
    assert {name: value for name, value in caller.items() if own.get(name) != value} == INHERITED_VARIABLES
    assert set(own) <= {"host", "accept", "accept-encoding", "user-agent", "content-length", "content-type"}


@pytest.mark.parametrize("ask", [ask_over_rest, ask_over_grpc])
async def test_only_the_listed_headers_of_a_caller_reach_a_grpc_predictor_as_metadata(
    ask, grpc_transformer, grpc_predictor
):
    await ask(grpc_transformer, {})
    await ask(grpc_transformer, {**INHERITED_VARIABLES, **KEPT_BACK})
    own, caller = grpc_predictor.metadata
    assert {name: value for name, value in caller.items() if own.get(name) != value} == INHERITED_VARIABLES


async def test_headers_are_forwarded_in_any_case(transformer, predictor):
    await ask_over_rest(transformer, {"X-Request-ID": "7", "X-B3-TraceId": "8"})
    headers = {name.lower(): value for name, value in predictor.requests[0].headers.items()}
    assert (headers["x-request-id"], headers["x-b3-traceid"]) == ("7", "8")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(b"x-request-id", "é".encode(), id="UTF-8"),
        pytest.param(b"x-request-id", b"\xe9", id="Latin-1"),
        pytest.param(b"x-request-id", b"tab\there", id="tab"),
        pytest.param(b"x-request-id", b"", id="empty"),
        pytest.param(b"x-b3-flags-bin", b"1", id="a name for bytes"),
        pytest.param(b"x-b3-wh*t", b"1", id="a name that gRPC has not"),
    ],
)
@pytest.mark.parametrize("hop", ["v2", "grpc-v2"])
async def test_a_header_that_cannot_be_forwarded_does_not_fail_the_request(
    name, value, hop, trained_bundle, predictor, grpc_predictor
):
    address = grpc_predictor.address if hop == "grpc-v2" else predictor.address
    async with in_process_transformer(trained_bundle, address, f"--predictor_protocol={hop}") as transformer:
        response = await transformer.http.post(
            V1_PREDICT, json={"instances": [SAMPLE]}, headers=[(name, value), (b"traceparent", b"1")]
        )
    assert response.status_code == 200, response.text
    seen = grpc_predictor.metadata[0] if hop == "grpc-v2" else predictor.requests[0].headers
    assert seen["traceparent"] == "1"


@pytest.mark.parametrize("hop", ["v2", "grpc-v2"])
async def test_tracing_headers_that_are_too_long_are_left_out(hop, trained_bundle, predictor, grpc_predictor):
    faulty = grpc_predictor if hop == "grpc-v2" else predictor
    headers = {
        "tracestate": "a=" + "x" * 30_000,
        "x-request-id": "7",
        "authorization": "Bearer " + "y" * 4000,
    }
    async with connected_transformer(faulty, trained_bundle, hop) as transformer:
        await ask_over_rest(transformer, headers)
    (seen,) = faulty.metadata
    assert seen["authorization"] == headers["authorization"]
    assert "tracestate" not in seen
    assert "x-request-id" not in seen


async def test_binary_metadata_does_not_fail_the_request(transformer, predictor):
    await transformer.grpc.ModelInfer(grpc_objects([SAMPLE]), metadata=(("x-b3-flags-bin", b"\xff"),))
    assert not any(name.lower().startswith("x-b3-") for name in predictor.requests[0].headers)


@pytest.mark.parametrize("hop", ["v1", "v2"])
async def test_cookies_that_the_predictor_sets_are_not_sent_back(hop, trained_bundle, predictor):
    async def sets_a_cookie(request: web.Request) -> web.Response:
        response = web.json_response(predictions(hop, [GOOD]))
        response.set_cookie("session", "secret")
        return response

    predictor.always = sets_a_cookie
    # One connection, so that both requests use the same client.
    async with connected_transformer(predictor, trained_bundle, hop, connections=1) as transformer:
        for _ in range(2):
            await ask_over_rest(transformer, {})
    assert [request.headers.get("cookie") for request in predictor.requests] == [None, None]


@pytest.mark.parametrize("hop", ["v1", "grpc-v2"])
async def test_proxy_settings_of_the_environment_are_ignored(
    hop, trained_bundle, predictor, grpc_predictor, monkeypatch
):
    faulty, drop = (grpc_predictor, aborts("UNAVAILABLE", "")) if hop == "grpc-v2" else (predictor, hangs_up)
    async with connected_transformer(faulty, trained_bundle, hop) as transformer:
        # Set after the start, since the test's channel would use the proxy too.
        for variable in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
            monkeypatch.setenv(variable, f"http://{NOBODY}")
            monkeypatch.setenv(variable.upper(), f"http://{NOBODY}")
        # This request needs a new connection.
        faulty.faults.append(drop)
        assert await v1_status(transformer, SAMPLE) == transformer.answer


# Log of a predictor that cannot be verified


async def says_no_and_closes(request: web.Request) -> web.StreamResponse:
    response = web.Response(status=400, text="no such output")
    response.force_close()
    return response


async def talks_nonsense(request: web.Request) -> web.StreamResponse:
    assert isinstance(request.transport, asyncio.Transport)
    request.transport.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    return web.Response()


UNVERIFIED = [
    pytest.param(
        has_status(400, text="no such output: \x1b[31m\r\n" + "odds" * 100),
        r"the predictor answered with status 400: no such output: \x1b[31m\r\noddsodds",
        id="escaped and cut",
    ),
    pytest.param(
        has_status(403, text="RBAC: access denied"),
        "the predictor answered with status 403: RBAC: access denied",
        id="a mesh",
    ),
    pytest.param(
        has_status(503, text="no healthy upstream"),
        "the predictor is not ready: it answered with status 503: no healthy upstream",
        id="not ready",
    ),
    pytest.param(
        says_no_and_closes,
        "the predictor answered with status 400: no such output; then the predictor closed the connection",
        id="says why, and closes",
    ),
    pytest.param(
        talks_nonsense,
        "invalid response from the predictor: not HTTP; then the predictor closed the connection",
        id="not HTTP",
    ),
    pytest.param(has_status(204), "the predictor answered with status 204", id="nothing said"),
]


@pytest.mark.parametrize(("fault", "message"), UNVERIFIED)
async def test_the_log_says_once_and_in_the_predictors_words_why_it_cannot_be_verified(
    fault, message, pair, caplog, monkeypatch
):
    """The bundle has an earlier version, which is tried next."""
    monkeypatch.setattr(pool, "GRACE_S", 0.2)
    predictor = FaultyHttpPredictor(SklearnReference(pair.new))
    predictor.unverified = predictor.always = fault
    await predictor.start()
    try:
        with transformer_log(caplog):
            options = (predictor.address, "--predictor_protocol=v2")
            async with in_process_transformer(pair.new, *options, ready=False) as transformer:
                await check(transformer, UNAVAILABLE)
                # Every connection tries several times.
                await wait_until(lambda: len(predictor.calls) > 10)
    finally:
        await predictor.stop()
    about = f"predictor {predictor.address}: "
    (line,) = {one.getMessage() for one in caplog.records if one.getMessage().startswith(about)}
    assert line.startswith(about + message)
    assert line == about + message or len(line.partition("400: ")[2]) <= MAX_DETAIL


async def test_the_log_says_why_a_grpc_predictor_cannot_be_verified(
    trained_bundle, grpc_predictor, caplog, monkeypatch
):
    monkeypatch.setattr(pool, "GRACE_S", 0.2)
    grpc_predictor.unverified = aborts("INVALID_ARGUMENT", "no such output")
    with transformer_log(caplog):
        options = (grpc_predictor.address, "--predictor_protocol=grpc-v2")
        async with in_process_transformer(trained_bundle, *options, ready=False) as transformer:
            await check(transformer, UNAVAILABLE)
    message = "the predictor answered with INVALID_ARGUMENT: no such output"
    assert f"predictor {grpc_predictor.address}: {message}" in [one.getMessage() for one in caplog.records]


async def test_the_log_does_not_repeat_what_the_predictor_says_about_a_candidate(
    transformer, predictor, caplog
):
    predictor.always = has_status(400, text="bad: 67.8901")
    with transformer_log(caplog):
        await check(transformer, NONSENSE)
    assert "the predictor answered with status 400" in caplog.text
    assert "67.89" not in caplog.text
