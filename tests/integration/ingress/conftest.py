"""Fixtures: a running ingress and a client."""

import logging
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.support.running_ingress import INGRESS_TIMEOUT_S, RunningIngress


@pytest.fixture
async def running() -> AsyncIterator[RunningIngress]:
    running = RunningIngress()
    await running.ingress.start(running.port, running.grpc_port)
    try:
        yield running
    finally:
        await running.ingress.close()


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog):
    """Check that the ingress logs no warning and no error, whatever a client or a backend does."""
    caplog.set_level(logging.WARNING)
    yield
    assert [record.getMessage() for record in caplog.records] == []


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=INGRESS_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session:
        yield session
