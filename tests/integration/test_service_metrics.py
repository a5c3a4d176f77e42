"""Metrics of the service: every request is counted by protocol, verb, status and version."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.support.connected_transformer import connected_transformer
from tests.support.endpoints import V1_EXPLAIN, V1_PREDICT, V2_INFER
from tests.support.faulty_predictor import has_status
from tests.support.in_process_transformer import InProcessTransformer, in_process_transformer
from tests.support.prometheus_samples import sum_of
from tests.support.request_bodies import grpc_objects, v2_objects
from training.candidates import SAMPLE

EVENT = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s", "ce-type": "t"}
#: An event that the fast path recognises only when it reads the body.
STRUCTURED_EVENT = {"specversion": "1.0", "id": "1", "source": "s", "type": "t", "data": []}


async def scraped(transformer: InProcessTransformer) -> list[Sample]:
    text = (await transformer.http.get("/metrics")).text
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def requests(samples: list[Sample]) -> Counter[tuple[str, ...]]:
    """Return the requests by protocol, verb, status and version."""
    names = ("protocol", "verb", "status", "version")
    counts: Counter[tuple[str, ...]] = Counter()
    for one in samples:
        if one.name == "transformer_requests_total":
            counts[tuple(one.labels[name] for name in names)] += int(one.value)
    return counts


@pytest.mark.parametrize("hop", ["v1", "v2 by request"])
async def test_every_request_is_counted_by_protocol_verb_status_and_version(hop, trained_bundle, predictor):
    bad = {**SAMPLE, "ssc_p": 1000}
    async with connected_transformer(predictor, trained_bundle, hop) as transformer:
        http, stub = transformer.http, transformer.grpc
        before = await scraped(transformer)
        for candidate, times in ((SAMPLE, 3), (bad, 1)):
            for _ in range(times):
                await http.post(V1_PREDICT, json={"instances": [candidate, SAMPLE]})
                await http.post(V2_INFER, json=v2_objects([candidate, SAMPLE]))
                await stub.ModelInfer(grpc_objects([candidate, SAMPLE])).code()
        # Requests that the fast path passes on are counted once, too.
        body = {"instances": [SAMPLE] * 2}
        assert (await http.post(V1_PREDICT, json=body, headers=EVENT)).status_code == 200
        assert (await http.post(V1_PREDICT, json=STRUCTURED_EVENT)).status_code == 400
        after = await scraped(transformer)
    assert requests(after) - requests(before) == {
        ("v1", "predict", "200", "v1"): 4,
        ("v2", "infer", "200", "v1"): 3,
        ("grpc", "infer", "200", "v1"): 3,
        ("v1", "predict", "400", ""): 2,
        ("v2", "infer", "400", ""): 1,
        ("grpc", "infer", "400", ""): 1,
    }

    def added(name: str, **labels: str) -> float:
        return sum_of(after, name, **labels) - sum_of(before, name, **labels)

    label = "any" if hop.endswith("by request") else "v1"
    assert added("transformer_request_seconds_count", protocol="v2") == 3
    assert added("transformer_request_candidates_sum", protocol="grpc") == 6
    assert added("transformer_candidate_values_total", field="gender", version="v1") == 20
    assert added("transformer_decisions_total", version="v1") == 20
    assert added("request_predict_seconds_count", model_name="placement") == 10
    assert added("transformer_batch_candidates_sum", version=label) == 20
    assert added("transformer_queue_seconds_count", version=label) == 10
    assert 1 <= added("transformer_predictor_call_seconds_count", version=label) <= 10


@pytest.mark.parametrize("status", [500, 503])
async def test_failed_requests_are_counted_by_their_status(status, transformer, predictor):
    before = requests(await scraped(transformer))
    predictor.always = has_status(status)
    answers = [
        (await transformer.http.post(V1_PREDICT, json={"instances": [SAMPLE]})).status_code for _ in range(3)
    ]
    code = (await transformer.grpc.ModelInfer(grpc_objects([SAMPLE])).code()).name
    found = requests(await scraped(transformer)) - before
    expected = Counter(("v1", "predict", str(answer), "") for answer in answers)
    assert {one: count for one, count in found.items() if one[0] == "v1"} == expected
    (one,) = (one for one in found if one[0] == "grpc")
    assert (one[2] == "503") == (code == "UNAVAILABLE")


async def test_a_request_whose_caller_has_gone_is_not_counted(transformer, predictor):
    before = requests(await scraped(transformer))
    release = asyncio.Event()

    async def waits(_: Any) -> None:
        await release.wait()

    predictor.always = waits
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(transformer.http.post(V1_PREDICT, json={"instances": [SAMPLE]}), 0.5)
    release.set()
    predictor.always = None
    await transformer.http.post(V1_PREDICT, json={"instances": [SAMPLE]})
    assert requests(await scraped(transformer)) - before == {("v1", "predict", "200", "v1"): 1}


LIMITS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "candidates": (("--max_candidates=2",), {"json": {"instances": [SAMPLE] * 3}}),
    "body": (("--max_request_bytes=1000",), {"content": b" " * 1001}),
    "values": ((), {"content": b"[" + b"0," * 1_000_001 + b"0]"}),
    "head": ((), {"headers": {"x-long": "x" * 70_000}, "json": {}}),
}


@pytest.mark.parametrize("limit", LIMITS)
async def test_a_request_that_a_limit_refuses_is_counted_by_the_limit(limit, trained_bundle, predictor):
    arguments, request = LIMITS[limit]
    async with connected_transformer(predictor, trained_bundle, "v1", *arguments) as transformer:
        before = sum_of(await scraped(transformer), "transformer_refusals_total", limit=limit)
        assert (await transformer.http.post(V1_PREDICT, **request)).status_code >= 400
        assert sum_of(await scraped(transformer), "transformer_refusals_total", limit=limit) == before + 1


async def test_decisions_are_counted_by_group(trained_bundle, predictor):
    rows = [{**SAMPLE, "gender": gender} for gender in ("F", "F", "M")]
    async with connected_transformer(predictor, trained_bundle, "v1", "--groups=gender,ssc_p") as transformer:
        before = await scraped(transformer)
        answer = (await transformer.http.post(V1_PREDICT, json={"instances": rows})).json()
        after = await scraped(transformer)
    for decision, chosen in (("positive", True), ("negative", False)):
        expected = Counter(
            row["gender"]
            for row, one in zip(rows, answer["predictions"], strict=True)
            if one["placement"] is chosen
        )
        for group in ("F", "M"):
            labels = {"field": "gender", "group": group, "decision": decision}
            name = "transformer_group_decisions_total"
            assert sum_of(after, name, **labels) - sum_of(before, name, **labels) == expected[group]


async def test_all_series_of_known_versions_exist_before_the_first_request(pair, predictor):
    async with in_process_transformer(pair.new, predictor.address, ready=False) as transformer:
        samples = await scraped(transformer)
    for version in ("v1", "v2"):
        assert sum_of(samples, "transformer_training_candidates", version=version) > 0
        names = {one.name for one in samples if one.labels.get("version") == version}
        assert names >= {
            "transformer_requests_total",
            "transformer_candidate_values_total",
            "transformer_candidate_score_bucket",
            "transformer_decisions_total",
            "transformer_training_share",
            "transformer_training_score_share",
        }


async def test_explanations_are_counted_apart_from_predictions(trained_bundle, predictor):
    too_many = {"instances": [SAMPLE] * 2}
    limits = ("--max_explained_candidates=1", "--max_explanation_rows=1")
    async with in_process_transformer(
        trained_bundle, predictor.address, "--predictor_protocol=v2", *limits
    ) as transformer:
        before = await scraped(transformer)
        answer = await transformer.http.post(V1_EXPLAIN, json={"instances": [SAMPLE]})
        assert answer.status_code == 200, answer.text
        assert (await transformer.http.post(V1_EXPLAIN, json=too_many)).status_code == 413
        after = await scraped(transformer)

    def more(name: str, **labels: str) -> float:
        return sum_of(after, name, **labels) - sum_of(before, name, **labels)

    counted = {("v1", "explain", "200", "v1"): 1, ("v1", "explain", "413", ""): 1}
    assert requests(after) - requests(before) == counted
    assert more("transformer_refusals_total", limit="candidates to explain") == 1
    assert more("transformer_explained_candidates_total", version="v1") == 1
    assert more("transformer_explanation_rows_total", version="v1") > 1
    assert more("request_explain_seconds_count") == 1
    for name in ("request_predict_seconds_count", "transformer_decisions_total"):
        assert more(name) == 0, name
    assert more("transformer_batch_candidates_count", version="v1") == 0
