"""Kinds of storage directories: local ones, and prefixes of S3 buckets."""

import contextlib
import errno
import os
import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

#: Age at which the hidden files of a killed writer are removed.
STALE_S = 24 * 3600


class VersionTakenError(Exception):
    """Another writer has created the version first."""


class StorageDirectory(Protocol):
    """A directory with the versions of one model, or with the files of one version."""

    def files(self) -> set[str]:
        """Return the paths of the files in the directory and one level below, without hidden files."""

    def read(self, file: str) -> bytes:
        """Return the content of a file."""

    def download(self, file: str, to: Path) -> None:
        """Copy a file to a local path."""

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

    def read(self, file: str) -> bytes:
        """See `StorageDirectory`."""
        return (self._path / file).read_bytes()

    def download(self, file: str, to: Path) -> None:
        """See `StorageDirectory`."""
        shutil.copyfile(self._path / file, to)

    def create(self, version: str, contents: Mapping[str, bytes]) -> None:
        """See `StorageDirectory`. Writes and syncs the files in a hidden directory, then renames it."""
        self._path.mkdir(parents=True, exist_ok=True)
        self._remove_stale()
        hidden = self._path / f".{version}.{secrets.token_hex(8)}.writing"
        hidden.mkdir()
        try:
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
                if time.time() - path.stat().st_mtime > STALE_S:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


class S3Directory:
    """A prefix of an S3 bucket."""

    def __init__(self, prefix: str) -> None:
        import s3fs  # takes half a second, so only S3 storage imports it

        self._prefix = prefix.removeprefix("s3://")
        self._s3: Any = s3fs.S3FileSystem(endpoint_url=_s3_endpoint(), use_listings_cache=False)

    def files(self) -> set[str]:
        """See `StorageDirectory`."""
        start = len(self._prefix) + 1
        return {path[start:] for path in self._s3.find(self._prefix + "/", maxdepth=2)}

    def read(self, file: str) -> bytes:
        """See `StorageDirectory`."""
        content: bytes = self._s3.cat_file(f"{self._prefix}/{file}")
        return content

    def download(self, file: str, to: Path) -> None:
        """See `StorageDirectory`."""
        self._s3.get_file(f"{self._prefix}/{file}", str(to))

    def create(self, version: str, contents: Mapping[str, bytes]) -> None:
        """See `StorageDirectory`. The writer of the first object wins; the last one completes it."""
        for file, content in contents.items():
            path = f"{self._prefix}/{version}/{file}"
            try:
                self._s3.pipe_file(path, content, mode="create")
            except OSError as error:
                if _s3_code(error) in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
                    raise VersionTakenError(path) from error
                if error.errno != errno.ENOSYS:
                    raise
                self._s3.pipe_file(path, content)  # a server without conditional writes

    def replace(self, file: str, content: bytes, media_type: str) -> None:
        """See `StorageDirectory`."""
        self._s3.pipe_file(f"{self._prefix}/{file}", content, ContentType=media_type)


def _s3_endpoint() -> str | None:
    """Return the endpoint in the environment; with None, botocore reads its own files."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if url := os.environ.get(name):
            return url
    endpoint = os.environ.get("S3_ENDPOINT")
    if not endpoint or "://" in endpoint:
        return endpoint or None
    scheme = "http" if os.environ.get("S3_USE_HTTPS", "1") in ("0", "false") else "https"
    return f"{scheme}://{endpoint}"


def _s3_code(error: OSError) -> str | None:
    response = getattr(error.__cause__, "response", None) or {}
    code: str | None = response.get("Error", {}).get("Code")
    return code


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
