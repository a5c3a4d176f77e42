"""Temporary directory of a local service, for the copies of bundles that its processes load.

A service removes its directory when it ends. A service that was killed leaves its directory behind, and the
next one removes it: a lock shows that a directory's service still runs.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "local-inferenceservice-"
#: Directories of this process.
_open: set[Path] = set()


class ScratchDirectory:
    """A private temporary directory; the constructor creates it, and removes those of killed services.

    Attributes
    ----------
    path
        The directory, which only this user can read.
    """

    def __init__(self) -> None:
        _remove_abandoned()
        new = Path(tempfile.mkdtemp(prefix=f"new-{_PREFIX}"))
        self._lock = os.open(new, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # With its name it gets visible to other services, so it is locked before.
        self.path = new.with_name(new.name.removeprefix("new-"))
        new.rename(self.path)
        _open.add(self.path)

    def remove(self) -> None:
        """Remove the directory with its content."""
        if self.path in _open:
            _open.discard(self.path)
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)


def remove_all() -> None:
    """Remove the directories of this process, which is about to end without a normal exit."""
    for path in list(_open):
        shutil.rmtree(path, ignore_errors=True)


def _remove_abandoned() -> None:
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if path.is_symlink() or path.stat().st_uid != os.getuid():
                continue
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
