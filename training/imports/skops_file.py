"""Files of skops: a zip archive of JSON and arrays, which skops reads without running code."""

import io
import json
import sys
import zipfile
from collections.abc import Iterator
from typing import Any

from training.imports.pickles import Global, Scan

_SCHEMA = "schema.json"
_VERSION_KEY = "_sklearn_version"


class SkopsError(Exception):
    """A zip archive that is no file of skops, or skops is not installed; the message says what to do."""


def scan(content: bytes) -> Scan:
    """List the names of a file that skops does not know as data, and its versions of scikit-learn.

    Raises
    ------
    SkopsError
        If it is no file of skops.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            schema = json.loads(archive.read(_SCHEMA))
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise SkopsError(f"is a zip archive, but no file of skops: {error}") from error
    names = {_split(name) for name in _io().get_untrusted_types(data=content)}
    return Scan(names, set(_versions(schema)))


def load(content: bytes) -> Any:  # noqa: ANN401 (any object)
    """Load a file whose names were checked."""
    return _io().loads(content, trusted=_io().get_untrusted_types(data=content))


def _io() -> Any:  # noqa: ANN401
    try:
        import skops.io
    except ImportError as error:
        command = f"{sys.executable} -m pip install 'placement[skops]'"
        raise SkopsError(f"is a file of skops; install it first: {command}") from error
    return skops.io


def _split(name: str) -> Global:
    module, _, own = name.rpartition(".")
    return module, own


def _versions(node: Any) -> Iterator[str]:  # noqa: ANN401
    if isinstance(node, dict):
        version = node.get(_VERSION_KEY)
        if isinstance(version, dict) and isinstance(text := version.get("content"), str):
            yield str(json.loads(text))
        for part in node.values():
            yield from _versions(part)
    elif isinstance(node, list):
        for part in node:
            yield from _versions(part)
