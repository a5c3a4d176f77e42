"""A child process, with all processes that it starts, that never outlives this process."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

_LIFELINE = Path(__file__).resolve().parent / "lifeline.py"
_TAIL_LINES = 60
_TAIL_BYTES = 16_384

Log = Path | Callable[[str], None] | None


class ChildStartError(RuntimeError):
    """The command could not be started."""


class ChildProcess:
    """A command in its own process group and scratch directory; the constructor starts it.

    It ends with `stop`, with the ``with`` block, and also when this process is killed: `lifeline.py` starts
    it, and waits for the end of a pipe that only this process holds.

    Parameters
    ----------
    argv
        Command and arguments.
    env
        The complete environment; nothing of this process's environment is added.
    log
        Destination of standard output and error: a file to append to, or a callable that gets each line
        without its end, on another thread, or None. `tail` returns the last lines in any case.

    Attributes
    ----------
    pid
        Process id of the command, which also leads its process group.

    Raises
    ------
    ChildStartError
        If the command does not exist or cannot be executed.
    """

    def __init__(self, argv: Sequence[str], *, env: Mapping[str, str], log: Log = None) -> None:
        self._last_lines: deque[str] = deque(maxlen=_TAIL_LINES)
        self._log_file = log if isinstance(log, Path) else None
        self._log_start = log.stat().st_size if isinstance(log, Path) and log.exists() else 0
        self._scratch = Path(tempfile.mkdtemp(prefix="placement-"))
        report, report_write = os.pipe()
        try:
            self._lifeline = self._start(argv, env, report_write)
        except BaseException:
            os.close(report)
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise
        finally:
            os.close(report_write)
        self._reader = self._read_lines(None if isinstance(log, Path) else log)
        with os.fdopen(report) as started:
            pid = started.read()
        if not pid:
            self._clean_up()
            raise ChildStartError("\n".join(self.tail()) or f"cannot start {argv[0]}")
        self.pid = int(pid)

    def poll(self) -> int | None:
        """Return the exit status of an ended command (128 + N after signal N), else None."""
        return self._lifeline.poll()

    def tail(self, lines: int = 20) -> list[str]:
        """Return the last lines of the output."""
        if self._log_file is not None:
            return _last_lines_of(self._log_file, self._log_start)[-lines:]
        if self.poll() is not None and self._reader is not None:
            self._reader.join(timeout=1)
        return list(self._last_lines)[-lines:]

    def stop(self, grace: float = 10.0) -> int:
        """Send SIGTERM to the command, as a cluster does, and after `grace` seconds SIGKILL to its group.

        Returns
        -------
        int
            Exit status of the command.
        """
        with suppress(BrokenPipeError, ValueError):  # the command has ended already
            _stdin(self._lifeline).write(b"%f\n" % grace)
            _stdin(self._lifeline).flush()
        try:
            self._lifeline.wait(timeout=grace + 5)
        except subprocess.TimeoutExpired:
            self._lifeline.kill()
        return self._clean_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self, argv: Sequence[str], env: Mapping[str, str], report: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-I", "-S", str(_LIFELINE), str(report), str(self._scratch), *argv]
        output: IO[bytes] | int = subprocess.PIPE
        if self._log_file is not None:
            output = self._log_file.open("ab")
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(env),
                pass_fds=(report,),
                start_new_session=True,
            )
        finally:
            if not isinstance(output, int):
                output.close()

    def _read_lines(self, consume: Callable[[str], None] | None) -> threading.Thread | None:
        stream = self._lifeline.stdout
        if stream is None:
            return None

        def read() -> None:
            with stream:
                for raw in stream:
                    line = raw.decode(errors="replace").rstrip("\r\n")
                    self._last_lines.append(line)
                    if consume is not None:
                        consume(line)

        thread = threading.Thread(target=read, name="child-log", daemon=True)
        thread.start()
        return thread

    def _clean_up(self) -> int:
        """Wait for the lifeline, release all resources, and return the exit status."""
        status = self._lifeline.wait()
        if status < 0 and hasattr(self, "pid"):  # the lifeline was killed and could not end the group
            with suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)
        with suppress(BrokenPipeError):
            _stdin(self._lifeline).close()
        if self._reader is not None:
            self._reader.join(timeout=5)
        shutil.rmtree(self._scratch, ignore_errors=True)
        return status


def _stdin(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None  # noqa: S101 (opened as a pipe)
    return process.stdin


def _last_lines_of(file: Path, start: int) -> list[str]:
    with suppress(OSError), file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(start, size - _TAIL_BYTES))
        return stream.read().decode(errors="replace").splitlines()
    return []
