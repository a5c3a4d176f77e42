"""All promises of `tests/integration/test_protocols.py`, with a real MLServer behind the transformer."""

from dataclasses import dataclass

import pytest_asyncio

from predictor.process import PredictorProcess

# The tests and their fixtures, except for the predictor.
from tests.integration.test_protocols import *  # noqa: F403


@dataclass(frozen=True)
class Predictor:
    """The part of a predictor that the tests use."""

    address: str


@pytest_asyncio.fixture(scope="module", loop_scope="module")  # type: ignore[no-redef]
async def predictor(mlserver: PredictorProcess) -> Predictor:
    return Predictor(f"127.0.0.1:{mlserver.http_port}")
