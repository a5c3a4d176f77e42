"""A transformer with few descriptors: clients that keep connections open take none from the predictor."""

import contextlib
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from inferenceservice.local.launch import TransformerProcess
from tests.support.async_processes import RENEW_SOON, running_transformer
from tests.support.endpoints import SERVER_LIVE, V1_PREDICT
from tests.support.fake_mlserver import FakeMLServer
from tests.support.http2_client import http2_connection
from tests.support.prometheus_samples import read_samples, sum_of
from tests.support.raw_http import post_request, raw_connection
from tests.support.sklearn_reference import SklearnReference
from tests.support.waiting import wait_until
from training.candidates import SAMPLE

OPEN_FILES = 64
CLIENTS = 100
HEALTH = f"GET {SERVER_LIVE} HTTP/1.1\r\nhost: a\r\n\r\n".encode()


@dataclass
class Served:
    """A transformer process with few descriptors, and its predictor."""

    process: TransformerProcess
    predictor: FakeMLServer
    probability: float

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.process.http_port}"

    async def predict(self) -> httpx.Response:
        """Send an honest request over a new connection."""
        async with httpx.AsyncClient(base_url=self.url, timeout=20) as http:
            return await http.post(V1_PREDICT, json={"instances": [SAMPLE]})

    async def until_renewed(self, times: int = 12) -> None:
        """Wait until connections to the predictor have been renewed."""
        before = self.predictor.connections
        await wait_until(lambda: self.predictor.connections >= before + times)

    async def check_answers(self) -> None:
        """Check that honest requests are answered."""
        for _ in range(20):
            response = await self.predict()
            assert response.status_code == 200, response.text
            ((scored),) = response.json()["predictions"]
            assert scored["placement_probability"] == pytest.approx(self.probability, abs=1e-12)


@contextlib.asynccontextmanager
async def few_descriptors(
    bundle: Path, directory: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> AsyncIterator[Served]:
    """Run a transformer whose limit on open files is low."""
    limited = directory / "limited-python"
    limited.write_text(f'#!/bin/sh\nulimit -n {OPEN_FILES}\nexec "{sys.executable}" "$@"\n')
    limited.chmod(0o755)
    log = directory / "transformer.log"
    reference = SklearnReference(bundle)
    (probability,) = reference.probabilities([SAMPLE])
    async with FakeMLServer(reference).running() as predictor:
        port = int(predictor.address.rpartition(":")[2])
        with monkeypatch.context() as patched:
            patched.setattr(sys, "executable", str(limited))
            running = running_transformer(
                bundle, port, log, "--predictor_protocol=v2", RENEW_SOON, *arguments
            )
            async with running as process:
                yield Served(process, predictor, probability)
    assert "Too many open files" not in log.read_text()


async def hold(stack: AsyncExitStack, port: int, sent: bytes, answer: bytes) -> None:
    """Open more connections than the transformer has descriptors; each ends in the middle of something."""
    for _ in range(CLIENTS):
        client = await stack.enter_async_context(raw_connection(port))
        with contextlib.suppress(ConnectionError):
            client.send(sent)
            if answer:
                await client.reader.readuntil(answer)


@pytest.mark.parametrize("workers", [1, 2])
async def test_idle_clients_give_way_to_honest_ones_and_to_the_predictor(
    workers, trained_bundle, tmp_path, monkeypatch
):
    async with (
        few_descriptors(trained_bundle, tmp_path, monkeypatch, f"--workers={workers}") as served,
        AsyncExitStack() as stack,
    ):
        await hold(stack, served.process.http_port, HEALTH, b"}")
        await served.check_answers()
        await served.until_renewed()
        await served.check_answers()
        samples = await read_samples(served.url)
        closed = sum_of(samples, "transformer_clients_turned_away_total", connection="idle")
        assert closed > CLIENTS - OPEN_FILES * workers
        assert sum_of(samples, "transformer_clients_turned_away_total", connection="refused") == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_busy_clients_take_no_descriptors_from_the_predictor(
    workers, trained_bundle, tmp_path, monkeypatch
):
    """Others get 503, or no response, until the first of the busy ones end."""
    half = post_request(b"{}")[:-1]
    async with few_descriptors(trained_bundle, tmp_path, monkeypatch, f"--workers={workers}") as served:
        async with AsyncExitStack() as stack:
            await hold(stack, served.process.http_port, half, b"")
            await served.until_renewed()
            with contextlib.suppress(httpx.TransportError):
                response = await served.predict()
                if response.status_code == 503:
                    assert response.json()["error"].startswith("too many connections: limit ")
                else:
                    # The kernel chooses the worker, and it may have chosen the other one more often before.
                    assert (workers, response.status_code) == (2, 200)
            await served.until_renewed()

        async def is_answered() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return (await served.predict()).status_code == 200
            return False

        await wait_until(is_answered)
        await served.check_answers()


async def test_grpc_clients_take_no_descriptors_from_rest_and_the_predictor(
    trained_bundle, tmp_path, monkeypatch
):
    async with few_descriptors(trained_bundle, tmp_path, monkeypatch) as served, AsyncExitStack() as stack:
        port = served.process.grpc_port
        connections = [await stack.enter_async_context(http2_connection(port)) for _ in range(CLIENTS)]
        await wait_until(lambda: sum(one.closed.is_set() for one in connections) > CLIENTS - OPEN_FILES // 4)
        await served.check_answers()
        await served.until_renewed()
        await served.check_answers()
