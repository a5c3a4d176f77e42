"""Roll a version out, in the order that keeps every request answered. A failed step is undone."""

import argparse

from placement.command import Command
from placement.target_arguments import (
    add_target_arguments,
    bundle_uri,
    connect_target,
    print_result,
    run_steps,
    target_errors,
)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("uri", metavar="URI", help="bundle of the version, as `placement train` prints it")
    parser.add_argument(
        "--canary",
        type=_percent,
        metavar="PERCENT",
        help="send only this share of the traffic to the version, and check its answers; "
        "`placement rollout URI` then completes the rollout, `placement rollback` undoes it",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="continue if the new version does not recognise the one that serves now: both components change "
        "at once, and requests may get 503 during the change",
    )
    add_target_arguments(parser)


def _run(options: argparse.Namespace) -> int:
    from inferenceservice.rollout import rollout
    from storage.uris import serving_uri

    uri = serving_uri(bundle_uri(options))
    version = run_steps(
        lambda progress: rollout(
            connect_target(options), uri, progress, canary=options.canary, force=options.force
        ),
    )
    share = f" to {options.canary} % of the traffic" if options.canary else ""
    print_result(options, {"version": version, "canary": options.canary}, f"{version} serves{share}")
    return 0


def _percent(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 100:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 99, got {text}")
    return int(text)


COMMAND = Command(
    name="rollout",
    help="roll a version out",
    description=__doc__,
    add_arguments=_add_arguments,
    run=_run,
    errors=target_errors,
)
