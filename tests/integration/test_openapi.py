"""The transformer serves an OpenAPI description of the routes that answer."""

import json
from collections.abc import AsyncIterator

import pytest

from tests.support.fake_mlserver import FakeMLServer
from tests.support.in_process_transformer import InProcessTransformer, in_process_transformer
from training.candidates import SAMPLE, SIGNATURE
from transformer.protocols.openapi import describe

DESCRIPTION = describe("placement", "placement", "v1", SIGNATURE, max_candidates=50, row_name="candidate")


@pytest.fixture
async def transformer(trained_bundle, sklearn_reference) -> AsyncIterator[InProcessTransformer]:
    arguments = ("--predictor_protocol=v2", "--max_candidates=50")
    async with (
        FakeMLServer(sklearn_reference).running() as predictor,
        in_process_transformer(trained_bundle, predictor.address, *arguments) as running,
    ):
        yield running


async def test_the_transformer_serves_the_description_of_its_bundle(transformer):
    assert (await transformer.http.get("/openapi.json")).json() == DESCRIPTION


def test_every_placeholder_of_the_template_is_filled_in():
    assert "<" not in json.dumps(DESCRIPTION)
    # Names are not templates themselves.
    described = describe("a<version>", "b", "v1", SIGNATURE, max_candidates=50)
    assert "/v1/models/a<version>:predict" in described["paths"]
    assert described["components"]["schemas"]["ModelReady"]["properties"]["name"] == {"const": "a<version>"}


async def test_routes_that_always_refuse_are_not_described(transformer):
    described = DESCRIPTION["paths"]
    for path in ("/v1/models/placement:explain", "/v2/repository/models/placement/load"):
        assert path not in described
        assert (await transformer.http.post(path, json={"instances": [SAMPLE]})).status_code == 501


def test_the_description_says_the_tasks_word_for_a_row():
    text = json.dumps(describe("churn", "churn", "v1", SIGNATURE, max_candidates=50, row_name="company"))
    assert "One prediction per company." in text
    assert "Predictions for companies. (V1)" in text
