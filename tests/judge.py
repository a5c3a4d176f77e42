"""Whether an answer is one model's, and that of the version that it claims."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tests.truth import Truth
from transformer.versions import UNVERIFIED

#: Two models that agree to this are the same; those of the pairs differ by far more.
TOLERANCE = 1e-9

Verdict = Literal["right", "wrong", "mixed", "unverified"]


@dataclass(frozen=True)
class Answer:
    """What a client was told: the version that it claims, and for each candidate a score and a yes or no."""

    version: str
    probabilities: Sequence[float]
    positive: Sequence[bool]


class Judge:
    """Holds answers against what scikit-learn says in this process.

    Parameters
    ----------
    candidates
        What is asked about.
    models
        Every model that is there.
    may_answer
        Those of them that may answer, by the label that their answers must carry.
    """

    def __init__(
        self, candidates: Sequence[dict[str, Any]], models: Sequence[Truth], may_answer: Mapping[str, Truth]
    ) -> None:
        self.candidates = candidates
        self._all = [np.array(model.probabilities(candidates)) for model in models]
        self._claimed = {
            label: (np.array(model.probabilities(candidates)), model.bundle.threshold)
            for label, model in may_answer.items()
        }

    def verdict(self, chosen: Sequence[int], answer: Answer) -> Verdict:
        """What an answer about some of the candidates, by their numbers, is.

        Returns
        -------
        Verdict
            ``right``: every score is the claimed version's. ``mixed``: each is some model's, but not all are
            the same one's. ``unverified``: it is one model's, but claims none where every model is known.
            ``wrong``: anything else.
        """
        scores = np.array(answer.probabilities)
        if scores.shape != (len(chosen),):
            return "wrong"
        claimed, threshold = self._claimed.get(answer.version, (None, 0.0))
        if claimed is not None and _same(scores, claimed[list(chosen)]).all():
            return "right" if list(answer.positive) == (scores >= threshold).tolist() else "wrong"
        by_model = np.array([_same(scores, model[list(chosen)]) for model in self._all])
        if by_model.all(axis=1).any():
            return "unverified" if answer.version == UNVERIFIED and claimed is None else "wrong"
        return "mixed" if by_model.any(axis=0).all() else "wrong"


def _same(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.abs(one - other) <= TOLERANCE
