"""Reading and writing of versions in storage: local directories, claims of the local runner, and S3.

A version is the directory ``<storage>/<name>/<version>/`` with exactly two files. It exists as soon as its
``bundle.json`` exists. The URI of a storage is a path, ``file:///path``, ``pvc://claim/path`` or
``s3://bucket/prefix``. S3 is configured by the variables ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``,
``AWS_DEFAULT_REGION`` and, for other servers than AWS, ``AWS_ENDPOINT_URL`` (or KServe's ``S3_ENDPOINT`` with
``S3_USE_HTTPS``).
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from storage.directories import LocalDirectory, S3Directory, StorageDirectory, VersionTakenError
from transformer.bundle.format import BUNDLE_FILE, MODEL_FILE, Bundle, file_sha256, parse_bundle

_NUMBERED = re.compile(r"v(\d+)")


class StorageError(Exception):
    """A storage cannot be read or written; the message names the URI and says what to do."""


class VersionExistsError(StorageError):
    """The version exists already; versions are never overwritten."""


def local_path(uri: str | os.PathLike[str]) -> Path | None:
    """Return the local path of a URI, or None for remote storage.

    ``pvc://claim/path`` is ``./claim/path``: the local runner keeps claims in its working directory.

    Raises
    ------
    StorageError
        If the scheme is not file, pvc or s3.
    """
    text = os.fspath(uri)
    if "://" not in text:
        return Path(text)
    parts = urlsplit(text)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    if parts.scheme == "pvc":
        return Path(parts.netloc, unquote(parts.path).lstrip("/"))
    if parts.scheme == "s3":
        return None
    raise StorageError(f"{text}: scheme {parts.scheme!r} is not supported, expected a path, file, pvc or s3")


def version_uri(storage: str | os.PathLike[str], name: str, version: str) -> str:
    """Return the URI of a version, which need not exist."""
    return f"{_model_uri(storage, name)}/{version}"


def versions(storage: str | os.PathLike[str], name: str) -> list[str]:
    """Return the existing versions of a model: other names first, then numbered ones, oldest first."""
    uri = _model_uri(storage, name)
    with _storage_errors(uri):
        files = _directory(uri).files()
    return sorted((f.split("/")[0] for f in files if f.endswith(f"/{BUNDLE_FILE}")), key=_number)


def next_version(storage: str | os.PathLike[str], name: str) -> str:
    """Return the next free number, ``v1`` at first; numbers of incomplete uploads are not reused."""
    uri = _model_uri(storage, name)
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
    """Write a version atomically, and return its URI.

    If several writers write the same version, exactly one succeeds. A writer that is killed leaves no version
    behind. (On S3 both need a server that supports ``If-None-Match``, such as AWS and MinIO.)

    Raises
    ------
    VersionExistsError
        If the version exists, or another writer creates it first.
    StorageError
        If the storage cannot be written.
    """
    check_free(storage, bundle.name, bundle.version)
    uri = version_uri(storage, bundle.name, bundle.version)
    contents = {MODEL_FILE: model, BUNDLE_FILE: bundle.to_json().encode()}
    with _storage_errors(uri):
        try:
            _directory(_model_uri(storage, bundle.name)).create(bundle.version, contents)
        except VersionTakenError as error:
            raise VersionExistsError(
                f"{uri}: another writer has created this version just now; choose another name"
            ) from error
    return uri


def write_beside(uri: str, suffix: str, content: bytes, media_type: str) -> str:
    """Write a file beside a version, ``…/v1.html`` for ``…/v1`` and the suffix ``.html``; return its URI."""
    model, _, version = uri.rpartition("/")
    with _storage_errors(uri + suffix):
        _directory(model).replace(version + suffix, content, media_type)
    return uri + suffix


def read_bundle(uri: str | os.PathLike[str]) -> Bundle:
    """Read the bundle of a version from any storage.

    Raises
    ------
    StorageError
        If there is no version at `uri`.
    transformer.bundle.format.BundleError
        If its ``bundle.json`` is invalid.
    """
    text = os.fspath(uri).rstrip("/")
    with _storage_errors(text):
        try:
            content = _directory(text).read(BUNDLE_FILE)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StorageError(
                f"{text}: no version here, {BUNDLE_FILE} is missing; use a URI that `placement train` printed"
            ) from error
    return parse_bundle(content, f"{text}/{BUNDLE_FILE}")


def fetch(uri: str | os.PathLike[str], directory: str | os.PathLike[str]) -> Bundle:
    """Copy a version into a new or empty local directory, as KServe's storage initializer does.

    Raises
    ------
    StorageError
        If there is no version at `uri`, the model's digest is not that in the bundle, or `directory` is not
        empty.
    """
    bundle, text, target = read_bundle(uri), os.fspath(uri).rstrip("/"), Path(directory)
    with _storage_errors(f"{text}: cannot be copied to {target}"):
        target.mkdir(parents=True, exist_ok=True)
        if any(target.iterdir()):
            raise StorageError(f"{target}: must be empty for a copy of the version {text}")
        for file in (MODEL_FILE, BUNDLE_FILE):
            _directory(text).download(file, target / file)
    found = file_sha256(target / MODEL_FILE)
    if found != bundle.model.sha256:
        raise StorageError(
            f"{text}/{MODEL_FILE}: SHA-256 is {found}, expected {bundle.model.sha256}: the file was changed; "
            "restore it, or write a new version with `placement train`"
        )
    return bundle


def _model_uri(storage: str | os.PathLike[str], name: str) -> str:
    return f"{(os.fspath(storage) or '.').rstrip('/')}/{name}"


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
    except OSError as error:
        raise StorageError(f"{uri}: {error.strerror or error}") from error
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("botocore", "aiohttp"):
            raise
        raise StorageError(
            f"{uri}: {error}; set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL"
        ) from error
