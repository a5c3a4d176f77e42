"""The checker of answers: each must be one model's, and the model that its version claims."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tests.support.sklearn_reference import SklearnReference
from transformer.bundle.format import UNVERIFIED

#: Scores that differ by less are the same model's. Those of a pair's versions differ by far more.
TOLERANCE = 1e-9

Scores = npt.NDArray[np.float64]
Verdict = Literal["right", "wrong", "mixed", "unverified"]


@dataclass(frozen=True)
class Answer:
    """The answer to a client: its version, and for each candidate a probability and a decision."""

    version: str
    probabilities: Sequence[float]
    positive: Sequence[bool]


class AnswerChecker:
    """Compares answers with the scores of scikit-learn in this process.

    Parameters
    ----------
    candidates
        The candidates of the requests.
    may_answer
        Models that may answer, by the version that their answers must have; several may share one.
    others
        Models that are running but must not answer.
    """

    def __init__(
        self,
        candidates: Sequence[dict[str, Any]],
        may_answer: Mapping[str, Sequence[SklearnReference]],
        others: Sequence[SklearnReference] = (),
    ) -> None:
        self.candidates = candidates
        self._claimed = {
            label: [(np.array(model.probabilities(candidates)), model.bundle.threshold) for model in models]
            for label, models in may_answer.items()
        }
        self._all = [scores for claimed in self._claimed.values() for scores, _ in claimed]
        self._all += [np.array(model.probabilities(candidates)) for model in others]

    def verdict(self, chosen: Sequence[int], answer: Answer) -> Verdict:
        """Judge an answer for the candidates with the chosen numbers.

        Returns
        -------
        Verdict
            ``right``: every score is the claimed model's. ``mixed``: every score is some model's, but not all
            are the same one's. ``unverified``: all scores are one known model's, but the answer names none.
            ``wrong``: anything else.
        """
        scores = np.array(answer.probabilities)
        if scores.shape != (len(chosen),):
            return "wrong"
        numbers = list(chosen)
        for model, threshold in self._claimed.get(answer.version, ()):
            if _same(scores, model[numbers]).all():
                return "right" if list(answer.positive) == (scores >= threshold).tolist() else "wrong"
        by_model = np.array([_same(scores, model[numbers]) for model in self._all])
        if by_model.all(axis=1).any():
            unexpected = answer.version == UNVERIFIED and UNVERIFIED not in self._claimed
            return "unverified" if unexpected else "wrong"
        return "mixed" if by_model.any(axis=0).all() else "wrong"


def _same(one: Scores, other: Scores) -> npt.NDArray[np.bool_]:
    same: npt.NDArray[np.bool_] = np.abs(one - other) <= TOLERANCE
    return same
