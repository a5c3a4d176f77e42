"""Task of an imported model: inferred from its vectorizer and a sample, or given and checked."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sklearn.base import is_classifier
from sklearn.pipeline import Pipeline

from training.candidates import Task, TaskError
from training.drafting import choose_positive_class, model_name, task_text, without_comments
from training.imports.inference import infer_fields
from training.imports.labels import Labels, read_labels
from training.imports.model_file import MAX_LISTED, ModelFileError
from training.imports.pair import Pair
from training.imports.sample import Sample
from training.table_file import AUTOMATIC, Reading
from transformer.bundle.plain_errors import problems


@dataclass(frozen=True)
class Source:
    """Files of an import.

    Attributes
    ----------
    model, vectorizer
        The model's file, and that of its vectorizer if it is another one.
    sample
        Table of rows, labelled or not.
    task
        Task that replaces the inferred one.
    label
        Column of the sample with the true class.
    trust
        True to open files that may run code.
    reading
        Properties of the sample's file that are known.
    """

    model: str
    vectorizer: str | None = None
    sample: str | None = None
    task: Task | None = None
    label: str | None = None
    trust: bool = False
    reading: Reading = AUTOMATIC


@dataclass(frozen=True)
class ImportedTask:
    """Task of an imported model.

    Attributes
    ----------
    text
        Content of a task file with the inferred task; None if the task was given.
    labels
        Labels in the sample, if it has any.
    """

    task: Task
    text: str | None
    labels: Labels | None


def default_name(path: str) -> str:
    """Return the name of the model in a file: ``churn`` for ``models/Churn.v2.pkl``."""
    return model_name(Path(path).name.partition(".")[0])


def classes_of(where: str, model: Any) -> tuple[str, ...]:  # noqa: ANN401 (scikit-learn has no types)
    """Return the two classes of a classifier, in the order of its `predict_proba`.

    Raises
    ------
    ModelFileError
        If it is anything else than a classifier of two classes with probabilities.
    """
    kind = type(model.steps[-1][1] if isinstance(model, Pipeline) else model).__name__
    expected = "expected a classifier of two classes with predict_proba"
    if not is_classifier(model):
        raise ModelFileError(f"{where}: {kind} is no classifier, {expected}")
    if not hasattr(model, "predict_proba"):
        raise ModelFileError(
            f"{where}: {kind} gives no probabilities, {expected}; fit it in a CalibratedClassifierCV"
        )
    classes = tuple(map(str, model.classes_))
    if len(classes) != 2:
        raise ModelFileError(f"{where}: has {len(classes)} classes, {', '.join(classes[:5])}, {expected}")
    return classes


def find_task(
    source: Source, pair: Pair, classes: Sequence[str], sample: Sample | None, name: str, row_name: str
) -> ImportedTask:
    """Check the given task against the model, or infer one."""
    if source.task is None:
        return _inferred(source, pair, classes, sample, name, row_name)
    task = source.task
    _check_task(task, pair, classes)
    labels = (
        read_labels(sample, classes, task.signature.names, source.label, [task.label]) if sample else None
    )
    return ImportedTask(task, None, labels)


def _inferred(
    source: Source, pair: Pair, classes: Sequence[str], sample: Sample | None, name: str, row_name: str
) -> ImportedTask:
    found = infer_fields(pair.vectorizer, sample)
    fields, likely = [one["name"] for one in found.fields], [name, default_name(source.model)]
    labels = read_labels(sample, classes, fields, source.label, likely) if sample else None
    label = labels.column if labels else source.label or (f"is_{name}" if name in fields else name)
    # Of two classes without a meaning, scikit-learn's second one is the positive one.
    positive = choose_positive_class(label, Counter({one: -place for place, one in enumerate(classes)}))
    content = {
        "signature": {
            "fields": [
                {**one, "comment": text} for one, text in zip(found.fields, found.remarks, strict=True)
            ]
        },
        "label": label,
        "classes": sorted(classes),
        "positive_class": positive,
        "row_name": row_name,
    }
    remarks = [
        f"Inferred from {Path(source.model).name} and {sample.source if sample else 'no sample'}. Edit it, "
        "and import the model again with --task; comments are not read.",
        f"The service returns the probability of positive_class, {positive!r}.",
    ]
    try:
        task = Task.model_validate(without_comments(content))
    except ValidationError as error:
        raise TaskError("\n".join(f"{source.model}: {one}" for one in problems(error, content))) from error
    return ImportedTask(task, task_text(content, remarks), labels)


def _check_task(task: Task, pair: Pair, classes: Sequence[str]) -> None:
    if set(task.classes) != set(classes):
        raise TaskError(
            f"classes: must be those of the model, {', '.join(classes)}, "
            f"got {', '.join(map(str, task.classes))}"
        )
    features = set(task.signature.feature_names(pair.vectorizer.separator))
    known = set(pair.vectorizer.feature_names_)
    differing = [
        f"{text} {', '.join(sorted(names)[:MAX_LISTED])}"
        for text, names in (("lacks", known - features), ("adds", features - known))
        if names
    ]
    if differing:
        raise TaskError(f"signature: must give the features of the vectorizer, but {' and '.join(differing)}")
