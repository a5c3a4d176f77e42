"""Options and helpers of the commands that act on an InferenceService, local or in a cluster."""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from inferenceservice.gateway import Gateway, GatewayError
from placement.progress import StepPrinter

if TYPE_CHECKING:
    from inferenceservice.local.control_client import LocalTarget
    from inferenceservice.rollout_target import Progress, RolloutTarget

#: Directory in which `placement up` keeps its logs and its control file.
RUN_DIRECTORY = Path(".run")
#: Name of an InferenceService in a cluster that was not named.
DEFAULT_NAME = "placement"
#: Exit status of a command that was interrupted, as in shells.
INTERRUPTED = 130
_TIMEOUT_S = 900.0

_Result = TypeVar("_Result")


def add_run_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option that finds the local service."""
    parser.add_argument(
        "--run", type=Path, default=RUN_DIRECTORY, metavar="DIR", help="directory that `placement up` runs in"
    )


def add_target_arguments(
    parser: argparse.ArgumentParser,
    name_help: str = f"name of the InferenceService (default: {DEFAULT_NAME})",
    *,
    reads_only: bool = False,
) -> None:
    """Add the options that find the InferenceService, and unless `reads_only` how long a change may take."""
    add_run_argument(parser)
    cluster = parser.add_argument_group(
        "cluster", "with --context or --namespace: an InferenceService in a cluster, not the local service"
    )
    cluster.add_argument("--context", help="kubeconfig context")
    cluster.add_argument("--namespace", help="namespace (default: that of the context)")
    cluster.add_argument("--name", help=name_help)
    cluster.add_argument(
        "--bundle",
        action="append",
        type=_bundle_copy,
        default=[],
        metavar="URI=COPY",
        help="readable copy of a bundle whose URI this machine cannot read, or of all bundles below a URI: "
        "pvc://models=backup/models",
    )
    cluster.add_argument("--url", help="address for predictions (default: through the API server)")
    Gateway.add_arguments(cluster)
    if reads_only:
        parser.set_defaults(timeout=_TIMEOUT_S)
    else:
        cluster.add_argument(
            "--timeout",
            type=_seconds,
            default=_TIMEOUT_S,
            metavar="SECONDS",
            help="seconds until a component must serve its new bundle, at least 1 (default: %(default)g)",
        )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def target_errors() -> tuple[type[Exception], ...]:
    """Return the errors of these commands that are printed in one line."""
    from inferenceservice.rollout import RolloutError
    from inferenceservice.rollout_target import TargetError
    from inferenceservice.spec import SpecError

    return (GatewayError, RolloutError, SpecError, TargetError)


def is_local(options: argparse.Namespace) -> bool:
    """Return True if the options name the local service, not one in a cluster."""
    return options.context is None and options.namespace is None


def connect_target(options: argparse.Namespace) -> "RolloutTarget":
    """Return the InferenceService that the options name."""
    if is_local(options):
        return connect_local_target(options)
    from inferenceservice.cluster.api_server import ApiServer
    from inferenceservice.cluster.cluster_target import ClusterTarget

    return ClusterTarget(
        ApiServer.connect(options.context),
        options.name or DEFAULT_NAME,
        namespace=options.namespace,
        bundle_copies=dict(options.bundle),
        url=options.url,
        gateway=Gateway.of(options),
        timeout_s=options.timeout,
    )


def bundle_uri(options: argparse.Namespace) -> str:
    """Return the URI of a bundle that the options name, as the target's state shows it."""
    uri: str = options.uri
    if not is_local(options):
        return uri
    from storage.uris import shown

    return shown(uri)


def connect_local_target(options: argparse.Namespace) -> "LocalTarget":
    """Return the local service."""
    from inferenceservice.local.control_client import LocalTarget
    from inferenceservice.local.control_file import CONTROL_FILE

    return LocalTarget(options.run / CONTROL_FILE)


def run_steps(steps: Callable[["Progress"], Awaitable[_Result]]) -> _Result:
    """Run steps, and print their progress on standard error.

    Ctrl-C and SIGTERM cancel the steps, which then roll back; a second signal cancels the rollback, and a
    third one ends the process immediately.

    Raises
    ------
    KeyboardInterrupt
        If the steps were cancelled, once they have ended.
    """
    try:
        return asyncio.run(_run_interruptible(steps))
    except asyncio.CancelledError as interrupted:
        raise KeyboardInterrupt from interrupted


async def _run_interruptible(steps: Callable[["Progress"], Awaitable[_Result]]) -> _Result:
    print_step = StepPrinter()

    def progress(text: str) -> None:
        try:
            print_step(text)
        except OSError:
            # The reader of standard error has closed it; that must not stop or fail a rollout.
            with Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), sys.stderr.fileno())

    async def run() -> _Result:
        return await steps(progress)

    running = asyncio.create_task(run())

    def interrupt() -> None:
        # A normal exit would wait for a thread whose request is not answered.
        if running.done() or running.cancelling() > 1:
            os._exit(INTERRUPTED)
        running.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, interrupt)
    return await running


def print_result(options: argparse.Namespace, content: object, text: str) -> None:
    """Print the result: as JSON with `--json`, else as text."""
    print(json.dumps(content) if options.json else text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds, at least 1, got {text}")
    return seconds


def _bundle_copy(text: str) -> tuple[str, str]:
    uri, equals, copy = text.rpartition("=")
    if not equals or not uri or not copy:
        raise argparse.ArgumentTypeError(f"must be URI=COPY, got {text}")
    return uri, copy
