"""The line of a process's output that says why the process ended."""

import re
import signal
from collections.abc import Sequence

_EXCEPTION = re.compile(r"(\w+\.)*\w*(Error|Exception|error|Interrupt|Exit)(: |$)")
#: Errors of command lines: argparse's, and those of our own servers.
_COMMAND_LINE = re.compile(r"(\S+: |python -m \w+: )?error: |(transformer|sklearnserver): ")
#: Beginning of the last words of a server that could not load its model.
CANNOT_LOAD = "cannot load the model"
#: Errors of a shutdown, which hide its cause.
_SHUTDOWN = re.compile(r"(\w+\.)*(CancelledError|KeyboardInterrupt)")
#: Exit statuses from here on are those of signals, as in shells.
_SIGNALLED = 128
_TRACEBACK = "Traceback (most recent call last):"


def last_words(lines: Sequence[str]) -> str:
    """Return the line that says why a process ended, or an empty string if none does.

    It is the last error that is not one of the shutdown itself. A model that cannot be loaded is named as
    such, because the error alone (``KeyError: 110``) does not say so.
    """
    loading = False
    found = ""
    for raw in lines:
        line = raw.strip()
        if line.endswith(_TRACEBACK):
            loading = False
        elif "joblib.load(" in line:
            loading = True
        elif _COMMAND_LINE.match(line) or (_EXCEPTION.match(line) and not _SHUTDOWN.match(line)):
            found = f"{CANNOT_LOAD}: {line}" if loading else line
            loading = False
    return found


def reason_of_end(status: int, lines: Sequence[str]) -> str:
    """Return the reason of an end in one line: its last words, or else its last line.

    A process that a signal ended has said nothing about it.
    """
    if status >= _SIGNALLED:
        return ""
    return last_words(lines) or next((line.strip() for line in reversed(lines) if line.strip()), "")


def describe_status(status: int) -> str:
    """Describe an exit status: ``status 1``, ``status 137 (SIGKILL: by hand, or for lack of memory)``."""
    try:
        name = signal.Signals(status - _SIGNALLED).name
    except ValueError:
        return f"status {status}"
    if name == "SIGKILL":
        name += ": by hand, or for lack of memory"
    return f"status {status} ({name})"
