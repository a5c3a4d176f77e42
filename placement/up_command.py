"""Run the InferenceService on this machine: storage, stock predictor, transformer and one ingress port."""

import argparse
import asyncio
import json
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from placement.progress import Steps
from placement.target_arguments import RUN_DIRECTORY

if TYPE_CHECKING:
    from inferenceservice.local.local_service import LocalService

HELP = "run the InferenceService on this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's options."""
    parser.add_argument(
        "-f",
        "--file",
        type=Path,
        default=Path("inferenceservice/placement.yaml"),
        help="the spec, or a kustomize directory (then kubectl must be installed)",
    )
    parser.add_argument("--model", metavar="URI", help="serve this bundle instead of the spec's storageUri")
    parser.add_argument("--port", type=int, default=8080, help="port of the ingress")
    parser.add_argument("--grpc-port", type=int, default=8081, help="port of the ingress for gRPC")
    parser.add_argument("--once", action="store_true", help="stop after the sample candidate's answer")
    parser.add_argument("--json", action="store_true", help="print URLs and the sample's answer as JSON")
    parser.add_argument(
        "--run",
        type=Path,
        default=RUN_DIRECTORY,
        metavar="DIR",
        help="directory of this service alone: its logs, and the control file by which `placement rollout` "
        "finds it",
    )


def errors() -> tuple[type[Exception], ...]:
    """What this command tells in one line."""
    from inferenceservice.local.ingress import IngressError
    from inferenceservice.local.supervisor import LocalServiceError
    from inferenceservice.spec import SpecError
    from predictor.environment import InstallError
    from predictor.process import PredictorError
    from predictor.runtimes import LaunchError
    from storage.bundles import StorageError
    from transformer.bundle.format import BundleError

    return (
        BundleError,
        IngressError,
        InstallError,
        LaunchError,
        LocalServiceError,
        PredictorError,
        SpecError,
        StorageError,
    )


def run(options: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM (or with --once: until the sample's answer)."""
    from inferenceservice.local.run_directory import locked_run_directory

    with locked_run_directory(options.run):
        return asyncio.run(_serve(options))


async def _serve(options: argparse.Namespace) -> int:
    from inferenceservice import spec
    from inferenceservice.local.control_file import CONTROL_FILE
    from inferenceservice.local.control_server import ControlServer
    from inferenceservice.local.local_service import run_local_service
    from training.candidates import SAMPLE, SIGNATURE

    main_task = asyncio.current_task()
    stopped = asyncio.Event()

    def stop() -> None:
        if stopped.is_set():
            # Whoever asks twice wants it now; the children end by themselves when we do.
            os._exit(130)
        stopped.set()
        assert main_task is not None  # noqa: S101 (this is one)
        main_task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    steps = Steps()
    try:
        async with run_local_service(
            spec.read(options.file),
            model=options.model,
            port=options.port,
            grpc_port=options.grpc_port,
            logs=options.run / "logs",
            progress=steps,
        ) as (local, bundle):
            # The tutorial's own candidate, or for another signature any candidate that is valid.
            sample = SAMPLE if bundle.signature == SIGNATURE else dict(bundle.reference.candidates[0])
            answer = (await local.predict([sample]))["predictions"][0]
            steps("ready")
            _tell(options, local, bundle.version, sample, answer)
            if not options.once:
                async with ControlServer(local, options.run / CONTROL_FILE):
                    await local.watch()
    except asyncio.CancelledError:
        if not stopped.is_set():
            raise
    steps("stopped")
    return 0


def _tell(
    options: argparse.Namespace,
    local: "LocalService",
    version: str,
    sample: dict[str, Any],
    answer: dict[str, Any],
) -> None:
    url = f"{local.url}/v1/models/{local.service.name}:predict"
    if options.json:
        content = {
            "url": local.url,
            "grpc": local.grpc_address,
            "version": version,
            "candidate": sample,
            "prediction": answer,
        }
        print(json.dumps(content), flush=True)
        return
    print(f"ready      {local.url}  (gRPC {local.grpc_address})")
    print(f"version    {version}")
    print(f"candidate  {json.dumps(sample)}")
    print(f"prediction {json.dumps(answer)}")
    if not options.once:
        body = json.dumps({"instances": [sample]})
        print(f"\n  curl {url} -d {shlex.quote(body)}\n\nCtrl-C stops it.")
    sys.stdout.flush()
