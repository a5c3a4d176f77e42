"""Threshold: the lowest probability of a positive prediction, as a number or chosen by a rule.

A rule chooses among steps of 0.001 by the out-of-fold probabilities, so that the report's figures at the
threshold are those of candidates that the model was not fitted on.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
#: Returns the threshold for true classes and out-of-fold probabilities, each of shape (candidates,).
ChooseThreshold = Callable[[Bools, Floats], float]
#: Scores of each step, from its numbers of true and false positives and the number of all positives.
_Score = Callable[[Floats, Floats, int], Floats]

DEFAULT = "0.5"
EXPECTED = "a number from 0 to 1, f1, recall=0.9, or cost=1:5 (of a false positive and of a false negative)"
_STEPS = np.arange(1001) / 1000


class ThresholdError(Exception):
    """A threshold that is neither a probability nor a rule."""

    def __init__(self, text: str) -> None:
        super().__init__(f"threshold {text!r} is not known, expected {EXPECTED}")


def parse(text: str) -> ChooseThreshold:
    """Read a threshold: a number from 0 to 1, or a rule (`EXPECTED`); return the function that chooses it.

    ``f1`` gives the largest F1 score, ``recall=R`` the highest threshold with a recall of at least R, and
    ``cost=A:B`` the lowest cost if a false positive costs A and a false negative B.

    Raises
    ------
    ThresholdError
        If it is something else.
    """
    rule, _, value = text.partition("=")
    if rule == "f1" and not value:
        return _best(_f1)
    if rule == "recall":
        recall = _number(value, text, most=1)
        return _best(lambda tp, fp, p: np.where(tp >= recall * p, _STEPS, -1))
    if rule == "cost":
        positive, colon, negative = value.partition(":")
        if not colon:
            raise ThresholdError(text)
        costs = _number(positive, text), _number(negative, text)
        return _best(lambda tp, fp, p: -(costs[0] * fp + costs[1] * (p - tp)))
    fixed = _number(text, text, most=1)
    return lambda positive, probabilities: fixed


def _best(score: _Score) -> ChooseThreshold:
    """Return a function that chooses the step with the highest score; of several, the one nearest to 0.5."""

    def choose(positive: Bools, probabilities: Floats) -> float:
        positives, negatives = (np.sort(probabilities[part]) for part in (positive, ~positive))
        true, false = (
            len(values) - np.searchsorted(values, _STEPS).astype(float) for values in (positives, negatives)
        )
        scores = score(true, false, len(positives))
        best = _STEPS[scores == scores.max()]
        return float(best[np.argmin(np.abs(best - 0.5))])

    return choose


def _f1(true: Floats, false: Floats, positives: int) -> Floats:
    scores: Floats = 2 * true / np.maximum(true + false + positives, 1)
    return scores


def _number(text: str, given: str, most: float = np.inf) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 <= number <= most or number == np.inf:
        raise ThresholdError(given)
    return number
