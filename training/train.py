"""From candidates to a version in storage: encode, choose, fit, evaluate, bundle, write."""

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from storage.bundles import (
    StorageError,
    VersionExistsError,
    check_free,
    local_path,
    next_version,
    publish,
    read_bundle,
    write_beside,
)
from training.bundling import dump, make_bundle
from training.data import DataError, Dataset
from training.fitting import fit
from training.report import render
from training.selection import AUTO, FOLDS, Progress, candidates_for
from transformer.bundle.format import MAX_PREVIOUS, NAME_PATTERN, VERSION_PATTERN, Bundle, Version

#: Fewer of one class leave too few in each fold to tell anything.
MIN_PER_CLASS = 2 * FOLDS


class TrainingError(Exception):
    """Training that cannot begin; the message says what to change."""


@dataclass(frozen=True)
class Trained:
    """A version that has been written.

    Attributes
    ----------
    uri
        The version's URI, for ``storageUri``.
    report
        URI of its report, an HTML file beside the version.
    """

    uri: str
    report: str
    bundle: Bundle


def train(
    dataset: Dataset,
    *,
    storage: str | os.PathLike[str],
    name: str = "placement",
    version: str | None = None,
    previous: str | None = None,
    estimator: str = AUTO,
    progress: Progress = lambda _: None,
) -> Trained:
    """Train on a dataset and write the version with its report.

    The same data and estimator give the same files, but for the time of creation.

    Parameters
    ----------
    storage
        Where versions live, see `storage.bundles`.
    version
        Name of the version; by default the next number.
    previous
        URI of the version that this one is to replace. The new bundle remembers it and what it remembers.
    estimator
        A name of `training.estimators.ESTIMATORS`, or ``auto``.
    progress
        Is called with one line for each step.

    Raises
    ------
    TrainingError
        If a name is not allowed or `previous` is another model.
    DataError
        If one class has too few candidates.
    UnknownEstimatorError, storage.bundles.StorageError, transformer.bundle.BundleError
        For an unknown estimator, for storage that cannot be used, and for a `previous` that cannot be read.
    """
    _check_names(name, version)
    candidates_for(estimator, len(dataset.labels))
    _check_classes(dataset)
    _check_storage(storage, name, version)
    known = remembered(previous, name)
    if version in {earlier.version for earlier in known}:
        raise TrainingError(f"version {version!r} is the name of an earlier version, expected a new one")
    fitted = fit(dataset, estimator, progress)
    model = dump(fitted.model)
    while True:
        bundle = make_bundle(fitted, name, version or _next(storage, name, known), model, known)
        html = render(bundle, fitted)
        try:
            uri = publish(bundle, model, storage)
        except VersionExistsError:
            if version is not None:
                raise
            continue  # another writer took the number in the meantime
        break
    progress(f"wrote {uri}")
    report = write_beside(uri, ".html", html.encode(), "text/html; charset=utf-8")
    progress(f"wrote {report}")
    return Trained(uri, report, bundle)


def remembered(uri: str | None, name: str) -> tuple[Version, ...]:
    """Versions that a bundle remembers whose `previous` is at `uri`: that one, and those that it remembers.

    Raises
    ------
    TrainingError
        If it is a version of another model.
    """
    if uri is None:
        return ()
    bundle = read_bundle(uri)
    if bundle.name != name:
        raise TrainingError(f"{uri}: is a version of {bundle.name!r}, expected one of {name!r}")
    return (bundle.as_previous(), *bundle.previous)[:MAX_PREVIOUS]


def _next(storage: str | os.PathLike[str], name: str, known: tuple[Version, ...]) -> str:
    """The next number, of this storage and of the versions that are remembered from another one."""
    numbers = [int(v.version[1:]) for v in known if re.fullmatch(r"v\d+", v.version)]
    following = f"v{max(numbers, default=0) + 1}"
    return max(next_version(storage, name), following, key=lambda text: int(text[1:]))


def _check_names(name: str, version: str | None) -> None:
    if not re.fullmatch(NAME_PATTERN, name):
        raise TrainingError(f"name {name!r} must be letters, digits, - and _, a letter first")
    if version is not None and not re.fullmatch(VERSION_PATTERN, version):
        raise TrainingError(f"version {version!r} must be letters, digits, -, _ and ., no sign first")


def _check_storage(storage: str | os.PathLike[str], name: str, version: str | None) -> None:
    """Refuse storage that could not take the version, before anything is fitted for it."""
    if version is None:
        next_version(storage, name)
    else:
        check_free(storage, name, version)
    path = local_path(storage)
    if path is not None:
        _check_writable(path / name)


def _check_writable(directory: Path) -> None:
    # What is not there yet will be made, in the nearest directory above.
    try:
        existing = next(place for place in (directory, *directory.absolute().parents) if place.exists())
    except OSError as error:
        raise StorageError(f"{directory}: {error.strerror}") from error
    if not existing.is_dir():
        raise StorageError(f"{directory}: {existing} is not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise StorageError(f"{directory}: {existing} cannot be written to")


def _check_classes(dataset: Dataset) -> None:
    counts = Counter(dataset.labels)
    problems = [
        f"must have at least {MIN_PER_CLASS} candidates of class {label!r}, has {counts[label]}"
        for label in dataset.task.classes
        if counts[label] < MIN_PER_CLASS
    ]
    if problems:
        raise DataError(dataset.source, problems)
