"""Whether an answer is one model's, and that of the version that it claims."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tests.support.sklearn_reference import SklearnReference
from transformer.bundle.format import UNVERIFIED

#: Two models that agree to this are the same; those of the pairs differ by far more.
TOLERANCE = 1e-9

Scores = npt.NDArray[np.float64]
Verdict = Literal["right", "wrong", "mixed", "unverified"]


@dataclass(frozen=True)
class Answer:
    """What a client was told: the version that it claims, and for each candidate a score and a yes or no."""

    version: str
    probabilities: Sequence[float]
    positive: Sequence[bool]


class AnswerChecker:
    """Holds answers against what scikit-learn says in this process.

    Parameters
    ----------
    candidates
        What is asked about.
    may_answer
        The models that may answer, by the label that their answers must carry; several may share one.
    others
        Models that are there and may not.
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
        """What an answer about some of the candidates, by their numbers, is.

        Returns
        -------
        Verdict
            ``right``: every score is the same claimed model's. ``mixed``: each is some model's, but not all
            are the same one's. ``unverified``: it is one model's, but claims none where every model is known.
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
