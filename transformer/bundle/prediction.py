"""The types between the protocols and the scorer: a decoded request, and its prediction."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from transformer.bundle.candidates import Candidates
from transformer.bundle.encoder import Matrix
from transformer.bundle.explanation import Explanation, ExplanationPart


# Not frozen, because that takes five times as long for each request.
@dataclass(slots=True)
class Prediction:
    """Prediction for the candidates of one request, by one version.

    Attributes
    ----------
    version
        Version of the model.
    encoding
        Version whose encoding was scored: another one only if the model is unverified.
    matrix : ndarray of float64, shape (candidates, feature names)
        The candidates in that encoding, C-contiguous.
    probabilities : ndarray of float64, shape (candidates,)
        Probability of the positive class.
    positive : ndarray of bool, shape (candidates,)
        True where the probability reaches the version's threshold.
    explanation
        Explanation of it, if the request asked for one.
    """

    version: str
    encoding: str
    matrix: Matrix
    probabilities: npt.NDArray[np.float64]
    positive: npt.NDArray[np.bool_]
    explanation: Explanation | None = None

    @property
    def rows(self) -> int:
        """Number of candidates."""
        return len(self.positive)

    def of(self, rows: slice) -> "Prediction":
        """Return the part for some of the candidates."""
        return Prediction(
            self.version, self.encoding, self.matrix[rows], self.probabilities[rows], self.positive[rows]
        )


class Request(Protocol):
    """A decoded request, which can put a prediction into its own protocol."""

    @property
    def candidates(self) -> Candidates:
        """The candidates, not validated."""

    @property
    def version(self) -> str | None:
        """The only version that may answer; any if None."""

    @property
    def explains(self) -> Collection[ExplanationPart]:
        """The parts of an explanation that it asks for; none for a plain prediction."""

    def answer(self, prediction: Prediction) -> Any:  # noqa: ANN401 (each protocol has its own type)
        """Return the prediction in the caller's protocol."""
