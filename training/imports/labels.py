"""Labels of a sample: the column with the true classes, and the model's class that each value stands for."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from training.cells import finite_number
from training.data import DataError
from training.drafting import MEANS_YES
from training.imports.sample import Sample, spelling_of
from training.table import shortened_list
from transformer.bundle.classes import Label, class_name
from transformer.bundle.signature import spelling

#: Names of columns that are a label in many tables.
_USUAL = ("label", "target", "class", "y")


@dataclass(frozen=True)
class Labels:
    """True answers in a sample.

    Attributes
    ----------
    column
        Name of the column.
    answers
        Class or number of each row of the sample; None for a row without one.
    meaning
        Class of each value that is spelled otherwise.
    """

    column: str
    answers: list[Label | None]
    meaning: dict[str, str]


def read_labels(
    sample: Sample, classes: Sequence[Label], fields: Sequence[str], label: str | None, names: Sequence[str]
) -> Labels | None:
    """Return the labels in a sample, or None if it has none.

    Parameters
    ----------
    classes
        The model's classes; none for numbers.
    fields
        Names of the fields, which are no label.
    label
        Name of the column; None for a column with one of `names` or a usual name.

    Raises
    ------
    DataError
        If there is no column `label`, or it has other values than the classes.
    """
    spelled = {spelling(column): column for column in sample.columns if column not in fields}
    wanted = [label] if label is not None else [*names, *_USUAL]
    column = next((spelled[spelling(name)] for name in wanted if spelling(name) in spelled), None)
    if column is None:
        if label is None:
            return None
        raise DataError(
            sample.source,
            [f"must have the label {label!r}, found {', '.join(sample.columns)} (fields are no label)"],
        )
    counts = Counter(str(value) for value in sample.values(column))
    answer_of = _meanings(list(counts), classes) if classes else _numbers(counts)
    if answer_of is None:
        if label is None:
            return None
        found = ", ".join(value for value, _ in counts.most_common(5)) + (", …" if len(counts) > 5 else "")
        names_of_classes = shortened_list(map(class_name, classes))
        expected = f"the model's classes {names_of_classes}" if classes else "finite numbers"
        raise DataError(sample.source, [f"column {column!r} must have {expected}, got {found}"])
    meaning = {value: class_name(one) for value, one in sorted(answer_of.items()) if classes}
    return Labels(
        column,
        [answer_of[str(row[column])] if column in row else None for row in sample.rows],
        {value: name for value, name in meaning.items() if value.casefold() != name.casefold()},
    )


def _meanings(values: Sequence[str], classes: Sequence[Label]) -> Mapping[str, Label] | None:
    """Return the class of each value, or None if a value is none.

    A value is a class if it is equal to it, equal as a number, or spelled alike. Of two classes, the one that
    says yes is the value that says yes: ``yes`` is 1, and ``no`` is 0.
    """
    spelled = {spelling_of(class_name(one)): one for one in classes}
    if all(spelling_of(value) in spelled for value in values):
        return {value: spelled[spelling_of(value)] for value in values}
    yes_values = [one for one in values if one.casefold() in MEANS_YES]
    yes_classes = [one for one in classes if class_name(one).casefold() in MEANS_YES]
    if len(values) == len(classes) == 2 and len(yes_values) == len(yes_classes) == 1:
        return {
            value: one for value in values for one in classes if (value in yes_values) == (one in yes_classes)
        }
    return None


def _numbers(values: Iterable[str]) -> Mapping[str, Label] | None:
    """Return the number that each value is, or None if one is no number."""
    try:
        return {value: finite_number(value) for value in values}
    except ValueError:
        return None
