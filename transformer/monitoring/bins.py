"""Bins of the raw fields: counts the rows of a feature matrix in each, without decoding them."""

import itertools
from collections.abc import Container, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from transformer.bundle.distribution import Distribution
from transformer.bundle.encoder import Matrix
from transformer.bundle.format import Version
from transformer.bundle.signature import Category, Number, RawField

#: Bin of categories that the signature does not list, with ``--unknown_category=ignore``.
OTHER = "other"

Counts = npt.NDArray[np.int64]


class _NumberBins:
    """Bins of a numeric field, from one inner edge to the next; its `edges` include the ends."""

    def __init__(self, field: Number, column: int, edges: Sequence[float]) -> None:
        self.field: RawField = field
        texts = [np.format_float_positional(edge, trim="-") for edge in edges]
        self.labels = [f"{low} to {high}" for low, high in itertools.pairwise(texts)]
        self._column = column
        self._inner = edges[1:-1]

    def count(self, matrix: Matrix) -> list[int]:
        # One comparison for each edge: np.searchsorted takes five times as long for thousands of rows.
        column = np.ascontiguousarray(matrix[:, self._column])
        reached = [len(column), *(int(np.count_nonzero(column >= edge)) for edge in self._inner), 0]
        return [more - fewer for more, fewer in itertools.pairwise(reached)]


class _CategoryBins:
    """Bins of a categorical field: its values and `OTHER`."""

    def __init__(self, field: Category, columns: Sequence[int]) -> None:
        self.field: RawField = field
        other = OTHER
        while other in field.categories:
            other = f"({other})"
        self.labels = [*field.categories, other]
        self._columns = columns

    def count(self, matrix: Matrix) -> list[int]:
        known = [int(np.count_nonzero(matrix[:, column])) for column in self._columns]
        return [*known, len(matrix) - sum(known)]


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
        self._fields = [bins for bins in _bins(version) if bins.field.name in fields]
        self.labels = [(bins.field.name, label) for bins in self._fields for label in bins.labels]

    def count(self, matrix: Matrix) -> Counts:
        """Return how many rows of a feature matrix are in each bin."""
        return np.array([count for bins in self._fields for count in bins.count(matrix)], np.int64)

    def shares(self, distribution: Distribution) -> list[float]:
        """Return the share of the training candidates in each bin."""
        found = [_training_count(distribution, field, number) for field, number in self._numbered()]
        return [count / distribution.rows for count in found]

    def _numbered(self) -> list[tuple[RawField, int]]:
        return [(bins.field, number) for bins in self._fields for number in range(len(bins.labels))]


def _bins(version: Version) -> Iterator[_NumberBins | _CategoryBins]:
    vectorizer, distribution = version.vectorizer, version.distribution
    for field in version.signature.fields:
        if isinstance(field, Category):
            names = [f"{field.name}{vectorizer.separator}{value}" for value in field.categories]
            yield _CategoryBins(field, [vectorizer.index[name] for name in names])
        elif distribution is not None:
            edges = distribution.numbers[field.name].edges
            yield _NumberBins(field, vectorizer.index[field.name], edges)


def _training_count(distribution: Distribution, field: RawField, number: int) -> int:
    if isinstance(field, Number):
        return distribution.numbers[field.name].counts[number]
    if number == len(field.categories):
        return 0
    return distribution.categories[field.name][field.categories[number]]
