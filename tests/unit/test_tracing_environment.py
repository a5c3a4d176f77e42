"""Tracing is off unless the environment asks for it, and the environment's errors end the start."""

import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from transformer.tracing.environment import TracingError, check_tracing, exporter_names, start_tracing

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
TRACES_ENDPOINT = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}
GRPC = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({}, ()),
        ({"OTEL_SERVICE_NAME": "placement"}, ()),
        ({"OTEL_TRACES_EXPORTER": "none"}, ()),
        ({"OTEL_TRACES_EXPORTER": ""}, ()),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ("otlp_proto_http",)),
        (ENDPOINT, ("otlp_proto_http",)),
        (TRACES_ENDPOINT, ("otlp_proto_http",)),
        (ENDPOINT | GRPC, ("otlp_proto_grpc",)),
        (
            ENDPOINT | GRPC | {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"},
            ("otlp_proto_http",),
        ),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, ()),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "console, otlp"}, ("console", "otlp_proto_http")),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "true"}, ()),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "True"}, ()),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "false"}, ("otlp_proto_http",)),
    ],
)
def test_the_environment_decides_what_is_exported(environment, names):
    assert exporter_names(environment) == names


def test_a_protocol_that_does_not_exist_is_an_error_that_names_the_variable():
    with pytest.raises(
        TracingError, match=r"OTEL_EXPORTER_OTLP_PROTOCOL: must be http/protobuf or grpc, got"
    ):
        exporter_names(ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"})


def test_an_exporter_that_is_not_installed_is_an_error_that_lists_the_others(monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    with pytest.raises(TracingError, match=r"no exporter 'zipkin' is installed \(installed: console, otlp_"):
        check_tracing()


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setattr("transformer.tracing.environment.entry_points", lambda group: ())
    with pytest.raises(TracingError, match=r"installed: none.*the project's extra `tracing`"):
        start_tracing("placement", 1)


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_without_these_variables_the_sdk_is_not_loaded():
    script = (
        "import sys; from transformer.server.kserve_server import TransformerServer;"
        "from transformer.tracing.environment import start_tracing;"
        "assert start_tracing('placement', 1) is None;"
        "print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])"
    )
    done = run(script)
    assert done.stdout.strip() == "[]", done.stderr


def test_an_unknown_propagator_is_an_error():
    done = run(
        "from transformer.tracing.environment import *; check_tracing()",
        OTEL_TRACES_EXPORTER="console",
        OTEL_PROPAGATORS="b4",
    )
    assert "TracingError: OTEL_PROPAGATORS: Propagator b4 not found" in done.stderr
