"""Encoder with the same output as DictVectorizer, bit for bit, for every valid candidate.

DictVectorizer itself is not used: the image would need scikit-learn, the fitted object is a pickle, and it
takes about ten times as long.
"""

from array import array
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import product

import numpy as np
import numpy.typing as npt

from transformer.bundle.candidates import (
    NEEDS_FULL_VALIDATION,
    Candidates,
    NeedsFullValidation,
    Values,
    tuple_getter,
)
from transformer.bundle.format import Vectorizer
from transformer.bundle.signature import Category, Number, Signature
from transformer.bundle.validation import UnknownCategory, validate

Matrix = npt.NDArray[np.float64]
_FLOAT64 = np.dtype(np.float64)

#: Maximum candidates that are encoded one by one; more are encoded in blocks. With 12 fields both take the
#: same time at about 10, measured on a virtual machine with two cores.
MAX_ONE_BY_ONE = 10
#: Candidates per block: as many as fit into a core's cache while their fields are read, measured there too.
BLOCK_SIZE = 512
#: Maximum numbers in the table of category combinations.
MAX_TABLE_SIZE = 1 << 16


class Encoder:
    """Encodes candidates as one version's feature matrix.

    The rule is that of `sklearn.feature_extraction.DictVectorizer` (scikit-learn 1.5): a number goes into the
    column named like its field, a category puts 1 into the column ``name=value``, and all else is 0.

    The fast paths encode valid candidates as they read them. If a candidate may be invalid, `validate` checks
    each value, and valid candidates are encoded from its result.

    Parameters
    ----------
    vectorizer
        Feature names of the version to encode for, in order.
    signature
        The same version's raw fields.
    unknown_category
        ``refuse`` makes a value that the signature does not list an error, ``ignore`` encodes it as zeros.
    newest
        Signature of a newer version, if there is one. A value that it lists is never ignored.
    """

    def __init__(
        self,
        vectorizer: Vectorizer,
        signature: Signature,
        unknown_category: UnknownCategory = "refuse",
        newest: Signature | None = None,
    ) -> None:
        self.feature_names = vectorizer.feature_names
        self._signature = signature
        self._unknown_category: UnknownCategory = unknown_category
        self._newest = newest
        self._defaults = {
            field.name: field.default for field in signature.fields if field.default is not None
        }
        index = vectorizer.index
        numbers = [field for field in signature.fields if isinstance(field, Number)]
        self._numbers = tuple(field.name for field in numbers)
        self._read_numbers = tuple_getter(self._numbers)
        self._number_columns = np.array([index[name] for name in self._numbers], np.intp)
        self._bounds = [(index[field.name], field.minimum, field.maximum) for field in numbers]
        # As large as a block: numpy compares arrays of equal shape in a third of the time.
        self._minima = np.tile([field.minimum for field in numbers], (BLOCK_SIZE, 1))
        self._maxima = np.tile([field.maximum for field in numbers], (BLOCK_SIZE, 1))
        #: Column of each value of each category.
        self._categories = {
            field.name: {
                value: index[f"{field.name}{vectorizer.separator}{value}"] for value in field.categories
            }
            for field in signature.fields
            if isinstance(field, Category)
        }
        self._combined = _CombinationTable(self._categories, len(self.feature_names))
        self._uncombined = [item for item in self._categories.items() if item[0] not in self._combined.fields]
        self._groups = [self._combined.fields, *((name,) for name, _ in self._uncombined)]

    def encode(self, candidates: Candidates) -> Matrix:
        """Validate and encode candidates.

        Returns
        -------
        ndarray of float64, shape (candidates, feature names), C-contiguous

        Raises
        ------
        InvalidRequest
            If a candidate is not an object.
        InvalidCandidates
            If a value is invalid; see `transformer.bundle.validation.validate`.
        """
        try:
            return self._try_encode_valid(candidates)
        except NEEDS_FULL_VALIDATION:
            pass
        if self._defaults:
            with suppress(*NEEDS_FULL_VALIDATION):
                return self._try_encode_valid(candidates.with_defaults(self._defaults))
        return self._validate_and_encode(candidates)

    def _try_encode_valid(self, candidates: Candidates) -> Matrix:
        """Encode valid candidates; raise one of NEEDS_FULL_VALIDATION if any may be invalid."""
        if candidates.rows <= MAX_ONE_BY_ONE:
            return self._encode_rows(candidates)
        return self._encode_blocks(candidates)

    def _encode_rows(self, candidates: Candidates) -> Matrix:
        """Encode candidates one by one, with a single call into numpy at the end."""
        matrix = array("d")
        for candidate in candidates.dicts():
            row = self._combined.row(candidate)
            numbers = zip(self._read_numbers(candidate), self._bounds)  # noqa: B905 (`strict` costs time)
            for value, (column, minimum, maximum) in numbers:
                kind = type(value)
                if not ((kind is float or kind is int) and minimum <= value <= maximum):
                    raise NeedsFullValidation
                # DictVectorizer adds each number to 0, which turns -0 into 0.
                row[column] = value + 0.0
            for name, columns in self._uncombined:
                row[columns[candidate[name]]] = 1.0
            matrix += row
        return np.ndarray((candidates.rows, len(self.feature_names)), _FLOAT64, matrix)

    def _encode_blocks(self, candidates: Candidates) -> Matrix:
        """Encode candidates in blocks, with few Python operations per candidate."""
        matrix = np.empty((candidates.rows, len(self.feature_names)))
        for block in candidates.read_blocks(BLOCK_SIZE, self._numbers, self._groups):
            numbers = block.numbers
            rows = len(numbers)
            # NaN fails both comparisons.
            in_range = (numbers >= self._minima[:rows]) & (numbers <= self._maxima[:rows])
            if np.count_nonzero(in_range) < in_range.size:
                raise NeedsFullValidation
            features = matrix[block.rows]
            combined, *uncombined = block.groups
            self._combined.write(combined, features)
            features[:, self._number_columns] = numbers + 0.0
            for values, (_, columns) in zip(uncombined, self._uncombined, strict=True):
                features[np.arange(rows), [columns[value] for (value,) in values]] = 1.0
        return matrix

    def _validate_and_encode(self, candidates: Candidates) -> Matrix:
        """Check each value, and encode the candidates if all are valid."""
        valid = validate(candidates, self._signature, self._unknown_category, self._newest)
        width = len(self.feature_names)
        # An ignored category has no column: its 1 goes into an extra last one, which is cut off.
        matrix = np.zeros((valid.rows, width + 1))
        for name, (column, _, _) in zip(self._numbers, self._bounds, strict=True):
            matrix[:, column] = valid.numbers[name] + 0.0
        for name, columns in self._categories.items():
            found = [width if value is None else columns[value] for value in valid.categories[name]]
            matrix[np.arange(valid.rows), found] = 1.0
        return np.ascontiguousarray(matrix[:, :width])


class _CombinationTable:
    """Features of each combination of category values, so that one lookup encodes several categories.

    Parameters
    ----------
    columns
        Column of each value of each category. The categories with the fewest values are combined, as long as
        the table has at most `MAX_TABLE_SIZE` numbers.
    width
        Number of features.

    Attributes
    ----------
    fields
        The categories that are combined.
    """

    def __init__(self, columns: Mapping[str, Mapping[str, int]], width: int) -> None:
        fields: list[str] = []
        count = 1
        for name, values in sorted(columns.items(), key=lambda item: len(item[1])):
            count *= len(values)
            if count * width > MAX_TABLE_SIZE:
                break
            fields.append(name)
        self.fields = tuple(fields)
        combinations = list(product(*(columns[name] for name in fields)))
        self._table = np.zeros((len(combinations), width))
        for number, combination in enumerate(combinations):
            for name, value in zip(fields, combination, strict=True):
                self._table[number, columns[name][value]] = 1.0
        self._numbers = {combination: number for number, combination in enumerate(combinations)}
        self._width = width
        self._cells = array("d", self._table.tobytes())
        self._read = tuple_getter(self.fields)

    def row(self, candidate: Mapping[str, str]) -> "array[float]":
        """Return one candidate's features; raise one of NEEDS_FULL_VALIDATION for an unknown combination."""
        start = self._numbers[self._read(candidate)] * self._width
        return self._cells[start : start + self._width]

    def write(self, combinations: Iterable[Values], features: Matrix) -> None:
        """Write many candidates' features; raise one of NEEDS_FULL_VALIDATION for an unknown combination."""
        found = np.fromiter(map(self._numbers.__getitem__, combinations), np.intp, len(features))
        self._table.take(found, axis=0, out=features, mode="clip")
