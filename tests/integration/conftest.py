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


@pytest.fixture(params=["v1", "v2"])
async def transformer(request, trained_bundle, predictor) -> AsyncIterator[ConnectedTransformer]:
    """A transformer in front of the HTTP predictor, over each protocol of the hop."""
    async with connected_transformer(predictor, trained_bundle, request.param) as running:
        yield running


@pytest.fixture
async def grpc_transformer(trained_bundle, grpc_predictor) -> AsyncIterator[ConnectedTransformer]:
    async with connected_transformer(grpc_predictor, trained_bundle, "grpc-v2") as running:
        yield running


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"), "localhost")
