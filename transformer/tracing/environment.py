"""Reads from the environment which traces are exported, and how. The names are OpenTelemetry's own."""

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from transformer.tracing.spans import Tracing

#: Each of these variables turns tracing on. OpenTelemetry itself traces without any of them.
EXPORTER = "OTEL_TRACES_EXPORTER"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
#: Turns tracing off, also if others turn it on.
DISABLED = "OTEL_SDK_DISABLED"
#: Entry points under which OpenTelemetry's packages offer exporters, and those of the exporter ``otlp``.
_GROUP = "opentelemetry_traces_exporter"
_PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
_PROTOCOL = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_INSTALL = f"install the project's extra `tracing`, or set {DISABLED}=true"


class TracingError(ValueError):
    """Tracing that the environment asks for, and that is not possible."""


def exporter_names(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the names of the exporters that the environment asks for; none if tracing is off.

    Raises
    ------
    TracingError
        If the environment names a protocol that does not exist.
    """
    if environment.get(DISABLED, "").strip().lower() == "true":
        return ()
    default = "otlp" if any(environment.get(name) for name in ENDPOINTS) else "none"
    names = [name.strip() for name in (environment.get(EXPORTER) or default).split(",")]
    return tuple(_otlp(environment) if name == "otlp" else name for name in names if name not in {"none", ""})


def _otlp(environment: Mapping[str, str]) -> str:
    for variable in _PROTOCOL:
        protocol = environment.get(variable, "").strip()
        if protocol in _PROTOCOLS:
            return _PROTOCOLS[protocol]
        if protocol:
            raise TracingError(f"{variable}: must be {' or '.join(_PROTOCOLS)}, got {protocol!r}")
    return _PROTOCOLS["http/protobuf"]


def start_tracing(model_name: str, max_requests: int) -> "Tracing | None":
    """Start to trace if the environment asks for it.

    Parameters
    ----------
    model_name
        Name of the model. The service is called ``NAME-transformer`` unless the environment names it.
    max_requests
        Maximum requests in one call to the predictor.

    Raises
    ------
    TracingError
        If the environment asks for something that is not installed.
    """
    classes = check_tracing()
    if not classes:
        return None
    from transformer.tracing.spans import Tracing

    return Tracing([exporter() for exporter in classes], model_name, max_requests)


def check_tracing() -> "Sequence[type[SpanExporter]]":
    """Load the exporters that the environment asks for, and return their classes; none if tracing is off.

    Raises
    ------
    TracingError
        If the environment asks for something that is not installed.
    """
    classes = [_exporter(name) for name in exporter_names()]
    if classes:
        try:
            # Reads OTEL_PROPAGATORS when it is imported.
            import opentelemetry.propagate  # noqa: F401
        except ValueError as error:
            raise TracingError(f"OTEL_PROPAGATORS: {error}") from error
    return classes


def _exporter(name: str) -> "type[SpanExporter]":
    installed = {point.name: point for point in entry_points(group=_GROUP)}
    if name not in installed:
        known = ", ".join(sorted(installed)) or "none"
        raise TracingError(f"{EXPORTER}: no exporter {name!r} is installed (installed: {known}); {_INSTALL}")
    exporter: type[SpanExporter] = installed[name].load()
    return exporter
