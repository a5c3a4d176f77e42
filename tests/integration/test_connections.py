"""Each connection is verified before it carries a request, and again when the predictor may have changed."""

import asyncio
import json
import logging
from functools import partial

import pytest
from prometheus_client import REGISTRY

from inferenceservice.local.forwarder import Backend
from tests.support.endpoints import READINESS, V1_PREDICT
from tests.support.fake_mlserver import FakeMLServer
from tests.support.fake_service import ask, start_fake_service
from tests.support.in_process_transformer import InProcessTransformer, in_process_transformer
from tests.support.load_balancers import balanced_by_connection
from tests.support.sklearn_reference import SklearnReference
from tests.support.waiting import wait_until
from transformer.batching import connection_worker
from transformer.bundle.candidates import Rows
from transformer.bundle.format import BUNDLE_FILE, load_bundle
from transformer.upstream.known_versions import known_versions

CONNECTIONS = "transformer_predictor_connections"
#: Labels of answered V1 requests.
ANSWERED = {"protocol": "v1", "verb": "predict", "status": "200"}


@pytest.fixture
def old_reference(pair) -> SklearnReference:
    return SklearnReference(pair.old)


@pytest.fixture
def new_reference(pair) -> SklearnReference:
    return SklearnReference(pair.new)


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.mark.parametrize("behind", ["old_reference", "new_reference"])
async def test_requests_are_encoded_for_the_version_behind_the_connection(behind, stack, pair, request):
    sklearn_reference = request.getfixturevalue(behind)
    transformer, _ = await start_fake_service(stack, pair.new, sklearn_reference)
    rows = pair.candidates[:5]
    assert await ask(transformer, *rows) == (
        sklearn_reference.bundle.version,
        pytest.approx(sklearn_reference.probabilities(rows), abs=1e-12),
    )


async def test_a_swap_during_requests_gives_no_answer_through_the_other_encoding(
    stack, pair, old_reference, new_reference
):
    transformer, predictor = await start_fake_service(stack, pair.new, old_reference)
    references = {"v1": old_reference, "v2": new_reference}
    seen = set()
    for swap in (new_reference, old_reference, new_reference):
        for number in range(20):
            row = pair.candidates[number]
            version, probabilities = await ask(transformer, row)
            assert probabilities == pytest.approx(references[version].probabilities([row]), abs=1e-12)
            seen.add(version)
        predictor.swap(swap)
    assert seen == {"v1", "v2"}


async def test_a_candidate_that_an_older_version_cannot_express_waits_for_a_newer_predictor(
    stack, pair, old_reference, new_reference
):
    transformer, predictor = await start_fake_service(stack, pair.new, old_reference)
    row = {**pair.candidates[0], "hsc_s": "Humanities"}
    waiting = asyncio.create_task(ask(transformer, row))
    # Other requests do not wait behind it.
    assert (await ask(transformer, pair.candidates[0]))[0] == "v1"
    assert not waiting.done()
    predictor.swap(new_reference)
    assert await waiting == ("v2", pytest.approx(new_reference.probabilities([row]), abs=1e-12))


async def test_a_request_that_no_version_can_express_in_time_gets_503_with_retry_after(
    stack, pair, old_reference
):
    transformer, _ = await start_fake_service(
        stack, pair.new, old_reference, "--predictor_request_timeout_seconds=1"
    )
    row = {**pair.candidates[0], "hsc_s": "Humanities"}
    response = await transformer.http.post(V1_PREDICT, json={"instances": [row]})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


async def test_an_unknown_model_is_served_as_unverified(stack, version_pair):
    pair = version_pair("retrained")
    unknown = SklearnReference(pair.new)
    transformer, _ = await start_fake_service(stack, pair.old, unknown)
    rows = pair.candidates[:3]
    assert await ask(transformer, *rows) == (
        "unverified",
        pytest.approx(unknown.probabilities(rows), abs=1e-12),
    )


async def test_an_unknown_model_is_refused_with_unknown_model_refuse(stack, version_pair):
    pair = version_pair("retrained")
    transformer, _ = await start_fake_service(
        stack, pair.old, SklearnReference(pair.new), "--unknown_model=refuse", ready=False
    )
    response = await transformer.http.post(V1_PREDICT, json={"instances": pair.candidates[:1]})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


async def test_versions_with_the_same_encoding_are_told_apart_by_their_scores(stack, version_pair):
    pair = version_pair("retrained")
    transformer, predictor = await start_fake_service(stack, pair.new, SklearnReference(pair.old))
    assert (await ask(transformer, pair.candidates[0]))[0] == "v1"
    predictor.swap(SklearnReference(pair.new))
    assert (await ask(transformer, pair.candidates[0]))[0] == "v2"


async def test_a_predictor_that_refuses_all_known_encodings_is_not_used_and_the_log_says_why(
    stack, pair, new_reference, caplog
):
    with caplog.at_level(logging.WARNING, "kserve.transformer"):
        transformer, _ = await start_fake_service(stack, pair.old, new_reference, ready=False)
        for path in READINESS:
            assert (await transformer.http.get(path)).status_code == 503
        assert (await transformer.http.get("/v2/health/live")).status_code == 200
        await wait_until(lambda: "hsc_s=Arts" in caplog.text)
    assert "v1: its model does not know hsc_s=Arts and its model needs hsc_s=Humanities" in caplog.text
    # Once, and not at every attempt.
    assert caplog.text.count("hsc_s=Arts") == 1
    response = await transformer.http.post(V1_PREDICT, json={"instances": pair.candidates[:1]})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


async def answers(transformer: InProcessTransformer, path: str, status: int) -> bool:
    return (await transformer.http.get(path)).status_code == status


async def test_readiness_follows_the_connections(stack, pair, old_reference, monkeypatch):
    monkeypatch.setattr(connection_worker, "HEARTBEAT_S", 0.05)
    transformer, predictor = await start_fake_service(stack, pair.old, old_reference)
    for path in READINESS:
        assert (await transformer.http.get(path)).status_code == 200
    predictor.swap(None)
    for path in READINESS:
        await wait_until(partial(answers, transformer, path, 503))
    predictor.swap(old_reference)
    for path in READINESS:
        await wait_until(partial(answers, transformer, path, 200))


async def test_requests_wait_while_there_is_no_connection_for_a_moment(stack, pair, old_reference):
    transformer, predictor = await start_fake_service(stack, pair.old, old_reference)
    predictor.swap(None)
    waiting = [asyncio.create_task(ask(transformer, row)) for row in pair.candidates[:8]]
    await asyncio.sleep(0.1)
    predictor.swap(old_reference)
    assert {version for version, _ in await asyncio.gather(*waiting)} == {"v1"}


async def test_the_pool_keeps_the_configured_number_of_connections_and_renews_old_ones(
    stack, pair, old_reference
):
    _, predictor = await start_fake_service(
        stack, pair.old, old_reference, "--predictor_connections=3", "--predictor_connection_age=0.1"
    )
    await wait_until(lambda: sample(CONNECTIONS, version="v1", state="usable") == 3)
    await wait_until(lambda: predictor.connections >= 12)


async def test_old_connections_are_used_until_they_close_while_the_successor_is_of_an_unknown_version(
    stack, pair, old_reference, new_reference, monkeypatch
):
    """A terminating pod still serves on its connections, and its Service leads to its successor only."""
    monkeypatch.setattr(connection_worker, "LAST_BACKOFF_S", 0.1)
    old = await stack.enter_async_context(FakeMLServer(old_reference).running())
    new = await stack.enter_async_context(FakeMLServer(new_reference).running())
    service, port = await stack.enter_async_context(balanced_by_connection(Backend(old.address)))
    arguments = ("--predictor_protocol=v2", "--predictor_connection_age=0.1")
    transformer = await stack.enter_async_context(
        in_process_transformer(pair.old, f"127.0.0.1:{port}", *arguments)
    )
    await wait_until(lambda: sample(CONNECTIONS, version="v1", state="usable") == 4)
    service.backends = [Backend(new.address)]
    connections = old.connections
    await wait_until(lambda: new.connections >= 12)
    for row in pair.candidates[:5]:
        assert await ask(transformer, row) == (
            "v1",
            pytest.approx(old_reference.probabilities([row]), abs=1e-12),
        )
    assert old.connections == connections
    # The old pod ends, and no request is needed to notice it.
    old.swap(None)
    await wait_until(partial(answers, transformer, READINESS[0], 503))
    service.backends = [Backend(old.address)]
    old.swap(old_reference)
    await wait_until(lambda: sample(CONNECTIONS, version="v1", state="usable") == 4)
    await ask(transformer, pair.candidates[0])


async def test_metrics_count_connections_verifications_and_requests_by_version(
    stack, pair, old_reference, new_reference
):
    before = {
        "equal": sample("transformer_verifications_total", outcome="equal"),
        "v1": sample("transformer_requests_total", **ANSWERED, version="v1"),
        "v2": sample("transformer_requests_total", **ANSWERED, version="v2"),
    }
    transformer, predictor = await start_fake_service(
        stack, pair.new, old_reference, "--predictor_connections=2"
    )
    await wait_until(lambda: sample(CONNECTIONS, version="v1", state="usable") == 2)
    await ask(transformer, pair.candidates[0])
    predictor.swap(new_reference)
    await ask(transformer, pair.candidates[0])
    await wait_until(lambda: sample(CONNECTIONS, version="v2", state="usable") == 2)
    assert sample(CONNECTIONS, version="v1", state="usable") == 0
    assert sample("transformer_verifications_total", outcome="equal") >= before["equal"] + 4
    text = (await transformer.http.get("/metrics")).text
    assert sample("transformer_requests_total", **ANSWERED, version="v1") == before["v1"] + 1
    assert sample("transformer_requests_total", **ANSWERED, version="v2") == before["v2"] + 1
    assert 'transformer_predictor_connections{state="usable",version="v2"} 2.0' in text


@pytest.mark.parametrize("name", ["category_renamed", "retrained", "field_added"])
async def test_with_verification_by_request_each_answer_names_its_version(name, stack, version_pair):
    pair = version_pair(name)
    references = pair.references
    transformer, predictor = await start_fake_service(stack, pair.new, references["v1"], "--verify=request")
    seen = set()
    for number in range(40):
        # A proxy would send each call to another version over the same connection.
        predictor.served = references["v1" if number % 3 else "v2"]
        row = pair.candidates[number]
        version, probabilities = await ask(transformer, row)
        assert probabilities == pytest.approx(references[version].probabilities([row]), abs=1e-12)
        seen.add(version)
    assert seen == {"v1", "v2"}


@pytest.mark.parametrize("unknown", ["refuse", "ignore"])
def test_an_older_version_expresses_what_its_own_signature_allows(version_pair, unknown):
    pair = version_pair("category_added")
    newest, older = known_versions(load_bundle(pair.new), unknown)
    candidate = pair.candidates[0]
    for stream, expressible in (("Arts", True), ("Vocational", False)):
        rows = Rows([{**candidate, "hsc_s": stream}], "instances")
        assert len(newest.encode(rows)) == 1
        assert (older.try_encode(rows) is not None) == expressible


def test_with_unknown_category_ignore_all_versions_ignore_an_unknown_category(version_pair):
    newest, older = known_versions(load_bundle(version_pair("category_added").new), "ignore")
    candidate = {**version_pair("category_added").candidates[0], "hsc_s": "Music"}
    rows = Rows([candidate], "instances")
    assert len(newest.encode(rows)) == 1
    assert older.try_encode(rows) is not None


async def test_with_verification_by_request_each_version_uses_its_own_defaults(stack, version_pair, tmp_path):
    """The versions have the same encoding and different defaults."""
    pair = version_pair("retrained")
    content = json.loads((pair.new / BUNDLE_FILE).read_text())
    for version, default in ((content, 90.0), (content["previous"][0], 40.0)):
        (field,) = (one for one in version["signature"]["fields"] if one["name"] == "ssc_p")
        field["default"] = default
    (tmp_path / BUNDLE_FILE).write_text(json.dumps(content))
    references = pair.references
    transformer, predictor = await start_fake_service(stack, tmp_path, references["v1"], "--verify=request")
    row = {name: value for name, value in pair.candidates[0].items() if name != "ssc_p"}
    for version, default in (("v1", 40.0), ("v2", 90.0), ("v1", 40.0)):
        predictor.served = references[version]
        assert await ask(transformer, row) == (
            version,
            pytest.approx(references[version].probabilities([{**row, "ssc_p": default}]), abs=1e-12),
        )


async def test_with_verification_by_request_requests_for_a_newer_version_do_not_block_others(
    stack, pair, old_reference, new_reference
):
    transformer, predictor = await start_fake_service(
        stack, pair.new, old_reference, "--verify=request", "--predictor_connections=1"
    )
    row = {**pair.candidates[0], "hsc_s": "Humanities"}
    waiting = [asyncio.create_task(ask(transformer, row)) for _ in range(4)]
    assert (await ask(transformer, pair.candidates[0]))[0] == "v1"
    assert not any(one.done() for one in waiting)
    predictor.served = new_reference
    for one in waiting:
        assert await one == ("v2", pytest.approx(new_reference.probabilities([row]), abs=1e-12))
