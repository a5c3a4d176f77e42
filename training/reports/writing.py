"""Writing of a version's report: by the training, or again later."""

import dataclasses
import os
from hashlib import sha256

from storage.bundles import read_bundle, write_beside
from storage.uris import version_uri_beside
from training.bundling import dump
from training.candidates import Task
from training.cross_validation import Progress
from training.data import DataError, Dataset, read_dataset
from training.fitting import SERVING_FORMS, Fitted, fit
from training.generator import generate
from training.reports.comparison import Comparison, ComparisonError, compare
from training.reports.page import render
from training.table_file import AUTOMATIC, Reading
from training.threshold import DEFAULT
from training.tuning import Tuning


class ReportError(Exception):
    """A report that cannot be made again; the message says why and what to do."""


def write_report(uri: str, html: str, progress: Progress) -> str:
    """Write the report beside a version, and return its URI."""
    report = write_beside(uri, ".html", html.encode(), "text/html; charset=utf-8")
    progress(f"wrote {report}")
    return report


def compare_with(previous: str | None, fitted: Fitted, progress: Progress) -> Comparison | None:
    """Compare a fitted model with the version at a URI, if there is one and it can be read."""
    if previous is None:
        return None
    try:
        comparison = compare(previous, fitted)
    except ComparisonError as error:
        progress(f"WARNING: not compared with {previous}: {error}")
        return None
    progress(str(comparison))
    return comparison


def write_again(
    uri: str,
    data: str | os.PathLike[str] | None = None,
    progress: Progress = lambda _: None,
    reading: Reading = AUTOMATIC,
    tune_storage: str | os.PathLike[str] | None = None,
) -> str:
    """Write the report of a version again, from the data that it was trained on; return the report's URI.

    The model is fitted again, as its bundle says, which gives the same model.

    Parameters
    ----------
    uri
        The version.
    data
        The training data; by default the file of that name in the working directory. Not for generated data.
    reading
        Properties of its file that are known.
    tune_storage
        File with the trials of its search; by default, the search is repeated.

    Raises
    ------
    ReportError
        If the bundle does not say how it was trained, or the data or the libraries give another model.
    DataError, storage.errors.StorageError, transformer.bundle.BundleError
        If the data or the bundle cannot be read, or the report cannot be written.
    """
    bundle = read_bundle(uri)
    recipe, trained_on = bundle.recipe, bundle.training_data
    if bundle.imported is not None:
        raise ReportError(
            f"{uri}: was imported from {bundle.imported.file}; only trained versions have a report"
        )
    if recipe is None or trained_on is None:
        raise ReportError(f"{uri}: does not say how it was trained; train a new version")
    task = Task(
        signature=bundle.signature,
        label=recipe.label,
        kind=bundle.target.kind,
        classes=bundle.classes,
        positive_class=bundle.positive_class,
        row_name=bundle.row_name,
    )
    if recipe.seed is None:
        dataset = _training_data(uri, data, trained_on.source, task, reading)
    else:
        dataset = dataclasses.replace(generate(trained_on.rows, recipe.seed), task=task)
    if dataset.sha256 != trained_on.sha256:
        raise ReportError(
            f"{uri}: was trained on other data: SHA-256 is {dataset.sha256}, expected {trained_on.sha256}; "
            "name the training data with --data"
        )
    rewrite = recipe.serving_form == SERVING_FORMS[True]
    tuned = recipe.tuned
    fitted = fit(
        dataset,
        recipe.estimator,
        progress,
        rewrite=rewrite,
        threshold=recipe.threshold or DEFAULT,
        parameters=recipe.parameters,
        tuning=Tuning(tuned.trials, tuned.seed, tune_storage) if tuned else None,
    )
    if sha256(dump(fitted.served.model)).hexdigest() != bundle.model.sha256:
        wanted = bundle.model.library_versions
        raise ReportError(f"{uri}: the fit gave another model; it needs the same libraries: {wanted}")
    earlier = version_uri_beside(uri, bundle.previous[0].version) if bundle.previous else None
    return write_report(uri, render(bundle, fitted, compare_with(earlier, fitted, progress)), progress)


def _training_data(
    uri: str, data: str | os.PathLike[str] | None, source: str, task: Task, reading: Reading
) -> Dataset:
    try:
        return read_dataset(data or source, task, reading)
    except DataError as error:
        if data is not None:
            raise
        raise ReportError(f"{uri}: needs its training data, {source}: name the file with --data") from error
