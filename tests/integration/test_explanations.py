"""A request can ask why: every protocol gives the explanation that scikit-learn gives in this process."""

import asyncio
import gc
import json
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from tests.support.endpoints import V1_EXPLAIN, V1_PREDICT, V2_INFER
from tests.support.expected_explanation import ExpectedExplanation
from tests.support.fake_mlserver import FakeMLServer
from tests.support.fake_service import Start, start_fake_service
from tests.support.in_process_transformer import InProcessTransformer
from tests.support.request_bodies import binary_request, field_tensors, grpc_objects, grpc_tensors, v2_objects
from tests.support.waiting import wait_until
from training.candidates import SAMPLE
from transformer.batching.jobs import Job
from transformer.bundle.explanation import Contributions
from transformer.bundle.format import BUNDLE_FILE
from transformer.explanation.game import Game

#: Rows for one candidate; few, so that the tests are fast.
MAX_ROWS = 2_000
FEW_ROWS = f"--max_explanation_rows={MAX_ROWS}"
BASELINE, CONTRIBUTIONS, ERRORS, CHANGES = (
    f"placement_{name}" for name in ("baseline", "contributions", "standard_errors", "changes")
)


@pytest.fixture
def start(stack, trained_bundle, sklearn_reference) -> Start:
    async def start(*arguments: str, bundle: Path = trained_bundle) -> Any:
        return await start_fake_service(stack, bundle, sklearn_reference, *arguments)

    return start


@pytest.fixture
def refused(sklearn_reference) -> dict[str, Any]:
    """A reference candidate with a negative answer."""
    rows = sklearn_reference.bundle.reference.candidates
    scores = sklearn_reference.probabilities(list(rows))
    return dict(rows[int(np.argmax(np.array(scores) < 0.4))])


def explain(transformer: InProcessTransformer, rows: list[dict[str, Any]]) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(transformer.http.post(V1_EXPLAIN, json={"instances": rows}))


async def until_calls(predictor: FakeMLServer, count: int) -> None:
    await wait_until(lambda: len(predictor.plain_calls) >= count, poll_s=0.001)


def explanations(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["explanations"]
    return found


async def test_v1_explains_each_candidate_exactly(start, sklearn_reference, refused):
    transformer, _ = await start()
    # Two fields differ from the first background row, and few from the others.
    near = {**sklearn_reference.bundle.background.candidates[0], "ssc_p": 50.5}
    response = await explain(transformer, [near, refused])
    assert response.headers["x-model-version"] == "v1"
    found = explanations(response)
    expected = ExpectedExplanation(sklearn_reference)
    for candidate, one in zip([near, refused], found, strict=True):
        assert max(expected.differences(candidate, one)) < 1e-9
        assert one["exact"] is True
        assert "standard_errors" not in one
        total = one["baseline"] + sum(one["contributions"].values())
        assert total == pytest.approx(one["placement_probability"], abs=1e-9)


async def test_beyond_the_budget_v1_says_that_contributions_are_estimates(start, sklearn_reference):
    transformer, _ = await start(FEW_ROWS)
    (one,) = explanations(await explain(transformer, [SAMPLE]))
    assert one["exact"] is False
    expected = ExpectedExplanation(sklearn_reference, MAX_ROWS)
    assert max(expected.differences(SAMPLE, one)) < 1e-9
    errors = expected.contributions(SAMPLE).standard_errors[0]
    assert list(one["standard_errors"].values()) == pytest.approx(errors.tolist(), abs=1e-9)


async def test_only_a_negative_answer_comes_with_changes_and_they_turn_it(start, sklearn_reference, refused):
    transformer, _ = await start(FEW_ROWS, "--fixed_fields=gender,workex")
    positive, negative = explanations(await explain(transformer, [SAMPLE, refused]))
    assert (positive["placement"], negative["placement"]) == (True, False)
    assert "changes" not in positive
    assert negative["changes"]
    for change in negative["changes"]:
        assert not change.keys() & {"gender", "workex"}
        (score,) = sklearn_reference.probabilities([{**refused, **change}])
        assert score >= sklearn_reference.bundle.threshold


async def test_v2_gives_the_parts_of_an_explanation_that_a_request_names(start, sklearn_reference, refused):
    transformer, _ = await start(FEW_ROWS)
    names = [CHANGES, CONTRIBUTIONS, "placement_probability", BASELINE, ERRORS]
    rows = [SAMPLE, refused]
    content = {**v2_objects(rows), "outputs": [{"name": name} for name in names]}
    response = await transformer.http.post(V2_INFER, json=content)
    assert response.status_code == 200, response.text
    assert response.headers["x-model-version"] == response.json()["model_version"] == "v1"
    outputs = {output["name"]: output for output in response.json()["outputs"]}
    assert list(outputs) == names
    expected = ExpectedExplanation(sklearn_reference, MAX_ROWS)
    found = [expected.contributions(row) for row in rows]
    for name, values in ((CONTRIBUTIONS, "values"), (ERRORS, "standard_errors")):
        assert outputs[name]["shape"] == [2, 12]
        assert json.loads(outputs[name]["parameters"]["fields"]) == list(found[0].fields)
        table = np.reshape(outputs[name]["data"], (2, 12))
        np.testing.assert_allclose(table, [getattr(one, values)[0] for one in found], rtol=0, atol=1e-9)
    assert outputs[BASELINE]["shape"] == outputs[CHANGES]["shape"] == [2]
    assert outputs[BASELINE]["data"] == pytest.approx([float(one.baseline[0]) for one in found], abs=1e-9)
    changes = [json.loads(one) for one in outputs[CHANGES]["data"]]
    assert changes[0] == []
    assert changes[1]
    v1 = explanations(await explain(transformer, rows))
    assert changes[1] == v1[1]["changes"]


async def test_binary_tensors_and_grpc_give_the_same_explanation(start, sklearn_reference, refused):
    transformer, _ = await start(FEW_ROWS)
    signature, rows = sklearn_reference.bundle.signature, [SAMPLE, refused]
    names = (CONTRIBUTIONS, CHANGES)
    asked = {"outputs": [{"name": name} for name in names]}
    json_outputs = (await transformer.http.post(V2_INFER, json={**v2_objects(rows), **asked})).json()[
        "outputs"
    ]

    body, headers = binary_request(signature, rows)
    length = int(headers["inference-header-content-length"])
    head = json.dumps({**json.loads(body[:length]), **asked}).encode()
    headers["inference-header-content-length"] = str(len(head))
    response = await transformer.http.post(V2_INFER, content=head + body[length:], headers=headers)
    assert response.status_code == 200, response.text
    length = int(response.headers["inference-header-content-length"])
    described, data = json.loads(response.content[:length])["outputs"], response.content[length:]
    sizes = [output["parameters"]["binary_data_size"] for output in described]
    binary = [data[: sizes[0]], data[sizes[0] :]]
    assert len(binary[1]) == sizes[1]

    message = grpc_tensors(signature, rows)
    raw_message = grpc_tensors(signature, rows, raw=True)
    for one in (message, raw_message):
        for name in names:
            one.outputs.add(name=name)
    typed, raw = await transformer.grpc.ModelInfer(message), await transformer.grpc.ModelInfer(raw_message)
    for outputs in (typed.outputs, raw.outputs):
        assert [output.name for output in outputs] == list(names)
        assert list(outputs[0].shape) == described[0]["shape"] == json_outputs[0]["shape"] == [2, 12]
        fields = json_outputs[0]["parameters"]["fields"]
        assert outputs[0].parameters["fields"].string_param == described[0]["parameters"]["fields"] == fields
    assert list(raw.raw_output_contents) == binary
    values = np.array(json_outputs[0]["data"])
    np.testing.assert_array_equal(values, np.frombuffer(binary[0]))
    np.testing.assert_array_equal(values, typed.outputs[0].contents.fp64_contents)
    texts = [text.encode() for text in json_outputs[1]["data"]]
    assert list(typed.outputs[1].contents.bytes_contents) == texts
    assert binary[1] == b"".join(len(text).to_bytes(4, "little") + text for text in texts)


async def test_a_request_that_names_no_explanation_takes_one_call(start, sklearn_reference):
    transformer, predictor = await start()
    inputs = field_tensors(sklearn_reference.bundle.signature, [SAMPLE])
    for body in ({"inputs": inputs}, {"inputs": inputs, "outputs": [{"name": "placement"}]}):
        predictor.plain_calls.clear()
        response = await transformer.http.post(V2_INFER, json=body)
        assert {output["name"] for output in response.json()["outputs"]} <= {
            "placement",
            "placement_probability",
        }
        assert [len(rows) for rows, _ in predictor.plain_calls] == [1]


async def test_an_explanation_as_a_cloudevent(start):
    transformer, _ = await start(FEW_ROWS)
    plain = explanations(await explain(transformer, [SAMPLE]))
    event = {
        "specversion": "1.0",
        "id": "7",
        "source": "test",
        "type": "candidate",
        "time": "2026-01-01T00:00:00Z",
        "data": {"instances": [SAMPLE]},
    }
    headers = {"content-type": "application/cloudevents+json"}
    response = await transformer.http.post(V1_EXPLAIN, json=event, headers=headers)
    assert response.headers["content-type"] == "application/cloudevents+json"
    assert response.json()["data"]["explanations"] == plain


@pytest.mark.parametrize(
    "body", [b"{", b'{"instances": []}', b'{"instances": [{"ssc_p": 710}, 3]}', b'{"instances": [{}]}']
)
async def test_bad_input_gets_the_errors_of_a_prediction(start, body):
    transformer, predictor = await start()
    one, other = [await transformer.http.post(path, content=body) for path in (V1_EXPLAIN, V1_PREDICT)]
    assert (one.status_code, one.json()) == (other.status_code, other.json())
    assert one.status_code == 400
    assert not predictor.plain_calls


async def test_too_many_candidates_to_explain_are_refused(start):
    transformer, predictor = await start("--max_explained_candidates=2")
    response = await explain(transformer, [SAMPLE] * 3)
    assert (response.status_code, response.json()) == (
        413,
        {"error": "too many candidates to explain: limit 2, got 3"},
    )
    message = v2_objects([SAMPLE] * 3) | {"outputs": [{"name": BASELINE}]}
    assert (await transformer.http.post(V2_INFER, json=message)).status_code == 413
    assert not predictor.plain_calls
    assert (await transformer.http.post(V2_INFER, json=v2_objects([SAMPLE] * 3))).status_code == 200


@pytest.fixture
def old_bundle(trained_bundle, tmp_path) -> Path:
    """The bundle as an earlier release has written it, without background rows."""
    content = json.loads((trained_bundle / BUNDLE_FILE).read_bytes())
    del content["background"]
    (tmp_path / BUNDLE_FILE).write_text(json.dumps({**content, "format": 2}))
    return tmp_path


async def test_a_bundle_without_background_rows_predicts_and_says_why_it_does_not_explain(
    start, old_bundle, sklearn_reference
):
    transformer, _ = await start(bundle=old_bundle)
    error = (
        "version v1 has no background rows, which explanations need; train it again with `placement train`"
    )
    response = await explain(transformer, [SAMPLE])
    assert (response.status_code, response.json()) == (501, {"error": error})
    named = v2_objects([SAMPLE]) | {"outputs": [{"name": CONTRIBUTIONS}]}
    response = await transformer.http.post(V2_INFER, json=named)
    assert (response.status_code, response.json()) == (501, {"error": error})
    message = grpc_tensors(sklearn_reference.bundle.signature, [SAMPLE])
    message.outputs.add(name=CHANGES)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await transformer.grpc.ModelInfer(message)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert raised.value.details() == error
    outputs = (await transformer.http.get("/v2/models/placement")).json()["outputs"]
    assert [output["name"] for output in outputs] == ["placement", "placement_probability"]
    assert V1_EXPLAIN not in (await transformer.http.get("/openapi.json")).json()["paths"]
    response = await transformer.http.post(V1_PREDICT, json={"instances": [SAMPLE]})
    assert response.json()["predictions"][0]["placement_probability"] == pytest.approx(
        sklearn_reference.probabilities([SAMPLE])[0], abs=1e-12
    )


async def test_explanations_can_be_turned_off(start):
    transformer, _ = await start("--max_explained_candidates=0")
    response = await explain(transformer, [SAMPLE])
    error = "explanations are turned off here; ask for a prediction"
    assert (response.status_code, response.json()) == (501, {"error": error})
    outputs = (await transformer.http.get("/v2/models/placement")).json()["outputs"]
    assert [output["name"] for output in outputs] == ["placement", "placement_probability"]
    assert (await transformer.http.post(V2_INFER, json=v2_objects([SAMPLE]))).status_code == 200


async def test_predictions_wait_for_at_most_one_call_of_an_explanation(start, sklearn_reference):
    transformer, predictor = await start(FEW_ROWS, "--predictor_connections=1", "--max_batch_rows=64")
    explaining = explain(transformer, [SAMPLE])
    await wait_until(lambda: len(predictor.plain_calls) > 2)
    for _ in range(5):
        predictor.may_answer.clear()
        sent = len(predictor.plain_calls)
        await until_calls(predictor, sent + 1)
        waiting = asyncio.create_task(transformer.http.post(V1_PREDICT, json={"instances": [SAMPLE]}))
        sent = len(predictor.plain_calls)
        await asyncio.sleep(0.05)
        predictor.may_answer.set()
        response = await waiting
        assert response.status_code == 200
        # The call that was in flight, and then the prediction.
        assert len(predictor.plain_calls[sent][0]) == 1
    (one,) = explanations(await explaining)
    assert max(ExpectedExplanation(sklearn_reference, MAX_ROWS).differences(SAMPLE, one)) < 1e-9


async def test_explanations_have_one_call_in_flight_together(start, refused):
    transformer, predictor = await start(FEW_ROWS, "--predictor_connections=4")
    predictor.may_answer.clear()
    tasks = [explain(transformer, [row]) for row in (SAMPLE, refused, {**SAMPLE, "ssc_p": 60.5})]
    await wait_until(lambda: predictor.plain_calls)
    await asyncio.sleep(0.2)
    assert len(predictor.plain_calls) == 1
    # A prediction takes another connection.
    predicting = asyncio.create_task(transformer.http.post(V1_PREDICT, json={"instances": [SAMPLE]}))
    await wait_until(lambda: len(predictor.plain_calls) == 2)
    predictor.may_answer.set()
    assert (await predicting).status_code == 200
    assert [len(explanations(await task)) for task in tasks] == [1, 1, 1]


async def test_a_small_explanation_does_not_wait_for_a_large_one(start):
    transformer, predictor = await start(FEW_ROWS, "--max_batch_rows=64")
    large = explain(transformer, [SAMPLE] * 16)
    await wait_until(lambda: len(predictor.plain_calls) > 2)
    explanations(await explain(transformer, [SAMPLE]))
    assert not large.done()
    large.cancel()
    await asyncio.gather(large, return_exceptions=True)


async def test_too_many_rows_of_explanations_are_refused_and_predictions_are_not(start):
    transformer, predictor = await start(FEW_ROWS, f"--max_waiting_explanation_rows={MAX_ROWS}")
    predictor.may_answer.clear()
    first = explain(transformer, [SAMPLE])
    await wait_until(lambda: predictor.plain_calls)
    response = await explain(transformer, [SAMPLE])
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"].startswith(f"too many rows of explanations: limit {MAX_ROWS}, ")
    named = grpc_objects([SAMPLE])
    named.outputs.add(name=BASELINE)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await transformer.grpc.ModelInfer(named)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    predicting = asyncio.create_task(transformer.http.post(V1_PREDICT, json={"instances": [SAMPLE]}))
    await wait_until(lambda: len(predictor.plain_calls) == 2)
    predictor.may_answer.set()
    assert (await predicting).status_code == 200
    explanations(await first)
    # Its rows are free again.
    explanations(await explain(transformer, [SAMPLE]))


@pytest.mark.parametrize("ask", ["v1", "v2"])
async def test_an_explanation_whose_client_has_gone_scores_no_more_rows(start, ask):
    transformer, predictor = await start(f"--max_waiting_explanation_rows={MAX_ROWS}", FEW_ROWS)
    predictor.may_answer.clear()
    body = v2_objects([SAMPLE]) | {"outputs": [{"name": BASELINE}]}
    task = (
        explain(transformer, [SAMPLE])
        if ask == "v1"
        else asyncio.create_task(transformer.http.post(V2_INFER, json=body))
    )
    await wait_until(lambda: predictor.plain_calls)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(0.1)
    predictor.may_answer.set()
    predictor.plain_calls.clear()
    # The rows that it had reserved are free, so that this one is not refused.
    explanations(await explain(transformer, [SAMPLE]))
    assert sum(len(rows) for rows, _ in predictor.plain_calls) <= 1 + MAX_ROWS


async def test_explanations_that_wait_behind_predictions_until_their_deadline_get_503(start):
    transformer, predictor = await start("--predictor_request_timeout_seconds=1", "--predictor_connections=1")
    predictor.may_answer.clear()
    predicting = asyncio.create_task(transformer.http.post(V1_PREDICT, json={"instances": [SAMPLE]}))
    await until_calls(predictor, 1)
    response = await explain(transformer, [SAMPLE])
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json()["error"].startswith("no predictor was free in time: explanations wait behind")
    predictor.may_answer.set()
    await predicting


async def test_answered_explanations_are_freed_without_the_garbage_collector(start):
    transformer, _ = await start(FEW_ROWS)
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            explanations(await explain(transformer, [SAMPLE]))
        left = sum(isinstance(one, Job | Game | Contributions) for one in gc.get_objects())
    finally:
        gc.enable()
    # The connections' tasks may hold the jobs of their last call. There is one game, of the only
    # version. Each explanation has had nine jobs.
    assert left <= 10


async def test_an_explanation_has_the_deadline_of_a_prediction(start):
    transformer, predictor = await start("--predictor_request_timeout_seconds=1")
    predictor.may_answer.clear()
    response = await explain(transformer, [SAMPLE])
    assert response.status_code == 504
    assert response.json()["error"] == "the explanation was not complete in time"
    predictor.may_answer.set()


async def test_an_explanation_that_is_not_complete_in_time_leaves_its_connection_open(start, monkeypatch):
    monkeypatch.setattr("transformer.batching.jobs.LAST_CALL_S", 60.0)
    transformer, predictor = await start(
        "--predictor_request_timeout_seconds=1", "--predictor_connections=1", "--predictor_connection_age=600"
    )
    predictor.may_answer.clear()
    assert (await explain(transformer, [SAMPLE])).status_code == 504
    opened = predictor.connections
    predictor.may_answer.set()
    assert (await transformer.http.post(V1_PREDICT, json={"instances": [SAMPLE]})).status_code == 200
    assert predictor.connections == opened
