"""The types between the protocols and the scorer: a decoded request, and its prediction."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from transformer.bundle.candidates import Candidates
from transformer.bundle.encoder import Matrix
from transformer.bundle.explanation import Explanation, ExplanationPart
from transformer.bundle.target import Target


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
    target
        The kind of question that the model answers.
    values : ndarray, shape (candidates,)
        The answers: True where the probability reaches the version's threshold, or places of classes, or
        numbers; see `Target.answers`.
    probabilities : ndarray of float64, shape (candidates,) or (candidates, classes)
        Probability of the positive class, or of each class; None if the model gives none.
    explanation
        Explanation of it, if the request asked for one.
    """

    version: str
    encoding: str
    matrix: Matrix
    target: Target
    values: npt.NDArray[Any]
    probabilities: npt.NDArray[np.float64] | None
    explanation: Explanation | None = None

    @property
    def rows(self) -> int:
        """Number of candidates."""
        return len(self.values)

    def of(self, rows: slice) -> "Prediction":
        """Return the part for some of the candidates."""
        probabilities = None if self.probabilities is None else self.probabilities[rows]
        return Prediction(
            self.version, self.encoding, self.matrix[rows], self.target, self.values[rows], probabilities
        )


def join(predictions: Sequence[Prediction]) -> Prediction:
    """Join the predictions of one model for consecutive candidates."""
    if len(predictions) == 1:
        return predictions[0]
    first = predictions[0]
    probabilities = [one.probabilities for one in predictions if one.probabilities is not None]
    return Prediction(
        first.version,
        first.encoding,
        np.concatenate([one.matrix for one in predictions]),
        first.target,
        np.concatenate([one.values for one in predictions]),
        np.concatenate(probabilities) if probabilities else None,
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
