"""A transformer refuses requests beyond its limits at once, and frees what they took."""

import asyncio
from typing import Any

import grpc
import pytest
from aiohttp import web

from tests.support.connected_transformer import CONNECTIONS_EACH, connected_transformer
from tests.support.endpoints import V1_PREDICT, V2_INFER
from tests.support.faulty_predictor import FaultyHttpPredictor, predictions, v1_rows
from tests.support.in_process_transformer import InProcessTransformer
from tests.support.request_bodies import grpc_objects, v2_objects
from tests.support.waiting import wait_until
from training.candidates import SAMPLE
from transformer.server.byte_budget import BUDGET_IN_MAX_REQUESTS

#: Candidates that fit into the queue, and candidates of a request. Ten times as many are sent at once.
WAITING, SIZE = 100, 10
REQUESTS = 10 * WAITING // SIZE


@pytest.fixture
def gate(predictor: FaultyHttpPredictor) -> asyncio.Event:
    """An event that the predictor waits for before it answers."""
    gate = asyncio.Event()

    async def waits(request: web.Request) -> web.StreamResponse:
        await gate.wait()
        rows = v1_rows(await request.json())
        return web.json_response(predictions("v1", predictor.probabilities(rows)))

    predictor.always = waits
    return gate


async def test_requests_beyond_the_queue_limit_are_refused_before_any_answer(
    predictor, gate, trained_bundle, sklearn_reference
):
    options = (f"--max_waiting_rows={WAITING}", f"--max_batch_rows={WAITING}")
    async with connected_transformer(predictor, trained_bundle, "v1", *options) as transformer:
        body = {"instances": [SAMPLE] * SIZE}
        tasks = [asyncio.create_task(transformer.http.post(V1_PREDICT, json=body)) for _ in range(REQUESTS)]
        # Each connection may have as many candidates in flight as fit into the queue.
        taken = (CONNECTIONS_EACH + 1) * WAITING // SIZE
        await wait_until(lambda: sum(one.done() for one in tasks) >= REQUESTS - taken)
        refused = [one.result() for one in tasks if one.done()]
        assert {one.status_code for one in refused} == {503}
        assert all(one.headers["retry-after"] for one in refused)
        gate.set()
        answers = await asyncio.gather(*tasks)
    assert {one.status_code for one in answers} == {200, 503}
    right = [one.json()["predictions"] for one in answers if one.status_code == 200]
    assert len(right) >= WAITING // SIZE
    probability = sklearn_reference.probabilities([SAMPLE] * SIZE)
    for rows in right:
        assert [row["placement_probability"] for row in rows] == pytest.approx(probability, abs=1e-12)


def long_requests(transformer: InProcessTransformer, size: int) -> list[asyncio.Task[str]]:
    """Send requests for one candidate with a long unknown field, eight over each route, all at once."""
    row = {**SAMPLE, "notes": "x" * size}
    other = {"content-type": "application/json; charset=utf-8"}

    async def rest(path: str, body: dict[str, Any], headers: dict[str, str]) -> str:
        return str((await transformer.http.post(path, json=body, headers=headers)).status_code)

    async def rpc() -> str:
        code = await transformer.grpc.ModelInfer(grpc_objects([row])).code()
        return "200" if code is grpc.StatusCode.OK else "503" if "EXHAUSTED" in code.name else code.name

    over_rest = [
        (path, body, headers)
        for path, body in ((V1_PREDICT, {"instances": [row]}), (V2_INFER, v2_objects([row])))
        for headers in ({}, other)
    ]
    return [asyncio.create_task(one) for _ in range(8) for one in (*(rest(*one) for one in over_rest), rpc())]


async def test_requests_beyond_the_byte_budget_are_refused_and_the_budget_is_freed(
    predictor, gate, trained_bundle
):
    taken = BUDGET_IN_MAX_REQUESTS * 20_000 // 15_000
    async with connected_transformer(
        predictor, trained_bundle, "v1", "--max_request_bytes=20000"
    ) as transformer:
        tasks = long_requests(transformer, 15_000)
        await wait_until(lambda: sum(one.done() for one in tasks) >= len(tasks) - taken)
        assert {one.result() for one in tasks if one.done()} == {"503"}
        gate.set()
        assert set(await asyncio.gather(*tasks)) == {"200", "503"}
        for _ in range(3):
            assert set(await asyncio.gather(*long_requests(transformer, 1000))) == {"200"}
