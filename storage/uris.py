"""Spellings of a version's URI: one to compare, and one to show."""

import os
from pathlib import Path

from storage.bundles import StorageError, local_path


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
