"""Publishing of a version that has passed the gate."""

import tempfile
from pathlib import Path

from storage.bundles import fetch, publish, read_bundle, versions, write_beside
from storage.errors import VersionExistsError
from storage.uris import serving_uri, version_uri
from transformer.bundle.format import MODEL_FILE


def publish_version(uri: str, report: str, storage: str) -> str:
    """Copy a version and its report to the storage, and return its URI there; doing so again changes nothing.

    Raises
    ------
    storage.errors.StorageError
        If the storage cannot be written, or has another version of this name.
    """
    with tempfile.TemporaryDirectory() as directory:
        bundle = fetch(uri, directory)
        published = version_uri(storage, bundle.name, bundle.version)
        try:
            publish(bundle, (Path(directory) / MODEL_FILE).read_bytes(), storage)
        except VersionExistsError:
            if bundle.version not in versions(storage, bundle.name) or read_bundle(published) != bundle:
                raise
    write_beside(published, ".html", Path(report).read_bytes(), "text/html; charset=utf-8")
    return serving_uri(published)
