"""Outcomes of the same request over V1, V2 and gRPC, and the statuses that faults must give."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import httpx

from tests.support.connected_transformer import (
    CONNECTIONS_EACH,
    ConnectedTransformer,
    usable_connections,
)
from tests.support.endpoints import V1_PREDICT, V2_INFER
from tests.support.faulty_predictor import Fault, FaultyHttpPredictor, FaultyPredictor
from tests.support.in_process_transformer import InProcessTransformer
from tests.support.request_bodies import grpc_objects, v2_objects
from tests.support.waiting import wait_until
from training.candidates import SAMPLE

#: Outcome of a request: status, probabilities or error, and True if it has Retry-After.
Outcome = tuple[str, Any, bool]

#: Seconds in which a fault must be forgotten, also on a busy machine.
RECOVERY_S = 10.0


async def v1_outcome(service: InProcessTransformer, candidate: dict[str, Any]) -> Outcome:
    response = await service.http.post(V1_PREDICT, json={"instances": [candidate] * 2})
    return rest_outcome(
        response, lambda content: [p["placement_probability"] for p in content["predictions"]]
    )


async def v2_outcome(service: InProcessTransformer, candidate: dict[str, Any]) -> Outcome:
    response = await service.http.post(V2_INFER, json=v2_objects([candidate, candidate]))
    return rest_outcome(response, lambda content: content["outputs"][1]["data"])


def rest_outcome(response: httpx.Response, probabilities: Callable[[Any], list[float]]) -> Outcome:
    content = response.json()
    message = probabilities(content) if response.status_code == 200 else content["error"]
    return str(response.status_code), message, response.headers.get("retry-after") == "1"


async def grpc_outcome(service: InProcessTransformer, candidate: dict[str, Any]) -> Outcome:
    call = service.grpc.ModelInfer(grpc_objects([candidate, candidate]))
    code, details = await call.code(), await call.details()
    if code is grpc.StatusCode.OK:
        details = list((await call).outputs[1].contents.fp64_contents)
    return code.name, details, ("retry-after", "1") in tuple(await call.trailing_metadata() or ())


async def outcomes(service: InProcessTransformer, *, together: bool = True) -> list[Outcome]:
    """Send the same request over V1, V2 and gRPC, at once or one by one."""
    pending = [ask(service, SAMPLE) for ask in (v1_outcome, v2_outcome, grpc_outcome)]
    if together:
        return await asyncio.gather(*pending)
    return [await one for one in pending]


#: Statuses over V1, V2 and gRPC, each with True if it has Retry-After.
UNAVAILABLE = [("503", True), ("503", True), ("UNAVAILABLE", True)]
INVALID_RESPONSE = [("502", False), ("502", False), ("INTERNAL", False)]
TOO_SLOW = [("504", False), ("504", False), ("DEADLINE_EXCEEDED", False)]
SUCCESS = [("200", False), ("200", False), ("OK", False)]
#: The same with the number of calls to the predictor (None: they are repeated until the deadline) and the
#: request timeout for a test: short only where the request ends with it.
DROPPED = (UNAVAILABLE, 2, 30)
REFUSED = (UNAVAILABLE, None, 1)
WRONG = (INVALID_RESPONSE, 1, 30)
SLOW = (TOO_SLOW, 1, 1)


async def check_statuses(
    service: InProcessTransformer, expected: list[tuple[str, bool]], *, together: bool = True
) -> None:
    ended = await outcomes(service, together=together)
    assert [(status, again) for status, _, again in ended] == expected
    for _, message, _ in ended:
        if expected is SUCCESS:
            assert isinstance(service, ConnectedTransformer)
            assert message == service.answer[1]
        else:
            assert "predictor" in message
    # Without a predictor, one request may get the reason of its failed call and another that of its wait.
    if expected is not UNAVAILABLE:
        assert len({str(message) for _, message, _ in ended}) == 1, "each protocol tells the same"


async def check_fault(
    transformer: ConnectedTransformer,
    predictor: FaultyPredictor,
    fault: Fault,
    statuses: list[tuple[str, bool]],
    calls_each: int | None,
    *,
    together: bool = True,
) -> None:
    """Check the statuses of three requests while all calls have a fault, their calls, and the recovery.

    Requests that are sent together may share calls first, and are then sent alone.
    """
    predictor.always = fault
    await check_statuses(transformer, statuses, together=together)
    calls = len(predictor.carried)
    assert calls_each <= calls <= 3 * calls_each + 1 if calls_each else calls > 3
    await check_recovery(transformer, predictor)


async def check_recovery(transformer: ConnectedTransformer, predictor: FaultyPredictor) -> None:
    """Check that requests are answered, all connections are usable, and no task is left."""
    predictor.always = None
    await check_statuses(transformer, SUCCESS)
    await wait_until(lambda: usable_connections() == CONNECTIONS_EACH, timeout_s=RECOVERY_S)
    await wait_until(lambda: len(asyncio.all_tasks()) <= transformer.tasks, timeout_s=RECOVERY_S)
    if isinstance(predictor, FaultyHttpPredictor):
        await wait_until(lambda: predictor.connections == CONNECTIONS_EACH, timeout_s=RECOVERY_S)
