"""Bins of the raw fields: counts the rows of a feature matrix in each, without decoding them."""

import itertools
from collections.abc import Container, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from transformer.bundle.distribution import NumberBins
from transformer.bundle.encoder import Matrix
from transformer.bundle.format import Version
from transformer.bundle.signature import BOOLEANS, Boolean, Category, CategoryList

#: Bin of candidates without a known category: their values are not in the signature, whose field is open or
#: which ``--unknown_category=ignore`` allows; or their list is empty.
OTHER = "other"

Counts = npt.NDArray[np.int64]


class _NumberBins:
    """Bins of a numeric field, and the training candidates in each."""

    def __init__(self, name: str, column: int, bins: NumberBins) -> None:
        self.name = name
        texts = [np.format_float_positional(edge, trim="-") for edge in bins.edges]
        self.labels = [f"{low} to {high}" for low, high in itertools.pairwise(texts)]
        self.training: Sequence[int] = bins.counts
        self._column = column
        self._inner = bins.edges[1:-1]

    def count(self, matrix: Matrix) -> list[int]:
        # One comparison for each edge: np.searchsorted takes five times as long for thousands of rows.
        column = np.ascontiguousarray(matrix[:, self._column])
        reached = [len(column), *(int(np.count_nonzero(column >= edge)) for edge in self._inner), 0]
        return [more - fewer for more, fewer in itertools.pairwise(reached)]


class _CategoryBins:
    """Bins of a categorical field, its values and `OTHER`, and the training candidates in each."""

    def __init__(
        self, field: Category | CategoryList, columns: Sequence[int], training: Mapping[str, int]
    ) -> None:
        self.name = field.name
        other = OTHER
        while other in field.categories:
            other = f"({other})"
        self.labels = [*field.categories, other]
        self.training: Sequence[int] = [*(training.get(value, 0) for value in field.categories), 0]
        self._columns = columns
        self._is_list = isinstance(field, CategoryList)

    def count(self, matrix: Matrix) -> list[int]:
        # A row has one category; a row of a list field has any number.
        known = [int(np.count_nonzero(matrix[:, column])) for column in self._columns]
        with_some = sum(known)
        if self._is_list:
            with_some = int(np.count_nonzero(matrix[:, self._columns].any(axis=1)))
        return [*known, len(matrix) - with_some]


class _BooleanBins:
    """Bins of a boolean field, and the training candidates in each."""

    def __init__(self, field: Boolean, column: int, training: Mapping[str, int]) -> None:
        self.name = field.name
        self.labels = list(BOOLEANS)
        self.training: Sequence[int] = [training.get(label, 0) for label in BOOLEANS]
        self._column = column

    def count(self, matrix: Matrix) -> list[int]:
        true = int(np.count_nonzero(matrix[:, self._column]))
        return [true, len(matrix) - true]


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
    training
        Training candidates in each bin; 0 if the bundle does not have the distribution.
    """

    def __init__(self, version: Version, fields: Container[str]) -> None:
        self._fields = [bins for bins in _bins(version) if bins.name in fields]
        self.labels = [(bins.name, label) for bins in self._fields for label in bins.labels]
        self.training = [count for bins in self._fields for count in bins.training]

    def count(self, matrix: Matrix) -> Counts:
        """Return how many rows of a feature matrix are in each bin."""
        return np.array([count for bins in self._fields for count in bins.count(matrix)], np.int64)


def _bins(version: Version) -> Iterator[_NumberBins | _CategoryBins | _BooleanBins]:
    vectorizer, distribution = version.vectorizer, version.distribution
    categories = {} if distribution is None else distribution.categories
    for field in version.signature.fields:
        columns, training = vectorizer.columns_of(field), categories.get(field.name, {})
        if isinstance(field, Boolean):
            yield _BooleanBins(field, columns[0], training)
        elif isinstance(field, Category | CategoryList):
            yield _CategoryBins(field, columns, training)
        elif distribution is not None:
            yield _NumberBins(field.name, columns[0], distribution.numbers[field.name])
