"""The directory that a local service runs in: one at a time, for two would share logs and control file."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from inferenceservice.local.supervisor import LocalServiceError


@contextlib.contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Hold a directory, which is made if need be. However this process ends, others may have it then.

    Raises
    ------
    LocalServiceError
        If another process holds it, or it cannot be made.
    """
    with contextlib.ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            held = os.open(directory, os.O_RDONLY)
            stack.callback(os.close, held)
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            taken = isinstance(error, BlockingIOError)
            why = "a local service runs here; stop it" if taken else error.strerror
            raise LocalServiceError(f"{directory}: {why}, or name another directory with --run") from error
        yield
