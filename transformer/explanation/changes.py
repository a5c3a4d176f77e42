"""Changes of one or two fields that turn a negative answer: the smallest that a search on a grid finds.

The size of a change of a number is its share of the field's range; a change of a category has size 1 (as in
Gower's distance). Where the signature sets no limit, the range ends at the outermost value of the background
rows and the candidate. Each proposed value is inside the signature, and the model's answer to it is positive.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import isqrt

import numpy as np

from transformer.bundle.encoder import Matrix
from transformer.bundle.signature import Boolean, CategoryList, Number, RawField
from transformer.explanation.game import Game, Scores, Scoring, score_in_blocks

#: Steps of the grid over a number's range.
STEPS = 32
#: Number of times that the step before the first number that is enough is divided into `STEPS` again.
REFINEMENTS = 2
#: Maximum values of each field that are tried in pairs.
VALUES_IN_PAIRS = 8
#: Maximum proposals for one candidate.
MAX_PROPOSALS = 5
#: Significant digits of proposed numbers.
DIGITS = 4


@dataclass(frozen=True, slots=True, eq=False)
class _Value:
    """A new value of one field.

    Attributes
    ----------
    size
        Size of the change.
    columns, encoded
        The columns that the value changes, and what it puts into them.
    """

    field: RawField
    value: str | bool | float
    size: float
    columns: tuple[int, ...]
    encoded: tuple[float, ...]

    @property
    def name(self) -> str:
        """Name of the field."""
        return self.field.name


#: New values of different fields.
_Proposal = tuple[_Value, ...]


def changes(
    game: Game, row: Scores, threshold: float, fixed_fields: Collection[str], max_rows: int
) -> Scoring[list[dict[str, str | bool | float]]]:
    """Search for the smallest changes of one field that turn a negative answer, or else of two.

    Parameters
    ----------
    row : ndarray of float64, shape (features,)
        The encoded candidate.
    threshold
        The probability from which on an answer is positive.
    fixed_fields
        Fields that are not to be changed.
    max_rows
        Maximum rows for all pairs of fields; with more fields, those that help most by themselves are tried.

    Returns
    -------
    Up to `MAX_PROPOSALS` changes, smallest first: the new value of each field. No two are of the same fields.
    Empty if no change was found.
    """
    search = _Search(game, row, threshold)
    by_field = [search.grid(one) for one in game.fields if one.name not in fixed_fields]
    singles: list[_Proposal] = [(value,) for values in by_field for value in values]
    scores = yield from search.score(singles)
    found = search.smallest(singles, scores)
    if not found:
        best = dict(zip(singles, scores.tolist(), strict=True))
        pairs = list(_pairs(list(filter(None, by_field)), best, max_rows))
        found = search.smallest(pairs, (yield from search.score(pairs)))
    refined = yield from search.refine(found[:MAX_PROPOSALS])
    return [{one.name: one.value for one in proposal} for proposal in refined]


class _Search:
    """Proposals for one candidate."""

    def __init__(self, game: Game, row: Scores, threshold: float) -> None:
        self._game = game
        self._row = row
        self._threshold = threshold

    def grid(self, one: RawField) -> list[_Value]:
        """Return other values of a field: all categories, or numbers at equal distances."""
        if isinstance(one, Number):
            return self._numbers(one, np.linspace(*self._range(one), STEPS + 1))
        if isinstance(one, CategoryList):
            # There is no distance between two lists.
            return []
        columns = self._game.columns(one)
        if isinstance(one, Boolean):
            other = not self._row[columns[0]]
            return [_Value(one, bool(other), 1.0, columns, (float(other),))]
        own = [column for column in columns if self._row[column]]
        return [
            _Value(one, value, 1.0, (*own, column), (*(0.0 for _ in own), 1.0))
            for value, column in zip(one.categories, columns, strict=True)
            if not self._row[column]
        ]

    def _numbers(self, one: Number, values: Scores) -> list[_Value]:
        """Return different values of a number in their order, rounded and inside its range."""
        columns = self._game.columns(one)
        own, (least, most) = float(self._row[columns[0]]), self._range(one)
        # Adding 0 turns -0 into 0, as in the encoding.
        digits = (round(value) if one.is_whole else float(f"{value:.{DIGITS}g}") for value in values.tolist())
        rounded = (min(max(float(value), least), most) + 0.0 for value in digits)
        return [
            _Value(one, value, abs(value - own) / (most - least), columns, (value,))
            for value in dict.fromkeys(rounded)
            if value != own
        ]

    def _range(self, one: Number) -> tuple[float, float]:
        (column,) = self._game.columns(one)
        known = [float(self._row[column]), *self._game.background[:, column].tolist()]
        return (
            min(known) if one.minimum is None else one.minimum,
            max(known) if one.maximum is None else one.maximum,
        )

    def score(self, proposals: Sequence[_Proposal]) -> Scoring[Scores]:
        """Score proposals."""
        return score_in_blocks(len(proposals), lambda block: self._rows(proposals[block]))

    def _rows(self, proposals: Sequence[_Proposal]) -> Matrix:
        """Return the candidate with each proposal's values, encoded."""
        rows: Matrix = np.tile(self._row, (len(proposals), 1))
        for row, proposal in zip(rows, proposals, strict=True):
            for one in proposal:
                row[list(one.columns)] = one.encoded
        return rows

    def smallest(self, proposals: Sequence[_Proposal], scores: Scores) -> list[_Proposal]:
        """Return the smallest proposal that is enough of each set of fields, smallest first."""
        found: dict[tuple[str, ...], _Proposal] = {}
        for proposal in sorted((proposals[index] for index in self._enough(scores)), key=_size):
            found.setdefault(tuple(one.name for one in proposal), proposal)
        return list(found.values())

    def _enough(self, scores: Scores) -> list[int]:
        return np.flatnonzero(scores >= self._threshold).tolist()

    def refine(self, proposals: Sequence[_Proposal]) -> Scoring[list[_Proposal]]:
        """Replace the numbers, one after another, by the nearest to the candidate's that are enough."""
        refined = list(proposals)
        for position in range(max(map(len, refined), default=0)):
            starts = [float(self._row[proposal[position].columns[0]]) for proposal in refined]
            for _ in range(REFINEMENTS):
                finer = [self._between(*one, position) for one in zip(starts, refined, strict=True)]
                scores = yield from self.score([proposal for some in finer for proposal in some])
                for number, some in enumerate(finer):
                    own, scores = scores[: len(some)], scores[len(some) :]
                    first = (*self._enough(own), len(some))[0]
                    if first > 0:
                        starts[number] = float(some[first - 1][position].value)
                    if first < len(some):
                        refined[number] = some[first]
        return sorted(refined, key=_size)

    def _between(self, start: float, proposal: _Proposal, position: int) -> list[_Proposal]:
        """Return the proposal with other numbers in one position, from a start on; none for a category."""
        one = proposal[position]
        if not isinstance(one.field, Number):
            return []
        steps = np.linspace(start, float(one.value), STEPS + 1)[1:-1]
        return [
            (*proposal[:position], value, *proposal[position + 1 :])
            for value in self._numbers(one.field, steps)
        ]


def _size(proposal: Iterable[_Value]) -> float:
    return sum(one.size for one in proposal)


def _pairs(
    by_field: Sequence[Sequence[_Value]], best: dict[_Proposal, float], max_rows: int
) -> Iterator[_Proposal]:
    """Yield values of two fields, of those fields that raise the probability most by themselves."""
    # The number of fields with at most so many pairs.
    most = max(2, (1 + isqrt(1 + 8 * (max_rows // VALUES_IN_PAIRS**2))) // 2)
    helpful = sorted(by_field, key=lambda values: max(best[value,] for value in values), reverse=True)[:most]
    for one, other in combinations([_few(values, best) for values in helpful], 2):
        yield from product(one, other)


def _few(values: Sequence[_Value], best: dict[_Proposal, float]) -> Sequence[_Value]:
    """Return at most `VALUES_IN_PAIRS` values: the best categories, or numbers at equal distances."""
    if len(values) <= VALUES_IN_PAIRS:
        return values
    if not isinstance(values[0].field, Number):
        return sorted(values, key=lambda value: best[value,], reverse=True)[:VALUES_IN_PAIRS]
    chosen = np.linspace(0, len(values) - 1, VALUES_IN_PAIRS).round().astype(int)
    return [values[index] for index in chosen]
