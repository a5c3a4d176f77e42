"""Run the InferenceService on this machine: stock predictor, transformer and ingress."""

import argparse
import asyncio
import contextlib
import json
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from placement.command import Command
from placement.progress import StepPrinter
from placement.target_arguments import INTERRUPTED, RUN_DIRECTORY

if TYPE_CHECKING:
    from inferenceservice.local.local_service import LocalService
    from inferenceservice.spec import InferenceService
    from transformer.bundle.format import Bundle


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f",
        "--file",
        type=Path,
        help="spec, or kustomize directory (needs kubectl); default: "
        "inferenceservice/placement.yaml, or the model that ran here last with --model",
    )
    parser.add_argument(
        "--model",
        metavar="URI",
        help="bundle to serve instead of the one that was rolled out last, or of the spec's storageUri; "
        "without -f, under the name of its model",
    )
    parser.add_argument("--port", type=int, default=8080, help="REST port of the ingress")
    parser.add_argument("--grpc-port", type=int, default=8081, help="gRPC port of the ingress")
    parser.add_argument(
        "--once", action="store_true", help="stop after the prediction for a sample candidate"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the addresses and the sample's prediction as JSON"
    )
    parser.add_argument(
        "--run",
        type=Path,
        default=RUN_DIRECTORY,
        metavar="DIR",
        help="directory for logs, for the control file that `placement rollout` reads, and for the record of "
        "what was rolled out; one service at a time can use it",
    )
    parser.add_argument(
        "transformer_args",
        nargs="*",
        metavar="-- ARGUMENT",
        help="after --: further arguments of the transformer, such as --enable_docs_url=true; "
        "`python -m transformer --help` lists them",
    )


def _errors() -> tuple[type[Exception], ...]:
    from inferenceservice.local.ingress import IngressError
    from inferenceservice.local.running_process import LocalServiceError
    from inferenceservice.spec import SpecError
    from predictor.environment import InstallError
    from predictor.process import PredictorError
    from predictor.runtimes import LaunchError
    from storage.errors import StorageError
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


def _run(options: argparse.Namespace) -> int:
    from inferenceservice.local.run_directory import locked_run_directory
    from inferenceservice.local.running_process import LocalServiceError

    first = options.transformer_args[:1]
    if first and not first[0].startswith("-"):
        raise LocalServiceError(f"{first[0]}: is no argument of the transformer; name a bundle with --model")
    with locked_run_directory(options.run):
        return asyncio.run(_serve(options))


async def _serve(options: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM, or with --once until the sample's prediction."""
    from inferenceservice.local.control_file import CONTROL_FILE
    from inferenceservice.local.control_server import ControlServer
    from inferenceservice.local.local_service import run_local_service
    from inferenceservice.local.rolled_out import (
        ROLLED_OUT_FILE,
        THE_LAST_START,
        THE_SPEC,
        last_started,
        record_start,
    )
    from inferenceservice.local.scratch_directory import remove_all
    from training.candidates import SAMPLE, SIGNATURE

    main_task = asyncio.current_task()
    stopped = asyncio.Event()

    def stop() -> None:
        if stopped.is_set():
            # A second signal ends the process immediately; its children then end by themselves.
            remove_all()
            os._exit(INTERRUPTED)
        stopped.set()
        assert main_task is not None  # noqa: S101 (this code runs in a task)
        main_task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    print_step = StepPrinter()
    rolled_out = options.run / ROLLED_OUT_FILE
    again = last_started(rolled_out) if options.file is None and options.model is None else None
    named = options.model or again
    try:
        service = await _find(options.file, named, again=again is not None)
        async with run_local_service(
            service,
            model=options.model,
            port=options.port,
            grpc_port=options.grpc_port,
            logs=options.run / "logs",
            progress=print_step,
            rolled_out=rolled_out,
            source=THE_SPEC if again is None else THE_LAST_START,
            transformer_args=options.transformer_args,
        ) as (local, bundle):
            # The tutorial's candidate, or for another signature a reference row of the bundle.
            sample = SAMPLE if bundle.signature == SIGNATURE else dict(bundle.reference.candidates[0])
            prediction = (await local.predict([sample]))["predictions"][0]
            print_step("ready")
            own_spec = options.file is not None or service.storage_uri != named
            with contextlib.suppress(OSError):
                record_start(rolled_out, None if own_spec else service.storage_uri)
            _print_ready(options, local, bundle, sample, prediction)
            if not options.once:
                async with ControlServer(local, options.run / CONTROL_FILE):
                    await local.watch()
    except asyncio.CancelledError:
        if not stopped.is_set():
            raise
    print_step("stopped")
    return 0


async def _find(file: Path | None, model: str | None, *, again: bool) -> "InferenceService":
    """Return the InferenceService to run; see `inferenceservice.model_spec.find_service`."""
    from inferenceservice import spec_file
    from storage.errors import StorageError

    try:
        return await spec_file.find(file, model)
    except StorageError as error:
        if not again:
            raise
        raise StorageError(
            f"{error}; it ran here last: to start another one, name its bundle with --model, or its spec "
            "with -f"
        ) from error


def _print_ready(
    options: argparse.Namespace,
    local: "LocalService",
    bundle: "Bundle",
    sample: dict[str, Any],
    prediction: dict[str, Any],
) -> None:
    url = f"{local.url}/v1/models/{local.service.name}:predict"
    if options.json:
        content = {
            "url": local.url,
            "grpc": local.grpc_address,
            "version": bundle.version,
            "candidate": sample,
            "prediction": prediction,
        }
        print(json.dumps(content), flush=True)
        return
    print(f"ready      {local.url}  (gRPC {local.grpc_address})")
    print(f"version    {bundle.version}")
    print(f"{bundle.row_name:<10} {json.dumps(sample)}")
    print(f"prediction {json.dumps(prediction)}")
    if not options.once:
        body = json.dumps({"instances": [sample]})
        print(f"\n  curl {url} -d {shlex.quote(body)}\n\nCtrl-C stops it.")
    sys.stdout.flush()


COMMAND = Command(
    name="up",
    help="run the InferenceService on this machine",
    description=__doc__,
    add_arguments=_add_arguments,
    run=_run,
    errors=_errors,
    unknown_arguments="arguments of the transformer go after --: `placement up -- --enable_docs_url=true`",
)
