"""A caller's credentials are sent with that caller's candidates only."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest

from tests.support.connected_transformer import connected_transformer
from tests.support.endpoints import V1_PREDICT, V2_INFER
from tests.support.faulty_predictor import (
    REFUSED_ORDER,
    FaultyGrpcPredictor,
    FaultyHttpPredictor,
    FaultyPredictor,
    aborts,
    hangs_up,
    has_status,
)
from tests.support.in_process_transformer import InProcessTransformer
from tests.support.request_bodies import grpc_objects, v2_objects
from training.candidates import SAMPLE

#: Callers: two with different credentials, and one without.
CALLERS = ("Bearer one", "Bearer another", None)
#: Requests of each caller over each protocol; the first has many candidates.
EACH = 20
MANY = 50
#: The field whose value identifies the caller.
MARK = "ssc_p"

#: Returns the probabilities of an answer, or None for an error.
Ask = Callable[[InProcessTransformer, list[dict[str, Any]], str | None], Awaitable[list[float] | None]]


async def over_v1(
    transformer: InProcessTransformer, rows: list[dict[str, Any]], credentials: str | None
) -> list[float] | None:
    headers = {"authorization": credentials} if credentials else {}
    response = await transformer.http.post(V1_PREDICT, json={"instances": rows}, headers=headers)
    if response.status_code != 200:
        return None
    return [one["placement_probability"] for one in response.json()["predictions"]]


async def over_v2(
    transformer: InProcessTransformer, rows: list[dict[str, Any]], credentials: str | None
) -> list[float] | None:
    headers = {"authorization": credentials} if credentials else {}
    response = await transformer.http.post(V2_INFER, json=v2_objects(rows), headers=headers)
    return response.json()["outputs"][1]["data"] if response.status_code == 200 else None


async def over_grpc(
    transformer: InProcessTransformer, rows: list[dict[str, Any]], credentials: str | None
) -> list[float] | None:
    metadata = (("authorization", credentials),) if credentials else ()
    try:
        answer = await transformer.grpc.ModelInfer(grpc_objects(rows), metadata=metadata)
    except grpc.aio.AioRpcError:
        return None
    return list(answer.outputs[1].contents.fp64_contents)


HOPS = {
    "v1": FaultyHttpPredictor,
    "v2": FaultyHttpPredictor,
    "v2 by request": FaultyHttpPredictor,
    "grpc-v2": FaultyGrpcPredictor,
}
FAULTS = {
    FaultyHttpPredictor: [
        hangs_up,
        has_status(500, {"error": "KeyError"}),
        has_status(500, {"error": REFUSED_ORDER}),
    ],
    FaultyGrpcPredictor: [
        aborts("UNAVAILABLE", ""),
        aborts("INTERNAL", "KeyError"),
        aborts("INTERNAL", REFUSED_ORDER),
    ],
}


@pytest.fixture
async def predictor(hop, sklearn_reference) -> AsyncIterator[FaultyPredictor]:
    predictor = HOPS[hop](sklearn_reference)
    await predictor.start()
    yield predictor
    await predictor.stop()


@pytest.mark.parametrize("faulty", [False, True], ids=["every call answered", "some calls failing"])
@pytest.mark.parametrize("hop", HOPS)
async def test_a_call_has_the_credentials_of_all_its_candidates(
    hop, faulty, predictor, sklearn_reference, trained_bundle
):
    asked: list[tuple[Ask, str | None, list[dict[str, Any]]]] = []
    owners: dict[float, str | None] = {}
    for caller in CALLERS:
        for ask in (over_v1, over_v2, over_grpc):
            for number in range(EACH):
                rows = []
                for _ in range(MANY if number == 0 else 1):
                    mark = 40 + (2 * len(owners) + 1) / 512
                    owners[mark] = caller
                    rows.append({**SAMPLE, MARK: mark})
                asked.append((ask, caller, rows))
    random.Random(0).shuffle(asked)
    if faulty:
        for fault in FAULTS[type(predictor)] * 2:
            predictor.faults += [None, fault]
    async with connected_transformer(predictor, trained_bundle, hop, "--max_batch_rows=32") as transformer:
        # All requests arrive at once.
        transformer = replace(transformer, http=transformer.without_sockets)
        answers = await asyncio.gather(*(ask(transformer, rows, caller) for ask, caller, rows in asked))
    for (_, _, rows), answer in zip(asked, answers, strict=True):
        assert answer == pytest.approx(sklearn_reference.probabilities(rows), abs=1e-12) or (
            faulty and answer is None
        )
    column = sklearn_reference.bundle.vectorizer.index[MARK]
    seen = set()
    for matrix, headers in predictor.carried:
        # Reference rows in a call belong to no caller.
        marks = {float(row[column]) for row in matrix} & owners.keys()
        assert {owners[mark] for mark in marks} == {headers.get("authorization")}
        seen |= marks
    assert seen == owners.keys()
    assert not faulty or not predictor.faults
    assert len(predictor.carried) < len(asked) / 2, "what waited went together"


@pytest.mark.parametrize("hop", ["v1"])
async def test_credentials_are_sent_once_or_refused(hop, predictor, trained_bundle):
    """Otherwise an ingress might check other credentials than those that reach the predictor."""
    twice = (("authorization", CALLERS[0]), ("authorization", CALLERS[1]))
    async with connected_transformer(predictor, trained_bundle, hop) as transformer:
        for path, body in ((V1_PREDICT, {"instances": [SAMPLE]}), (V2_INFER, v2_objects([SAMPLE]))):
            response = await transformer.http.post(path, json=body, headers=twice)
            assert (response.status_code, response.json()) == (
                400,
                {"error": "authorization: must be sent once, got 2"},
            )
        call = transformer.grpc.ModelInfer(grpc_objects([SAMPLE]), metadata=twice)
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert predictor.carried == []


@pytest.mark.parametrize(
    "credentials", ["Bearer caf\xe9".encode("latin-1"), b"Bearer " + b"x" * 7000], ids=["no ASCII", "long"]
)
@pytest.mark.parametrize("hop", ["v1", "grpc-v2"])
async def test_credentials_that_grpc_cannot_carry_are_refused_and_never_left_out(
    hop, credentials, predictor, trained_bundle
):
    async with connected_transformer(predictor, trained_bundle, hop) as transformer:
        for path, body in ((V1_PREDICT, {"instances": [SAMPLE]}), (V2_INFER, v2_objects([SAMPLE]))):
            response = await transformer.http.post(path, json=body, headers={b"authorization": credentials})
            if hop == "v1":
                assert response.status_code == 200
            else:
                assert response.status_code == 400
                assert response.json()["error"].startswith("authorization: must be printable ASCII")
    assert len(predictor.carried) == (2 if hop == "v1" else 0)
    # aiohttp decodes bytes that are not UTF-8 as surrogates.
    sent = {headers["authorization"].encode("utf-8", "surrogateescape") for _, headers in predictor.carried}
    assert sent <= {credentials}
