"""The components of an InferenceService as processes here, started as KServe's controller would."""

import http.client
import os
import sys
from http import HTTPStatus
from pathlib import Path

from inferenceservice.rollout_target import Progress
from inferenceservice.spec import InferenceService, SpecError, argument, without
from predictor import environment
from predictor.child import ChildProcess
from predictor.process import PASSED_ON, PredictorProcess, free_ports
from predictor.runtimes import Runtime, UnknownRuntimeError, get_runtime

#: Seconds in which a transformer must say whether it is ready.
_READY_TIMEOUT_S = 2


def runtime_of(service: InferenceService) -> Runtime:
    """The stock runtime that the spec names.

    Raises
    ------
    SpecError
        If there is none of this name and version here, or it does not speak the hop's protocol.
    """
    try:
        runtime = get_runtime(service.runtime)
    except UnknownRuntimeError as error:
        raise SpecError(f"spec.predictor.model.runtime: {error}") from error
    if service.runtime_version not in {None, runtime.version}:
        raise SpecError(
            f"spec.predictor.model.runtimeVersion: must be {runtime.version}, the one of {runtime.name} "
            f"that can be run here, got {service.runtime_version}"
        )
    protocol = hop_protocol(service)
    if protocol not in runtime.protocols:
        raise SpecError(
            f"--predictor_protocol: must be one of {', '.join(runtime.protocols)} for {runtime.name}, "
            f"got {protocol}"
        )
    return runtime


def hop_protocol(service: InferenceService) -> str:
    """Protocol between transformer and predictor; KServe's default is v1."""
    return argument(service.transformer_args, "--predictor_protocol") or "v1"


def install_predictor(service: InferenceService, progress: Progress) -> Path:
    """Interpreter of the environment of the spec's runtime, installed first if need be.

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
        # Ports inside a pod are the pod's own; here every process shares them.
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
    """A transformer, started at once on free ports.

    Parameters
    ----------
    service
        The spec, whose arguments and environment it gets.
    bundle_directory
        Where the storage initializer put the bundle.
    predictor_ports
        Where the model server is reached on this machine, over REST and over gRPC.
    log
        File for its output.
    """

    def __init__(
        self, service: InferenceService, bundle_directory: Path, predictor_ports: tuple[int, int], log: Path
    ) -> None:
        self.http_port, self.grpc_port = free_ports(2)
        self._ready_path = f"/v2/models/{service.name}/ready"
        predictor_port = predictor_ports[hop_protocol(service) == "grpc-v2"]
        arguments = (
            *_model_name(service),
            *service.transformer_args,
            # The last one wins: ports and addresses are this machine's, not the pod's.
            "--host=127.0.0.1",
            f"--predictor_host=127.0.0.1:{predictor_port}",
            f"--http_port={self.http_port}",
            f"--grpc_port={self.grpc_port}",
        )
        ours = {name: os.environ[name] for name in (*PASSED_ON, "PATH") if name in os.environ}
        self._child = ChildProcess(
            [sys.executable, "-m", "transformer", *arguments],
            env={**ours, **service.transformer_env, "STORAGE_URI": str(bundle_directory.resolve())},
            log=log,
        )

    def poll(self) -> int | None:
        """Exit status once it has ended, else None."""
        return self._child.poll()

    def tail(self) -> list[str]:
        """Its last lines."""
        return self._child.tail()

    def ready(self) -> bool:
        """Whether it has found a version that it knows behind the predictor."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=_READY_TIMEOUT_S)
        try:
            connection.request("GET", self._ready_path)
            return connection.getresponse().status == HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    @property
    def pid(self) -> int:
        """Process id of the transformer itself."""
        return self._child.pid

    def stop(self) -> int:
        """End it: SIGTERM, then SIGKILL after its grace period. Returns its exit status."""
        return self._child.stop(grace=35)


def _model_name(service: InferenceService) -> tuple[str, ...]:
    """KServe adds the name unless it is there; to a collocated container it adds nothing."""
    if service.collocated or argument(service.transformer_args, "--model_name"):
        return ()
    return (f"--model_name={service.name}",)
