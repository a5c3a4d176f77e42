"""Import a fitted model: write a version with the model of a file, as if it had been trained here."""

import copy
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from sklearn.feature_extraction import DictVectorizer

from training.background import make_background
from training.bundling import FittedModel, describe_vectorizer, dump, make_distribution
from training.candidates import TaskError
from training.cross_validation import Progress, truth_of
from training.encoding import encode
from training.evaluation import metrics_of
from training.imports.equality import answered_otherwise, compare
from training.imports.imported_task import ImportedTask, Source, default_name, find_task, model_target
from training.imports.model_file import ModelFile, open_model
from training.imports.pair import Pair, find_pair
from training.imports.rows import ValidRows, random_rows, valid_rows
from training.imports.sample import Sample, read_sample
from training.imports.servable import NotServableError, check_loadable, leave_out, make_servable
from training.publishing import Place, check_names
from training.reference import make_reference
from training.served import serve_checked
from training.serving_form import SCIKIT_LEARN
from training.threshold import DEFAULT as DEFAULT_THRESHOLD
from transformer.bundle.classes import Label
from transformer.bundle.format import Bundle, Imported, TrainingData
from transformer.bundle.signature import DEFAULT_ROW_NAME, Category, CategoryList, RawField
from transformer.bundle.target import Scores, Target

#: Maximum reasons that a note lists.
_MAX_REASONS = 3


@dataclass(frozen=True)
class ImportedModel:
    """An imported version in storage.

    Attributes
    ----------
    task
        The version's task, and the labels of the sample.
    notes
        What the version lacks, what was passed over, and what to know about it and the version that it
        replaces; a sentence each.
    """

    uri: str
    bundle: Bundle
    task: ImportedTask
    notes: tuple[str, ...]


def import_model(
    source: Source,
    *,
    storage: str | os.PathLike[str],
    name: str | None = None,
    version: str | None = None,
    previous: str | None = None,
    row_name: str = DEFAULT_ROW_NAME,
    threshold: float | None = None,
    progress: Progress = lambda _: None,
) -> ImportedModel:
    """Write the model of a file as a version.

    Parameters
    ----------
    name
        Name of the model; by default that of its file.
    storage, version, previous
        As for `training.train.train`.
    row_name
        Word for one row of data, if the source has no task.
    threshold
        Lowest probability of a positive prediction, 0 to 1; by default 0.5.
    progress
        Called with one line for each step.

    Raises
    ------
    ModelFileError, InferenceError, NotServableError, UnequalPredictionsError
        If the file is not opened, its fields cannot be told, the stock servers cannot serve it, or the
        version would predict something else than the original.
    DataError, TaskError, TrainingError
        If the sample, the task or a name is invalid, or the model takes no threshold.
    storage.errors.StorageError, transformer.bundle.BundleError
        For storage that cannot be used, and for a `previous` that cannot be read.
    """
    name = name or default_name(source.model)
    check_names(name, version)
    place = Place.checked(storage, name, version, previous)
    file = open_model(source.model, trust=source.trust)
    vectorizer = open_model(source.vectorizer, trust=source.trust) if source.vectorizer else None
    pair = find_pair(file, vectorizer)
    target = model_target(file.path, pair.model)
    progress(f"{file.name}: {type(pair.model).__name__}, {len(pair.vectorizer.feature_names_)} features")
    sample = read_sample(source.sample, source.reading) if source.sample else None
    found = find_task(source, pair, target, sample, name, row_name)
    target = _with_threshold(target, found.task.positive_class, threshold)
    rows = valid_rows(sample, found.task.signature) if sample else random_rows(found.task.signature)
    fitted = _fitted(file, pair, found, target, rows, sample, progress)
    otherwise = answered_otherwise(pair, rows.candidates, target) if threshold is None else 0
    uri, bundle = place.publish(fitted)
    progress(f"wrote {uri}")
    notes = (*place.notes(bundle), *_notes(bundle, found, rows, sample, otherwise))
    return ImportedModel(uri, bundle, found, notes)


def _with_threshold(target: Target, positive_class: Label | None, threshold: float | None) -> Target:
    """Return what the model predicts, with the positive class and the threshold."""
    if target.has_threshold:
        threshold = float(DEFAULT_THRESHOLD) if threshold is None else threshold
    elif threshold is not None:
        raise TaskError(f"threshold: needs the probabilities of two classes, and this is a {target} model")
    return Target.of(target.classes, positive_class, threshold, has_probabilities=target.has_probabilities)


def _fitted(
    file: ModelFile,
    pair: Pair,
    found: ImportedTask,
    target: Target,
    rows: ValidRows,
    sample: Sample | None,
    progress: Progress,
) -> FittedModel:
    """Make the model servable, and compare it with the original."""
    signature = found.task.signature
    # Threads would add up a forest's probabilities in changing order.
    leave_out(pair.model)
    vectorizer = _dense(pair.vectorizer)
    features = encode(vectorizer, rows.candidates)
    try:
        model = make_servable(pair.model, features, target)
    except NotServableError as error:
        origin = sample.source if sample else "artificial rows; try real ones, with --sample"
        raise NotServableError(f"{file.path}: cannot be served: {error}, with {origin}") from error
    reference = make_reference(signature, rows.candidates, vectorizer, model, target)
    background = None
    if sample is not None:
        background = make_background(signature, rows.candidates, features, vectorizer, model, target)
    made = [*reference.candidates, *(background.candidates if background else ())]
    served = serve_checked(model, features, vectorizer, made, target, progress)
    content = dump(served.model)
    check_loadable(content)
    compared = [*rows.candidates, *made]
    scores = compare(pair, content, describe_vectorizer(vectorizer), signature, compared, target)
    progress(f"predicts the same as {file.name} on {len(compared):,} rows")
    scores = scores[: len(rows.candidates)]
    distribution = None
    if sample is not None:
        distribution = make_distribution(signature, rows.candidates, target, scores)
    return FittedModel(
        task=found.task,
        target=target,
        vectorizer=vectorizer,
        model=pair.model,
        served=served,
        reference=reference,
        metrics=_metrics(found, rows, scores, target),
        distribution=distribution,
        background=background,
        imported=Imported(
            file=file.name,
            sha256=file.sha256,
            scikit_learn=", ".join(sorted(file.scikit_learn)),
            compared=len(compared),
            sample=TrainingData(source=sample.source, rows=len(sample.rows), sha256=sample.sha256)
            if sample
            else None,
        ),
    )


def _dense(vectorizer: DictVectorizer) -> DictVectorizer:
    """Return a copy of a vectorizer that encodes as the transformer does."""
    dense = copy.copy(vectorizer)
    dense.sparse, dense.dtype = False, np.float64
    return dense


def _metrics(found: ImportedTask, rows: ValidRows, scores: Scores, target: Target) -> dict[str, float]:
    """Return the metrics of the rows with a label; none if these are all equal."""
    if found.labels is None:
        return {}
    labels = [found.labels.answers[number] for number in rows.numbers]
    truth = truth_of([label for label in labels if label is not None], found.task)
    if len(np.unique(truth)) < 2:
        return {}
    return metrics_of(target, truth, scores[[label is not None for label in labels]])


def _notes(
    bundle: Bundle, found: ImportedTask, rows: ValidRows, sample: Sample | None, otherwise: int
) -> Iterator[str]:
    if bundle.imported is not None and bundle.imported.scikit_learn != SCIKIT_LEARN:
        yield (
            f"written by scikit-learn {bundle.imported.scikit_learn}; the predictor has {SCIKIT_LEARN}, "
            "which is known to give the same results"
        )
    if otherwise:
        answer = "a positive answer" if bundle.target.kind == "binary" else "the likeliest class"
        yield (
            f"the model's predict does not follow its probabilities in {otherwise:,} of "
            f"{len(rows.candidates):,} rows; the service does, and gives {answer}"
            + (f" from {bundle.threshold:g} on; see --threshold" if bundle.threshold is not None else "")
        )
    if sample is None:
        yield (
            "without --sample: numbers have no range, there are no metrics, and explanations and drift are "
            "not available"
        )
    else:
        yield from _notes_on_fields(found, rows, sample)
        yield from _notes_on_labels(bundle, found)


def _notes_on_fields(found: ImportedTask, rows: ValidRows, sample: Sample) -> Iterator[str]:
    if rows.passed_over:
        reasons = ", ".join(f"{reason} ({n:,})" for reason, n in rows.passed_over.most_common(_MAX_REASONS))
        yield f"{rows.passed_over.total():,} of {len(sample.rows):,} rows passed over: {reasons}"
    column_of = sample.column_of(found.task.signature.names)
    used = {*column_of.values(), found.labels.column if found.labels else ""}
    if unused := [column for column in sample.columns if column not in used]:
        yield f"columns passed over: {', '.join(unused)}"
    if respelled := [f"{column} as {name}" for name, column in column_of.items() if column != name]:
        yield f"columns read by spelling: {', '.join(respelled)}"
    for field in found.task.signature.fields:
        if unknown := _unknown(field, rows):
            yield (
                f"{field.name} is open: {unknown:,} rows have values that the vectorizer does not know, and "
                "the model ignores them"
            )


def _unknown(field: RawField, rows: ValidRows) -> int:
    """Return the number of rows with a value that an open field does not list."""
    if not isinstance(field, Category | CategoryList):
        return 0
    known = set(field.categories)
    values = [row[field.name] for row in rows.candidates]
    return sum(not known.issuperset(one if isinstance(one, tuple) else (one,)) for one in values)


def _notes_on_labels(bundle: Bundle, found: ImportedTask) -> Iterator[str]:
    if found.labels is None:
        yield "no metrics: the sample has no label; name its column with --label"
    elif found.labels.meaning:
        yield "label: " + ", ".join(f"{value} is {one}" for value, one in found.labels.meaning.items())
    if found.labels is not None and not bundle.metrics:
        yield "no metrics: the labels are all equal"
