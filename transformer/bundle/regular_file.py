"""Reading of regular files of bounded size.

A bundle's file may be anything on a shared storage: a FIFO that nothing writes to, a device without an end, a
sparse file of terabytes. Opening one of these never blocks here, and no more than the limit is read.
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from transformer.bundle.deadline import Deadline, call_within

#: Maximum size of a `bundle.json`; one with 15 fields and three earlier versions has 0.1 MB.
MAX_BUNDLE_BYTES = 16 * 2**20
#: Maximum size of a bundle's model file: the memory limit of the predictor in the manifests.
MAX_MODEL_BYTES = 2 * 2**30
#: Seconds for reading one small file.
READ_TIMEOUT_S = 30.0

_CHUNK_BYTES = 2**20
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
}


def read_chunks(path: str | os.PathLike[str], limit: int, deadline: Deadline) -> Iterator[bytes]:
    """Yield the content of a file in parts.

    Raises
    ------
    OSError
        If it cannot be read, is not a regular file, or has more than `limit` bytes.
    TimeoutError
        If it is not read before the deadline.
    """
    _require_regular(Path(path).stat())
    # The file may be exchanged after the check. Without O_NONBLOCK, opening a FIFO waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        _require_regular(status)
        require_size(status.st_size, limit)
        total = 0
        while chunk := file.read(_CHUNK_BYTES):
            total += len(chunk)
            require_size(total, limit)
            deadline.check()
            yield chunk


def read_file(
    path: str | os.PathLike[str], limit: int = MAX_BUNDLE_BYTES, timeout_s: float = READ_TIMEOUT_S
) -> bytes:
    """Return the content of a small file; see `read_chunks` for the errors."""
    return call_within(timeout_s, lambda deadline: b"".join(read_chunks(path, limit, deadline)))


def read_text(path: Path, limit: int) -> str:
    """Return the content of a small UTF-8 file; see `read_chunks` for the errors."""
    return read_file(path, limit).decode()


def require_size(size: int, limit: int) -> None:
    """Raise OSError if a file has more bytes than the limit."""
    if size > limit:
        raise OSError(errno.EFBIG, f"is too large: limit {limit} bytes, got at least {size}")


def _require_regular(status: os.stat_result) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise OSError(errno.EINVAL, f"must be a regular file, got {_KINDS.get(kind, 'a special file')}")
