"""Start commands of all servers, and which servers each of them needs."""

import os
import sys
from collections.abc import Sequence

from benchmarks.load import ROOT
from benchmarks.models import CHOSEN, FOREST, ORIGINAL_FOREST
from benchmarks.peer_launchers import peer_launchers
from benchmarks.server_process import Process
from benchmarks.workspace import Launcher, Workspace
from inferenceservice import spec
from predictor.environment import ensure
from predictor.process import PredictorProcess
from predictor.runtimes import get_runtime

MLSERVER = "kserve-mlserver"
SKLEARNSERVER = "kserve-sklearnserver"
#: The front-end that counts nothing; see `benchmarks.operations`.
UNMONITORED = "front-end-unmonitored"
#: Our service with the settings for a wide vocabulary, in front of the documented transformer's predictor.
OURS_WIDE = "ours-wide"
#: Verifying a connection takes the predictor one second with 13,000 named columns.
_WIDE = ("--predictor_connections=2", "--predictor_connection_age=600")
#: Numbers of worker processes of the transformer and of MLServer, as far as this machine has cores for them.
WORKER_COUNTS = tuple(count for count in (1, 2, 4) if count <= max(os.cpu_count() or 1, 2))


def _default_spec() -> spec.InferenceService:
    """Read the default InferenceService; our service runs with its settings."""
    return spec.read(ROOT / "inferenceservice" / "placement.yaml")


def _predictor(server: str, runtime_name: str, model: str, **variables: str) -> Launcher:
    def start(workspace: Workspace) -> Process:
        runtime = get_runtime(runtime_name)
        return PredictorProcess(
            runtime,
            workspace.models[model].directory,
            python=ensure(runtime, progress=workspace.progress),
            model_name="placement",
            http_port=workspace.port(server),
            grpc_port=workspace.port(f"{server}/grpc"),
            args=runtime.tuned_args,
            env={**runtime.spec_env, **variables},
            log=workspace.log(server),
        )

    return Launcher(start, model)


def _start_stub(workspace: Workspace) -> Process:
    command = [sys.executable, "-m", "benchmarks.stub_predictor"]
    command += [str(workspace.models[FOREST].directory), str(workspace.port("stub"))]
    return workspace.child("stub", command, PYTHONPATH=ROOT)


def _ours(
    server: str,
    predictor: str,
    protocol: str,
    model: str = FOREST,
    *,
    output: str = "predict_proba",
    workers: int = 1,
    module: str = "transformer",
    arguments: Sequence[str] = (),
) -> Launcher:
    def start(workspace: Workspace) -> Process:
        port = workspace.port(f"{predictor}/grpc" if protocol == "grpc-v2" else predictor)
        options = [
            *_default_spec().transformer_args,
            "--model_name=placement",
            f"--http_port={workspace.port(server)}",
            f"--grpc_port={workspace.port(f'{server}/grpc')}",
            f"--predictor_host=127.0.0.1:{port}",
            f"--predictor_protocol={protocol}",
            f"--predictor_output={output}",
            f"--workers={workers}",
            "--shutdown_delay_seconds=0",
            *arguments,
        ]
        return workspace.child(
            server,
            [sys.executable, "-m", module, *options],
            STORAGE_URI=workspace.models[model].directory,
            PYTHONPATH=ROOT,
        )

    return Launcher(start, model, (predictor,))


def _launchers() -> dict[str, Launcher]:
    documented = f"{SKLEARNSERVER}/{ORIGINAL_FOREST}"
    launchers = peer_launchers(documented)
    launchers |= {"stub": Launcher(_start_stub), "front-end": _ours("front-end", "stub", "v1")}
    launchers[OURS_WIDE] = _ours(OURS_WIDE, documented, "v1", ORIGINAL_FOREST, arguments=_WIDE)
    launchers[UNMONITORED] = _ours(UNMONITORED, "stub", "v1", module="benchmarks.unmonitored_transformer")
    for runtime in (SKLEARNSERVER, MLSERVER):
        for model in (FOREST, ORIGINAL_FOREST, CHOSEN):
            launchers[f"{runtime}/{model}"] = _predictor(f"{runtime}/{model}", runtime, model)
            for protocol in get_runtime(runtime).protocols:
                server = our_name(runtime, protocol, model)
                output = get_runtime(runtime).probability_output
                launchers[server] = _ours(server, f"{runtime}/{model}", protocol, model, output=output)
    return launchers | _scaling_launchers()


def _scaling_launchers() -> dict[str, Launcher]:
    """Return launchers with several transformer workers, several workers of MLServer, and both."""
    launchers = {}
    for predictors in WORKER_COUNTS:
        predictor = scaling_predictor(predictors)
        launchers[predictor] = _predictor(
            predictor, MLSERVER, FOREST, MLSERVER_PARALLEL_WORKERS=str(predictors)
        )
        for transformers in WORKER_COUNTS:
            server = scaling_name(transformers, predictors)
            launchers[server] = _ours(server, predictor, "v2", workers=transformers)
    for transformers in WORKER_COUNTS:
        server = scaling_front_end(transformers)
        launchers[server] = _ours(server, "stub", "v1", workers=transformers)
    return launchers


def our_name(runtime: str, protocol: str, model: str) -> str:
    """Name of our service in front of one of the stock runtimes."""
    return f"ours-{'' if model == FOREST else f'{model}-'}{runtime.removeprefix('kserve-')}-{protocol}"


def scaling_predictor(workers: int) -> str:
    """Name of MLServer with so many worker processes."""
    return f"scaling-predictor-{workers}"


def scaling_name(transformers: int, predictors: int) -> str:
    """Name of our service with so many workers, in front of MLServer with so many."""
    return f"scaling-{transformers}-{predictors}"


def scaling_front_end(transformers: int) -> str:
    """Name of our service with so many workers, in front of the stub predictor."""
    return f"scaling-front-end-{transformers}"


LAUNCHERS = _launchers()
