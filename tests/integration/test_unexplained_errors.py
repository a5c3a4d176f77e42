"""A predictor may refuse feature names with a bare 500 (MLServer without its worker process).

An error means "not this version" and never verifies a connection.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial

import pytest
from prometheus_client import REGISTRY

from tests.support.endpoints import READINESS, V1_PREDICT
from tests.support.fake_service import ask, start_fake_service
from tests.support.in_process_transformer import InProcessTransformer
from tests.support.sklearn_reference import SklearnReference
from tests.support.version_pairs import VersionPair
from tests.support.waiting import wait_until
from transformer.batching import pool
from transformer.batching.balanced_upstream import MAX_CALLS

#: Starts a service whose predictor gives no reasons.
start = partial(start_fake_service, explains=False)


async def answers(transformer: InProcessTransformer, path: str, status: int) -> bool:
    return (await transformer.http.get(path)).status_code == status


def verifications(outcome: str) -> float:
    return REGISTRY.get_sample_value("transformer_verifications_total", {"outcome": outcome}) or 0.0


def failing(reference: SklearnReference, times: int) -> Callable[[], SklearnReference]:
    """Return a model that fails so often, with named columns or without, and then scores."""
    left = [None] * times

    def served() -> SklearnReference:
        if left:
            left.pop()
            raise ValueError("not now")
        return reference

    return served


@pytest.mark.parametrize("behind", ["v1", "v2"])
@pytest.mark.parametrize("name", ["category_renamed", "category_added", "field_added", "retrained"])
async def test_the_version_behind_a_connection_is_found(name, behind, stack, version_pair):
    pair = version_pair(name)
    transformer, _ = await start(stack, pair.new, pair.references[behind])
    rows = pair.candidates[:5]
    assert await ask(transformer, *rows) == (
        behind,
        pytest.approx(pair.references[behind].probabilities(rows), abs=1e-12),
    )


async def test_a_swap_during_requests_gives_no_answer_through_the_other_encoding(stack, pair):
    transformer, predictor = await start(stack, pair.new, pair.references["v1"])
    seen = set()
    for swap in ("v2", "v1", "v2"):
        for row in pair.candidates[:20]:
            version, probabilities = await ask(transformer, row)
            assert probabilities == pytest.approx(pair.references[version].probabilities([row]), abs=1e-12)
            seen.add(version)
        predictor.swap(pair.references[swap])
    assert seen == {"v1", "v2"}


async def test_a_model_of_another_encoding_is_not_used_and_the_log_says_that_the_reason_is_unknown(
    stack, pair, caplog, monkeypatch
):
    monkeypatch.setattr(pool, "GRACE_S", 0.2)
    failed, refused = verifications("failed"), verifications("refused")
    with caplog.at_level(logging.WARNING, "kserve.transformer"):
        transformer, predictor = await start(stack, pair.old, pair.references["v2"], ready=False)
        for path in READINESS:
            assert await answers(transformer, path, 503)
        await wait_until(lambda: predictor.calls > 20)
        for path in READINESS:
            assert await answers(transformer, path, 503)
        response = await transformer.http.post(V1_PREDICT, json={"instances": pair.candidates[:1]})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert predictor.plain_calls == []
    about = f"predictor {predictor.address}: "
    (line,) = {one.getMessage() for one in caplog.records if one.getMessage().startswith(about)}
    assert line == (
        f"{about}the predictor accepts no known version's encoding; "
        "v1: the predictor answered with status 500, reason unknown; "
        "its model takes other features, or it is not ready"
    )
    assert verifications("failed") >= failed + 10
    assert verifications("refused") == refused


async def test_an_error_never_verifies_a_connection_and_the_first_answer_does(stack, pair):
    """Every verification and every health check fails until the model scores."""
    transformer, predictor = await start(stack, pair.new, failing(pair.references["v1"], 30), ready=False)
    while predictor.calls < 30:
        for path in READINESS:
            assert await answers(transformer, path, 503) or predictor.calls > 30
        await asyncio.sleep(0)
    assert predictor.plain_calls == []
    for path in READINESS:
        await wait_until(partial(answers, transformer, path, 200))
    assert (await ask(transformer, pair.candidates[0]))[0] == "v1"


async def test_a_failed_verification_does_not_pass_the_newest_model_off_as_an_unknown_one(
    stack, version_pair, caplog
):
    """The versions have the same feature names, and only the first call gets an error."""
    pair = version_pair("retrained")
    before = verifications("unverified")
    with caplog.at_level(logging.WARNING, "kserve.transformer"):
        transformer, _ = await start(
            stack, pair.new, failing(pair.references["v2"], 1), "--predictor_connections=1"
        )
    assert (await ask(transformer, pair.candidates[0]))[0] == "v2"
    assert verifications("unverified") == before
    assert (
        "the predictor accepts v1's encoding, which is also v2's, but for that version the predictor "
        "answered with status 500, reason unknown"
    ) in caplog.text


@pytest.mark.parametrize("known", ["newest", "previous"])
async def test_an_unknown_model_is_served_as_unverified(known, stack, version_pair, sklearn_reference):
    """With the newest version's encoding, or with the previous one's; other names close the connection."""
    pair, model = version_pair("category_renamed"), version_pair("retrained").references["v2"]
    if known == "newest":
        pair, model = version_pair("retrained"), sklearn_reference
    transformer, predictor = await start(stack, pair.new, model, "--predictor_connections=1")
    rows = pair.candidates[:3]
    expected = ("unverified", pytest.approx(model.probabilities(rows), abs=1e-12))
    for _ in range(3):
        assert await ask(transformer, *rows) == expected
    assert len(predictor.plain_calls) == 3


@pytest.mark.parametrize("known", ["newest", "previous"])
async def test_an_unknown_model_is_refused_with_unknown_model_refuse(
    known, stack, version_pair, sklearn_reference, monkeypatch
):
    monkeypatch.setattr(pool, "GRACE_S", 0.2)
    pair, model = version_pair("category_renamed"), version_pair("retrained").references["v2"]
    if known == "newest":
        pair, model = version_pair("retrained"), sklearn_reference
    transformer, predictor = await start(stack, pair.new, model, "--unknown_model=refuse", ready=False)
    response = await transformer.http.post(V1_PREDICT, json={"instances": pair.candidates[:1]})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert predictor.plain_calls == []


@pytest.mark.parametrize("name", ["category_renamed", "retrained", "field_added"])
async def test_with_verification_by_request_each_answer_names_its_version(name, stack, version_pair):
    pair = version_pair(name)
    transformer, predictor = await start(stack, pair.new, pair.references["v1"], "--verify=request")
    seen = set()
    for number, row in enumerate(pair.candidates[:40]):
        # A proxy would send each call to another version.
        predictor.served = pair.references["v1" if number % 3 else "v2"]
        version, probabilities = await ask(transformer, row)
        assert probabilities == pytest.approx(pair.references[version].probabilities([row]), abs=1e-12)
        seen.add(version)
    assert seen == {"v1", "v2"}


async def test_with_verification_by_request_a_request_that_fails_in_the_model_is_not_repeated_for_ever(
    stack, pair
):
    """An error without a reason may also come from the request itself."""
    reference = pair.references["v2"]
    transformer, predictor = await start(
        stack, pair.new, reference, "--verify=request", "--predictor_connections=1"
    )
    bad = pair.candidates[0]
    predictor.refuses = lambda rows: bool((rows == reference.encode([bad])[0]).all(axis=1).any())
    before = predictor.calls
    response = await transformer.http.post(V1_PREDICT, json={"instances": [bad]})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert predictor.calls - before <= 4 * MAX_CALLS
    assert (await ask(transformer, pair.candidates[1]))[0] == "v2"


async def test_a_request_that_fails_in_the_model_does_not_fail_the_requests_beside_it(
    stack, pair: VersionPair
):
    """The error of a plain call on a verified connection counts as a dropped call."""
    reference = pair.references["v2"]
    transformer, predictor = await start(stack, pair.new, reference, "--predictor_connections=1")
    bad, *good = pair.candidates[:8]
    predictor.refuses = lambda rows: bool((rows == reference.encode([bad])[0]).all(axis=1).any())
    requests = [transformer.http.post(V1_PREDICT, json={"instances": [row]}) for row in (bad, *good)]
    first, *others = await asyncio.gather(*requests)
    assert (first.status_code, first.headers["retry-after"]) == (503, "1")
    assert [one.status_code for one in others] == [200] * len(good)
