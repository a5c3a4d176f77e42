"""Statistics of the real candidates: the class-conditional model that generated candidates are drawn from.

Each pair of a class and a value of one categorical field (work experience) is a cell. Within a cell the
numbers are jointly normal, cut off at the signature's bounds; the categories are independent of the numbers
and of each other. The committed file ``statistics.json`` holds means, deviations, correlations and shares
over at least 29 people each, and no candidate's values. To recompute it::

    python -m training.statistics FILE.csv > statistics.json
    mv statistics.json training/
"""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from training.candidates import PLACEMENT, Candidate, Task
from training.data import DataError, Dataset, read_dataset
from transformer.bundle.classes import class_name
from transformer.bundle.signature import STRICT, Category, Number, RawField

STATISTICS_FILE = Path(__file__).with_name("statistics.json")
#: Field that defines the cells. It separates the distributions within a class best: a forest that is trained
#: on generated candidates is right about 93 % of the real ones (see tests), and about 90 % without cells.
CELL_FIELD = "workex"

_RECOMPUTE = (
    "recompute it with `python -m training.statistics FILE.csv > statistics.json` and put it into training/, "
    "or train with --data"
)


class Cell(BaseModel):
    """Statistics of the candidates of one class with one value of the cell field."""

    model_config = STRICT

    label: str
    given: str
    #: Share of all candidates in this cell.
    share: float
    #: Mean and standard deviation of each number.
    means: dict[str, float]
    deviations: dict[str, float]
    #: Correlation of the numbers, in the order of `means`.
    correlations: Annotated[
        tuple[Annotated[tuple[float, ...], Field(strict=False)], ...], Field(strict=False)
    ]
    #: Share of each category of each field within the cell.
    frequencies: dict[str, dict[str, float]]


class Statistics(BaseModel):
    """Statistics of a dataset, cell by cell."""

    model_config = STRICT

    #: Number of candidates in the dataset.
    rows: int
    #: Name of the cell field.
    given: str
    cells: Annotated[tuple[Cell, ...], Field(strict=False)]

    @classmethod
    def committed(cls) -> "Statistics":
        """Read the committed statistics."""
        try:
            return cls.model_validate_json(STATISTICS_FILE.read_bytes())
        except (OSError, ValidationError) as error:
            raise DataError(str(STATISTICS_FILE), [f"cannot be read; {_RECOMPUTE}"]) from error

    def check(self, task: Task) -> None:
        """Check that the statistics describe a task's candidates.

        Raises
        ------
        DataError
            With all fields that differ.
        """
        fields = {field.name: field for field in task.signature.fields}
        cell = self.cells[0]
        problems = [
            f"field {name!r} is not one of the candidate's fields"
            for name in (*cell.means, *cell.frequencies)
            if name not in fields
        ]
        problems += filter(None, (self._difference(field) for field in task.signature.fields))
        if labels := {cell.label for cell in self.cells} ^ {*map(class_name, task.classes)}:
            problems.append(f"classes differ in {', '.join(sorted(labels))}")
        if problems:
            raise DataError(STATISTICS_FILE.name, [*problems, _RECOMPUTE])

    def _difference(self, field: RawField) -> str | None:
        """Describe how a field differs from the statistics; None if it does not."""
        for cell in self.cells:
            if isinstance(field, Number):
                mean = cell.means.get(field.name)
                if mean is None:
                    return f"number {field.name!r} is not described"
                if not field.range[0] <= mean <= field.range[1]:
                    return f"number {field.name!r} must be {field.expected}, its mean here is {mean:g}"
            else:
                described = cell.frequencies.get(field.name, {})
                if not isinstance(field, Category) or described.keys() != set(field.categories):
                    found = ", ".join(described) or "none"
                    return f"category {field.name!r} must be {field.expected}, described here: {found}"
        return None


def describe(dataset: Dataset, given: str = CELL_FIELD) -> Statistics:
    """Compute the statistics of a dataset.

    Means and deviations are rounded to 2 decimals, correlations to 2, shares and frequencies to 3.
    """
    if given not in dataset.task.signature.names:
        raise DataError(
            dataset.source, [f"cells need field {given!r}, which the candidates do not have: set CELL_FIELD"]
        )
    groups: dict[tuple[str, str], list[Candidate]] = {}
    for candidate, label in zip(dataset.candidates, dataset.labels, strict=True):
        groups.setdefault((class_name(label), str(candidate[given])), []).append(candidate)
    cells = tuple(_cell(dataset, key, group) for key, group in sorted(groups.items()))
    return Statistics(rows=len(dataset.labels), given=given, cells=cells)


def _cell(dataset: Dataset, key: tuple[str, str], group: list[Candidate]) -> Cell:
    fields = dataset.task.signature.fields
    numbers = [field.name for field in fields if isinstance(field, Number)]
    values = np.array([[candidate[name] for name in numbers] for candidate in group], dtype=float)
    deviations = values.std(axis=0, ddof=1)
    return Cell(
        label=key[0],
        given=key[1],
        share=round(len(group) / len(dataset.labels), 3),
        means=dict(zip(numbers, _rounded(values.mean(axis=0)), strict=True)),
        deviations=dict(zip(numbers, _rounded(deviations), strict=True)),
        correlations=tuple(_rounded(row) for row in np.corrcoef(values, rowvar=False)),
        frequencies={
            field.name: _frequencies(field, group) for field in fields if isinstance(field, Category)
        },
    )


def _frequencies(field: Category, group: list[Candidate]) -> dict[str, float]:
    counts = Counter(candidate[field.name] for candidate in group)
    return {category: round(counts[category] / len(group), 3) for category in field.categories}


def _rounded(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, ...]:
    return tuple(round(float(value), 2) for value in values)


def main(arguments: Sequence[str]) -> int:
    """Print the statistics of a file."""
    if len(arguments) != 1:
        print("usage: python -m training.statistics FILE.csv", file=sys.stderr)  # noqa: T201
        return 2
    try:
        statistics = describe(read_dataset(arguments[0], PLACEMENT))
    except DataError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    print(statistics.model_dump_json(indent=1))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
