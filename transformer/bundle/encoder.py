"""Encoder with the same output as DictVectorizer, bit for bit, for every valid candidate.

DictVectorizer itself is not used: the image would need scikit-learn, the fitted object is a pickle, and it
takes about ten times as long.
"""

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import chain, product
from typing import Any

import numpy as np
import numpy.typing as npt

from transformer.bundle.candidates import (
    NEEDS_FULL_VALIDATION,
    Candidates,
    FieldGroup,
    NeedsFullValidation,
    NumericFields,
)
from transformer.bundle.format import Vectorizer
from transformer.bundle.signature import Boolean, Category, CategoryList, Number, Signature
from transformer.bundle.validation import UnknownCategory, validate

Matrix = npt.NDArray[np.float64]
_FLOAT64 = np.dtype(np.float64)
#: A category, or a boolean.
_Choice = str | bool

#: Maximum candidates that are encoded one by one; more are encoded in blocks. With 12 fields both take the
#: same time at about 3, measured on a virtual machine with two cores.
MAX_ONE_BY_ONE = 2
#: Candidates per block: as many as fit into a core's cache while their fields are read, measured there too.
BLOCK_SIZE = 512
#: Maximum columns of a feature matrix whose bounds are stored once per row of a block.
MAX_REPEATED_WIDTH = 64
#: Maximum numbers in the table of category combinations.
MAX_TABLE_SIZE = 1 << 16
#: Stands for a value of no combination: a sum with it is negative.
_UNKNOWN = -MAX_TABLE_SIZE


class Encoder:
    """Encodes candidates as one version's feature matrix.

    The rule is that of `sklearn.feature_extraction.DictVectorizer` (scikit-learn 1.5): a number goes into the
    column named like its field, as does a boolean as 1 or 0; a category puts 1 into the column
    ``name=value``; each category of a list adds 1 there; all else is 0.

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
        numbers = {field.name: field for field in signature.fields if isinstance(field, Number)}
        #: Column of each numeric field, and of each value of each category.
        self._numbers = {name: index[name] for name in numbers}
        self._categories = {
            field.name: dict(zip(field.categories, vectorizer.columns_of(field), strict=True))
            for field in signature.fields
            if isinstance(field, Category)
        }
        self._lists = {
            field.name: dict(zip(field.categories, vectorizer.columns_of(field), strict=True))
            for field in signature.fields
            if isinstance(field, CategoryList)
        }
        self._list_fields = [FieldGroup([name]) for name in self._lists]
        self._booleans = {
            field.name: index[field.name] for field in signature.fields if isinstance(field, Boolean)
        }
        #: Both values of a boolean have the one column, where true puts 1 and false 0.
        choices: dict[str, Mapping[_Choice, int]] = {
            name: {False: column, True: column} for name, column in self._booleans.items()
        }
        choices |= {name: dict(columns.items()) for name, columns in self._categories.items()}
        self._whole = [index[name] for name, field in numbers.items() if field.is_whole]
        combined = _combinable(choices, len(index))
        #: The categories that are not combined; each is encoded by itself.
        self._others = [
            (FieldGroup([name]), columns, name in self._booleans)
            for name, columns in choices.items()
            if name not in combined
        ]
        #: The columns of the numbers and of the combined categories: all columns, if all are combined.
        self._dense = sorted(
            {*self._numbers.values(), *chain.from_iterable(columns.values() for columns in combined.values())}
        )
        position = {column: number for number, column in enumerate(self._dense)}
        width = len(self._dense)
        self._combined = _CombinationTable(
            {
                name: {value: position[column] for value, column in columns.items()}
                for name, columns in combined.items()
            },
            width,
        )
        self._one_by_one = (
            _CombinationTable(combined, len(index)) if self._others or self._lists else self._combined
        )
        self._numeric = NumericFields({name: position[self._numbers[name]] for name in numbers}, width)
        ranges = [numbers[name].range for name in self._numeric.names]
        self._bounds = [
            (self._numbers[name], *bounds) for name, bounds in zip(self._numeric.names, ranges, strict=True)
        ]
        self._range = _Range(self._numeric.columns, ranges, width)
        without_0_and_1 = [_without_0_and_1(*bounds) for bounds in ranges]
        self._range_without_0_and_1 = _Range(self._numeric.columns, without_0_and_1, width)

    def encode(self, candidates: Candidates) -> Matrix:
        """Validate and encode candidates.

        Returns
        -------
        ndarray of float64, shape (candidates, feature names), C-contiguous

        Raises
        ------
        InvalidCandidates
            If a candidate is not an object, or a value is invalid; see
            `transformer.bundle.validation.validate`.
        """
        try:
            return self._try_encode_valid(candidates)
        except NEEDS_FULL_VALIDATION:
            pass
        if self._defaults:
            with suppress(*NEEDS_FULL_VALIDATION):
                if self._signature.misspelled(candidates.names()):
                    raise NeedsFullValidation
                return self._try_encode_valid(candidates.with_defaults(self._defaults))
        return self._validate_and_encode(candidates)

    def _try_encode_valid(self, candidates: Candidates) -> Matrix:
        """Encode valid candidates; raise one of NEEDS_FULL_VALIDATION if any may be invalid."""
        matrix = self._encode_valid(candidates)
        if self._whole:
            whole = matrix[:, self._whole]
            if not np.array_equal(whole, np.floor(whole)):
                raise NeedsFullValidation
        return matrix

    def _encode_valid(self, candidates: Candidates) -> Matrix:
        if candidates.rows <= MAX_ONE_BY_ONE:
            return self._encode_rows(candidates)
        if candidates.rows <= BLOCK_SIZE:
            return self._encode_block(candidates)
        matrix = np.zeros((candidates.rows, len(self.feature_names)))
        starts = range(0, candidates.rows, BLOCK_SIZE)
        for start, block in zip(starts, candidates.blocks(BLOCK_SIZE), strict=True):
            self._encode_block(block, out=matrix[start : start + block.rows])
        return matrix

    def _encode_rows(self, candidates: Candidates) -> Matrix:
        """Encode candidates one by one, with a single call into numpy at the end."""
        matrix = array("d")
        for candidate in candidates.dicts():
            row = self._one_by_one.row(candidate)
            numbers = zip(self._numeric.read(candidate), self._bounds)  # noqa: B905 (`strict` costs time)
            for value, (column, minimum, maximum) in numbers:
                kind = type(value)
                if not ((kind is float or kind is int) and minimum <= value <= maximum):
                    raise NeedsFullValidation
                # DictVectorizer adds each number to 0, which turns -0 into 0.
                row[column] = value + 0.0
            for field, columns, is_boolean in self._others:
                value = candidate[field.names[0]]
                row[columns[value]] = float(value) if is_boolean else 1.0
            for field in self._list_fields:
                self._add_list(row, candidate[field.names[0]], field)
            matrix += row
        return np.ndarray((candidates.rows, len(self.feature_names)), _FLOAT64, matrix)

    def _add_list(self, row: "array[float] | Matrix", values: Any, field: FieldGroup) -> None:  # noqa: ANN401
        """Add 1 for each category of a list; raise one of NEEDS_FULL_VALIDATION if one may be invalid."""
        # A string is a sequence of strings, too.
        if type(values) is not list and type(values) is not tuple:
            raise NeedsFullValidation
        columns = self._lists[field.names[0]]
        for value in values:
            row[columns[value]] += 1.0

    def _encode_block(self, candidates: Candidates, out: Matrix | None = None) -> Matrix:
        """Encode up to `BLOCK_SIZE` candidates into a matrix of zeros, by default a new one."""
        numbers = candidates.numbers(self._numeric)
        # A boolean is read as 0 or 1, so where neither is present, no type needs a check.
        if not self._range_without_0_and_1.contains(numbers) and (
            not self._range.contains(numbers) or candidates.has_booleans(self._numeric)
        ):
            raise NeedsFullValidation
        combined = self._combined.rows(candidates)
        # These additions also turn -0 into 0, as in DictVectorizer.
        if not self._others and not self._lists:
            features: Matrix = np.add(numbers, combined, out)
            return features
        if out is None:
            out = np.zeros((candidates.rows, len(self.feature_names)))
        out[:, self._dense] = numbers + combined
        for field, columns, is_boolean in self._others:
            values = [value for (value,) in candidates.tuples(field)]
            found = [columns[value] for value in values]
            out[np.arange(candidates.rows), found] = values if is_boolean else 1.0
        for field in self._list_fields:
            for row, (values,) in zip(out, candidates.tuples(field), strict=True):
                self._add_list(row, values, field)
        return out

    def _validate_and_encode(self, candidates: Candidates) -> Matrix:
        """Check each value, and encode the candidates if all are valid."""
        valid = validate(candidates, self._signature, self._unknown_category, self._newest)
        width = len(self.feature_names)
        # An ignored category has no column: its 1 goes into an extra last one, which is cut off.
        matrix = np.zeros((valid.rows, width + 1))
        for name, column in (self._numbers | self._booleans).items():
            matrix[:, column] = valid.numbers[name] + 0.0
        for name, columns in self._categories.items():
            found = [width if value is None else columns[value] for value in valid.categories[name]]
            matrix[np.arange(valid.rows), found] = 1.0
        for name, columns in self._lists.items():
            for row, values in zip(matrix, valid.lists[name], strict=True):
                for value in values:
                    row[columns[value]] += 1.0
        return np.ascontiguousarray(matrix[:, :width])


class _Range:
    """Minimum and maximum of each column of the feature matrix; both are 0 for columns without a number."""

    def __init__(self, columns: Sequence[int], ranges: Iterable[tuple[float, float]], width: int) -> None:
        # Short rows are repeated: numpy compares arrays of equal shape in a third of the time.
        minima, maxima = np.zeros((2, BLOCK_SIZE if width <= MAX_REPEATED_WIDTH else 1, width))
        for column, (minimum, maximum) in zip(columns, ranges, strict=True):
            minima[:, column], maxima[:, column] = minimum, maximum
        self._by_rows = [(minima[:rows], maxima[:rows]) for rows in range(BLOCK_SIZE + 1)]

    def contains(self, numbers: Matrix) -> bool:
        """Return True if every number is in its column's range."""
        minima, maxima = self._by_rows[len(numbers)]
        # NaN fails both comparisons. With few numbers, `all()` takes three times as long.
        return False not in (numbers >= minima).tobytes() and False not in (numbers <= maxima).tobytes()


def _without_0_and_1(minimum: float, maximum: float) -> tuple[float, float]:
    """Return the widest part of a range that contains neither 0 nor 1."""
    parts = [
        (minimum, min(maximum, math.nextafter(0, -math.inf))),
        (max(minimum, math.nextafter(0, 1)), min(maximum, math.nextafter(1, 0))),
        (max(minimum, math.nextafter(1, math.inf)), maximum),
    ]
    return max(parts, key=lambda part: part[1] - part[0])


def _combinable(columns: Mapping[str, Mapping[_Choice, int]], width: int) -> dict[str, Mapping[_Choice, int]]:
    """Return the categories with the fewest values, as many as `MAX_TABLE_SIZE` allows to combine."""
    chosen = {}
    count = 1
    for name, values in sorted(columns.items(), key=lambda item: len(item[1])):
        count *= len(values)
        if count * width > MAX_TABLE_SIZE:
            break
        chosen[name] = values
    return chosen


class _CombinationTable:
    """Features of each combination of category values, so that one lookup encodes several categories.

    Parameters
    ----------
    columns
        Column of each value of each category.
    width
        Number of features.

    Attributes
    ----------
    fields
        The categories that are combined.
    """

    def __init__(self, columns: Mapping[str, Mapping[_Choice, int]], width: int) -> None:
        fields = tuple(columns)
        self.fields = FieldGroup(fields)
        self._width = width
        #: Features of each combination, as bytes.
        self._rows: dict[tuple[_Choice, ...], bytes] = {}
        for combination in product(*(columns[name] for name in fields)):
            row = np.zeros(width)
            for name, value in zip(fields, combination, strict=True):
                row[columns[name][value]] = 0.0 if value is False else 1.0
            self._rows[combination] = row.tobytes()
        #: For each field, what its values add to the place of a combination in `_rows`.
        self._steps: list[dict[_Choice, int]] = []
        step = len(self._rows)
        for name in fields:
            step //= len(columns[name])
            self._steps.append({value: place * step for place, value in enumerate(columns[name])})

    @cached_property
    def _matrix(self) -> Matrix:
        return np.ndarray((len(self._rows), self._width), _FLOAT64, b"".join(self._rows.values()))

    def row(self, candidate: Mapping[str, str]) -> "array[float]":
        """Return one candidate's features; raise one of NEEDS_FULL_VALIDATION for an unknown combination."""
        return array("d", self._rows[self.fields.read(candidate)])

    def rows(self, candidates: Candidates) -> Matrix:
        """Return the candidates' features; raise one of NEEDS_FULL_VALIDATION for an unknown combination."""
        if (coded := candidates.coded(self.fields)) is not None:
            places = sum(
                np.array([steps.get(value, _UNKNOWN) for value in column.values])[column.codes]
                for steps, column in zip(self._steps, coded, strict=True)
            )
            if np.any(places < 0):
                raise NeedsFullValidation
            matrix: Matrix = self._matrix[places]
            return matrix
        rows = b"".join(map(self._rows.__getitem__, candidates.tuples(self.fields)))
        return np.ndarray((candidates.rows, self._width), _FLOAT64, rows)
