"""The command line of `placement`: the table of commands, and the output of their errors."""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from placement import (
    apply_command,
    bench_command,
    explain_command,
    import_command,
    init_command,
    predict_command,
    report_command,
    rollback_command,
    rollout_command,
    score_command,
    spec_command,
    status_command,
    train_command,
    up_command,
    versions_command,
)
from placement.command import Command

COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        init_command.COMMAND,
        train_command.COMMAND,
        import_command.COMMAND,
        report_command.COMMAND,
        up_command.COMMAND,
        spec_command.COMMAND,
        predict_command.COMMAND,
        score_command.COMMAND,
        explain_command.COMMAND,
        rollout_command.COMMAND,
        rollback_command.COMMAND,
        status_command.COMMAND,
        versions_command.COMMAND,
        apply_command.COMMAND,
        bench_command.COMMAND,
    )
}
#: Exit status after Ctrl-C, as in shells.
_INTERRUPTED = 130


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of an option, except of flags and of options without one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default == []:
            return action.help
        return super()._get_help_string(action)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="placement",
        description="Train a DictVectorizer + scikit-learn model, serve it on KServe, and send it requests.",
    )
    parser.add_argument("--version", action="version", version=f"placement {version('placement')}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS.values():
        subparser = subparsers.add_parser(
            command.name,
            help=command.help,
            description=command.description,
            formatter_class=_HelpFormatter,
        )
        command.add_arguments(subparser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit status: 1 after an error, which is printed in one line."""
    reader = parser()
    options, unknown = reader.parse_known_args(arguments)
    command = COMMANDS[options.command]
    if unknown:
        reader.error(
            "; ".join(
                filter(None, (f"unrecognized arguments: {' '.join(unknown)}", command.unknown_arguments))
            )
        )
    try:
        return command.run(options)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of the output has closed it, as `head` does.
        sys.stderr.close()
        return 0
    except command.errors() as error:
        print(f"placement {command.name}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
