"""Bins of the raw fields: counts the rows of a feature matrix in each, without decoding them."""

import itertools
from collections.abc import Container
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transformer.bundle.distribution import Distribution
from transformer.bundle.encoder import Matrix
from transformer.bundle.format import Version
from transformer.bundle.signature import Category, Number, RawField

#: Bin of categories that the signature does not list, with ``--unknown_category=ignore``.
OTHER = "other"

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _FieldBins:
    """Bins of one field.

    Attributes
    ----------
    thresholds
        Column and lower bound of each threshold. For a number they are the bins' inner edges; for a category
        one for each value's column.
    """

    field: RawField
    labels: tuple[str, ...]
    thresholds: tuple[tuple[int, float], ...]

    def counts(self, reached: Counts, rows: int) -> Counts:
        """Return the rows in each bin, given how many of them reach each threshold."""
        if isinstance(self.field, Number):
            return -np.diff(np.concatenate(([rows], reached, [0])))
        return np.append(reached, rows - reached.sum())


class Bins:
    """The bins of some fields of one version.

    Parameters
    ----------
    version
        The version's part of a bundle.
    fields
        Names of the fields. Left out are those that the version does not have, and numbers if the bundle does
        not have the version's `distribution`, which has their edges.

    Attributes
    ----------
    labels
        Field and bin, in the order of the counts.
    """

    def __init__(self, version: Version, fields: Container[str]) -> None:
        self._fields = [
            _bins(version, field)
            for field in version.signature.fields
            if field.name in fields and (version.distribution is not None or isinstance(field, Category))
        ]
        self.labels = [(bins.field.name, label) for bins in self._fields for label in bins.labels]
        thresholds = [threshold for bins in self._fields for threshold in bins.thresholds]
        self._columns = np.array([column for column, _ in thresholds], np.intp)
        self._bounds = np.array([bound for _, bound in thresholds])

    def count(self, matrix: Matrix) -> Counts:
        """Return how many rows of a feature matrix are in each bin."""
        reached = np.count_nonzero(matrix[:, self._columns] >= self._bounds, axis=0)
        counts, start = [], 0
        for bins in self._fields:
            end = start + len(bins.thresholds)
            counts.append(bins.counts(reached[start:end], len(matrix)))
            start = end
        return np.concatenate(counts) if counts else np.zeros(0, np.int64)

    def shares(self, distribution: Distribution) -> list[float]:
        """Return the share of the training candidates in each bin."""
        found = [_training_count(distribution, field, number) for field, number in self._numbered()]
        return [count / distribution.rows for count in found]

    def _numbered(self) -> list[tuple[RawField, int]]:
        return [(bins.field, number) for bins in self._fields for number in range(len(bins.labels))]


def _bins(version: Version, field: RawField) -> _FieldBins:
    index = version.vectorizer.index
    if isinstance(field, Number):
        assert version.distribution is not None  # noqa: S101 (see `Bins`)
        edges = version.distribution.numbers[field.name].edges
        texts = [np.format_float_positional(edge, trim="-") for edge in edges]
        labels = [f"{low} to {high}" for low, high in itertools.pairwise(texts)]
        column = index[field.name]
        return _FieldBins(field, tuple(labels), tuple((column, edge) for edge in edges[1:-1]))
    columns = [index[f"{field.name}{version.vectorizer.separator}{value}"] for value in field.categories]
    other = OTHER
    while other in field.categories:
        other = f"({other})"
    return _FieldBins(field, (*field.categories, other), tuple((column, 1.0) for column in columns))


def _training_count(distribution: Distribution, field: RawField, number: int) -> int:
    if isinstance(field, Number):
        return distribution.numbers[field.name].counts[number]
    if number == len(field.categories):
        return 0
    return distribution.categories[field.name][field.categories[number]]
