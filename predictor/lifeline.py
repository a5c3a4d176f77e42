"""Run a command that must not outlive the process that wanted it.

Started by ``predictor.child`` as ``python lifeline.py REPORT_FD SCRATCH COMMAND...``, it stands between the
two. Its standard input is a pipe that only the parent holds: a number written there asks for a stop with that
many seconds of grace; its end, which comes however the parent ended, asks for the same with the default. So
it works after a SIGKILL, and, unlike Linux's parent-death signal, wherever the parent has threads.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

ORPHAN_GRACE_SECONDS = 2.0


def main(report_fd: int, scratch: str, command: list[str]) -> int:
    """Run ``command`` in ``scratch`` and return its exit status, 128 + N where signal N ended it."""
    wake = _wake_on_child_exit()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Handlers, not SIG_IGN, which the command would inherit: when to stop is the parent's to say.
        signal.signal(number, lambda *_: None)
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=scratch, process_group=0)
    except OSError as error:
        sys.stderr.write(f"cannot start {command[0]}: {error.strerror}\n")
        return 127
    try:
        with suppress(BrokenPipeError):  # the parent is gone already, as the first wait will find
            os.write(report_fd, b"%d\n" % child.pid)
        os.close(report_fd)
        if not _wait(child, wake, None):
            child.terminate()
            _wait(child, wake, _grace())
    finally:
        with suppress(OSError):  # what is left of its group; the number is not reused while any of it lives
            os.killpg(child.pid, signal.SIGKILL)
    status = child.wait()
    return status if status >= 0 else 128 - status


def _wake_on_child_exit() -> int:
    """Make a file descriptor that is readable after SIGCHLD."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    os.set_blocking(read_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return read_end


def _wait(child: subprocess.Popen[bytes], wake: int, grace: float | None) -> bool:
    """Wait until the child has ended (True), or until ``grace`` is over or, without one, the parent asks."""
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
    """Read what the parent wrote, if it did."""
    try:
        return float(os.read(0, 64))
    except (OSError, ValueError):
        return ORPHAN_GRACE_SECONDS


if __name__ == "__main__":
    directory = sys.argv[2]
    try:
        code = main(int(sys.argv[1]), directory, sys.argv[3:])
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    sys.exit(code)
