"""Trained versions that all tests of a run share, because each takes seconds to train."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from tests.support.version_pairs import VersionPair, make_old, make_pair
from training.generator import generate
from training.train import train


class TrainedVersions:
    """Trains each version once, although pytest-xdist runs tests in several processes.

    Parameters
    ----------
    directory
        A directory that all these processes share.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._pairs: dict[str, VersionPair] = {}

    def bundle(self) -> Path:
        """Return the directory of a version that was trained on generated candidates."""
        storage = self._directory / "storage"
        with self._lock("bundle"):
            if not (version := storage / "placement" / "v1").exists():
                train(generate(500), storage=storage, estimator="forest-50")
        return version

    def pair(self, name: str) -> VersionPair:
        """Return a pair of versions by its name in `version_pairs.PAIRS`."""
        if name not in self._pairs:
            self._pairs[name] = self._make_pair(name)
        return self._pairs[name]

    def _make_pair(self, name: str) -> VersionPair:
        file = self._directory / f"{name}.json"
        with self._lock("old"):
            make_old(self._directory / "pairs")
        with self._lock(name):
            if file.exists():
                return VersionPair.from_json(file.read_text())
            pair = make_pair(name, self._directory / "pairs")
            file.write_text(pair.to_json())
            return pair

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        with (self._directory / f"{name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
