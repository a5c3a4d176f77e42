"""Fixture: a running `placement up`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.placement_command import PlacementUp


@pytest.fixture(scope="module")
def up(trained_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlacementUp]:
    with PlacementUp(trained_bundle, tmp_path_factory.mktemp("up")) as running:
        running.wait_for("ready")
        yield running
