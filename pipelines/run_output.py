"""Output of a run on this machine: a line for each step that ends, and a log file with everything."""

import io
import re
import time
from typing import TextIO

from pipelines.step import ERROR

_COLOR = re.compile(r"\x1b\[\d*m")
#: Lines of Kubeflow's local runner around a step. It indents the lines of the step itself.
_STARTED = re.compile(r"[\d:.]+ - INFO - Executing task '(.+)'")
_ENDED = re.compile(r"[\d:.]+ - [A-Z]+ - Task '(.+)' finished with status (SUCCESS|FAILURE)")
#: Width of the longest name of a step.
_NAME = len("check-predictions")


class RunOutput(io.TextIOBase):
    """Standard output while Kubeflow's local runner runs a pipeline, for `contextlib.redirect_stdout`.

    Parameters
    ----------
    log
        File that gets all lines, without colours.
    terminal
        Gets a line for each step when it ends: its name, its seconds, its messages and warnings.
    verbose
        True if the terminal gets everything instead.

    Attributes
    ----------
    failures
        Errors of the step that failed, with its name; empty while none has failed.
    """

    def __init__(self, log: TextIO, terminal: TextIO, *, verbose: bool) -> None:
        self.failures: list[str] = []
        self._log, self._terminal, self._verbose = log, terminal, verbose
        self._line = ""
        self._step, self._start = "", 0.0
        self._messages: list[str] = []
        self._last = ""

    def write(self, text: str) -> int:
        """Take a part of the output."""
        if self._verbose:
            self._terminal.write(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            plain = _COLOR.sub("", line)
            self._log.write(f"{plain}\n")
            self._read(plain)
        return len(text)

    def flush(self) -> None:
        """Pass on what was written."""
        self._log.flush()
        self._terminal.flush()

    def _read(self, line: str) -> None:
        if started := _STARTED.match(line):
            self._step, self._start, self._messages, self._last = started[1], time.monotonic(), [], ""
            self._show(f"{self._step:<{_NAME}}")
        elif ended := _ENDED.match(line):
            self._end(failed=ended[2] == "FAILURE")
        elif line.strip():
            self._last = line.strip()
            if self._last.startswith((f"{self._step}: ", "WARNING: ")):
                self._messages.append(self._last.removeprefix(f"{self._step}: "))

    def _end(self, *, failed: bool) -> None:
        if failed:
            errors = [one.removeprefix(ERROR) for one in self._messages if one.startswith(ERROR)]
            self._messages = ["failed", *(one for one in self._messages if not one.startswith(ERROR))]
            errors = errors or [f"ended unexpectedly, after: {self._last}"]
            self.failures += (f"{self._step}: {one}" for one in errors)
        seconds = f" {time.monotonic() - self._start:6.1f} s  "
        text = f"\n{' ' * (_NAME + len(seconds))}".join(self._messages)
        self._show(f"{seconds}{text}".rstrip() + "\n")

    def _show(self, text: str) -> None:
        if not self._verbose:
            self._terminal.write(text)
            self._terminal.flush()
