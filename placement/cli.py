"""The command `placement`: its commands, each in a module of its own, and how their errors are told."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from placement import (
    apply_command,
    bench_command,
    predict_command,
    rollback_command,
    rollout_command,
    status_command,
    train_command,
    up_command,
)

COMMANDS: dict[str, Any] = {
    "train": train_command,
    "up": up_command,
    "predict": predict_command,
    "rollout": rollout_command,
    "rollback": rollback_command,
    "status": status_command,
    "apply": apply_command,
    "bench": bench_command,
}


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="placement", description="Train, serve and ask a DictVectorizer + scikit-learn model on KServe."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        module.add_arguments(command)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; what it cannot do is told in one line, and the exit status is 1."""
    options = parser().parse_args(arguments)
    try:
        status: int = COMMANDS[options.command].run(options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read the output has seen enough.
        sys.stderr.close()
        return 0
    except COMMANDS[options.command].errors() as error:
        print(f"placement {options.command}: {error}", file=sys.stderr)
        return 1
    return status
