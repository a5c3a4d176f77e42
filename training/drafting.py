"""Draft of a task file from a labelled table: types, ranges, categories, defaults, columns to leave out.

A draft is a proposal for a person to check, so every field says in a comment what it was drawn from.
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from training.candidates import Task, without_remarks
from training.cells import cell_texts, finite_number, with_decimal_point
from training.table import EMPTY, DataError
from training.table_file import AUTOMATIC, Reading, open_file, read_table
from transformer.bundle.signature import DEFAULT_ROW_NAME, same_spelling

#: Different values from which on a column may be an identifier.
MIN_DIFFERENT = 20
#: Maximum different texts of a categorical field.
MAX_CATEGORIES = 100
#: Maximum different whole numbers that are classes; more are numbers to predict.
MAX_WHOLE_CLASSES = 20
#: Factor by which a range is wider than the values in the data.
WIDER = 1.5

_NICE = (1, 1.5, 2, 3, 4, 5, 6, 8, 10)
MEANS_YES = {"yes", "y", "true", "t", "1", "1.0", "positive", "pos"}
_IDENTIFIER_WORDS = {"id", "uuid", "guid", "key"}
_NUMBER_WORDS = {*_IDENTIFIER_WORDS, "no", "nr", "number", "index", "row"}


@dataclass(frozen=True)
class Draft:
    """A drafted task.

    Attributes
    ----------
    task
        The task, as it is read from the file.
    text
        Content of the task file, with comments.
    rows
        Number of rows that it was drawn from.
    left_out
        Reason for each column that is no field.
    """

    task: Task
    text: str
    rows: int
    left_out: dict[str, str]


def draft(
    path: str | os.PathLike[str],
    label: str,
    row_name: str = DEFAULT_ROW_NAME,
    reading: Reading = AUTOMATIC,
) -> Draft:
    """Draft the task of a table.

    Parameters
    ----------
    path
        File with the label and the fields.
    label
        Name of the column with the class or the number; case, blanks and separators do not count.
    row_name
        Word for one row of data.
    reading
        Properties of the file that are known.

    Raises
    ------
    DataError
        If the file is no table, has no such column, only one class or too many, or no column that can be a
        field.
    """
    columns, repeated, rows, label = _read(path, label, reading)
    source = os.fspath(path)
    labels = columns.pop(label)
    question = _question(source, label, labels)
    fields: list[dict[str, Any]] = []
    left_out = dict.fromkeys(repeated, "several columns have this name")
    for name, cells in columns.items():
        reason = _reason_to_leave_out(name, cells)
        if reason is None:
            fields.append(_field(name, cells))
        else:
            left_out[name] = reason
    if not fields:
        raise DataError(source, ["has no column that can be a field; write the task by hand"])
    content = {"signature": {"fields": fields}, "label": label, **question.keys, "row_name": row_name}
    remarks = [
        f"Drafted from {Path(path).name}, {rows:,} rows: {question.counts}. "
        "Check every line; comments are not read.",
        question.remark,
        *(f"Left out: {name}: {reason}." for name, reason in left_out.items()),
    ]
    return Draft(Task.model_validate(without_remarks(content)), task_text(content, remarks), rows, left_out)


def model_name(label: str) -> str:
    """Return a name for the model of a label: ``will-churn`` for ``Will Churn?``."""
    name = re.sub(r"[^a-z0-9]+", "-", label.casefold()).strip("-")
    return name if re.match("[a-z]", name) else f"model-{name}".rstrip("-")


def _read(
    path: str | os.PathLike[str], label: str, reading: Reading
) -> tuple[dict[str, list[str]], list[str], int, str]:
    """Return the texts of each column, the names of several columns, the number of rows, and the label.

    The label is returned as it is spelled in the table.
    """
    with open_file(os.fspath(path)) as (source, file):
        table = read_table(source, file, [label], reading)
        like = same_spelling(table.header, [label])
        label = next(iter(like)) if label not in table.header and len(like) == 1 else label
        table.require([label])
        table.check_names([label])
        repeated = [name for name in table.foreign(()) if table.header.count(name) > 1]
        named = {name: partial(_cell_text, decimal=table.decimal) for name in table.foreign(repeated)}
        rows = list(table.rows(named))
    if not rows:
        raise DataError(table.source, [EMPTY])
    empty = [row.place for row in rows if not row.values[label]]
    if empty:
        raise DataError(
            table.source,
            [f"column {label!r} is empty in {len(empty)} rows, first in {empty[0]}; remove them"],
        )
    return {name: [row.values[name] for row in rows] for name in named}, repeated, len(rows), label


def _cell_text(cell: object, decimal: str) -> str:
    """Return the text of a cell, a number with a decimal point."""
    return cell_texts(with_decimal_point(cell, decimal))[0].strip()


@dataclass(frozen=True)
class _Question:
    """Kind of question: its keys in the task file, a summary of the labels, and a remark."""

    keys: dict[str, Any]
    counts: str
    remark: str


def _question(source: str, label: str, labels: Sequence[str]) -> _Question:
    """Return the kind of question that a label is: two texts, several, or numbers."""
    classes = Counter(labels)
    # A leading zero is a code's: 007 is no 7.
    has_codes = any(one[:1] == "0" and one[1:].isdigit() for one in classes)
    numbers = None if has_codes else _numbers(labels)
    is_whole = numbers is not None and all(number.is_integer() for number in numbers)
    if numbers is not None and len(classes) > 2 and (not is_whole or len(set(numbers)) > MAX_WHOLE_CLASSES):
        counts = f"{min(numbers):g} to {max(numbers):g}"
        return _Question({"kind": "regression"}, counts, f"The service returns a number, {label}.")
    if not 2 <= len(classes) <= MAX_CATEGORIES:
        shown = ", ".join(list(classes)[:5]) + (", …" if len(classes) > 5 else "")
        raise DataError(
            source,
            [f"column {label!r} must have 2 to {MAX_CATEGORIES} classes, got {len(classes)}: {shown}"],
        )
    counts = ", ".join(f"{classes[name]:,} {name}" for name in sorted(classes))
    if len(classes) == 2:
        positive = choose_positive_class(label, classes)
        keys = {"classes": sorted(classes), "positive_class": positive}
        remark = f"The service returns the probability of positive_class, {positive!r}."
        return _Question(keys, counts, remark)
    found = sorted({int(number) for number in numbers}) if numbers is not None else sorted(classes)
    remark = f"The service returns one of the {len(found)} classes, and the probability of each."
    return _Question({"kind": "multiclass", "classes": found}, counts, remark)


def choose_positive_class(label: str, classes: Counter[str]) -> str:
    """Return the class that says yes, that the other one negates, that the label names, or the rarer one."""
    word = label.casefold()[:4]
    low = {name: name.casefold() for name in classes}
    for matches in (
        [name for name in classes if low[name] in MEANS_YES],
        [name for name in classes if all(one.endswith(low[name]) for one in low.values())],
        [name for name in classes if low[name].startswith(word)],
    ):
        if len(matches) == 1:
            return matches[0]
    return min(sorted(classes), key=classes.__getitem__)


def _reason_to_leave_out(name: str, cells: Sequence[str]) -> str | None:
    values = [cell for cell in cells if cell]
    different = set(values)
    if not values:
        return "every cell is empty"
    if len(different) == 1 and len(values) == len(cells):
        return f"has only the value {values[0]!r}"
    numbers = _numbers(values)
    if numbers is None:
        if len(different) > max(MIN_DIFFERENT, len(values) / 2):
            return f"looks like an identifier or free text, {len(different):,} different texts"
        if len(different) > MAX_CATEGORIES:
            return f"has {len(different):,} different texts, more than {MAX_CATEGORIES}"
        return None
    if len(different) > MIN_DIFFERENT and all(number.is_integer() for number in numbers):
        word = re.split(r"[\W_]+|(?<=[a-z])(?=[A-Z])", name)[-1].casefold()
        all_different = len(different) == len(values)
        consecutive = max(numbers) - min(numbers) + 1 == len(values)
        if word in _IDENTIFIER_WORDS or (all_different and (consecutive or word in _NUMBER_WORDS)):
            return f"looks like an identifier, {len(different):,} different whole numbers"
    return None


def _field(name: str, cells: Sequence[str]) -> dict[str, Any]:
    values = [cell for cell in cells if cell]
    empty = len(cells) - len(values)
    numbers = _numbers(values)
    default: float | str
    if numbers is None:
        counts = Counter(values)
        categories = sorted(counts, key=lambda category: (-counts[category], category))
        field: dict[str, Any] = {"name": name, "type": "category", "categories": categories}
        default, meaning = categories[0], "the most frequent value"
        comment = f"{len(categories)} different values"
    else:
        minimum, maximum = wider(min(numbers), max(numbers))
        field = {"name": name, "type": "number", "minimum": plain(minimum), "maximum": plain(maximum)}
        default, meaning = plain(float(f"{median(numbers):.6g}")), "the median"
        comment = f"{min(numbers):g} to {max(numbers):g} in the data"
    if empty:
        field["default"] = default
        comment += f"; {empty:,} empty cells get the default, {meaning}"
    return {**field, "comment": comment}


def _numbers(values: Sequence[str]) -> list[float] | None:
    """Return the numbers that all these texts are, or None."""
    try:
        return [finite_number(value) for value in values]
    except ValueError:
        return None


def wider(least: float, most: float) -> tuple[float, float]:
    """Return a range that allows more than was seen, with round limits."""
    span = most - least
    if least >= 0 and most <= 1:
        return 0, 1
    if least > span:  # far from zero, such as years
        step = 10 ** math.floor(math.log10(span))
        return max(0, math.floor((least - span) / step) * step), math.ceil((most + span) / step) * step
    return min(0, -_nice(-least * WIDER)), max(0, _nice(most * WIDER))


def _nice(value: float) -> float:
    """Return the next round number, or 0 below it."""
    if value <= 0:
        return 0
    unit = 10 ** math.floor(math.log10(value))
    return float(f"{next(step for step in _NICE if step * unit >= value * (1 - 1e-9)) * unit:.6g}")


def plain(number: float) -> float:
    """Return an integer for a number that is one."""
    return int(number) if float(number).is_integer() and abs(number) < 1e15 else number


def task_text(content: dict[str, Any], remarks: Sequence[str]) -> str:
    """Return the content as JSON with a line for each remark and each field."""

    def lines(items: Sequence[object]) -> str:
        return ",\n".join(f"    {json.dumps(item, ensure_ascii=False)}" for item in items)

    rest = (
        f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}"
        for name, value in content.items()
        if name != "signature"
    )
    fields = lines(content["signature"]["fields"])
    parts = [
        f'  "comment": [\n{lines(remarks)}\n  ]',
        f'  "signature": {{"fields": [\n{fields}\n  ]}}',
        *rest,
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"
