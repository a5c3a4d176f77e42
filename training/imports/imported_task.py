"""Task of an imported model: inferred from its vectorizer and a sample, or given and checked."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from sklearn.base import is_classifier, is_regressor
from sklearn.pipeline import Pipeline

from training.candidates import Task, TaskError, without_remarks
from training.drafting import choose_positive_class, model_name, task_text
from training.imports.inference import infer_fields
from training.imports.labels import Labels, read_labels
from training.imports.model_file import MAX_LISTED, ModelFileError
from training.imports.pair import Pair
from training.imports.sample import Sample
from training.table_file import AUTOMATIC, Reading
from transformer.bundle.classes import Kind, Label, check_classes, class_name
from transformer.bundle.plain_errors import problems
from transformer.bundle.target import Target


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
        Column of the sample with the true class or number.
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


def model_target(where: str, model: Any) -> Target:  # noqa: ANN401 (scikit-learn has no types)
    """Return the kind of question that a model answers; the task adds the positive class.

    Raises
    ------
    ModelFileError
        If it is no classifier or regressor, or has classes of several outputs.
    """
    name = type(model.steps[-1][1] if isinstance(model, Pipeline) else model).__name__
    if is_regressor(model):
        return Target.of(())
    if not is_classifier(model):
        raise ModelFileError(f"{where}: expected a classifier or a regressor, got {name}")
    if not isinstance(model.classes_, np.ndarray):
        raise ModelFileError(f"{where}: {name} has {len(model.classes_)} outputs, expected one")
    classes = tuple(one.item() if isinstance(one, np.generic) else one for one in model.classes_)
    try:
        check_classes(classes)
    except ValueError as error:
        raise ModelFileError(f"{where}: classes of {name}: {error}") from error
    kind: Kind = "binary" if len(classes) == 2 else "multiclass"
    return Target(kind, classes, has_probabilities=hasattr(model, "predict_proba"))


def find_task(
    source: Source, pair: Pair, target: Target, sample: Sample | None, name: str, row_name: str
) -> ImportedTask:
    """Check the given task against the model, or infer one."""
    if source.task is None:
        return _inferred(source, pair, target, sample, name, row_name)
    task = source.task
    _check_task(task, pair, target)
    labels = (
        read_labels(sample, target.classes, task.signature.names, source.label, [task.label])
        if sample
        else None
    )
    return ImportedTask(task, None, labels)


def answer_of(target: Target, label: str) -> str:
    """Return a description of a model's answer."""
    if target.kind == "regression":
        return f"the number {label}"
    if target.kind == "multiclass":
        also = ", and the probability of each" if target.has_probabilities else ""
        return f"{label}, one of {len(target.classes)} classes{also}"
    says = "the probability of" if target.has_probabilities else "true for"
    return f"{says} {label} = {class_name(target.classes[target.positive_column])}"


def _inferred(
    source: Source, pair: Pair, target: Target, sample: Sample | None, name: str, row_name: str
) -> ImportedTask:
    inferred = infer_fields(pair.vectorizer, sample)
    fields, likely = [one["name"] for one in inferred], [name, default_name(source.model)]
    labels = read_labels(sample, target.classes, fields, source.label, likely) if sample else None
    label = labels.column if labels else source.label or (f"is_{name}" if name in fields else name)
    question: dict[str, Any] = {}
    if target.kind == "binary":
        # Of two classes without a meaning, scikit-learn's second one is the positive one.
        places = {class_name(one): place for place, one in enumerate(target.classes)}
        chosen = choose_positive_class(label, Counter({one: -place for one, place in places.items()}))
        question["positive_class"] = target.classes[places[chosen]]
        target = replace(target, **question)
    content = {
        "signature": {"fields": inferred},
        "label": label,
        "kind": target.kind,
        **({"classes": target.classes} if target.classes else {}),
        **question,
        "row_name": row_name,
    }
    remarks = [
        f"Inferred from {Path(source.model).name} and {sample.source if sample else 'no sample'}. Edit it, "
        "and import the model again with --task; comments are not read.",
        f"The service returns {answer_of(target, label)}.",
    ]
    try:
        task = Task.model_validate(without_remarks(content))
    except ValidationError as error:
        raise TaskError("\n".join(f"{source.model}: {one}" for one in problems(error, content))) from error
    return ImportedTask(task, task_text(content, remarks), labels)


def _check_task(task: Task, pair: Pair, target: Target) -> None:
    if task.kind != target.kind:
        raise TaskError(f"kind: must be that of the model, {target.kind}, got {task.kind}")
    if _typed(task.classes) != _typed(target.classes):
        raise TaskError(
            f"classes: must be those of the model, {json.dumps(target.classes, ensure_ascii=False)}, "
            f"got {json.dumps(task.classes, ensure_ascii=False)}"
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


def _typed(classes: Sequence[Label]) -> set[tuple[type, Label]]:
    """Return classes with their types, because ``1``, ``1.0`` and ``true`` are equal in Python."""
    return {(type(one), one) for one in classes}
