"""Launch of an InferenceService's components as local processes, with the arguments that KServe would set."""

import os
import sys
from pathlib import Path

from inferenceservice.rollout_target import Progress
from inferenceservice.spec import InferenceService, SpecError, argument, without
from predictor import environment
from predictor.child import ChildProcess
from predictor.process import (
    INHERITED_VARIABLES,
    LIVE_PATH,
    LIVE_TIMEOUT_S,
    READY_TIMEOUT_S,
    PredictorProcess,
    free_ports,
    probe,
)
from predictor.runtimes import Runtime, UnknownRuntimeError, get_runtime


def runtime_of(service: InferenceService) -> Runtime:
    """Return the stock runtime that the spec names.

    Raises
    ------
    SpecError
        If this machine cannot run the name and version, or the runtime does not support the spec's protocol.
    """
    try:
        runtime = get_runtime(service.runtime)
    except UnknownRuntimeError as error:
        raise SpecError(f"spec.predictor.model.runtime: {error}") from error
    if service.runtime_version not in {None, runtime.version}:
        raise SpecError(
            f"spec.predictor.model.runtimeVersion: must be {runtime.version}, the only version of "
            f"{runtime.name} that runs on this machine, got {service.runtime_version}"
        )
    for name, value in runtime.probability_env.items():
        if service.predictor_env.get(name) != value:
            raise SpecError(
                f"spec.predictor.model.env: {name} must be {value!r} for {runtime.name}, which answers "
                f"without probabilities otherwise, got {service.predictor_env.get(name)!r}"
            )
    protocol = predictor_protocol(service)
    if protocol not in runtime.protocols:
        raise SpecError(
            f"--predictor_protocol: must be one of {', '.join(runtime.protocols)} for {runtime.name}, "
            f"got {protocol}"
        )
    return runtime


def predictor_protocol(service: InferenceService) -> str:
    """Return the protocol between transformer and predictor; KServe's default is v1."""
    return argument(service.transformer_args, "--predictor_protocol") or "v1"


def install_predictor(service: InferenceService, progress: Progress) -> Path:
    """Install the environment of the spec's runtime if needed, and return its interpreter.

    Raises
    ------
    SpecError, predictor.environment.InstallError
        If it cannot be installed.
    """
    return environment.ensure(runtime_of(service), progress=progress)


def start_predictor(
    service: InferenceService, python: Path, model_directory: Path, log: Path
) -> PredictorProcess:
    """Start the stock server of the spec's runtime on free ports.

    Raises
    ------
    SpecError, predictor.process.PredictorError, predictor.runtimes.LaunchError
        If it cannot be started.
    """
    env = dict(service.predictor_env)
    for variable in ("MLSERVER_HTTP_PORT", "MLSERVER_GRPC_PORT", "MLSERVER_METRICS_PORT"):
        # In a cluster each pod has its own ports; here all processes share those of this machine.
        env.pop(variable, None)
    return PredictorProcess(
        runtime_of(service),
        model_directory,
        python=python,
        model_name=service.name,
        args=without(service.predictor_args, "--http_port", "--grpc_port"),
        env=env,
        log=log,
    )


class TransformerProcess:
    """A transformer process on free ports; the constructor starts it.

    Parameters
    ----------
    service
        The spec with its arguments and environment.
    bundle_directory
        Directory with a copy of the bundle, as KServe's storage initializer leaves it.
    predictor_ports
        Ports of the model server on this machine, for REST and for gRPC.
    log
        File for the output.
    """

    def __init__(
        self, service: InferenceService, bundle_directory: Path, predictor_ports: tuple[int, int], log: Path
    ) -> None:
        self.http_port, self.grpc_port = free_ports(2)
        self._ready_path = f"/v2/models/{service.name}/ready"
        predictor_port = predictor_ports[predictor_protocol(service) == "grpc-v2"]
        arguments = (
            *_model_name(service),
            *service.transformer_args,
            # The last argument wins: these replace the pod's ports and addresses.
            "--host=127.0.0.1",
            f"--predictor_host=127.0.0.1:{predictor_port}",
            f"--http_port={self.http_port}",
            f"--grpc_port={self.grpc_port}",
        )
        inherited = {name: os.environ[name] for name in (*INHERITED_VARIABLES, "PATH") if name in os.environ}
        self._child = ChildProcess(
            [sys.executable, "-m", "transformer", *arguments],
            env={**inherited, **service.transformer_env, "STORAGE_URI": str(bundle_directory.resolve())},
            log=log,
        )

    def poll(self) -> int | None:
        """Return the exit status of an ended process, else None."""
        return self._child.poll()

    def tail(self, lines: int = 20) -> list[str]:
        """Return the last lines of its output."""
        return self._child.tail(lines)

    def ready(self) -> bool:
        """Return True if it reports ready: it has a usable connection to the predictor."""
        return probe(self.http_port, self._ready_path, READY_TIMEOUT_S)

    def live(self) -> bool:
        """Return True if it answers."""
        return probe(self.http_port, LIVE_PATH, LIVE_TIMEOUT_S)

    @property
    def pid(self) -> int:
        """Process id of the transformer."""
        return self._child.pid

    def stop(self, grace: float = 35) -> int:
        """Send SIGTERM, and SIGKILL after `grace` seconds. Return the exit status."""
        return self._child.stop(grace)


def _model_name(service: InferenceService) -> tuple[str, ...]:
    """Return the argument that KServe adds if it is missing; KServe adds none to a collocated container."""
    if service.collocated or argument(service.transformer_args, "--model_name"):
        return ()
    return (f"--model_name={service.name}",)
