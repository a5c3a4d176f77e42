"""Fixtures: a running `placement up`, and a client for malformed requests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from inferenceservice.local.launch import TransformerProcess
from tests.support.malformed_requests import MalformedRequestClient, connect_client
from tests.support.placement_command import PlacementUp
from training.candidates import SAMPLE


@pytest.fixture(scope="module")
def up(trained_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlacementUp]:
    with PlacementUp(trained_bundle, tmp_path_factory.mktemp("up")) as running:
        running.wait_for("ready")
        yield running


@pytest.fixture(scope="module")
def ask(transformer_process: TransformerProcess) -> Iterator[MalformedRequestClient]:
    """A client of a transformer process that must survive all requests."""
    with connect_client(transformer_process.http_port, transformer_process.grpc_port) as client:
        yield client
        assert client.v1([SAMPLE]).status == "answered"
        assert transformer_process.poll() is None, transformer_process.tail()
