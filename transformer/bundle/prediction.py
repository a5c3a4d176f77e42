"""What one request asks and what answers it, whatever protocol carried it."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from transformer.bundle.candidates import Candidates


@dataclass(frozen=True, slots=True)
class Prediction:
    """Answer to one request, given by one version.

    Attributes
    ----------
    version
        The version whose model and encoding gave the answer.
    probabilities : ndarray of float64, shape (candidates,)
        Probability of the positive class.
    positive : ndarray of bool, shape (candidates,)
        Whether that probability reaches the version's threshold.
    """

    version: str
    probabilities: npt.NDArray[np.float64]
    positive: npt.NDArray[np.bool_]

    def of(self, rows: slice) -> "Prediction":
        """The answer to some of the candidates."""
        return Prediction(self.version, self.probabilities[rows], self.positive[rows])


class Request(Protocol):
    """A decoded request of any protocol."""

    @property
    def candidates(self) -> Candidates:
        """The candidates as the request holds them."""

    @property
    def version(self) -> str | None:
        """The only version that may answer; any if None."""

    def answer(self, prediction: Prediction) -> Any:  # noqa: ANN401 (each protocol has its own type)
        """Put a prediction into the request's protocol."""
