"""The interface of a command of `placement`."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass


def command_line(*arguments: str) -> str:
    """Return a command of `placement` as this one was typed, to be copied."""
    program = sys.argv[0] if sys.argv[0].endswith("placement") else "placement"
    return " ".join([program, *arguments])


@dataclass(frozen=True, slots=True)
class Command:
    """A command, as its module exports it.

    Modules import heavy packages inside `run` and `errors`, so that `placement --help` starts fast.

    Attributes
    ----------
    name
        Word on the command line.
    help
        One line for the list of commands.
    description
        First text of the command's own help.
    add_arguments
        Adds the command's options to its parser.
    run
        Runs the command, and returns its exit status.
    errors
        Returns the errors of `run` that are printed in one line instead of a traceback.
    unknown_arguments
        What to do about arguments that the parser does not know.
    """

    name: str
    help: str
    description: str | None
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    errors: Callable[[], tuple[type[Exception], ...]]
    unknown_arguments: str = ""
