"""Shapley values of the raw fields: exact where that takes few rows, else from random permutations.

A field that is equal in the candidate and in a background row contributes nothing in that row's game, so each
background row needs the coalitions of only those fields that differ. Beyond the budget, marginal
contributions are averaged along random permutations, each paired with its reverse (R. Mitchell et al.,
"Sampling Permutations for Shapley Value Estimation", 2022).
"""

from collections.abc import Sequence
from functools import cache
from math import comb

import numpy as np
import numpy.typing as npt

from transformer.bundle.explanation import Contributions
from transformer.explanation.game import Game, Scores, Scoring, score_in_blocks

_Bools = npt.NDArray[np.bool_]

#: Minimum pairs of permutations for each background row: a standard error needs two.
MIN_PAIRS = 2
_SEED = 0


def rows_to_score(game: Game, row: Scores, max_rows: int) -> int:
    """Return the number of rows that `contributions` scores for an encoded candidate."""
    counts = game.differing(row).sum(axis=1)
    return sum(map(_cost, counts.tolist(), _pairs(counts, max_rows)))


def contributions(game: Game, row: Scores, max_rows: int) -> Scoring[Contributions]:
    """Compute the contribution of each field to a candidate's score.

    Equal arguments and scores give equal contributions.

    Parameters
    ----------
    row : ndarray of float64, shape (features,)
        The encoded candidate.
    max_rows
        Maximum rows to score, which decides about exact values or permutations. A signature of more fields
        takes `MIN_PAIRS` for each background row all the same.
    """
    random = np.random.default_rng(_SEED)
    differing = game.differing(row)
    parts = [
        _Part(np.flatnonzero(fields), pairs, random)
        for fields, pairs in zip(differing, _pairs(differing.sum(axis=1), max_rows), strict=True)
    ]
    sizes = [part.rows for part in parts]
    background = np.repeat(np.arange(len(parts)), sizes)
    coalitions = np.zeros((len(background), len(game.fields)), np.bool_)
    ends = np.cumsum(sizes)
    starts = ends - sizes
    for start, end, part in zip(starts, ends, parts, strict=True):
        coalitions[start:end, part.fields] = part.coalitions
    scores = yield from score_in_blocks(
        len(background), lambda block: game.rows(row, coalitions[block], background[block])
    )
    values, variances = np.zeros((2, len(game.fields)))
    for weight, start, end, part in zip(game.weights, starts, ends, parts, strict=True):
        found, variance = part.contributions(scores[start:end])
        values[part.fields] += weight * found
        variances[part.fields] += weight**2 * variance
    return Contributions(
        fields=game.names,
        baseline=np.array([game.weights @ scores[starts]]),
        values=values[np.newaxis],
        standard_errors=np.sqrt(variances)[np.newaxis],
        exact=np.array([not any(part.pairs for part in parts)]),
    )


def join(parts: Sequence[Contributions]) -> Contributions:
    """Join the contributions of several candidates, at least one."""
    return Contributions(
        parts[0].fields,
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("baseline", "values", "standard_errors", "exact")
        ),
    )


def _pairs(counts: npt.NDArray[np.intp], max_rows: int) -> list[int]:
    """Choose the pairs of permutations for each background row; 0 for exact values.

    Parameters
    ----------
    counts
        Number of fields in which the candidate differs from each background row.
    max_rows
        Budget for all of them. What the cheapest do not need is left for the others.
    """
    pairs = [0] * len(counts)
    left = max_rows
    for done, index in enumerate(np.argsort(counts, kind="stable").tolist()):
        count = int(counts[index])
        share = left // (len(counts) - done)
        # With one field or none, exact values take fewer rows than any permutation.
        if count > 1 and 2**count > share:
            affordable = max(MIN_PAIRS, (share - 2) // (2 * (count - 1)))
            pairs[index] = affordable if _cost(count, affordable) < 2**count else 0
        left -= _cost(count, pairs[index])
    return pairs


def _cost(count: int, pairs: int) -> int:
    """Return the number of rows to score for one background row.

    Without pairs, these are all coalitions. With pairs, they are no field, all fields, and those along the
    permutations.
    """
    return 2 + 2 * pairs * (count - 1) if pairs else 2**count


class _Part:
    """The coalitions for one background row, the first without a field and the last with all.

    Parameters
    ----------
    fields
        Indices of the fields that differ.
    pairs
        Number of pairs of permutations; 0 for all coalitions.

    Attributes
    ----------
    coalitions : ndarray of bool, shape (rows, differing fields)
    """

    def __init__(self, fields: npt.NDArray[np.intp], pairs: int, random: np.random.Generator) -> None:
        self.fields = fields
        self.pairs = pairs
        self._ranks = self._draw(random)
        self.coalitions = self._between() if pairs else _subsets(len(fields))
        self.rows = len(self.coalitions)

    def contributions(self, scores: Scores) -> tuple[Scores, Scores]:
        """Return the contribution of each differing field, and the variance of the estimate."""
        if not self.pairs:
            exact = _shapley_values(scores, len(self.fields))
            return exact, np.zeros_like(exact)
        along = np.empty((2 * self.pairs, len(self.fields) + 1))
        along[:, 0], along[:, -1] = scores[0], scores[-1]
        along[:, 1:-1] = scores[1:-1].reshape(2 * self.pairs, -1)
        marginal = np.take_along_axis(np.diff(along), self._ranks, axis=1)
        by_pair = (marginal[: self.pairs] + marginal[self.pairs :]) / 2
        return by_pair.mean(axis=0), by_pair.var(axis=0, ddof=1) / self.pairs

    def _draw(self, random: np.random.Generator) -> npt.NDArray[np.intp]:
        """Return the rank of each field in each permutation: first the permutations, then their reverses."""
        ranks = np.tile(np.arange(len(self.fields)), (self.pairs, 1))
        ranks = random.permuted(ranks, axis=1)
        return np.concatenate([ranks, len(self.fields) - 1 - ranks])

    def _between(self) -> _Bools:
        """Return no field, the growing beginnings of each permutation, and all fields."""
        sizes = np.arange(1, len(self.fields))[:, np.newaxis]
        first = self._ranks[:, np.newaxis, :] < sizes
        ends = np.zeros((2, len(self.fields)), np.bool_)
        ends[1] = True
        return np.concatenate([ends[:1], first.reshape(-1, len(self.fields)), ends[1:]])


@cache
def _subsets(count: int) -> _Bools:
    """Return all coalitions of some fields: field j is in coalition i if i has the bit 2^j."""
    return (np.arange(2**count)[:, np.newaxis] >> np.arange(count) & 1).astype(np.bool_)


@cache
def _coalition_weights(count: int) -> Scores:
    """Return the weight of a field's marginal contribution to each coalition of the `count` - 1 others."""
    sizes = _subsets(count - 1).sum(axis=1)
    by_size = np.array([1 / (count * comb(count - 1, size)) for size in range(count)])
    weights: Scores = by_size[sizes]
    return weights


def _shapley_values(scores: Scores, count: int) -> Scores:
    """Return the Shapley value of each field, given the scores of all coalitions of `_subsets`."""
    values = np.empty(count)
    for field in range(count):
        by_bit = scores.reshape(-1, 2, 2**field)
        values[field] = _coalition_weights(count) @ (by_bit[:, 1] - by_bit[:, 0]).ravel()
    return values
