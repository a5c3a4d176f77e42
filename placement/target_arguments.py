"""Which InferenceService a command is about: the local one, or one in a cluster."""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from placement.progress import Steps

if TYPE_CHECKING:
    from inferenceservice.local.control_client import LocalTarget
    from inferenceservice.rollout_target import Progress, RolloutTarget

#: Where `placement up` keeps its logs and its control file.
RUN_DIRECTORY = Path(".run")
#: Exit status of a command that was interrupted, as of shells.
INTERRUPTED = 130

_Result = TypeVar("_Result")


def add_run_argument(parser: argparse.ArgumentParser) -> None:
    """Describe how the local service is found."""
    parser.add_argument(
        "--run", type=Path, default=RUN_DIRECTORY, metavar="DIR", help="directory that `placement up` runs in"
    )


def add_target_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe how the InferenceService is found."""
    add_run_argument(parser)
    cluster = parser.add_argument_group(
        "cluster", "an InferenceService in a cluster instead of the local one, with --context or --namespace"
    )
    cluster.add_argument("--context", help="kubeconfig context")
    cluster.add_argument("--namespace", help="namespace (default: the context's)")
    cluster.add_argument("--name", default="placement", help="name of the InferenceService")
    cluster.add_argument(
        "--bundle",
        action="append",
        type=_copy,
        default=[],
        metavar="URI=COPY",
        help="where a bundle can be read that is out of reach from here, by its URI or the beginning of it: "
        "pvc://models=backup/models",
    )
    cluster.add_argument("--url", help="where to send predictions (default: through the API server)")
    cluster.add_argument(
        "--timeout", type=float, default=900, help="seconds until a component must serve its new bundle"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def errors() -> tuple[type[Exception], ...]:
    """What these commands tell in one line."""
    from inferenceservice.rollout import RolloutError
    from inferenceservice.rollout_target import TargetError
    from inferenceservice.spec import SpecError

    return (RolloutError, SpecError, TargetError)


def target_of(options: argparse.Namespace) -> "RolloutTarget":
    """The InferenceService that the options name."""
    if options.context is None and options.namespace is None:
        return local_target(options)
    from inferenceservice.cluster.api_server import ApiServer
    from inferenceservice.cluster.cluster_target import ClusterTarget

    return ClusterTarget(
        ApiServer.connect(options.context),
        options.name,
        namespace=options.namespace,
        bundle_copies=dict(options.bundle),
        url=options.url,
        timeout_s=options.timeout,
    )


def _copy(text: str) -> tuple[str, str]:
    uri, equals, copy = text.rpartition("=")
    if not equals or not uri or not copy:
        raise argparse.ArgumentTypeError(f"must be URI=COPY, got {text}")
    return uri, copy


def local_target(options: argparse.Namespace) -> "LocalTarget":
    """The local service."""
    from inferenceservice.local.control_client import LocalTarget
    from inferenceservice.local.control_file import CONTROL_FILE

    return LocalTarget(options.run / CONTROL_FILE)


def work(options: argparse.Namespace, steps: Callable[["Progress"], Awaitable[_Result]]) -> _Result:
    """Do the steps, with progress on standard error.

    Ctrl-C and SIGTERM interrupt them, and again while they go back; a third one ends the process as it is.

    Raises
    ------
    KeyboardInterrupt
        If they were interrupted, when they have ended.
    """
    try:
        return asyncio.run(_interruptible(steps))
    except asyncio.CancelledError as interrupted:
        raise KeyboardInterrupt from interrupted


async def _interruptible(steps: Callable[["Progress"], Awaitable[_Result]]) -> _Result:
    steps_told = Steps()

    def progress(text: str) -> None:
        try:
            steps_told(text)
        except OSError:
            # Nobody is left to read it; that stops no rollout half-way, and is no failure at its end.
            with Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), sys.stderr.fileno())

    async def work() -> _Result:
        return await steps(progress)

    working = asyncio.create_task(work())

    def interrupt() -> None:
        # A thread whose request is not answered would keep the process.
        if working.done() or working.cancelling() > 1:
            os._exit(INTERRUPTED)
        working.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, interrupt)
    return await working


def tell(options: argparse.Namespace, content: object, text: str) -> None:
    """Print the result, for people or for programs."""
    print(json.dumps(content) if options.json else text)
