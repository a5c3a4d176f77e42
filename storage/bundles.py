"""Reading and writing of versions in storage: local directories, claims of the local runner, and S3.

A version is the directory ``<storage>/<name>/<version>/`` with exactly two files. It exists as soon as its
``bundle.json`` exists. `storage.uris` describes its URI. S3 is configured by the variables
``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_DEFAULT_REGION`` and, for other servers than AWS,
``AWS_ENDPOINT_URL`` (or KServe's ``S3_ENDPOINT`` with ``S3_USE_HTTPS``).
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from storage.directories import LocalDirectory, StorageDirectory, VersionTakenError
from storage.errors import StorageError, VersionExistsError
from storage.s3_directory import S3Directory
from storage.uris import local_path, model_uri, serving_uri, uri_beside, version_uri, without_slash
from transformer.bundle.deadline import Deadline, call_within
from transformer.bundle.format import BUNDLE_FILE, MODEL_FILE, Bundle, parse_bundle
from transformer.bundle.regular_file import MAX_BUNDLE_BYTES, MAX_MODEL_BYTES, READ_TIMEOUT_S, require_size

#: Seconds for copying a version, or for reading all of it.
COPY_TIMEOUT_S = 600.0

_NUMBERED = re.compile(r"v(\d+)")


def versions(storage: str | os.PathLike[str], name: str) -> list[str]:
    """Return the existing versions of a model: other names first, then numbered ones, oldest first."""
    uri = model_uri(storage, name)
    with _storage_errors(uri):
        files = _directory(uri).files()
    return sorted((f.split("/")[0] for f in files if f.endswith(f"/{BUNDLE_FILE}")), key=_number)


def local_models(storage: str | os.PathLike[str]) -> list[str]:
    """Return the names of the models with a version in a directory; none for other storage."""
    path = local_path(storage)
    return (
        [] if path is None else sorted({file.parts[-3] for file in path.glob(f"[!.]*/[!.]*/{BUNDLE_FILE}")})
    )


def next_version(storage: str | os.PathLike[str], name: str) -> str:
    """Return the next free number, ``v1`` at first; numbers of incomplete uploads are not reused."""
    uri = model_uri(storage, name)
    with _storage_errors(uri):
        taken = {file.split("/")[0] for file in _directory(uri).files() if "/" in file}
    return f"v{max((_number(version)[0] for version in taken), default=0) + 1}"


def check_free(storage: str | os.PathLike[str], name: str, version: str) -> None:
    """Raise VersionExistsError if a version exists, or an incomplete upload of it."""
    uri = version_uri(storage, name, version)
    with _storage_errors(uri):
        files = _directory(uri).files()
    if BUNDLE_FILE in files:
        raise VersionExistsError(f"{uri}: this version exists and cannot be overwritten; choose another name")
    if files:
        raise VersionExistsError(
            f"{uri}: holds {', '.join(sorted(files))} but no {BUNDLE_FILE}: its upload is in progress or was "
            "interrupted; choose another name, or remove these files"
        )


def publish(bundle: Bundle, model: bytes, storage: str | os.PathLike[str]) -> str:
    """Write a version atomically, and return its `serving_uri`.

    If several writers write the same version, exactly one succeeds. A writer that is killed leaves no version
    behind. (On S3 both need a server that supports ``If-None-Match``, such as AWS and MinIO.)

    Raises
    ------
    VersionExistsError
        If the version exists, or another writer creates it first.
    StorageError
        If the storage cannot be written, or a file exceeds its limit.
    transformer.bundle.format.BundleError
        If the bundle has too many values to be read again.
    """
    check_free(storage, bundle.name, bundle.version)
    uri = version_uri(storage, bundle.name, bundle.version)
    contents = {MODEL_FILE: model, BUNDLE_FILE: bundle.to_json().encode()}
    for file, limit in ((MODEL_FILE, MAX_MODEL_BYTES), (BUNDLE_FILE, MAX_BUNDLE_BYTES)):
        with _storage_errors(f"{uri}/{file}"):
            require_size(len(contents[file]), limit)
    parse_bundle(contents[BUNDLE_FILE], f"{uri}/{BUNDLE_FILE}")
    with _storage_errors(uri):
        try:
            _directory(model_uri(storage, bundle.name)).create(bundle.version, contents)
        except VersionTakenError as error:
            raise VersionExistsError(
                f"{uri}: another writer has created this version just now; choose another name"
            ) from error
    return serving_uri(uri)


def write_beside(uri: str, suffix: str, content: bytes, media_type: str) -> str:
    """Write a file beside a version, and return its URI; see `uri_beside`."""
    file = uri_beside(uri, suffix)
    model, _, name = file.rpartition("/")
    with _storage_errors(file):
        _directory(model).replace(name, content, media_type)
    return file


def read_bundle(uri: str | os.PathLike[str]) -> Bundle:
    """Read the bundle of a version from any storage, without checking its model.

    Raises
    ------
    StorageError
        If there is no version at `uri`, or it cannot be read in time.
    transformer.bundle.format.BundleError
        If its ``bundle.json`` is invalid.
    """
    text = without_slash(uri)
    with _storage_errors(text):
        content = call_within(READ_TIMEOUT_S, lambda deadline: _read_bundle_file(text, deadline))
    return _parse(content, text)


def check(uri: str | os.PathLike[str], deadline: Deadline) -> Bundle:
    """Read the bundle of a version, and check the digest of its model; write nothing.

    May block after the deadline if the storage does not answer: call it in a thread.

    Raises
    ------
    StorageError
        If there is no version at `uri`, it cannot be read in time, or the model's digest is not that in the
        bundle.
    """
    text = without_slash(uri)
    bundle = _parse(_read_bundle_file(text, deadline), text)
    digest = hashlib.sha256()
    for chunk in _model_chunks(text, deadline):
        digest.update(chunk)
    _require_digest(text, digest.hexdigest(), bundle)
    return bundle


def fetch(
    uri: str | os.PathLike[str], directory: str | os.PathLike[str], deadline: Deadline | None = None
) -> Bundle:
    """Copy a version into a new or empty local directory, as KServe's storage initializer does.

    The digest is that of the copy, so a later change in the storage does not change what is loaded.

    Parameters
    ----------
    deadline
        Time limit for a caller that has a thread for this call; without one, a new thread copies the version.

    Raises
    ------
    StorageError
        If there is no version at `uri`, it cannot be copied in time, the model's digest is not that in the
        bundle, or `directory` is not empty.
    """
    text, target = without_slash(uri), Path(directory)
    if deadline is None:
        with _storage_errors(text):
            return call_within(COPY_TIMEOUT_S, lambda new: fetch(text, target, new))
    content = _read_bundle_file(text, deadline)
    bundle = _parse(content, text)
    with _storage_errors(f"{text}: cannot be copied to {target}"):
        deadline.check()
        target.mkdir(parents=True, exist_ok=True)
        if any(target.iterdir()):
            raise StorageError(f"{target}: must be empty for a copy of the version {text}")
        digest = hashlib.sha256()
        with (target / MODEL_FILE).open("xb") as copy:
            for chunk in _model_chunks(text, deadline):
                digest.update(chunk)
                copy.write(chunk)
        _require_digest(text, digest.hexdigest(), bundle)
        # The content that was checked, and not what the storage holds now.
        (target / BUNDLE_FILE).write_bytes(content)
    return bundle


def _read_bundle_file(uri: str, deadline: Deadline) -> bytes:
    with _storage_errors(f"{uri}/{BUNDLE_FILE}"):
        try:
            return b"".join(_directory(uri).read_chunks(BUNDLE_FILE, MAX_BUNDLE_BYTES, deadline))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StorageError(
                f"{uri}: no version here, {BUNDLE_FILE} is missing; use a URI that `placement train` printed"
            ) from error


def _parse(content: bytes, uri: str) -> Bundle:
    return parse_bundle(content, f"{uri}/{BUNDLE_FILE}")


def _model_chunks(uri: str, deadline: Deadline) -> Iterator[bytes]:
    with _storage_errors(f"{uri}/{MODEL_FILE}"):
        try:
            yield from _directory(uri).read_chunks(MODEL_FILE, MAX_MODEL_BYTES, deadline)
        except FileNotFoundError as error:
            raise StorageError(
                f"{uri}/{MODEL_FILE}: is missing; restore it, or write a new version with `placement train`"
            ) from error


def _require_digest(uri: str, found: str, bundle: Bundle) -> None:
    if found != bundle.model.sha256:
        raise StorageError(
            f"{uri}/{MODEL_FILE}: SHA-256 is {found}, expected {bundle.model.sha256}: the file was changed; "
            "restore it, or write a new version with `placement train`"
        )


def _directory(uri: str) -> StorageDirectory:
    path = local_path(uri)
    return S3Directory(uri) if path is None else LocalDirectory(path)


def _number(version: str) -> tuple[int, str]:
    numbered = _NUMBERED.fullmatch(version)
    return (int(numbered[1]) if numbered else 0, version)


@contextlib.contextmanager
def _storage_errors(uri: str) -> Iterator[None]:
    """Convert errors of the operating system and of S3 to a StorageError that names the URI."""
    try:
        yield
    except TimeoutError as error:
        reason = error.strerror or str(error) or "no answer in time"
        raise StorageError(f"{uri}: {reason}; check that the storage answers, then try again") from error
    except PermissionError as error:
        raise StorageError(
            f"{uri}: {error.strerror} for user {os.geteuid()}; change its owner or its permissions"
        ) from error
    except OSError as error:
        raise StorageError(f"{uri}: {error.strerror or error}") from error
    except ValueError as error:
        # A null character, or a surrogate.
        raise StorageError(f"{uri!a}: {error}; use a URI that `placement train` printed") from error
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("botocore", "aiobotocore", "aiohttp"):
            raise
        raise StorageError(
            f"{uri}: {error}; set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL"
        ) from error
