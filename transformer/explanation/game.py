"""The game of one version: its players are the raw fields, its payoff is a candidate's score.

The score is the probability of the positive class, or that of the class that was predicted, or the number of
a regression; see `transformer.bundle.target.Target.explained`.

Fields outside a coalition have the values of a background row. All rows are in the version's encoding: a
field has columns of its own, so a row of a coalition is put together from the columns of two encoded rows,
and equals the encoding of the raw values bit for bit.
"""

from collections.abc import Callable, Generator
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from transformer.bundle.candidates import Candidates, Rows
from transformer.bundle.encoder import Matrix
from transformer.bundle.format import Background, Version
from transformer.bundle.signature import RawField

Scores = npt.NDArray[np.float64]
#: Rows that are put together at once: as many as one call carries, so that nothing else waits long.
BLOCK_SIZE = 256
_Result = TypeVar("_Result")
#: Computation that yields rows to score, and receives the score of each.
Scoring = Generator[Matrix, Scores, _Result]


def score_in_blocks(count: int, rows: Callable[[slice], Matrix]) -> Scoring[Scores]:
    """Score so many rows, `BLOCK_SIZE` at a time; `rows` makes those of a slice when it is their turn."""
    scores = np.empty(count)
    for start in range(0, count, BLOCK_SIZE):
        block = slice(start, start + BLOCK_SIZE)
        scores[block] = yield rows(block)
    return scores


class Game:
    """The game of one version.

    Parameters
    ----------
    version
        The version's part of the bundle.
    background
        Its background rows.
    encode
        Encodes candidates for the version.

    Attributes
    ----------
    fields
        The raw fields: the players.
    names
        Names of the fields.
    field_of : ndarray of int, shape (features,)
        Index of the field that each feature belongs to.
    background : ndarray of float64, shape (background rows, features)
        The encoded background rows.
    weights : ndarray of float64, shape (background rows,)
        The weight of each.
    """

    def __init__(
        self, version: Version, background: Background, encode: Callable[[Candidates], Matrix]
    ) -> None:
        self.fields = version.signature.fields
        self.names = version.signature.names
        self._columns = {field.name: version.vectorizer.columns_of(field) for field in self.fields}
        self.field_of = np.empty(len(version.vectorizer.feature_names), np.intp)
        for number, columns in enumerate(self._columns.values()):
            self.field_of[list(columns)] = number
        self.background = encode(Rows(list(background.candidates), "background"))
        self.weights = np.array(background.weights) / sum(background.weights)

    def columns(self, field: RawField) -> tuple[int, ...]:
        """Return the columns of a field, in the order of its categories."""
        return self._columns[field.name]

    def differing(self, row: Scores) -> npt.NDArray[np.bool_]:
        """Return True for each background row and field in which an encoded candidate differs from it."""
        differs = np.zeros((len(self.background), len(self.fields)), np.bool_)
        rows, features = np.nonzero(self.background != row)
        differs[rows, self.field_of[features]] = True
        return differs

    def rows(
        self, row: Scores, coalitions: npt.NDArray[np.bool_], background: npt.NDArray[np.intp]
    ) -> Matrix:
        """Return encoded rows: a candidate's fields in a coalition, the others of a background row.

        Parameters
        ----------
        row : ndarray of float64, shape (features,)
            The encoded candidate.
        coalitions : ndarray of bool, shape (rows, fields)
            True for the fields in each coalition.
        background : ndarray of int, shape (rows,)
            Background row of each coalition.
        """
        return np.where(coalitions[:, self.field_of], row, self.background[background])
