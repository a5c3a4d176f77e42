"""The imitated API server and controllers behave as the real ones do in every case that rollouts rely on.

tests/cluster/test_real_api_server.py runs the same cases in a cluster.
"""

import asyncio
from collections.abc import Callable

import pytest

from inferenceservice.cluster.api_server import ApiServer
from tests.support.cluster.api_cases import CASES, ApiUnderTest
from tests.support.cluster.fixtures import V1, V2, Start


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_the_imitation(case: Callable[[ApiUnderTest], None], start: Start) -> None:
    await start()
    await asyncio.to_thread(case, ApiUnderTest(ApiServer.connect(), "scoring", V1, V2))
