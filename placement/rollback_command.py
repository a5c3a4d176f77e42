"""Undo the rollout in progress, or return to the version that served before the last one."""

import argparse

from placement.command import Command
from placement.target_arguments import (
    add_target_arguments,
    connect_target,
    print_result,
    run_steps,
    target_errors,
)


def _run(options: argparse.Namespace) -> int:
    from inferenceservice.rollout import rollback

    version = run_steps(lambda progress: rollback(connect_target(options), progress))
    print_result(options, {"version": version}, f"{version} serves")
    return 0


COMMAND = Command(
    name="rollback",
    help="undo a rollout",
    description=__doc__,
    add_arguments=add_target_arguments,
    run=_run,
    errors=target_errors,
)
