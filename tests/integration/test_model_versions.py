"""A caller can ask for one version: versions behind verified connections exist, and only they may answer."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from functools import partial

import grpc
import httpx
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from inferenceservice.local.forwarder import Backend
from tests.support import canaries
from tests.support.canaries import ARGUMENTS, KINDS
from tests.support.endpoints import V1_PREDICT
from tests.support.fake_mlserver import FakeMLServer
from tests.support.in_process_transformer import InProcessTransformer, in_process_transformer
from tests.support.load_balancers import balanced_by_connection
from tests.support.sklearn_reference import SklearnReference
from tests.support.version_pairs import VersionPair
from tests.support.waiting import wait_until

MODEL = "/v2/models/placement"


@pytest.fixture
def pair(version_pair) -> VersionPair:
    return version_pair("category_renamed")


@pytest.fixture
def references(pair) -> dict[str, SklearnReference]:
    return {"v1": SklearnReference(pair.old), "v2": SklearnReference(pair.new)}


async def predictor_of(
    stack: AsyncExitStack, served: SklearnReference | Callable[[], SklearnReference]
) -> FakeMLServer:
    return await stack.enter_async_context(FakeMLServer(served).running())


async def in_front_of(
    stack: AsyncExitStack, pair: VersionPair, address: str, *arguments: str
) -> InProcessTransformer:
    return await stack.enter_async_context(in_process_transformer(pair.new, address, *ARGUMENTS, *arguments))


@pytest.fixture(params=KINDS)
async def canary(request, pair, references) -> AsyncIterator[InProcessTransformer]:
    """A transformer whose predictor is v1 for half of the traffic and v2 for the other half."""
    async with canaries.canary(request.param, pair.new, references, pair.candidates[0]) as transformer:
        yield transformer


async def versions(transformer: InProcessTransformer) -> list[str]:
    response = await transformer.http.get(MODEL)
    assert response.status_code == 200
    found: list[str] = response.json()["versions"]
    return found


def body(pair: VersionPair, number: int) -> dict[str, object]:
    candidate = pair.candidates[number]
    fields = SklearnReference(pair.new).bundle.signature.fields
    return {
        "inputs": [
            {"name": one.name, "datatype": one.datatype, "shape": [1], "data": [candidate[one.name]]}
            for one in fields
        ]
    }


def message(pair: VersionPair, number: int, version: str) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="placement", model_version=version)
    for name, value in pair.candidates[number].items():
        tensor = request.inputs.add(
            name=name, shape=[1], datatype="BYTES" if isinstance(value, str) else "FP64"
        )
        if isinstance(value, str):
            tensor.contents.bytes_contents.append(value.encode())
        else:
            tensor.contents.fp64_contents.append(value)
    return request


async def test_during_a_canary_a_request_for_one_version_is_answered_by_that_version_only(
    canary, pair, references
):
    for number in range(12):
        version = ("v1", "v2")[number % 2]
        expected = references[version].probabilities([pair.candidates[number]])
        # A connection to a version may be missing for a moment; the request then waits for one, or the
        # version does not exist for that moment.
        path = f"{MODEL}/versions/{version}/infer"
        response = await until_it_exists(partial(canary.http.post, path, json=body(pair, number)))
        assert response.status_code == 200, response.text
        assert response.headers["x-model-version"] == response.json()["model_version"] == version
        assert response.json()["outputs"][1]["data"] == pytest.approx(expected, abs=1e-12)


async def test_during_a_canary_a_grpc_request_for_one_version_is_answered_by_that_version_only(
    canary, pair, references
):
    for number in range(12):
        version = ("v1", "v2")[number % 2]
        expected = references[version].probabilities([pair.candidates[number]])
        answer = await until_it_is_found(canary, message(pair, number, version))
        assert answer.model_version == version
        assert list(answer.outputs[1].contents.fp64_contents) == pytest.approx(expected, abs=1e-12)


async def until_it_is_found(
    canary: InProcessTransformer, request: pb.ModelInferRequest
) -> pb.ModelInferResponse:
    """Ask again while no verified connection leads to the version for a moment."""
    async with asyncio.timeout(10):
        while True:
            call = canary.grpc.ModelInfer(request)
            if await call.code() is not grpc.StatusCode.NOT_FOUND:
                return await call


async def until_it_exists(ask: Callable[[], object]) -> httpx.Response:
    found: list[httpx.Response] = []

    async def exists() -> bool:
        found.append(await ask())  # type: ignore[misc]
        return found[-1].status_code != 404

    await wait_until(exists)
    return found[-1]


async def test_only_versions_behind_verified_connections_exist(stack, pair, references):
    predictor = await predictor_of(stack, references["v1"])
    transformer = await in_front_of(stack, pair, predictor.address)
    assert await versions(transformer) == ["v1"]
    assert (await transformer.grpc.ModelMetadata(pb.ModelMetadataRequest(name="placement"))).versions == [
        "v1"
    ]
    ready = await transformer.http.get(f"{MODEL}/versions/v1/ready")
    assert (ready.status_code, ready.json()) == (200, {"name": "placement", "ready": True})
    assert (
        await transformer.grpc.ModelReady(pb.ModelReadyRequest(name="placement", version="v1"))
    ).ready is True
    for version in ("v2", "v9", "unverified"):
        error = {"error": f"model placement has no version '{version}'; versions now: v1"}
        for response in (
            await transformer.http.get(f"{MODEL}/versions/{version}"),
            await transformer.http.get(f"{MODEL}/versions/{version}/ready"),
            await transformer.http.post(f"{MODEL}/versions/{version}/infer", json=body(pair, 0)),
        ):
            assert (response.status_code, response.json()) == (404, error)
        for call in (
            transformer.grpc.ModelReady(pb.ModelReadyRequest(name="placement", version=version)),
            transformer.grpc.ModelMetadata(pb.ModelMetadataRequest(name="placement", version=version)),
            transformer.grpc.ModelInfer(message(pair, 0, version)),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call
            assert raised.value.code() is grpc.StatusCode.NOT_FOUND
            assert raised.value.details() == error["error"]


async def test_rest_and_grpc_give_the_same_metadata(stack, pair, references):
    predictor = await predictor_of(stack, references["v2"])
    transformer = await in_front_of(stack, pair, predictor.address)
    for version in ("", "v2"):
        rest = (await transformer.http.get(f"{MODEL}/versions/{version}" if version else MODEL)).json()
        request = pb.ModelMetadataRequest(name="placement", version=version)
        over_grpc = await transformer.grpc.ModelMetadata(request)
        assert rest == {
            "name": over_grpc.name,
            "versions": list(over_grpc.versions),
            "platform": over_grpc.platform,
            "inputs": tensors(over_grpc.inputs),
            "outputs": tensors(over_grpc.outputs),
        }
        assert rest["platform"]


def tensors(metadata: object) -> list[dict[str, object]]:
    return [
        {"name": one.name, "datatype": one.datatype, "shape": list(one.shape)}
        for one in metadata  # type: ignore[attr-defined]
    ]


async def test_an_unknown_model_is_not_serving_and_has_no_metadata(stack, pair, references):
    predictor = await predictor_of(stack, references["v2"])
    transformer = await in_front_of(stack, pair, predictor.address)
    assert (await transformer.http.get("/v2/models/salary/ready")).status_code == 404
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await transformer.grpc.ModelReady(pb.ModelReadyRequest(name="salary"))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


async def waiting_for_v1(
    stack: AsyncExitStack, pair: VersionPair, references: dict[str, SklearnReference], *arguments: str
) -> tuple[FakeMLServer, asyncio.Task[httpx.Response]]:
    """Send a request for v1, which v2 replaces before it is scored; return the predictor and the request."""
    predictor = await predictor_of(stack, references["v1"])
    transformer = await in_front_of(stack, pair, predictor.address, "--predictor_connections=1", *arguments)
    predictor.may_answer.clear()
    busy = asyncio.create_task(transformer.http.post(V1_PREDICT, json={"instances": pair.candidates[:1]}))
    await wait_until(lambda: predictor.plain_calls)
    pinned = asyncio.create_task(transformer.http.post(f"{MODEL}/versions/v1/infer", json=body(pair, 0)))
    await asyncio.sleep(0.05)
    predictor.swap(references["v2"])
    predictor.may_answer.set()
    assert (await busy).headers["x-model-version"] == "v2"
    return predictor, pinned


async def test_a_request_for_a_version_that_has_gone_waits_for_it_until_its_deadline(stack, pair, references):
    _, pinned = await waiting_for_v1(stack, pair, references, "--predictor_request_timeout_seconds=2")
    response = await pinned
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json() == {"error": "no predictor of version v1 answered in time"}


async def test_a_request_for_a_version_that_returns_is_answered_by_it(stack, pair, references):
    predictor, pinned = await waiting_for_v1(stack, pair, references)
    assert not pinned.done()
    predictor.swap(references["v1"])
    response = await pinned
    assert (response.status_code, response.headers["x-model-version"]) == (200, "v1")


async def test_behind_a_proxy_a_version_that_no_longer_answers_is_503_at_the_deadline(
    stack, pair, references
):
    served = [references["v1"]]
    predictor = await predictor_of(stack, lambda: served[0])
    transformer = await in_front_of(
        stack, pair, predictor.address, "--verify=request", "--predictor_request_timeout_seconds=1"
    )
    await wait_until(lambda: transformer_ready(transformer))
    served[0] = references["v2"]
    response = await transformer.http.post(f"{MODEL}/versions/v1/infer", json=body(pair, 0))
    assert response.status_code == 503
    assert response.json() == {"error": "no predictor of version v1 answered in time"}


async def transformer_ready(transformer: InProcessTransformer) -> bool:
    return await versions(transformer) == ["v1"]


@pytest.mark.parametrize("mode", [(), ("--verify=request",)], ids=["by connection", "by request"])
async def test_an_unknown_model_is_no_version_that_can_be_asked_for(mode, stack, version_pair):
    """It has the encoding of a version, but another model."""
    pair = version_pair("retrained")
    stranger = await predictor_of(stack, SklearnReference(pair.new))
    arguments = ("--predictor_protocol=v2", *mode)
    transformer = await stack.enter_async_context(
        in_process_transformer(pair.old, stranger.address, *arguments)
    )
    answer = await transformer.http.post(V1_PREDICT, json={"instances": pair.candidates[:1]})
    assert answer.headers["x-model-version"] == "unverified"
    assert await versions(transformer) == []
    for version in ("v1", "unverified"):
        error = {"error": f"model placement has no version '{version}'; versions now: none"}
        for response in (
            await transformer.http.get(f"{MODEL}/versions/{version}/ready"),
            await transformer.http.get(f"{MODEL}/versions/{version}"),
            await transformer.http.post(f"{MODEL}/versions/{version}/infer", json=body(pair, 0)),
        ):
            assert (response.status_code, response.json()) == (404, error)


async def test_without_any_predictor_a_known_version_is_not_ready_and_another_does_not_exist(stack, pair):
    transformer = await stack.enter_async_context(
        in_process_transformer(pair.new, "127.0.0.1:1", "--predictor_protocol=v2", ready=False)
    )
    assert (await transformer.http.get(f"{MODEL}/versions/v1/ready")).status_code == 503
    assert (await transformer.http.get(f"{MODEL}/versions/v9/ready")).status_code == 404


async def test_a_small_canary_answers_every_request_that_asks_for_it(stack, pair, references):
    """Mostly, no connection leads to it when the request comes."""
    stable, canary = [await predictor_of(stack, reference) for reference in references.values()]
    backends = [Backend(stable.address, 0.75), Backend(canary.address, 0.25)]
    _, port = await stack.enter_async_context(balanced_by_connection(*backends))
    transformer = await in_front_of(stack, pair, f"127.0.0.1:{port}", "--predictor_connection_age=1")

    async def has_been_seen() -> bool:
        return "v2" in await versions(transformer)

    await wait_until(has_been_seen)
    for number in range(4):
        response = await transformer.http.post(f"{MODEL}/versions/v2/infer", json=body(pair, number))
        assert (response.status_code, response.headers["x-model-version"]) == (200, "v2")
        await asyncio.sleep(0.1)


async def test_behind_a_proxy_a_request_for_a_version_that_has_gone_makes_few_calls(stack, version_pair):
    pair = version_pair("retrained")
    served = [SklearnReference(pair.old)]
    predictor = await predictor_of(stack, lambda: served[0])
    transformer = await in_front_of(
        stack, pair, predictor.address, "--verify=request", "--predictor_request_timeout_seconds=2"
    )
    await wait_until(lambda: transformer_ready(transformer))
    served[0] = SklearnReference(pair.new)
    before = predictor.calls
    response = await transformer.http.post(f"{MODEL}/versions/v1/infer", json=body(pair, 0))
    assert response.status_code == 503
    # With pauses that double from 10 ms to 500 ms, and a few calls that verify renewed connections.
    assert predictor.calls - before <= 20
