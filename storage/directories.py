"""Interface of a storage directory, and local directories."""

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from transformer.bundle.deadline import Deadline
from transformer.bundle.regular_file import read_chunks

#: Age at which the hidden files of a killed writer are removed.
STALE_S = 24 * 3600


class VersionTakenError(Exception):
    """Another writer has created the version first."""


class StorageDirectory(Protocol):
    """A directory with the versions of one model, or with the files of one version."""

    def files(self) -> set[str]:
        """Return the paths of the files in the directory and one level below, without hidden files."""

    def read_chunks(self, file: str, limit: int, deadline: Deadline) -> Iterator[bytes]:
        """Yield the content of a file in parts.

        Raises
        ------
        OSError
            If it is not a regular file, has more than `limit` bytes, or is not read before the deadline.
        """

    def create(self, version: str, contents: Mapping[str, bytes]) -> None:
        """Write the files of a version so that the last one appears last.

        Raises
        ------
        VersionTakenError
            If another writer has created the version first.
        """

    def replace(self, file: str, content: bytes, media_type: str) -> None:
        """Write or overwrite one file."""


class LocalDirectory:
    """A local directory."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def files(self) -> set[str]:
        """See `StorageDirectory`."""
        found = [*self._path.glob("*"), *self._path.glob("[!.]*/*")]
        return {str(path.relative_to(self._path)) for path in found if path.is_file() and path.name[0] != "."}

    def read_chunks(self, file: str, limit: int, deadline: Deadline) -> Iterator[bytes]:
        """See `StorageDirectory`."""
        return read_chunks(self._path / file, limit, deadline)

    def create(self, version: str, contents: Mapping[str, bytes]) -> None:
        """See `StorageDirectory`. Writes and syncs the files in a hidden directory, then renames it."""
        self._path.mkdir(parents=True, exist_ok=True)
        self._remove_stale()
        hidden = self._path / f".{version}.{secrets.token_hex(8)}.writing"
        hidden.mkdir()
        try:
            with _locked(hidden):
                for file, content in contents.items():
                    _write_synced(hidden / file, content)
                _sync(hidden)
                try:
                    hidden.rename(self._path / version)
                except OSError as error:
                    if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                        raise VersionTakenError(version) from error
                    raise
            _sync(self._path)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)

    def replace(self, file: str, content: bytes, media_type: str) -> None:
        """See `StorageDirectory`."""
        hidden = self._path / f".{file}.{secrets.token_hex(8)}.writing"
        try:
            _write_synced(hidden, content)
            hidden.replace(self._path / file)
        finally:
            hidden.unlink(missing_ok=True)

    def _remove_stale(self) -> None:
        for path in self._path.glob(".*.writing"):
            with contextlib.suppress(OSError):
                # The age is wrong after a jump of the clock. The lock protects the files of a running writer.
                if time.time() - path.stat().st_mtime > STALE_S:
                    with _locked(path):
                        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock a file or directory, where its file system has locks.

    Raises
    ------
    BlockingIOError
        If another writer has the lock.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
