"""Roll a version out: the transformer first, then the predictor; a step that fails is undone."""

import argparse

from placement.target_arguments import add_target_arguments, errors, target_of, tell, work

__all__ = ["HELP", "add_arguments", "errors", "run"]

HELP = "roll a version out"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's options."""
    parser.add_argument("uri", metavar="URI", help="the version's bundle, as `placement train` prints it")
    parser.add_argument(
        "--canary",
        type=_percent,
        metavar="PERCENT",
        help="give it that part of the traffic for now, and check what it answers; `placement rollout URI` "
        "finishes, `placement rollback` undoes",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="even if it does not know the version that serves now: both components change at once, and "
        "there may be 503s meanwhile",
    )
    add_target_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Roll out, or leave everything as it was."""
    from inferenceservice.rollout import rollout

    version = work(
        options,
        lambda progress: rollout(
            target_of(options), options.uri, progress, canary=options.canary, force=options.force
        ),
    )
    share = f" to {options.canary} % of the traffic" if options.canary else ""
    tell(options, {"version": version, "canary": options.canary}, f"{version} serves{share}")
    return 0


def _percent(text: str) -> int:
    number = int(text)
    if not 0 < number < 100:
        raise argparse.ArgumentTypeError(f"must be 1 to 99, got {text}")
    return number
