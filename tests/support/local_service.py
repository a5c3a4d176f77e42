"""A whole InferenceService on a thread of its own, so that a test's clients may block."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from anyio.from_thread import BlockingPortal, start_blocking_portal

from inferenceservice import spec
from inferenceservice.local import local_service as local
from predictor.process import free_ports

SPEC = spec.read("inferenceservice/placement.yaml")


@dataclasses.dataclass(frozen=True)
class Service:
    """A running InferenceService; `portal` calls its coroutines from any thread."""

    local: local.LocalService
    portal: BlockingPortal

    @property
    def url(self) -> str:
        return self.local.url

    @property
    def grpc_address(self) -> str:
        return self.local.grpc_address


@contextlib.contextmanager
def service(inference_service: spec.InferenceService, model: Path, logs: Path) -> Iterator[Service]:
    """Run a spec with a trained bundle."""
    port, grpc_port = free_ports(2)
    running = local.run_local_service(
        inference_service,
        model=str(model),
        port=port,
        grpc_port=grpc_port,
        logs=logs,
        progress=lambda _: None,
    )
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(running) as (served, _):
        yield Service(served, portal)
