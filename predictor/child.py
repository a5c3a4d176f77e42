"""One child process, with all that it starts, that ends with us however we end."""

from __future__ import annotations

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
from types import TracebackType
from typing import IO, Final, Self

_LIFELINE: Final = Path(__file__).resolve().parent / "lifeline.py"
_TAIL_LINES: Final = 60
_TAIL_BYTES: Final = 16_384

Log = Path | Callable[[str], None] | None


class ChildStartError(RuntimeError):
    """The command could not be started at all."""


class ChildProcess:
    """A command, started at once in a process group and a scratch directory of its own.

    It ends with ``stop``, with the ``with`` block, and also when this process is killed: it is started by
    ``lifeline.py``, which waits for the end of a pipe that only we hold.

    Parameters
    ----------
    argv
        Command and arguments.
    env
        All of its environment; nothing of ours is added.
    log
        Where standard output and error go: a file to append to, or a callable that gets each line (on a
        thread of its own, without the line's end), or nowhere. ``tail`` knows the last lines in any case.

    Raises
    ------
    ChildStartError
        When there is no such command.
    """

    def __init__(self, argv: Sequence[str], *, env: Mapping[str, str], log: Log = None) -> None:
        self._last: deque[str] = deque(maxlen=_TAIL_LINES)
        self._log_file = log if isinstance(log, Path) else None
        self._log_from = log.stat().st_size if isinstance(log, Path) and log.exists() else 0
        self._scratch = Path(tempfile.mkdtemp(prefix="placement-"))
        report, report_write = os.pipe()
        try:
            self._guard = self._start(argv, env, report_write)
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
            self._finish()
            raise ChildStartError("\n".join(self.tail()) or f"cannot start {argv[0]}")
        self.pid: Final = int(pid)
        """Process id of the command itself, which also leads its process group."""

    def poll(self) -> int | None:
        """Return the exit status once the command has ended (128 + N after signal N), None before."""
        return self._guard.poll()

    def tail(self, lines: int = 20) -> list[str]:
        """Return the last lines that it wrote."""
        if self._log_file is not None:
            return _end_of(self._log_file, self._log_from)[-lines:]
        if self.poll() is not None and self._reader is not None:
            self._reader.join(timeout=1)
        return list(self._last)[-lines:]

    def stop(self, grace: float = 10.0) -> int:
        """End it: SIGTERM to the command, as the cluster does; after ``grace`` seconds SIGKILL to its group.

        Returns
        -------
        int
            Its exit status.
        """
        with suppress(BrokenPipeError, ValueError):  # it has ended by itself, or was stopped before
            _stdin(self._guard).write(b"%f\n" % grace)
            _stdin(self._guard).flush()
        try:
            self._guard.wait(timeout=grace + 5)
        except subprocess.TimeoutExpired:
            self._guard.kill()
        return self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        stream = self._guard.stdout
        if stream is None:
            return None

        def read() -> None:
            with stream:
                for raw in stream:
                    line = raw.decode(errors="replace").rstrip("\r\n")
                    self._last.append(line)
                    if consume is not None:
                        consume(line)

        thread = threading.Thread(target=read, name="child-log", daemon=True)
        thread.start()
        return thread

    def _finish(self) -> int:
        """Reap the guard and release what we hold."""
        status = self._guard.wait()
        if status < 0 and hasattr(self, "pid"):  # someone killed the guard, so nobody has ended its group
            with suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)
        with suppress(BrokenPipeError):
            _stdin(self._guard).close()
        if self._reader is not None:
            self._reader.join(timeout=5)
        shutil.rmtree(self._scratch, ignore_errors=True)
        return status


def _stdin(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None  # noqa: S101 - opened as a pipe
    return process.stdin


def _end_of(file: Path, start: int) -> list[str]:
    with suppress(OSError), file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(start, size - _TAIL_BYTES))
        return stream.read().decode(errors="replace").splitlines()
    return []
