"""Fixtures: transformers in front of faulty predictors."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.connected_transformer import (
    ConnectedTransformer,
    connected_transformer,
)
from tests.support.faulty_predictor import (
    FaultyGrpcPredictor,
)
from tests.support.raw_http_server import make_certificate


@pytest.fixture
async def grpc_predictor(sklearn_reference) -> AsyncIterator[FaultyGrpcPredictor]:
    predictor = FaultyGrpcPredictor(sklearn_reference)
    await predictor.start()
    yield predictor
    await predictor.stop()


@pytest.fixture
def request_timeout_s() -> float:
    """Request timeout of the transformers; tests that wait for it have a short one in its place."""
    return 30


@pytest.fixture(params=["v1", "v2"])
async def transformer(
    request, trained_bundle, predictor, request_timeout_s
) -> AsyncIterator[ConnectedTransformer]:
    """A transformer in front of the HTTP predictor, over each protocol of the hop."""
    hop = request.param
    async with connected_transformer(
        predictor, trained_bundle, hop, request_timeout_s=request_timeout_s
    ) as running:
        yield running


@pytest.fixture
async def grpc_transformer(
    trained_bundle, grpc_predictor, request_timeout_s
) -> AsyncIterator[ConnectedTransformer]:
    async with connected_transformer(
        grpc_predictor, trained_bundle, "grpc-v2", request_timeout_s=request_timeout_s
    ) as running:
        yield running


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"), "localhost")
