"""The environment alone turns tracing on: a collector gets the spans of all processes, also the last ones."""

import aiohttp
import grpc
import pytest
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from inferenceservice.local.launch import TransformerProcess
from tests.support.endpoints import V1_PREDICT, V2_INFER
from tests.support.otlp_collector import OtlpCollector, running_collector
from tests.support.request_bodies import grpc_objects
from tests.support.sync_processes import running_transformer
from training.candidates import SAMPLE

TRACE = "80f198ee56343ba864fe8b2a57d3eff7"
CALLER = "e457b5a2e4d86bd1"
#: Requests over REST: each over a connection of its own, so that all workers get some.
REQUESTS = 12


async def ask(process: TransformerProcess, headers: dict[str, str]) -> None:
    for _ in range(REQUESTS):
        url = f"http://127.0.0.1:{process.http_port}{V1_PREDICT}"
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, json={"instances": [SAMPLE]}, headers=headers) as response,
        ):
            assert response.status == 200, await response.text()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{process.grpc_port}") as channel:
        await GRPCInferenceServiceStub(channel).ModelInfer(
            grpc_objects([SAMPLE]), metadata=tuple(headers.items())
        )


def of_kind(collector: OtlpCollector, kind: int) -> dict[bytes, Span]:
    return {span.span_id: span for span in collector.spans if span.kind == kind}


async def test_a_collector_gets_the_spans_of_all_workers(mlserver, trained_bundle, tmp_path):
    headers = {"b3": f"{TRACE}-{CALLER}-1"}
    ports = (mlserver.http_port, mlserver.grpc_port)
    with running_collector() as collector:
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_PROPAGATORS": "tracecontext,b3",
            "OTEL_RESOURCE_ATTRIBUTES": "k8s.namespace.name=default",
            # The last spans are exported at the end, not before.
            "OTEL_BSP_SCHEDULE_DELAY": "600000",
        }
        arguments = ("--workers=2", "--predictor_connections=1")
        with running_transformer(ports, trained_bundle, tmp_path / "log", *arguments, env=env) as process:
            await ask(process, headers)
        requests = of_kind(collector, Span.SPAN_KIND_SERVER)
        calls = of_kind(collector, Span.SPAN_KIND_CLIENT)
        assert len(requests) == REQUESTS + 1
        assert len({span.name for span in requests.values()}) == 2
        assert {span.name for span in calls.values()} == {f"POST {V2_INFER}"}
        assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
        assert {span.parent_span_id.hex() for span in requests.values()} == {CALLER}
        assert {link.span_id for span in calls.values() for link in span.links} == set(requests)
        assert collector.resources("service.name") == {"placement-transformer"}
        assert collector.resources("k8s.namespace.name") == {"default"}


def test_an_exporter_that_is_not_installed_ends_the_start_with_one_line(mlserver, trained_bundle, tmp_path):
    env = {"OTEL_TRACES_EXPORTER": "zipkin"}
    ports = (mlserver.http_port, mlserver.grpc_port)
    with (
        pytest.raises(AssertionError, match="transformer: OTEL_TRACES_EXPORTER: no exporter 'zipkin' is"),
        running_transformer(ports, trained_bundle, tmp_path / "log", env=env),
    ):
        pass


async def test_without_a_collector_predictions_go_on_and_the_process_stops(
    mlserver, trained_bundle, tmp_path
):
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_BSP_SCHEDULE_DELAY": "10"}
    ports = (mlserver.http_port, mlserver.grpc_port)
    with running_transformer(ports, trained_bundle, tmp_path / "log", env=env) as process:
        await ask(process, {})
    assert process.poll() == 0
