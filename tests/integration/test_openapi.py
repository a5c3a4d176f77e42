"""The transformer serves an OpenAPI description of the routes that answer."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import pytest

from tests.support.fake_mlserver import FakeMLServer
from tests.support.in_process_transformer import InProcessTransformer, in_process_transformer
from training.candidates import SAMPLE, SIGNATURE
from transformer.protocols.openapi import describe
from transformer.settings import Settings

describe_50 = partial(
    describe,
    output_name="placement",
    version="v1",
    signature=SIGNATURE,
    max_candidates=50,
    row_name="candidate",
    max_explained_candidates=Settings.max_explained_candidates,
)
DESCRIPTION = describe_50("placement")


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
    described = describe_50("a<version>")
    assert "/v1/models/a<version>:predict" in described["paths"]
    assert described["components"]["schemas"]["ModelReady"]["properties"]["name"] == {"const": "a<version>"}


async def test_routes_that_always_refuse_are_not_described(transformer):
    path = "/v2/repository/models/placement/load"
    assert path not in DESCRIPTION["paths"]
    assert (await transformer.http.post(path, json={"instances": [SAMPLE]})).status_code == 501


def test_explanations_are_only_described_where_they_are_available():
    described = describe_50("placement", explains=False)
    assert DESCRIPTION["paths"].keys() - described["paths"].keys() == {"/v1/models/placement:explain"}
    names = described["components"]["schemas"]["InferRequest"]["properties"]["outputs"]["items"]["properties"]
    assert names == {"name": {"enum": ["placement", "placement_probability"]}}


def test_the_description_says_the_tasks_word_for_a_row():
    text = json.dumps(describe_50("churn", row_name="company"))
    assert "One prediction per company." in text
    assert "Predictions for companies. (V1)" in text
    assert "One explanation per company." in text
    assert "candidate " not in text.lower()


# Generated clients and the page for people


def operations() -> list[dict[str, Any]]:
    return [
        operation
        for path in DESCRIPTION["paths"].values()
        for method, operation in path.items()
        if method in {"get", "post"}
    ]


def test_every_operation_has_a_name_and_a_group_for_generated_clients():
    names = [operation["operationId"] for operation in operations()]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)
    assert {tag for operation in operations() for tag in operation["tags"]} == {"V1", "V2", "metrics"}
    assert DESCRIPTION["info"]["title"] == "placement", "the name of a generated package"


def untitled_objects(part: Any, where: str) -> Iterator[str]:
    """Yield where an object's schema has no name: generated classes would be numbered."""
    if isinstance(part, list):
        for number, item in enumerate(part):
            yield from untitled_objects(item, f"{where}.{number}")
    elif isinstance(part, dict):
        if part.get("type") == "object" and "title" not in part:
            yield where
        for key, item in part.items():
            yield from untitled_objects(item, f"{where}.{key}")


def test_every_object_of_the_description_has_a_name():
    named = DESCRIPTION["components"]["schemas"]
    found = untitled_objects({**DESCRIPTION["paths"], "schemas": named}, "description")
    assert set(found) <= {f"description.schemas.{name}" for name in named}


async def test_the_page_about_the_api_loads_nothing_from_elsewhere(trained_bundle, sklearn_reference):
    async with (
        FakeMLServer(sklearn_reference).running() as predictor,
        in_process_transformer(
            trained_bundle, predictor.address, "--predictor_protocol=v2", "--enable_docs_url=true"
        ) as running,
    ):
        page = (await running.http.get("/docs")).text
        assert "<title>placement" in page
        loaded = re.findall(r"""(?:src|href|url)(?:=|: )["']([^"']+)""", page)
        assert "/openapi.json" in loaded
        assert len(loaded) == 4
        for url in loaded:
            response = await running.http.get(url)
            assert response.status_code == 200, url
            assert response.content


async def test_there_is_no_page_unless_it_is_asked_for(transformer):
    assert (await transformer.http.get("/docs")).status_code == 404
