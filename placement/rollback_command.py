"""Undo the rollout that is under way, or go back to the version that served before."""

import argparse

from placement.target_arguments import add_target_arguments, errors, target_of, tell, work

__all__ = ["HELP", "add_arguments", "errors", "run"]

HELP = "undo a rollout"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's options."""
    add_target_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Go back."""
    from inferenceservice.rollout import rollback

    version = work(options, lambda progress: rollback(target_of(options), progress))
    tell(options, {"version": version}, f"{version} serves")
    return 0
