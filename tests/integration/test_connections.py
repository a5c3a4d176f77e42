"""What is behind a connection is found out before it carries a request, and whenever it may have changed."""

import asyncio
import functools
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from tests.support.fake_mlserver import StockServer
from tests.support.in_process_transformer import Serving, serving
from tests.support.sklearn_reference import Truth
from tests.support.version_pairs import Pair, make_pair
from transformer.batching import connection_worker
from transformer.bundle.candidates import Rows
from transformer.bundle.format import BUNDLE_FILE, load_bundle
from transformer.upstream.known_versions import known_versions

CONNECTIONS = "transformer_predictor_connections"
V1 = "/v1/models/placement:predict"
READY = ("/v2/health/ready", "/v2/models/placement/ready", "/v1/models/placement")


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    storage = tmp_path_factory.mktemp("pairs")
    return functools.cache(lambda name: make_pair(name, storage))


@pytest.fixture
def renamed(pair_of) -> Pair:
    return pair_of("category_renamed")


@pytest.fixture
def old(renamed) -> Truth:
    return Truth(renamed.old)


@pytest.fixture
def new(renamed) -> Truth:
    return Truth(renamed.new)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as entered:
        yield entered


async def start(
    stack: AsyncExitStack, bundle: Path, behind: Truth | None, *arguments: str, ready: bool = True
) -> tuple[Serving, StockServer]:
    stock = await stack.enter_async_context(StockServer(behind).running())
    front = await stack.enter_async_context(
        serving(bundle, stock.address, "--predictor_protocol=v2", *arguments, ready=ready)
    )
    return front, stock


async def ask(front: Serving, *rows: dict[str, Any]) -> tuple[str, list[float]]:
    response = await front.http.post(V1, json={"instances": list(rows)})
    assert response.status_code == 200, response.text
    return (
        response.headers["x-model-version"],
        [one["placement_probability"] for one in response.json()["predictions"]],
    )


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def eventually(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("behind", ["old", "new"])
async def test_requests_are_encoded_for_the_version_behind_the_connection(behind, stack, renamed, request):
    truth = request.getfixturevalue(behind)
    front, _ = await start(stack, renamed.new, truth)
    rows = renamed.candidates[:5]
    assert await ask(front, *rows) == (
        truth.bundle.version,
        pytest.approx(truth.probabilities(rows), abs=1e-12),
    )


async def test_a_swap_in_the_middle_of_requests_gives_no_answer_through_the_other_encoding(
    stack, renamed, old, new
):
    front, stock = await start(stack, renamed.new, old)
    truths = {"v1": old, "v2": new}
    seen = set()
    for swap in (new, old, new):
        for number in range(20):
            row = renamed.candidates[number]
            version, probabilities = await ask(front, row)
            assert probabilities == pytest.approx(truths[version].probabilities([row]), abs=1e-12)
            seen.add(version)
        stock.swap(swap)
    assert seen == {"v1", "v2"}


async def test_a_candidate_that_an_older_version_cannot_express_waits_for_a_newer_predictor(
    stack, renamed, old, new
):
    front, stock = await start(stack, renamed.new, old)
    row = {**renamed.candidates[0], "hsc_s": "Humanities"}
    waiting = asyncio.create_task(ask(front, row))
    # Others do not wait behind it.
    assert (await ask(front, renamed.candidates[0]))[0] == "v1"
    assert not waiting.done()
    stock.swap(new)
    assert await waiting == ("v2", pytest.approx(new.probabilities([row]), abs=1e-12))


async def test_one_that_waits_in_vain_is_told_to_try_again(stack, renamed, old):
    front, _ = await start(stack, renamed.new, old, "--predictor_request_timeout_seconds=1")
    row = {**renamed.candidates[0], "hsc_s": "Humanities"}
    response = await front.http.post(V1, json={"instances": [row]})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


async def test_a_model_that_nobody_knows_is_served_as_unverified(stack, pair_of):
    pair = pair_of("retrained")
    stranger = Truth(pair.new)
    front, _ = await start(stack, pair.old, stranger)
    rows = pair.candidates[:3]
    assert await ask(front, *rows) == (
        "unverified",
        pytest.approx(stranger.probabilities(rows), abs=1e-12),
    )


async def test_a_model_that_nobody_knows_is_refused_where_that_is_asked_for(stack, pair_of):
    pair = pair_of("retrained")
    front, _ = await start(stack, pair.old, Truth(pair.new), "--unknown_model=refuse", ready=False)
    response = await front.http.post(V1, json={"instances": pair.candidates[:1]})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


async def test_versions_of_the_same_encoding_are_told_apart(stack, pair_of):
    pair = pair_of("retrained")
    front, stock = await start(stack, pair.new, Truth(pair.old))
    assert (await ask(front, pair.candidates[0]))[0] == "v1"
    stock.swap(Truth(pair.new))
    assert (await ask(front, pair.candidates[0]))[0] == "v2"


async def test_a_predictor_that_takes_no_known_encoding_is_not_used_and_the_log_names_the_difference(
    stack, renamed, new, caplog
):
    with caplog.at_level(logging.WARNING, "kserve.transformer"):
        front, _ = await start(stack, renamed.old, new, ready=False)
        for path in READY:
            assert (await front.http.get(path)).status_code == 503
        assert (await front.http.get("/v2/health/live")).status_code == 200
        await eventually(lambda: "hsc_s=Arts" in caplog.text)
    assert "v1: its model does not know hsc_s=Arts and its model needs hsc_s=Humanities" in caplog.text
    # Once, not at every try.
    assert caplog.text.count("hsc_s=Arts") == 1
    response = await front.http.post(V1, json={"instances": renamed.candidates[:1]})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


async def test_readiness_follows_the_connections(stack, renamed, old, monkeypatch):
    monkeypatch.setattr(connection_worker, "HEARTBEAT_S", 0.05)
    front, stock = await start(stack, renamed.old, old)
    for path in READY:
        assert (await front.http.get(path)).status_code == 200
    stock.swap(None)
    for path in READY:
        async with asyncio.timeout(10):
            while (await front.http.get(path)).status_code != 503:
                await asyncio.sleep(0.01)
    stock.swap(old)
    for path in READY:
        async with asyncio.timeout(10):
            while (await front.http.get(path)).status_code != 200:
                await asyncio.sleep(0.01)


async def test_requests_outlast_the_moment_without_a_connection(stack, renamed, old):
    front, stock = await start(stack, renamed.old, old)
    stock.swap(None)
    asking = [asyncio.create_task(ask(front, row)) for row in renamed.candidates[:8]]
    await asyncio.sleep(0.1)
    stock.swap(old)
    assert {version for version, _ in await asyncio.gather(*asking)} == {"v1"}


async def test_connections_are_as_many_as_asked_for_and_renewed_when_they_are_old(stack, renamed, old):
    _, stock = await start(
        stack, renamed.old, old, "--predictor_connections=3", "--predictor_connection_age=0.1"
    )
    await eventually(lambda: sample(CONNECTIONS, version="v1", state="usable") == 3)
    await eventually(lambda: stock.connections >= 12)


async def test_prometheus_is_told_what_is_behind_and_who_answered(stack, renamed, old, new):
    before = {
        "equal": sample("transformer_verifications_total", outcome="equal"),
        "v1": sample("transformer_requests_total", version="v1"),
        "v2": sample("transformer_requests_total", version="v2"),
    }
    front, stock = await start(stack, renamed.new, old, "--predictor_connections=2")
    await eventually(lambda: sample(CONNECTIONS, version="v1", state="usable") == 2)
    await ask(front, renamed.candidates[0])
    stock.swap(new)
    await ask(front, renamed.candidates[0])
    await eventually(lambda: sample(CONNECTIONS, version="v2", state="usable") == 2)
    assert sample(CONNECTIONS, version="v1", state="usable") == 0
    assert sample("transformer_verifications_total", outcome="equal") >= before["equal"] + 4
    assert sample("transformer_requests_total", version="v1") == before["v1"] + 1
    assert sample("transformer_requests_total", version="v2") == before["v2"] + 1
    text = (await front.http.get("/metrics")).text
    assert 'transformer_predictor_connections{state="usable",version="v2"} 2.0' in text


@pytest.mark.parametrize("name", ["category_renamed", "retrained", "field_added"])
async def test_verified_by_request_each_answer_tells_the_model_that_gave_it(name, stack, pair_of):
    pair = pair_of(name)
    truths = pair.truths
    front, stock = await start(stack, pair.new, truths["v1"], "--verify=request")
    seen = set()
    for number in range(40):
        # As behind a proxy: without a new connection, each call may meet another version.
        stock.serving = truths["v1" if number % 3 else "v2"]
        row = pair.candidates[number]
        version, probabilities = await ask(front, row)
        assert probabilities == pytest.approx(truths[version].probabilities([row]), abs=1e-12)
        seen.add(version)
    assert seen == {"v1", "v2"}


@pytest.mark.parametrize("unknown", ["refuse", "ignore"])
def test_an_older_version_expresses_what_its_own_signature_allows(pair_of, unknown):
    pair = pair_of("category_added")
    newest, older = known_versions(load_bundle(pair.new), unknown)
    candidate = pair.candidates[0]
    for stream, expressible in (("Arts", True), ("Vocational", False)):
        rows = Rows([{**candidate, "hsc_s": stream}], "instances")
        assert len(newest.encode(rows)) == 1
        assert (older.try_encode(rows) is not None) == expressible


def test_what_no_version_knows_is_ignored_by_all_where_that_is_asked_for(pair_of):
    newest, older = known_versions(load_bundle(pair_of("category_added").new), "ignore")
    candidate = {**pair_of("category_added").candidates[0], "hsc_s": "Music"}
    rows = Rows([candidate], "instances")
    assert len(newest.encode(rows)) == 1
    assert older.try_encode(rows) is not None


async def test_verified_by_request_versions_of_the_same_names_keep_their_defaults(stack, pair_of, tmp_path):
    """The encoding is the same, what a missing value means is not."""
    pair = pair_of("retrained")
    content = json.loads((pair.new / BUNDLE_FILE).read_text())
    for version, default in ((content, 90.0), (content["previous"][0], 40.0)):
        (field,) = (one for one in version["signature"]["fields"] if one["name"] == "ssc_p")
        field["default"] = default
    (tmp_path / BUNDLE_FILE).write_text(json.dumps(content))
    truths = pair.truths
    front, stock = await start(stack, tmp_path, truths["v1"], "--verify=request")
    row = {name: value for name, value in pair.candidates[0].items() if name != "ssc_p"}
    for version, default in (("v1", 40.0), ("v2", 90.0), ("v1", 40.0)):
        stock.serving = truths[version]
        assert await ask(front, row) == (
            version,
            pytest.approx(truths[version].probabilities([{**row, "ssc_p": default}]), abs=1e-12),
        )


async def test_verified_by_request_what_waits_for_a_newer_one_lets_others_pass(stack, renamed, old, new):
    front, stock = await start(stack, renamed.new, old, "--verify=request", "--predictor_connections=1")
    row = {**renamed.candidates[0], "hsc_s": "Humanities"}
    waiting = [asyncio.create_task(ask(front, row)) for _ in range(4)]
    assert (await ask(front, renamed.candidates[0]))[0] == "v1"
    assert not any(one.done() for one in waiting)
    stock.serving = new
    for one in waiting:
        assert await one == ("v2", pytest.approx(new.probabilities([row]), abs=1e-12))
