"""Lock of the directory that a local service runs in: two services would share logs and control file."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from inferenceservice.local.running_process import LocalServiceError


@contextlib.contextmanager
def locked_run_directory(directory: Path) -> Iterator[None]:
    """Create a directory if needed, and lock it. The lock ends with this process, however that ends.

    Raises
    ------
    LocalServiceError
        If another process has the lock, or the directory cannot be created.
    """
    with contextlib.ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(directory, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            locked = isinstance(error, BlockingIOError)
            why = "a local service runs here; stop it" if locked else error.strerror
            raise LocalServiceError(f"{directory}: {why}, or name another directory with --run") from error
        yield
