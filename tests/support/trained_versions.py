"""Trained versions that tests share: each is trained once, since that takes seconds."""

import contextlib
import fcntl
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.version_pairs import VersionPair, train_new, train_old, train_single

#: A change of one of these changes the versions.
_SOURCES = ("training", "storage", "transformer/bundle", "tests/support/version_pairs.py")
_LIBRARIES = ("scikit-learn", "numpy", "pandas", "joblib", "pydantic")


def digest_of_sources() -> str:
    """Return a digest of all that decides about the versions' content."""
    digest = hashlib.sha256(sys.version.encode())
    for library in _LIBRARIES:
        digest.update(f"{library} {version(library)}".encode())
    for name in _SOURCES:
        path = ROOT / name
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.suffix in {".py", ".json", ".css"}:
                digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


class TrainedVersions:
    """Versions in a directory of this run, copied from a cache that outlasts it.

    Processes of pytest-xdist share both directories. Tests get copies, so none can damage the cache.

    Parameters
    ----------
    cache
        Holds the versions of one digest of the sources.
    directory
        Holds the copies of this run.
    """

    def __init__(self, cache: Path, directory: Path) -> None:
        self._cache = cache
        self._directory = directory
        self._pairs: dict[str, VersionPair] = {}

    def bundle(self) -> Path:
        """Return the directory of a version that was trained on generated candidates."""
        return self._get("single", train_single) / "placement" / "v1"

    def pair(self, name: str) -> VersionPair:
        """Return a pair of versions by its name in `version_pairs.PAIRS`."""
        if name not in self._pairs:
            old = self._get("old", train_old) / "placement" / "v1"
            new = self._get(name, lambda storage: train_new(name, old, storage))
            self._pairs[name] = VersionPair.read(name, old, new)
        return self._pairs[name]

    def _get(self, name: str, train: Callable[[Path], object]) -> Path:
        """Return this run's copy of a storage, which is trained if the cache does not have it."""
        with _lock(self._directory / f"{name}.lock"):
            copy = self._directory / name
            if not copy.exists():
                _install(copy, lambda target: shutil.copytree(self._cached(name, train), target))
        return copy

    def _cached(self, name: str, train: Callable[[Path], object]) -> Path:
        with _lock(self._cache / f"{name}.lock"):
            storage = self._cache / name
            if not storage.exists():
                _install(storage, train)
        return storage


def _install(directory: Path, fill: Callable[[Path], object]) -> None:
    """Create a directory as a whole, or not at all."""
    with tempfile.TemporaryDirectory(dir=directory.parent) as temporary:
        fill(Path(temporary) / "content")
        (Path(temporary) / "content").rename(directory)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
