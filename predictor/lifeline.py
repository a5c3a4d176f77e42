"""Run a command that must not outlive its parent process.

`predictor.child` starts this script as ``python lifeline.py REPORT_FD SCRATCH COMMAND...``. Its standard
input is a pipe that only the parent holds. A number on the pipe asks it to stop the command, with that many
seconds of grace. The end of the pipe, which follows every end of the parent, asks for the same with the
default grace. So the command also ends after a SIGKILL of the parent. Linux's parent-death signal is no
alternative: it is sent when the parent's thread ends, not its process.
"""

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

#: Grace in seconds when the parent has ended.
ORPHAN_GRACE_S = 2.0


def main(report_fd: int, scratch: str, command: list[str]) -> int:
    """Run a command in a directory, and return its exit status, or 128 + N after signal N."""
    wake = _child_exit_descriptor()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # The parent decides when to stop. Handlers are used because the command would inherit SIG_IGN.
        signal.signal(number, lambda *_: None)
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=scratch, process_group=0)
    except OSError as error:
        sys.stderr.write(f"cannot start {command[0]}: {error.strerror}\n")
        return 127
    try:
        with suppress(BrokenPipeError):  # the parent has ended; the wait below finds that
            os.write(report_fd, b"%d\n" % child.pid)
        os.close(report_fd)
        if not _wait(child, wake, None):
            child.terminate()
            _wait(child, wake, _grace())
    finally:
        with suppress(OSError):  # the rest of its group; the id is not reused while a member lives
            os.killpg(child.pid, signal.SIGKILL)
    status = child.wait()
    return status if status >= 0 else 128 - status


def _child_exit_descriptor() -> int:
    """Return a file descriptor that becomes readable after SIGCHLD."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    os.set_blocking(read_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return read_end


def _wait(child: subprocess.Popen[bytes], wake: int, grace: float | None) -> bool:
    """Return True when the child has ended, False when the grace is over or (if None) the parent asks."""
    end = None if grace is None else time.monotonic() + grace
    while True:
        if child.poll() is not None:
            return True
        left = None if end is None else end - time.monotonic()
        if left is not None and left <= 0:
            return False
        readable, _, _ = select.select([wake, 0] if end is None else [wake], [], [], left)
        if 0 in readable:
            return False
        with suppress(BlockingIOError):
            os.read(wake, 4096)


def _grace() -> float:
    """Return the grace that the parent wrote, or the default if the parent has ended."""
    try:
        return float(os.read(0, 64))
    except (OSError, ValueError):
        return ORPHAN_GRACE_S


if __name__ == "__main__":
    directory = sys.argv[2]
    try:
        code = main(int(sys.argv[1]), directory, sys.argv[3:])
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    sys.exit(code)
