"""Fixtures: transformers in front of faulty predictors, and `placement predict` without a service."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from placement import cli, predict_command
from tests.support.certificate_authority import self_signed
from tests.support.connected_transformer import (
    ConnectedTransformer,
    connected_transformer,
)
from tests.support.faulty_predictor import (
    FaultyGrpcPredictor,
)
from tests.support.validating_client import ValidatingClient
from training.candidates import SIGNATURE


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """A stack of what a test starts; all of it ends with the test."""
    async with AsyncExitStack() as entered:
        yield entered


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
    return self_signed(tmp_path_factory.mktemp("tls"), "localhost")


@pytest.fixture
def predict(monkeypatch, capsys):
    """Run the command; return its exit status, output and errors without the command's name."""

    def run(file, *options, protocol="v1", signature=SIGNATURE):
        client = ValidatingClient(protocol, signature)
        monkeypatch.setattr(predict_command, "connect", lambda *_: client)
        status = cli.main(["predict", str(file), *map(str, options)])
        out, err = capsys.readouterr()
        return SimpleNamespace(
            status=status, out=out, err=err.removeprefix("placement predict: ").strip(), asked=client.asked
        )

    return run


@pytest.fixture
def write(tmp_path):
    """Write a file, and return its path."""

    def write(content, name="a.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write
