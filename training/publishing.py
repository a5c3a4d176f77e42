"""Publish a fitted model as the next version of a model in storage."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from storage.bundles import check_free, next_version, publish, read_bundle
from storage.errors import StorageError, VersionExistsError
from storage.uris import local_path
from training.bundling import FittedModel, dump, make_bundle
from transformer.bundle.format import MAX_PREVIOUS, NAME_PATTERN, VERSION_PATTERN, Bundle, Version
from transformer.bundle.plain_errors import first_problem


class TrainingError(Exception):
    """Invalid arguments for a new version; the message says what to change."""


@dataclass(frozen=True)
class Place:
    """Place of a new version in storage.

    Attributes
    ----------
    version
        Name of the version; None for the next number.
    replaced
        Bundle of the version that the new one will replace; None for a first version.
    """

    storage: str | os.PathLike[str]
    name: str
    version: str | None
    replaced: Bundle | None

    @classmethod
    def checked(
        cls, storage: str | os.PathLike[str], name: str, version: str | None, previous: str | None
    ) -> "Place":
        """Check a place before the work for it begins.

        Parameters
        ----------
        previous
            URI of the version that the new one will replace.

        Raises
        ------
        TrainingError
            If `previous` is a version of another model, or the new version has the name of an earlier one.
        storage.errors.StorageError, transformer.bundle.BundleError
            If the storage cannot be written, or `previous` cannot be read.
        """
        _check_storage(storage, name, version)
        place = cls(storage, name, version, None if previous is None else _read_replaced(previous, name))
        if version in {one.version for one in place.earlier}:
            raise TrainingError(f"version {version!r} is the name of an earlier version, expected a new one")
        return place

    @property
    def earlier(self) -> tuple[Version, ...]:
        """Earlier versions that the new bundle describes, newest first."""
        if self.replaced is None:
            return ()
        return (self.replaced.as_previous(), *self.replaced.previous)[:MAX_PREVIOUS]

    def next_version(self) -> str:
        """Return the name of the version: the given one, or the next number that is free."""
        return self.version or _next_version(self.storage, self.name, self.earlier)

    def publish(self, fitted: FittedModel) -> tuple[str, Bundle]:
        """Write the version, and return its URI and its bundle.

        Raises
        ------
        TrainingError
            If the model answers another kind of question than an earlier version.
        storage.errors.StorageError
            If the version exists, or the storage cannot be written.
        """
        model = dump(fitted.served.model)
        while True:
            version = self.next_version()
            try:
                bundle = make_bundle(fitted, self.name, version, model, self.earlier)
            except ValidationError as error:
                # An earlier version that answers another kind of question.
                raise TrainingError(first_problem(error, f"{self.name}/{version}")) from error
            try:
                return publish(bundle, model, self.storage), bundle
            except VersionExistsError:
                if self.version is not None:
                    raise
                # Another writer has used this number.

    def notes(self, bundle: Bundle) -> tuple[str, ...]:
        """Return what to know about the new version and the one that it replaces, a sentence each."""
        if self.replaced is None or self.replaced.model.sha256 != bundle.model.sha256:
            return ()
        return (f"the model is that of {self.replaced.version}: answers cannot tell the two versions apart",)


def _read_replaced(uri: str, name: str) -> Bundle:
    """Read the bundle of the version that a new one will replace.

    Raises
    ------
    TrainingError
        If the URI is a version of another model.
    """
    bundle = read_bundle(uri)
    if bundle.name != name:
        raise TrainingError(
            f"{uri}: is a version of {bundle.name!r}, expected a version of {name!r}; the next version of "
            f"{bundle.name!r} needs its own task, data and name"
        )
    return bundle


def _next_version(storage: str | os.PathLike[str], name: str, earlier: tuple[Version, ...]) -> str:
    """Return the next number that is free in the storage and not used by an earlier version."""
    numbers = [int(v.version[1:]) for v in earlier if re.fullmatch(r"v\d+", v.version)]
    following = f"v{max(numbers, default=0) + 1}"
    return max(next_version(storage, name), following, key=lambda text: int(text[1:]))


def check_names(name: str, version: str | None) -> None:
    """Raise TrainingError if the name of a model or of a version is invalid."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise TrainingError(f"name {name!r} must be letters, digits, - and _, and begin with a letter")
    if version is not None and not re.fullmatch(VERSION_PATTERN, version):
        raise TrainingError(
            f"version {version!r} must be letters, digits, -, _ and ., and begin with a letter or digit"
        )


def _check_storage(storage: str | os.PathLike[str], name: str, version: str | None) -> None:
    """Check that the version can be written, before the model is fitted."""
    if version is None:
        next_version(storage, name)
    else:
        check_free(storage, name, version)
    path = local_path(storage)
    if path is not None:
        _check_writable(path / name)


def _check_writable(directory: Path) -> None:
    # A missing directory will be created in its nearest existing parent.
    try:
        existing = next(place for place in (directory, *directory.absolute().parents) if place.exists())
    except OSError as error:
        raise StorageError(f"{directory}: {error.strerror}") from error
    if not existing.is_dir():
        raise StorageError(f"{directory}: {existing} is not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise StorageError(f"{directory}: {existing} cannot be written to")
