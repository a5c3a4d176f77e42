"""Generate labelled candidates, so that the project works without a download."""

import hashlib
import json

import numpy as np
import numpy.typing as npt

from training.candidates import PLACEMENT, Candidate, Task
from training.data import DataError, Dataset
from training.statistics import Cell, Statistics
from transformer.bundle.signature import Category, Number, Signature

#: A model of 2,000 generated rows is as good on real candidates as a model of 5,000, and trains in seconds.
DEFAULT_ROWS = 2000


def generate(rows: int = DEFAULT_ROWS, seed: int = 0, *, task: Task = PLACEMENT) -> Dataset:
    """Draw labelled candidates from the class-conditional model of `training.statistics`.

    The same `rows` and `seed` give the same candidates.

    Raises
    ------
    DataError
        If `rows` or `seed` is too small, or if the statistics do not describe the task's candidates.
    """
    if rows < 1:
        raise DataError("generated", [f"rows must be at least 1, got {rows}"])
    if seed < 0:
        raise DataError("generated", [f"seed must be at least 0, got {seed}"])
    statistics = Statistics.committed()
    statistics.check(task)
    random = np.random.default_rng(seed)
    shares = np.array([cell.share for cell in statistics.cells])
    counts = random.multinomial(rows, shares / shares.sum())
    drawn: list[tuple[Candidate, str]] = []
    for cell, count in zip(statistics.cells, counts, strict=True):
        drawn += ((candidate, cell.label) for candidate in _draw(cell, int(count), task.signature, random))
    candidates, labels = zip(*(drawn[index] for index in random.permutation(rows)), strict=True)
    digest = hashlib.sha256(json.dumps([candidates, labels]).encode()).hexdigest()
    source = f"generated, seed {seed}"
    return Dataset(task, list(candidates), list(labels), source, digest, seed=seed)


def _draw(cell: Cell, count: int, signature: Signature, random: np.random.Generator) -> list[Candidate]:
    numbers = dict(zip(cell.means, _numbers(cell, count, signature, random).T.tolist(), strict=True))
    columns = []
    for field in signature.fields:
        if isinstance(field, Number):
            columns.append(numbers[field.name])
        elif isinstance(field, Category):
            frequencies = np.array([cell.frequencies[field.name][value] for value in field.categories])
            chosen = random.choice(len(frequencies), count, p=frequencies / frequencies.sum())
            columns.append([field.categories[index] for index in chosen])
    return [dict(zip(signature.names, values, strict=True)) for values in zip(*columns, strict=True)]


def _numbers(
    cell: Cell, count: int, signature: Signature, random: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Draw `count` rows of jointly normal numbers; rows outside the bounds are drawn again."""
    bounds = {f.name: f.range for f in signature.fields if isinstance(f, Number)}
    low, high = np.array([bounds[name] for name in cell.means]).T
    means, deviations = np.array(list(cell.means.values())), np.array(list(cell.deviations.values()))
    # Cholesky, because singular vectors of two linear algebra libraries can differ in sign.
    factor = np.linalg.cholesky(np.array(cell.correlations)) * deviations[:, None]
    values = np.full((count, len(means)), np.nan)
    while (outside := ~((values >= low) & (values <= high)).all(axis=1)).any():
        drawn = means + random.standard_normal((int(outside.sum()), len(means))) @ factor.T
        values[outside] = np.round(drawn, 2)
    return values
