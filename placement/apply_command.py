"""Change both components of the local service to a spec at once, as `kubectl apply` does in a cluster."""

import argparse
from pathlib import Path

from placement.command import Command
from placement.target_arguments import (
    add_run_argument,
    connect_local_target,
    print_result,
    run_steps,
    target_errors,
)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--file", type=Path, required=True, help="spec, or kustomize directory")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_run_argument(parser)


def _run(options: argparse.Namespace) -> int:
    file = options.file.resolve()
    run_steps(lambda progress: connect_local_target(options).apply(file, progress))
    print_result(options, {"applied": str(file)}, f"{file} is applied")
    return 0


COMMAND = Command(
    name="apply",
    help="change both components of the local service to a spec at once",
    description=__doc__,
    add_arguments=_add_arguments,
    run=_run,
    errors=target_errors,
)
