"""Clients that probe and explore: HEAD, other methods, trailing slashes, gRPC health and reflection."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.support.endpoints import READINESS, SERVER_LIVE, V1_EXPLAIN, V1_PREDICT, V2_INFER
from tests.support.fake_mlserver import FakeMLServer
from tests.support.in_process_transformer import InProcessTransformer, in_process_transformer
from tests.support.waiting import wait_until
from transformer.batching import connection_worker

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE = "inference.GRPCInferenceService"
POST_ONLY = (
    V1_PREDICT,
    V2_INFER,
    "/v2/models/placement/versions/v1/infer",
    V1_EXPLAIN,
)


@pytest.fixture
async def predictor(sklearn_reference) -> AsyncIterator[FakeMLServer]:
    async with FakeMLServer(sklearn_reference).running() as predictor:
        yield predictor


@pytest.fixture
async def transformer(trained_bundle, predictor) -> AsyncIterator[InProcessTransformer]:
    async with in_process_transformer(
        trained_bundle, predictor.address, "--predictor_protocol=v2"
    ) as transformer:
        yield transformer


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_transformer(trained_bundle, sklearn_reference) -> AsyncIterator[InProcessTransformer]:
    """A transformer for tests that do not change it."""
    async with (
        FakeMLServer(sklearn_reference).running() as predictor,
        in_process_transformer(trained_bundle, predictor.address, "--predictor_protocol=v2") as transformer,
    ):
        yield transformer


@pytest.fixture
def frequent_heartbeats(monkeypatch):
    """Let connections notice sooner that the predictor has gone."""
    monkeypatch.setattr(connection_worker, "HEARTBEAT_S", 0.05)


async def stop(predictor: FakeMLServer) -> None:
    predictor.swap(None)


@pytest.mark.parametrize("path", ["/", SERVER_LIVE, *READINESS, "/v2/models/placement/versions/v1/ready"])
@pytest.mark.usefixtures("frequent_heartbeats")
async def test_head_tells_health_like_get_without_a_body(path, transformer, predictor):
    get, head = await transformer.http.get(path), await transformer.http.head(path)
    assert (head.status_code, head.headers) == (200, get.headers)
    await stop(predictor)
    if path not in {"/", SERVER_LIVE}:
        await wait_until(lambda: not_ready(transformer, path))


async def not_ready(transformer: InProcessTransformer, path: str) -> bool:
    statuses = [(await transformer.http.request(method, path)).status_code for method in ("HEAD", "GET")]
    assert statuses in ([200, 200], [200, 503], [503, 503])
    return statuses == [503, 503]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("path", POST_ONLY)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "SEARCH"])
async def test_another_method_than_post_is_not_allowed_and_the_answer_says_to_post(
    method, path, shared_transformer
):
    response = await shared_transformer.http.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    if method != "HEAD":
        assert response.json() == {"error": f"{method} {path}: Method Not Allowed; use POST"}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("path", [*POST_ONLY, *READINESS, SERVER_LIVE, "/v1/models", "/metrics"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_trailing_slash_never_redirects(method, path, shared_transformer):
    response = await shared_transformer.http.request(
        method, f"{path}/", headers={"host": "elsewhere.example", "x-forwarded-proto": "https"}
    )
    assert response.status_code in {404, 405}
    assert "location" not in response.headers


def health(transformer: InProcessTransformer) -> health_pb2_grpc.HealthStub:
    return health_pb2_grpc.HealthStub(grpc.aio.insecure_channel(transformer.grpc_address))


@pytest.mark.parametrize("service", ["", SERVICE])
@pytest.mark.usefixtures("frequent_heartbeats")
async def test_the_standard_health_check_follows_readiness(service, transformer, predictor):
    stub, request = health(transformer), health_pb2.HealthCheckRequest(service=service)
    assert (await stub.Check(request)).status == SERVING
    await stop(predictor)

    async def down() -> bool:
        return (await stub.Check(request)).status == NOT_SERVING

    await wait_until(down)


async def test_a_health_check_of_an_unknown_service_is_not_found(transformer):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await health(transformer).Check(health_pb2.HealthCheckRequest(service="salary"))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    assert SERVICE in raised.value.details()


@pytest.mark.usefixtures("frequent_heartbeats")
async def test_every_client_that_watches_the_health_learns_of_each_change(
    transformer, predictor, sklearn_reference
):
    watching = [health(transformer).Watch(health_pb2.HealthCheckRequest()) for _ in range(3)]
    assert [(await watch.read()).status for watch in watching] == [SERVING] * 3
    watching.pop().cancel()
    await stop(predictor)
    assert [(await watch.read()).status for watch in watching] == [NOT_SERVING] * 2
    predictor.served = sklearn_reference
    assert [(await watch.read()).status for watch in watching] == [SERVING] * 2
    for watch in watching:
        watch.cancel()


async def test_clients_that_watch_the_health_do_not_delay_a_shutdown(trained_bundle, predictor):
    async with in_process_transformer(
        trained_bundle, predictor.address, "--predictor_protocol=v2"
    ) as transformer:
        watch = health(transformer).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
    # The server has stopped long before its grace period of 30 s ends.
    assert (await watch.read()).status == NOT_SERVING
    assert await watch.read() is grpc.aio.EOF


async def test_reflection_describes_the_services(transformer):
    def reflected() -> tuple[list[str], list[str]]:
        with grpc.insecure_channel(transformer.grpc_address) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            pool = DescriptorPool(database)
            service = pool.FindServiceByName(SERVICE)
            return sorted(database.get_services()), [method.name for method in service.methods]

    services, methods = await asyncio.to_thread(reflected)
    assert services == ["grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", SERVICE]
    assert {"ModelInfer", "ModelMetadata", "ModelReady", "ServerLive", "ServerReady"} <= set(methods)
