"""Where versions live: a local directory, a claim of the local runner, or S3-compatible storage.

A version is ``<storage>/<name>/<version>/`` with exactly two files; it exists once its ``bundle.json`` does.
Storage is named by a URI: a path, ``file:///path``, ``pvc://claim/path`` or ``s3://bucket/prefix``. S3 takes
its settings from the usual environment: ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``,
``AWS_DEFAULT_REGION`` and, for anything but AWS itself, ``AWS_ENDPOINT_URL`` (or KServe's ``S3_ENDPOINT``
with ``S3_USE_HTTPS``).
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from storage.places import LocalPlace, Place, S3Place, TakenError
from transformer.bundle.format import BUNDLE_FILE, MODEL_FILE, Bundle, file_sha256, parse_bundle

_NUMBERED = re.compile(r"v(\d+)")


class StorageError(Exception):
    """Storage that cannot be read or written; the message says which URI and what to do."""


class VersionExistsError(StorageError):
    """A version that is already there: versions are never overwritten."""


def local_path(uri: str | os.PathLike[str]) -> Path | None:
    """Local path that a URI stands for, or None where it stands for remote storage.

    ``pvc://claim/path`` is ``./claim/path``: the local runner keeps claims as directories beside it.

    Raises
    ------
    StorageError
        If the scheme is none of file, pvc and s3.
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
    """URI of a version, whether or not it exists."""
    return f"{_model_uri(storage, name)}/{version}"


def versions(storage: str | os.PathLike[str], name: str) -> list[str]:
    """Versions of a model that exist, oldest first where they are numbered."""
    uri = _model_uri(storage, name)
    with _told(uri):
        files = _place(uri).files()
    return sorted((f.split("/")[0] for f in files if f.endswith(f"/{BUNDLE_FILE}")), key=_age)


def next_version(storage: str | os.PathLike[str], name: str) -> str:
    """``v1``, or the number after the highest that is taken, even by an upload that never ended."""
    uri = _model_uri(storage, name)
    with _told(uri):
        taken = {file.split("/")[0] for file in _place(uri).files() if "/" in file}
    return f"v{max((_age(version)[0] for version in taken), default=0) + 1}"


def check_free(storage: str | os.PathLike[str], name: str, version: str) -> None:
    """Refuse a version that exists or that an interrupted upload left half written.

    Raises
    ------
    VersionExistsError
        Saying which of the two it is.
    """
    uri = version_uri(storage, name, version)
    with _told(uri):
        files = _place(uri).files()
    if BUNDLE_FILE in files:
        raise VersionExistsError(f"{uri}: this version exists; versions never change, write another one")
    if files:
        raise VersionExistsError(
            f"{uri}: holds {', '.join(sorted(files))} but no {BUNDLE_FILE}: its upload is under way or was "
            "interrupted; write another version, or remove these files first"
        )


def publish(bundle: Bundle, model: bytes, storage: str | os.PathLike[str]) -> str:
    """Write a version, all or nothing, and return its URI.

    Of several writers of the same version exactly one wins, and a writer killed at any moment leaves no
    version behind. (On S3 both need a server that honours ``If-None-Match``; AWS and MinIO do.)

    Raises
    ------
    VersionExistsError
        If the version exists or another writer was faster.
    StorageError
        If the storage cannot be written.
    """
    check_free(storage, bundle.name, bundle.version)
    uri = version_uri(storage, bundle.name, bundle.version)
    contents = {MODEL_FILE: model, BUNDLE_FILE: bundle.to_json().encode()}
    with _told(uri):
        try:
            _place(_model_uri(storage, bundle.name)).create(bundle.version, contents)
        except TakenError as error:
            raise VersionExistsError(f"{uri}: another writer has just taken this version") from error
    return uri


def put_beside(uri: str, suffix: str, content: bytes, media_type: str) -> str:
    """Write one file beside a version: ``…/v1`` and ``.html`` give ``…/v1.html``. Returns its URI."""
    model, _, version = uri.rpartition("/")
    with _told(uri + suffix):
        _place(model).replace(version + suffix, content, media_type)
    return uri + suffix


def read_bundle(uri: str | os.PathLike[str]) -> Bundle:
    """Read the bundle of a version from any storage.

    Raises
    ------
    StorageError
        If there is no version at `uri`.
    transformer.bundle.BundleError
        If its ``bundle.json`` cannot be used.
    """
    text = os.fspath(uri).rstrip("/")
    with _told(text):
        try:
            content = _place(text).read(BUNDLE_FILE)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StorageError(
                f"{text}: no version here, {BUNDLE_FILE} is missing; `placement train` prints a version's URI"
            ) from error
    return parse_bundle(content, f"{text}/{BUNDLE_FILE}")


def fetch(uri: str | os.PathLike[str], directory: str | os.PathLike[str]) -> Bundle:
    """Copy a version into a new or empty local directory, as KServe's storage initializer does.

    Raises
    ------
    StorageError
        If there is no version at `uri`, its model is not the one that its bundle names, or `directory` holds
        files already.
    """
    bundle, text, target = read_bundle(uri), os.fspath(uri).rstrip("/"), Path(directory)
    with _told(f"{text}: cannot be copied to {target}"):
        target.mkdir(parents=True, exist_ok=True)
        if any(target.iterdir()):
            raise StorageError(f"{target}: must be empty to take the version {text}")
        for file in (MODEL_FILE, BUNDLE_FILE):
            _place(text).download(file, target / file)
    found = file_sha256(target / MODEL_FILE)
    if found != bundle.model.sha256:
        raise StorageError(
            f"{text}/{MODEL_FILE}: SHA-256 is {found}, expected {bundle.model.sha256}: the file was changed"
        )
    return bundle


def _model_uri(storage: str | os.PathLike[str], name: str) -> str:
    return f"{(os.fspath(storage) or '.').rstrip('/')}/{name}"


def _place(uri: str) -> Place:
    path = local_path(uri)
    return S3Place(uri) if path is None else LocalPlace(path)


def _age(version: str) -> tuple[int, str]:
    numbered = _NUMBERED.fullmatch(version)
    return (int(numbered[1]) if numbered else 0, version)


@contextlib.contextmanager
def _told(uri: str) -> Iterator[None]:
    """Turn what the operating system or S3 says into one line that names the URI."""
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
