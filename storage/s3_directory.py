"""Prefixes of S3 buckets as storage directories; every call has a time limit, every response a size limit."""

import errno
import os
from collections.abc import Iterator, Mapping
from typing import Any

from storage.directories import VersionTakenError
from transformer.bundle.deadline import Deadline
from transformer.bundle.regular_file import require_size

#: Seconds for one call that transfers no file.
CALL_TIMEOUT_S = 40.0
#: Seconds for writing one file.
WRITE_TIMEOUT_S = 600.0
#: Maximum pages of a listing; a page has 1000 files, and a version two.
MAX_PAGES = 100
#: Attempts without progress to read a file whose connection breaks; each continues where the last one ended.
READ_ATTEMPTS = 3

_CHUNK_BYTES = 2**20


class S3Directory:
    """A prefix of an S3 bucket; see `StorageDirectory`."""

    def __init__(self, prefix: str) -> None:
        # Takes half a second, so only S3 storage imports it.
        import s3fs

        from storage.s3_session import client_config

        self._bucket, _, self._prefix = prefix.removeprefix("s3://").partition("/")
        self._s3: Any = s3fs.S3FileSystem(
            endpoint_url=_s3_endpoint(), use_listings_cache=False, config_kwargs=client_config()
        )
        self._s3.retries = 2

    def files(self) -> set[str]:
        """See `StorageDirectory`."""
        deadline = Deadline(CALL_TIMEOUT_S)
        prefix = self._key("")
        found: set[str] = set()
        page: dict[str, str] = {}
        for _ in range(MAX_PAGES):
            answer = self._call("list_objects_v2", deadline, Prefix=prefix, **page)
            files = (one["Key"].removeprefix(prefix) for one in answer.get("Contents", ()))
            found.update(file for file in files if file[-1:] != "/" and file.count("/") <= 1)
            if not answer.get("IsTruncated"):
                return found
            page = {"ContinuationToken": answer.get("NextContinuationToken", "")}
        raise OSError(errno.EFBIG, f"the listing does not end: limit {MAX_PAGES} pages of files")

    def read_chunks(self, file: str, limit: int, deadline: Deadline) -> Iterator[bytes]:
        """See `StorageDirectory`. Continues after a broken connection."""
        read = read_before = attempts = 0
        complete = False
        condition: dict[str, str] = {}
        while not complete:
            part = {"Range": f"bytes={read}-"} if read else {}
            try:
                answer = self._call("get_object", deadline, Key=self._key(file), **part, **condition)
                require_size(read + answer.get("ContentLength", 0), limit)
                condition = {"IfMatch": answer["ETag"]} if "ETag" in answer else {}
                for chunk in self._body_chunks(answer["Body"], deadline):
                    read += len(chunk)
                    require_size(read, limit)
                    yield chunk
                complete = True
            except _interruptions():
                attempts = 1 if read > read_before else attempts + 1
                read_before = read
                # Without the condition, the rest could be that of another file.
                if attempts == READ_ATTEMPTS or (read and not condition):
                    raise

    def create(self, version: str, contents: Mapping[str, bytes]) -> None:
        """See `StorageDirectory`. The writer of the first object wins; the last one completes it."""
        for file, content in contents.items():
            path = f"{self._bucket}/{self._key(version)}/{file}"
            try:
                self._s3.pipe_file(path, content, mode="create", timeout=WRITE_TIMEOUT_S)
            except OSError as error:
                if _s3_code(error) in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
                    raise VersionTakenError(path) from error
                if error.errno != errno.ENOSYS:
                    raise
                # A server without conditional writes.
                self._s3.pipe_file(path, content, timeout=WRITE_TIMEOUT_S)

    def replace(self, file: str, content: bytes, media_type: str) -> None:
        """See `StorageDirectory`."""
        path = f"{self._bucket}/{self._key(file)}"
        self._s3.pipe_file(path, content, ContentType=media_type, timeout=WRITE_TIMEOUT_S)

    def _key(self, file: str) -> str:
        return f"{self._prefix}/{file}" if self._prefix else file

    def _call(self, operation: str, deadline: Deadline, **arguments: str) -> dict[str, Any]:
        deadline.check()
        timeout_s = min(deadline.left_s, CALL_TIMEOUT_S)
        answer: dict[str, Any] = self._s3.call_s3(
            operation, Bucket=self._bucket, timeout=timeout_s, **arguments
        )
        return answer

    def _body_chunks(self, body: Any, deadline: Deadline) -> Iterator[bytes]:  # noqa: ANN401 (aiobotocore's)
        from fsspec.asyn import sync

        async def read() -> bytes:
            chunk = bytearray()
            while len(chunk) < _CHUNK_BYTES and (part := await body.read(_CHUNK_BYTES - len(chunk))):
                chunk += part
            return bytes(chunk)

        async def close() -> None:
            body.close()

        try:
            while True:
                deadline.check()
                chunk: bytes = sync(self._s3.loop, read, timeout=deadline.left_s)
                if not chunk:
                    return
                yield chunk
        finally:
            # The body belongs to the thread of the loop.
            sync(self._s3.loop, close)


def _interruptions() -> tuple[type[Exception], ...]:
    """Return the errors of a connection that broke while a file was read."""
    import aiohttp
    from botocore.exceptions import HTTPClientError, IncompleteReadError

    return (aiohttp.ClientPayloadError, ConnectionError, HTTPClientError, IncompleteReadError)


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
