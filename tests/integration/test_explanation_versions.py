"""Every version explains itself: one model scores all rows of an explanation, whatever happens meanwhile."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.support.canaries import ARGUMENTS, KINDS, canary
from tests.support.endpoints import V1_EXPLAIN
from tests.support.expected_explanation import ExpectedExplanation
from tests.support.fake_mlserver import FakeMLServer
from tests.support.in_process_transformer import InProcessTransformer, in_process_transformer
from tests.support.sklearn_reference import SklearnReference
from tests.support.version_pairs import VersionPair
from tests.support.waiting import wait_until
from transformer.bundle.format import UNVERIFIED

#: Rows of an explanation, and of one of its calls.
MAX_ROWS, CALL_ROWS = 1_000, 64
OPTIONS = (f"--max_explanation_rows={MAX_ROWS}", f"--max_batch_rows={CALL_ROWS}")
#: Seconds of a connection to one of two versions: longer than a few explanations take.
AGE = "--predictor_connection_age=1"


@pytest.fixture(params=["category_renamed", "retrained"])
def pair(request, version_pair) -> VersionPair:
    return version_pair(request.param)


@pytest.fixture
def references(pair) -> dict[str, SklearnReference]:
    return pair.references


@pytest.fixture
def expected(references) -> dict[str, ExpectedExplanation]:
    return {name: ExpectedExplanation(one, MAX_ROWS) for name, one in references.items()}


def explain(transformer: InProcessTransformer, candidate: dict) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(transformer.http.post(V1_EXPLAIN, json={"instances": [candidate]}))


def check(response: httpx.Response, candidate: dict, expected: dict[str, ExpectedExplanation]) -> str:
    """Check that an explanation is that of the version that it names, and return the version."""
    assert response.status_code == 200, response.text
    version = response.headers["x-model-version"]
    (one,) = response.json()["explanations"]
    assert max(expected[version].differences(candidate, one)) < 1e-9
    return version


@pytest.mark.parametrize("kind", KINDS)
async def test_during_a_canary_each_explanation_is_one_versions(kind, pair, references, expected):
    first = pair.candidates[0]
    async with canary(kind, pair.new, references, first, *OPTIONS, AGE) as transformer:
        await until_both_explain(transformer, pair.candidates[:4], expected)


@pytest.mark.parametrize("kind", KINDS)
async def test_an_unknown_model_explains_itself_with_the_background_of_its_encoding(kind, version_pair):
    pair = version_pair("retrained")
    # The old bundle does not know the new model, which has the same encoding.
    old, new = pair.references.values()
    models = {"v1": old, UNVERIFIED: new}
    expected = {
        name: ExpectedExplanation(model, MAX_ROWS, bundle=old.bundle) for name, model in models.items()
    }
    first = pair.candidates[0]
    async with canary(kind, pair.old, models, first, *OPTIONS, AGE) as transformer:
        await until_both_explain(transformer, pair.candidates[:4], expected)


async def until_both_explain(
    transformer: InProcessTransformer, candidates: list[dict], expected: dict[str, ExpectedExplanation]
) -> None:
    """Ask for explanations, and check them, until each of two models has given some."""
    answered = Counter[str]()
    async with asyncio.timeout(60):
        while len(answered) < 2:
            responses = await asyncio.gather(*(explain(transformer, one) for one in candidates))
            for response, candidate in zip(responses, candidates, strict=True):
                answered[check(response, candidate, expected)] += 1


@pytest.fixture
async def predictor(references) -> AsyncIterator[FakeMLServer]:
    async with FakeMLServer(references["v1"]).running() as predictor:
        yield predictor


async def explaining_for_5_calls(
    transformer: InProcessTransformer, predictor: FakeMLServer, candidate: dict
) -> asyncio.Task[httpx.Response]:
    """Return a request for an explanation when about a third of its rows are scored."""
    before = predictor.calls
    explaining = explain(transformer, candidate)
    await wait_until(lambda: predictor.calls > before + 5, poll_s=0.001)
    return explaining


@pytest.mark.parametrize("verify", ["connection", "request"])
async def test_an_explanation_starts_again_when_its_version_is_replaced(
    verify, pair, references, expected, predictor
):
    (candidate,) = pair.candidates[:1]
    options = (*ARGUMENTS, *OPTIONS, f"--verify={verify}")
    async with in_process_transformer(pair.new, predictor.address, *options) as transformer:
        explaining = await explaining_for_5_calls(transformer, predictor, candidate)
        predictor.swap(references["v2"])
        assert check(await explaining, candidate, expected) == "v2"


async def test_a_dropped_connection_does_not_change_an_explanation(pair, references, expected, predictor):
    (candidate,) = pair.candidates[:1]
    async with in_process_transformer(pair.new, predictor.address, *ARGUMENTS, *OPTIONS) as transformer:
        for _ in range(3):
            explaining = await explaining_for_5_calls(transformer, predictor, candidate)
            predictor.swap(references["v1"])
            assert check(await explaining, candidate, expected) == "v1"
