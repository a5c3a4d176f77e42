"""URIs of storages and versions.

The URI of a storage is a path, ``file:///path``, ``pvc://claim/path`` or ``s3://bucket/prefix``.
"""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from storage.errors import StorageError


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


def unsupported_scheme(uri: str) -> str | None:
    """Return an error message if the scheme of a URI is not supported, else None."""
    try:
        local_path(uri)
    except StorageError as error:
        return f"{error}; copy the bundle there, or name one with --model"
    return None


def version_uri(storage: str | os.PathLike[str], name: str, version: str) -> str:
    """Return the URI of a version, which need not exist."""
    return f"{model_uri(storage, name)}/{version}"


def serving_uri(uri: str | os.PathLike[str]) -> str:
    """Return the URI of a version for a spec: with a slash at the end for S3, without one for other storage.

    KServe downloads every object whose key begins with the path of an s3:// URI. Without the slash, the
    objects of ``…/v1`` include ``…/v1.html`` and ``…/v10/model.joblib``.
    """
    text = without_slash(uri)
    return f"{text}/" if text.startswith("s3://") else text


def model_uri(storage: str | os.PathLike[str], name: str) -> str:
    """Return the URI of a model's versions."""
    return f"{(os.fspath(storage) or '.').rstrip('/')}/{name}"


def uri_beside(uri: str | os.PathLike[str], suffix: str) -> str:
    """Return the URI of a file beside a version: ``…/v1.html`` for ``…/v1`` and the suffix ``.html``."""
    return without_slash(uri) + suffix


def version_uri_beside(uri: str, version: str) -> str:
    """Return the URI of another version of a version's model."""
    return f"{uri.rstrip('/').rpartition('/')[0]}/{version}"


def canonical(uri: str) -> str:
    """Return the same text for all spellings of a URI: an absolute path, or a remote URI without slash.

    A URI that no storage has, and an empty text, are returned as they are; reading them is an error.
    """
    if not uri:
        return uri
    try:
        path = local_path(uri)
        return uri.rstrip("/") if path is None else os.path.realpath(path)
    except (StorageError, ValueError):
        return uri


def shown(uri: str) -> str:
    """Return a URI as people type it: a local one as a path, relative if it is below this directory."""
    path = canonical(uri)
    here = f"{Path.cwd()}/"
    return path.removeprefix(here) if path.startswith(here) else path


def without_slash(uri: str | os.PathLike[str]) -> str:
    """Return a URI as a text without slashes at its end."""
    return os.fspath(uri).rstrip("/")
