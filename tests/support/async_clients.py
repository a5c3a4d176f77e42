"""Asynchronous clients of each protocol: all answers have one form, all failures a status of REST."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import grpc
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from tests.support.answer_checker import Answer
from tests.support.endpoints import V1_EXPLAIN, V1_PREDICT, V2_INFER
from tests.support.request_bodies import grpc_objects

#: The reason of a refusal that asks the client to try again.
TRY_AGAIN = "503 with Retry-After"
#: The beginning of each reason of a request without a response.
NO_ANSWER = "no answer"
#: REST statuses of gRPC's codes. The second ones are for errors that name the predictor.
STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: "400",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "413",
    grpc.StatusCode.INTERNAL: "500",
}
OF_THE_PREDICTOR = {grpc.StatusCode.DEADLINE_EXCEEDED: "504", grpc.StatusCode.INTERNAL: "502"}


def status_of(reason: str) -> str:
    """Return the status at the beginning of a reason, as faults list it."""
    return reason if reason == TRY_AGAIN else reason.split()[0]


Ask = Callable[[list[dict[str, Any]]], Awaitable[Answer]]


class Refused(Exception):
    """Raised for a request without a prediction. The message begins with the REST status."""


def over_v1(session: aiohttp.ClientSession, url: str) -> Ask:
    """Return a V1 client."""

    async def ask(rows: list[dict[str, Any]]) -> Answer:
        async with session.post(url + V1_PREDICT, json={"instances": rows}) as response:
            predictions = (await checked(response))["predictions"]
            return Answer(
                response.headers.get("x-model-version", "no version"),
                [one["placement_probability"] for one in predictions],
                [one["placement"] for one in predictions],
            )

    return ask


def over_explain(session: aiohttp.ClientSession, url: str) -> Ask:
    """Return a V1 client that asks for explanations.

    Its answer's probability is the sum of the baseline and the contributions. In that sum, the scores of all
    other rows cancel out, if each came from the same model; and the candidate itself was scored once for each
    background row.
    """

    async def ask(rows: list[dict[str, Any]]) -> Answer:
        async with session.post(url + V1_EXPLAIN, json={"instances": rows}) as response:
            explanations = (await checked(response))["explanations"]
            return Answer(
                response.headers.get("x-model-version", "no version"),
                [one["baseline"] + sum(one["contributions"].values()) for one in explanations],
                [one["placement"] for one in explanations],
            )

    return ask


def over_v2(session: aiohttp.ClientSession, url: str) -> Ask:
    """Return a V2 client that sends one tensor for each field."""

    async def ask(rows: list[dict[str, Any]]) -> Answer:
        inputs = [
            {
                "name": name,
                "datatype": "BYTES" if isinstance(value, str) else "FP64",
                "shape": [len(rows)],
                "data": [row.get(name) for row in rows],
            }
            # All fields that any candidate has.
            for name, value in {name: value for row in rows for name, value in row.items()}.items()
        ]
        async with session.post(url + V2_INFER, json={"inputs": inputs}) as response:
            content = await checked(response)
            positive, probabilities = (output["data"] for output in content["outputs"])
            header = response.headers.get("x-model-version")
            return Answer(agreed(content["model_version"], header), probabilities, positive)

    return ask


def agreed(version: str, header: object) -> str:
    """Return the version of an answer; its header (or metadata) must name the same."""
    return version if version == header else f"{version}, but {header} in the header"


async def checked(response: aiohttp.ClientResponse) -> Any:
    """Return the content of a response that is a prediction."""
    if response.status == 503 and "retry-after" in response.headers:
        raise Refused(TRY_AGAIN)
    if response.status != 200:
        raise Refused(f"{response.status} {await response.text()}")
    return await response.json()


def over_grpc(stub: GRPCInferenceServiceStub, give_up_s: float) -> Ask:
    """Return a gRPC client that sends one tensor of JSON objects."""

    async def ask(rows: list[dict[str, Any]]) -> Answer:
        call = stub.ModelInfer(grpc_objects(rows), timeout=give_up_s)
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            raise Refused(reason(error)) from error
        header = dict(await call.trailing_metadata()).get("x-model-version")
        positive, probabilities = (output.contents for output in answer.outputs)
        return Answer(
            agreed(answer.model_version, header),
            list(probabilities.fp64_contents),
            list(positive.bool_contents),
        )

    return ask


def reason(error: grpc.aio.AioRpcError) -> str:
    """Return the reason of a failed call, with the status that REST has for it."""
    code, details = error.code(), error.details() or ""
    if "retry-after" in dict(error.trailing_metadata() or ()):
        return TRY_AGAIN
    # The client's library also raises DEADLINE_EXCEEDED when there is no response.
    told = (
        OF_THE_PREDICTOR
        if details.startswith(("the predictor", "invalid response from the predictor"))
        else {}
    )
    return f"{told.get(code) or STATUSES.get(code, NO_ANSWER)} {code.name} {details}"


@contextlib.asynccontextmanager
async def protocol_clients(
    url: str, grpc_address: str, give_up_s: float, host: str | None = None
) -> AsyncIterator[list[Ask]]:
    """Return a client of each protocol. REST clients open as many connections as they need."""
    options = [("grpc.default_authority", host)] if host else []
    async with (
        rest_session(give_up_s, host) as session,
        grpc.aio.insecure_channel(grpc_address, options) as channel,
    ):
        yield [
            over_v1(session, url),
            over_v2(session, url),
            over_grpc(GRPCInferenceServiceStub(channel), give_up_s),
        ]


def rest_session(give_up_s: float, host: str | None = None) -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=give_up_s)
    headers = {"host": host} if host else {}
    return aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0), headers=headers)
