"""Change both components of the local service at once, as `kubectl apply` does in a cluster."""

import argparse
from pathlib import Path

from placement.target_arguments import add_run_argument, errors, local_target, tell, work

__all__ = ["HELP", "add_arguments", "errors", "run"]

HELP = "change both components of the local service at once"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's options."""
    parser.add_argument("-f", "--file", type=Path, required=True, help="the spec, or a kustomize directory")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_run_argument(parser)


def run(options: argparse.Namespace) -> int:
    """Apply the spec; each component changes over as soon as it is ready, those of one pod together."""
    file = options.file.resolve()
    work(options, lambda progress: local_target(options).apply(file, progress))
    tell(options, {"applied": str(file)}, f"{file} is applied")
    return 0
