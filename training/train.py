"""Train a model on a dataset and write the new version and its report to storage."""

import os
from collections import Counter
from dataclasses import dataclass

from storage.errors import StorageError
from training.backends import LOCAL, BackendError, Run
from training.candidates import TaskError
from training.cross_validation import FOLDS, Progress
from training.data import DataError, Dataset
from training.estimators import NO_PARAMETERS, Parameters
from training.fitting import fit
from training.publishing import Place, TrainingError, check_names
from training.reports.comparison import Comparison
from training.reports.page import render
from training.reports.writing import compare_with, write_report
from training.selection import AUTO, ParameterError, UnknownEstimatorError, estimators_for
from training.threshold import DEFAULT as DEFAULT_THRESHOLD
from training.threshold import ThresholdError
from training.threshold import parse as parse_threshold
from training.tuning import Tuning, TuningError
from transformer.bundle.format import Bundle, BundleError

#: Minimum number of candidates per class, so that each fold has at least two.
MIN_PER_CLASS = 2 * FOLDS
#: Errors of a task, of data and of arguments, here and where they are read; their messages say what to do.
ERRORS: tuple[type[Exception], ...] = (
    BackendError,
    BundleError,
    DataError,
    ParameterError,
    StorageError,
    TaskError,
    ThresholdError,
    TrainingError,
    TuningError,
    UnknownEstimatorError,
)


@dataclass(frozen=True)
class Trained:
    """A trained version in storage.

    Attributes
    ----------
    uri
        The version's URI, for ``storageUri``.
    report
        URI of its report, an HTML file beside the version; None if it could not be written.
    chosen
        Name of the estimator that was chosen, with its parameters.
    comparison
        Comparison with the version that it replaces; None for a first version.
    notes
        What to know about it and the version that it replaces, a sentence each.
    """

    uri: str
    report: str | None
    bundle: Bundle
    chosen: str
    comparison: Comparison | None
    notes: tuple[str, ...]


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
    parameters: Parameters = NO_PARAMETERS,
    tuning: Tuning | None = None,
    run: Run = LOCAL,
    progress: Progress = lambda _: None,
) -> Trained:
    """Train on a dataset and write the version with its report.

    The same data and arguments give the same files, except for the creation time.

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
    parameters
        Parameters of the one estimator, by their names in `training.estimators`.
    tuning
        Search for better parameters of the estimators, see `training.tuning`.
    run
        Runs the fits of the cross-validation, here or on a cluster, see `training.backends`.
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
    TuningError, training.backends.BackendError
        If the file of a search cannot be used, or a cluster's workers cannot.
    UnknownEstimatorError, ParameterError, storage.errors.StorageError, transformer.bundle.BundleError
        For an unknown estimator or parameter, for storage that cannot be used, and for a `previous` that
        cannot be read.
    """
    check_names(name, version)
    estimators_for(estimator, len(dataset.labels), kind=dataset.task.kind, parameters=parameters)
    parse_threshold(threshold)
    _check_classes(dataset)
    place = Place.checked(storage, name, version, previous)
    fitted = fit(
        dataset,
        estimator,
        progress,
        rewrite=rewrite,
        threshold=threshold,
        parameters=parameters,
        tuning=tuning,
        run=run,
    )
    comparison = compare_with(previous, fitted, progress)
    uri, bundle = place.publish(fitted)
    progress(f"wrote {uri}")
    html = render(bundle, fitted, comparison)
    try:
        report = write_report(uri, html, progress)
    except StorageError as error:
        # The version is complete and can be served, so this is no reason to fail.
        progress(
            f"WARNING: the report was not written: {error}; once that is solved, run `placement report {uri}`"
        )
        report = None
    return Trained(uri, report, bundle, str(fitted.chosen.estimator), comparison, place.notes(bundle))


def _check_classes(dataset: Dataset) -> None:
    if dataset.task.kind == "regression" and len(dataset.labels) < MIN_PER_CLASS:
        row_names = dataset.task.row_names
        problem = f"must have at least {MIN_PER_CLASS} {row_names}, got {len(dataset.labels)}"
        raise DataError(dataset.source, [problem])
    counts = Counter(dataset.labels)
    problems = [
        f"must have at least {MIN_PER_CLASS} {dataset.task.row_names} of class {label!r}, got {counts[label]}"
        for label in dataset.task.classes
        if counts[label] < MIN_PER_CLASS
    ]
    if problems:
        raise DataError(dataset.source, problems)
