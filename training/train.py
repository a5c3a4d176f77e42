"""Train a model on a dataset and write the new version and its report to storage."""

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
)
from training.bundling import dump, make_bundle
from training.comparison import Comparison
from training.data import DataError, Dataset
from training.fitting import fit
from training.report import render
from training.reporting import compare_with, write_report
from training.selection import AUTO, FOLDS, Progress, estimators_for
from training.threshold import DEFAULT as DEFAULT_THRESHOLD
from training.threshold import parse as parse_threshold
from transformer.bundle.format import MAX_PREVIOUS, NAME_PATTERN, VERSION_PATTERN, Bundle, Version

#: Minimum number of candidates per class, so that each fold has at least two.
MIN_PER_CLASS = 2 * FOLDS


class TrainingError(Exception):
    """Invalid arguments for training; the message says what to change."""


@dataclass(frozen=True)
class Trained:
    """A trained version in storage.

    Attributes
    ----------
    uri
        The version's URI, for ``storageUri``.
    report
        URI of its report, an HTML file beside the version; None if it could not be written.
    comparison
        Comparison with the version that it replaces.
    """

    uri: str
    report: str | None
    bundle: Bundle
    comparison: Comparison | None = None


def train(
    dataset: Dataset,
    *,
    storage: str | os.PathLike[str],
    name: str = "placement",
    version: str | None = None,
    previous: str | None = None,
    estimator: str = AUTO,
    rewrite: bool = True,
    threshold: str = DEFAULT_THRESHOLD,
    progress: Progress = lambda _: None,
) -> Trained:
    """Train on a dataset and write the version with its report.

    The same data and estimator give the same files, except for the creation time.

    Parameters
    ----------
    storage
        Directory or URI of the versions, see `storage.bundles`.
    version
        Name of the version; by default the next number.
    previous
        URI of the version that the new one will replace. The new bundle also describes that version and the
        earlier versions in its bundle.
    estimator
        A name of `training.estimators.ESTIMATORS`, or ``auto``.
    rewrite
        False to serve a forest as it was fitted, see `training.serving_form`.
    threshold
        Lowest probability of a positive prediction, or a rule that chooses it; see `training.threshold`.
    progress
        Called with one line for each step.

    Raises
    ------
    TrainingError
        If a name is invalid, or if `previous` is a version of another model.
    DataError
        If one class has too few candidates.
    ThresholdError
        If the threshold is neither a probability nor a rule.
    UnknownEstimatorError, storage.bundles.StorageError, transformer.bundle.BundleError
        For an unknown estimator, for storage that cannot be used, and for a `previous` that cannot be read.
    """
    _check_names(name, version)
    estimators_for(estimator, len(dataset.labels))
    parse_threshold(threshold)
    _check_classes(dataset)
    _check_storage(storage, name, version)
    earlier_versions = previous_versions(previous, name)
    if version in {earlier.version for earlier in earlier_versions}:
        raise TrainingError(f"version {version!r} is the name of an earlier version, expected a new one")
    fitted = fit(dataset, estimator, progress, rewrite=rewrite, threshold=threshold)
    comparison = compare_with(previous, fitted, progress)
    model = dump(fitted.served.model)
    while True:
        bundle = make_bundle(
            fitted, name, version or _next_version(storage, name, earlier_versions), model, earlier_versions
        )
        html = render(bundle, fitted, comparison)
        try:
            uri = publish(bundle, model, storage)
        except VersionExistsError:
            if version is not None:
                raise
            continue  # another writer has used this number
        break
    progress(f"wrote {uri}")
    try:
        report = write_report(uri, html, progress)
    except StorageError as error:
        # The version is complete and can be served, so this is no reason to fail.
        progress(
            f"WARNING: the report was not written: {error}; once that is solved, run `placement report {uri}`"
        )
        report = None
    return Trained(uri, report, bundle, comparison)


def previous_versions(uri: str | None, name: str) -> tuple[Version, ...]:
    """Return the `previous` versions of a new bundle: the version at `uri`, then those in its bundle.

    Raises
    ------
    TrainingError
        If the URI is a version of another model.
    """
    if uri is None:
        return ()
    bundle = read_bundle(uri)
    if bundle.name != name:
        raise TrainingError(f"{uri}: is a version of {bundle.name!r}, expected a version of {name!r}")
    return (bundle.as_previous(), *bundle.previous)[:MAX_PREVIOUS]


def _next_version(storage: str | os.PathLike[str], name: str, earlier: tuple[Version, ...]) -> str:
    """Return the next number that is free in the storage and not used by an earlier version."""
    numbers = [int(v.version[1:]) for v in earlier if re.fullmatch(r"v\d+", v.version)]
    following = f"v{max(numbers, default=0) + 1}"
    return max(next_version(storage, name), following, key=lambda text: int(text[1:]))


def _check_names(name: str, version: str | None) -> None:
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


def _check_classes(dataset: Dataset) -> None:
    counts = Counter(dataset.labels[row] for row in set(dataset.first_rows))
    different = "different " if dataset.repeated else ""
    problems = [
        f"must have at least {MIN_PER_CLASS} {different}{dataset.task.row_names} of class {label!r}, "
        f"got {counts[label]}"
        for label in dataset.task.classes
        if counts[label] < MIN_PER_CLASS
    ]
    if problems:
        raise DataError(dataset.source, problems)
