"""What the real candidates are like, in numbers: the class-conditional model behind generated candidates.

The candidates fall into cells: one for each class and each value of one categorical field (work experience).
Within a cell the numbers are jointly normal, cut off at the signature's bounds, and the categories are
independent of them and of each other. The committed numbers, ``statistics.json``, are means, deviations,
correlations and shares over at least 29 people each; they hold no candidate's values. To compute them anew::

    python -m training.statistics FILE.csv > training/statistics.json
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field

from training.candidates import PLACEMENT, Candidate
from training.data import Dataset, read_csv
from transformer.signature import STRICT, Category, Number

STATISTICS_FILE = Path(__file__).with_name("statistics.json")
#: The field that best tells apart how the percentages of one class are distributed (see tests: a forest
#: trained on what this generates gets 93 % of the real candidates right; without cells, 90 %).
GIVEN = "workex"


class Cell(BaseModel):
    """The candidates of one class that have one value of the field that cells are made by."""

    model_config = STRICT

    label: str
    given: str
    #: Part of all candidates that belongs to this cell.
    share: float
    #: Mean and standard deviation of each number.
    means: dict[str, float]
    deviations: dict[str, float]
    #: Correlation of the numbers, in the order of `means`.
    correlations: Annotated[
        tuple[Annotated[tuple[float, ...], Field(strict=False)], ...], Field(strict=False)
    ]
    #: Part of the cell's candidates that has each category of each field.
    frequencies: dict[str, dict[str, float]]


class Statistics(BaseModel):
    """A description of a population of candidates, cell by cell."""

    model_config = STRICT

    #: Number of candidates that were described.
    rows: int
    #: The categorical field that cells are made by.
    given: str
    cells: Annotated[tuple[Cell, ...], Field(strict=False)]

    @classmethod
    def committed(cls) -> "Statistics":
        """The numbers that this project carries."""
        return cls.model_validate_json(STATISTICS_FILE.read_bytes())


def describe(dataset: Dataset, given: str = GIVEN) -> Statistics:
    """Compute the statistics of a dataset.

    Means and deviations are rounded to 2 decimals, correlations to 2, shares and frequencies to 3.
    """
    groups: dict[tuple[str, str], list[Candidate]] = {}
    for candidate, label in zip(dataset.candidates, dataset.labels, strict=True):
        groups.setdefault((label, str(candidate[given])), []).append(candidate)
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


if __name__ == "__main__":
    sys.stdout.write(describe(read_csv(sys.argv[1], PLACEMENT)).model_dump_json(indent=1) + "\n")
