"""DictVectorizer's encoding without its code: the same numbers, bit for bit, for every valid candidate."""

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
    reader,
)
from transformer.bundle.format import Vectorizer
from transformer.bundle.signature import Category, Number, Signature
from transformer.bundle.validation import UnknownCategory, validate

Matrix = npt.NDArray[np.float64]
_FLOAT64 = np.dtype(np.float64)

#: Up to so many candidates are encoded one by one, more of them in blocks; with 12 fields both take the same
#: time at about 10, measured on a virtual machine with two cores.
FEW = 10
#: Candidates of a block: as many as a core's own cache holds while their fields are read, measured there too.
BLOCK = 512
#: Numbers that the table of combined categories may hold.
MAX_TABLE = 1 << 16


class Encoder:
    """Turns candidates into one version's feature matrix.

    The rule is that of `sklearn.feature_extraction.DictVectorizer` (scikit-learn 1.5): a number fills the
    column of its field's name, a category puts 1 into the column ``name=value``, all else is 0.

    What is surely valid is encoded as it is read. Where anything is in doubt, `validate` looks at each value,
    and what it lets pass is encoded afterwards.

    Parameters
    ----------
    vectorizer
        Feature names of the version to encode for, in order.
    signature
        The same version's raw fields.
    unknown_category
        Whether a value that the signature does not list is an error or encoded as none.
    newest
        Signature of a newer version, if there is one: what it lists is never encoded as none.
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
        self._read_numbers = reader(self._numbers)
        self._number_columns = np.array([index[name] for name in self._numbers], np.intp)
        self._bounds = [(index[field.name], field.minimum, field.maximum) for field in numbers]
        # As large as a block: numpy compares arrays of one shape in a third of the time.
        self._minima = np.tile([field.minimum for field in numbers], (BLOCK, 1))
        self._maxima = np.tile([field.maximum for field in numbers], (BLOCK, 1))
        #: Column of each value of each category.
        self._categories = {
            field.name: {
                value: index[f"{field.name}{vectorizer.separator}{value}"] for value in field.categories
            }
            for field in signature.fields
            if isinstance(field, Category)
        }
        self._together = _Combinations(self._categories, len(self.feature_names))
        self._apart = [item for item in self._categories.items() if item[0] not in self._together.fields]
        self._groups = [self._together.fields, *((name,) for name, _ in self._apart)]

    def encode(self, candidates: Candidates) -> Matrix:
        """Validate and encode candidates.

        Returns
        -------
        ndarray of float64, shape (candidates, feature names), C-contiguous

        Raises
        ------
        InvalidRequest
            If a candidate is no object.
        InvalidCandidates
            With every problem; see `transformer.bundle.format.validation.validate`.
        """
        try:
            return self._sure(candidates)
        except NEEDS_FULL_VALIDATION:
            pass
        if self._defaults:
            with suppress(*NEEDS_FULL_VALIDATION):
                return self._sure(candidates.filled(self._defaults))
        return self._any(candidates)

    def _sure(self, candidates: Candidates) -> Matrix:
        """Encode valid candidates. Raises one of NEEDS_FULL_VALIDATION if any may be invalid."""
        return self._few(candidates) if candidates.rows <= FEW else self._many(candidates)

    def _few(self, candidates: Candidates) -> Matrix:
        """Candidates one by one: no call of numpy's but the last."""
        matrix = array("d")
        for candidate in candidates.dicts():
            row = self._together.row(candidate)
            numbers = zip(self._read_numbers(candidate), self._bounds)  # noqa: B905 (takes its time)
            for value, (column, minimum, maximum) in numbers:
                kind = type(value)
                if not ((kind is float or kind is int) and minimum <= value <= maximum):
                    raise NeedsFullValidation
                # DictVectorizer adds each number to 0, which makes 0 of -0.
                row[column] = value + 0.0
            for name, columns in self._apart:
                row[columns[candidate[name]]] = 1.0
            matrix += row
        return np.ndarray((candidates.rows, len(self.feature_names)), _FLOAT64, matrix)

    def _many(self, candidates: Candidates) -> Matrix:
        """Candidates in blocks: hardly any step of Python's own."""
        matrix = np.empty((candidates.rows, len(self.feature_names)))
        for block in candidates.blocks(BLOCK, self._numbers, self._groups):
            numbers = block.numbers
            rows = len(numbers)
            # NaN fails both comparisons.
            within = (numbers >= self._minima[:rows]) & (numbers <= self._maxima[:rows])
            if np.count_nonzero(within) < within.size:
                raise NeedsFullValidation
            features = matrix[block.rows]
            together, *apart = block.groups
            self._together.rows(together, features)
            features[:, self._number_columns] = numbers + 0.0
            for values, (_, columns) in zip(apart, self._apart, strict=True):
                features[np.arange(rows), [columns[value] for (value,) in values]] = 1.0
        return matrix

    def _any(self, candidates: Candidates) -> Matrix:
        """Whatever candidates: each value is looked at."""
        valid = validate(candidates, self._signature, self._unknown_category, self._newest)
        width = len(self.feature_names)
        # An ignored category fills no column: its 1 lands in a spare last one that is cut off.
        matrix = np.zeros((valid.rows, width + 1))
        for name, (column, _, _) in zip(self._numbers, self._bounds, strict=True):
            matrix[:, column] = valid.numbers[name] + 0.0
        for name, columns in self._categories.items():
            found = [width if value is None else columns[value] for value in valid.categories[name]]
            matrix[np.arange(valid.rows), found] = 1.0
        return np.ascontiguousarray(matrix[:, :width])


class _Combinations:
    """Each combination of values that categories can have together, with the features that it makes.

    Parameters
    ----------
    columns
        Column of each value of each category. Those of the fewest values are combined, as many as give a
        table of `MAX_TABLE` numbers at most.
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
            if count * width > MAX_TABLE:
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
        self._read = reader(self.fields)

    def row(self, candidate: Mapping[str, str]) -> "array[float]":
        """One candidate's features; one of NEEDS_FULL_VALIDATION if it is not a combination."""
        start = self._numbers[self._read(candidate)] * self._width
        return self._cells[start : start + self._width]

    def rows(self, combinations: Iterable[Values], features: Matrix) -> None:
        """Fill in many candidates' features; one of NEEDS_FULL_VALIDATION if one is not a combination."""
        found = np.fromiter(map(self._numbers.__getitem__, combinations), np.intp, len(features))
        self._table.take(found, axis=0, out=features, mode="clip")
