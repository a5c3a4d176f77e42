"""Labels of a sample: the column with the true classes, and the model's class that each value stands for."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.data import DataError
from training.drafting import MEANS_YES
from training.imports.sample import Sample
from transformer.bundle.signature import spelling

#: Names of columns that are a label in many tables.
_USUAL = ("label", "target", "class", "y")


@dataclass(frozen=True)
class Labels:
    """True classes of a sample.

    Attributes
    ----------
    column
        Name of the column.
    classes
        Class of each row of the sample; None for a row without one.
    meaning
        Class of each value that is spelled otherwise.
    """

    column: str
    classes: list[str | None]
    meaning: dict[str, str]


def read_labels(
    sample: Sample, classes: Sequence[str], fields: Sequence[str], label: str | None, names: Sequence[str]
) -> Labels | None:
    """Return the labels in a sample, or None if it has none.

    Parameters
    ----------
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
    meaning = _meanings(list(counts), classes)
    if meaning is None:
        if label is None:
            return None
        found = ", ".join(value for value, _ in counts.most_common(5)) + (", …" if len(counts) > 5 else "")
        raise DataError(
            sample.source,
            [f"column {column!r} must have the model's classes {', '.join(classes)}, got {found}"],
        )
    found_classes = [meaning[str(row[column])] if column in row else None for row in sample.rows]
    return Labels(
        column, found_classes, {value: one for value, one in sorted(meaning.items()) if value != one}
    )


def _meanings(values: Sequence[str], classes: Sequence[str]) -> dict[str, str] | None:
    """Return the class of each value, or None if a value is none.

    A value is a class if it is equal to it, equal as a number, or spelled alike. Of two classes, the one that
    says yes is the value that says yes: ``yes`` is 1, and ``no`` is 0.
    """
    keys = {_key(one): one for one in classes}
    if all(_key(value) in keys for value in values):
        return {value: keys[_key(value)] for value in values}
    yes_values, yes_classes = (
        [one for one in group if one.casefold() in MEANS_YES] for group in (values, classes)
    )
    if len(values) == len(classes) == 2 and len(yes_values) == len(yes_classes) == 1:
        return {
            value: one for value in values for one in classes if (value in yes_values) == (one in yes_classes)
        }
    return None


def _key(text: str) -> Any:  # noqa: ANN401
    try:
        return float(text)
    except ValueError:
        return spelling(text)
