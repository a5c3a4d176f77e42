"""Every fault of a gRPC predictor has the same status as over REST, and the same rules for retries."""

import asyncio
from typing import Any

import pytest

from tests.support.connected_transformer import (
    connected_transformer,
)
from tests.support.endpoints import V1_PREDICT
from tests.support.faulty_predictor import (
    LOADING,
    REFUSALS,
    REFUSED_NAMES,
    REFUSED_ORDER,
    REFUSED_WIDTH,
    aborts,
    hangs_up,
)
from tests.support.request_outcomes import (
    DROPPED,
    REFUSED,
    SLOW,
    WRONG,
    check_fault,
    check_recovery,
    v1_outcome,
)
from training.candidates import SAMPLE


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
    pytest.param(aborts("UNAVAILABLE", "moving"), *DROPPED, id="UNAVAILABLE"),
    pytest.param(aborts("NOT_FOUND", "Model placement not found"), *DROPPED, id="NOT_FOUND"),
    pytest.param(aborts("RESOURCE_EXHAUSTED", "slow down"), *DROPPED, id="RESOURCE_EXHAUSTED"),
    pytest.param(aborts("INVALID_ARGUMENT", LOADING), *DROPPED, id="loading"),
    pytest.param(aborts("INTERNAL", "1"), *DROPPED, id="stopping"),
    pytest.param(aborts("INTERNAL", f"ValueError: {REFUSED_NAMES}"), *REFUSED, id="other feature names"),
    pytest.param(aborts("INVALID_ARGUMENT", REFUSED_ORDER), *REFUSED, id="another order"),
    pytest.param(aborts("INVALID_ARGUMENT", REFUSED_WIDTH), *REFUSED, id="another width"),
    pytest.param(aborts("INTERNAL", "KeyError: 'x'"), *WRONG, id="INTERNAL"),
    pytest.param(aborts("INVALID_ARGUMENT", "no"), *WRONG, id="INVALID_ARGUMENT"),
    pytest.param(aborts("UNKNOWN", "oh"), *WRONG, id="UNKNOWN"),
    pytest.param(aborts("PERMISSION_DENIED", "RBAC"), *WRONG, id="PERMISSION_DENIED"),
    pytest.param(aborts("DEADLINE_EXCEEDED", "upstream"), *SLOW, id="DEADLINE_EXCEEDED"),
    pytest.param(is_stuck, *SLOW, id="never answers"),
    pytest.param(answers(name="predict"), *WRONG, id="another output"),
    pytest.param(answers(datatype="FP32"), *WRONG, id="another datatype"),
    pytest.param(answers(rows=1), *WRONG, id="too few candidates"),
    pytest.param(answers(shape=[20]), *WRONG, id="flat"),
    pytest.param(answers(values=[float("nan")] * 2), *WRONG, id="NaN"),
    pytest.param(answers(values=[-0.5, 1.5]), *WRONG, id="below 0 and above 1"),
    pytest.param(answers_labels, *WRONG, id="labels"),
    pytest.param(answers_raw_bytes_that_are_too_few, *WRONG, id="too few bytes"),
    pytest.param(answers_without_outputs, *WRONG, id="no outputs"),
]


@pytest.mark.parametrize(("fault", "statuses", "calls_each", "request_timeout_s"), GRPC_FAULTS)
async def test_a_fault_of_a_grpc_predictor_gets_its_status_and_leaves_nothing(
    fault, statuses, calls_each, grpc_transformer, grpc_predictor
):
    await check_fault(grpc_transformer, grpc_predictor, fault, statuses, calls_each)


async def test_a_dropped_grpc_call_is_sent_once_more(grpc_transformer, grpc_predictor):
    grpc_predictor.faults.append(aborts("UNAVAILABLE", "moving"))
    assert await v1_outcome(grpc_transformer, SAMPLE) == grpc_transformer.answer
    assert len(grpc_predictor.metadata) == 2


@pytest.mark.parametrize("refusal", REFUSALS, ids=["other feature names", "another order", "another width"])
async def test_a_grpc_call_with_a_refused_encoding_is_sent_again_until_a_model_accepts_it(
    refusal, grpc_transformer, grpc_predictor
):
    grpc_predictor.faults += [aborts("INTERNAL", f"ValueError: {refusal}")] * 3
    assert await v1_outcome(grpc_transformer, SAMPLE) == grpc_transformer.answer
    assert len(grpc_predictor.metadata) == 4


async def test_a_call_that_is_dropped_twice_is_split_into_its_requests(trained_bundle, predictor):
    predictor.always = hangs_up
    rows = [{**SAMPLE, "ssc_p": 50 + number} for number in range(3)]
    async with connected_transformer(predictor, trained_bundle, "v2", connections=1) as transformer:
        http = transformer.without_sockets
        pending = [http.post(V1_PREDICT, json={"instances": [row]}) for row in rows]
        assert {answer.status_code for answer in await asyncio.gather(*pending)} == {503}
    assert [len(matrix) for matrix, _ in predictor.carried] == [3, 3, 1, 1, 1]


@pytest.mark.parametrize("request_timeout_s", [1])
async def test_a_grpc_call_is_cancelled_at_the_deadline(grpc_transformer, grpc_predictor):
    """Otherwise a slow predictor would keep working on it."""
    cancelled = asyncio.Event()

    async def fault(context, answer):
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    grpc_predictor.always = fault
    assert (await v1_outcome(grpc_transformer, SAMPLE))[0] == "504"
    await asyncio.wait_for(cancelled.wait(), 10)
    await check_recovery(grpc_transformer, grpc_predictor)
