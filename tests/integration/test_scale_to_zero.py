"""A predictor behind a proxy can scale to zero: an idle transformer makes no calls, a request wakes it."""

import asyncio
import contextlib
import json

import pytest
from aiohttp import ClientSession, web

from tests.support.endpoints import SERVER_READY, V1_PREDICT
from tests.support.fake_mlserver import FakeMLServer
from tests.support.in_process_transformer import in_process_transformer
from tests.support.web_server import catch_all, passed_on, running_application
from training.candidates import SAMPLE
from transformer.batching import connection_worker, pool

BY_REQUEST = ("--predictor_protocol=v2", "--verify=request")


class ScalesToZero:
    """A proxy like Knative's: it counts calls and, while there is no pod, holds or refuses them.

    Attributes
    ----------
    calls
        Number of all requests, health checks too.
    has_pod
        Requests are passed on while it is set, and wait for it otherwise.
    refuses
        Answer 503 instead of waiting.
    """

    def __init__(self, predictor: str) -> None:
        self.calls = 0
        self.has_pod = asyncio.Event()
        self.has_pod.set()
        self.refuses = False
        self.address = ""
        self._predictor = predictor

    async def _pass(self, request: web.Request) -> web.Response:
        self.calls += 1
        if not self.has_pod.is_set() and self.refuses:
            return web.json_response({"error": "no pod"}, status=503)
        await self.has_pod.wait()
        async with ClientSession() as session:
            return await passed_on(session, request, f"http://{self._predictor}{request.path_qs}")

    @contextlib.asynccontextmanager
    async def running(self):
        async with running_application(catch_all(self._pass)) as port:
            self.address = f"127.0.0.1:{port}"
            try:
                yield self
            finally:
                self.has_pod.set()


@pytest.fixture
def quick(monkeypatch):
    """Shorten the intervals, so that a second is long."""
    monkeypatch.setattr(connection_worker, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(pool, "IDLE_S", 0.3)
    monkeypatch.setattr(pool, "GRACE_S", 0.1)


@contextlib.asynccontextmanager
async def serving(trained_bundle, sklearn_reference, *arguments):
    async with (
        FakeMLServer(sklearn_reference).running() as predictor,
        ScalesToZero(predictor.address).running() as proxy,
        in_process_transformer(
            trained_bundle, proxy.address, *BY_REQUEST, "--predictor_connection_age=0.2", *arguments
        ) as transformer,
    ):
        yield proxy, transformer


async def quiet(proxy):
    """Wait until no call comes for a while."""
    while True:
        before = proxy.calls
        await asyncio.sleep(0.5)
        if proxy.calls == before:
            return


async def test_an_idle_transformer_makes_no_calls_and_stays_ready(quick, trained_bundle, sklearn_reference):
    async with serving(trained_bundle, sklearn_reference) as (proxy, transformer):
        assert (await transformer.http.post(V1_PREDICT, json={"instances": [SAMPLE]})).status_code == 200
        await quiet(proxy)
        before = proxy.calls
        await asyncio.sleep(1)
        assert proxy.calls == before
        assert (await transformer.http.get(SERVER_READY)).status_code == 200


@pytest.mark.parametrize("refuses", [False, True])
async def test_the_first_request_waits_for_the_predictor(refuses, quick, trained_bundle, sklearn_reference):
    async with serving(trained_bundle, sklearn_reference) as (proxy, transformer):
        await quiet(proxy)
        proxy.refuses = refuses
        proxy.has_pod.clear()
        body = json.dumps({"instances": [SAMPLE]})
        waiting = [asyncio.create_task(transformer.http.post(V1_PREDICT, content=body)) for _ in range(3)]
        await asyncio.sleep(10 * pool.GRACE_S)
        assert not any(one.done() for one in waiting)
        proxy.has_pod.set()
        (expected,) = sklearn_reference.probabilities([SAMPLE])
        for response in await asyncio.gather(*waiting):
            assert response.status_code == 200, response.text
            (prediction,) = response.json()["predictions"]
            assert prediction["placement_probability"] == pytest.approx(expected, abs=1e-12)


async def test_a_request_ends_at_its_deadline_if_the_predictor_does_not_start(
    quick, trained_bundle, sklearn_reference
):
    deadline = "--predictor_request_timeout_seconds=1"
    async with serving(trained_bundle, sklearn_reference, deadline) as (proxy, transformer):
        await quiet(proxy)
        proxy.refuses = True
        proxy.has_pod.clear()
        response = await transformer.http.post(V1_PREDICT, json={"instances": [SAMPLE]})
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
