"""The types of explanations between the protocols and the explainer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

#: Parts of an explanation that a request can ask for.
ExplanationPart = Literal["contributions", "changes"]
#: Changes that turn one candidate's negative answer: the new value of one or two fields each.
Changes = Sequence[Mapping[str, str | bool | float]]


@dataclass(frozen=True, slots=True)
class Contributions:
    """Contribution of each field to each candidate's score; see `Target.explained`.

    Attributes
    ----------
    fields
        Names of the fields, in the order of the arrays.
    baseline : ndarray of float64, shape (candidates,)
        Weighted mean of the background rows' scores.
    values : ndarray of float64, shape (candidates, fields)
        Shapley values. The baseline and all contributions add up to the score.
    standard_errors : ndarray of float64, shape (candidates, fields)
        Standard error of each contribution; 0 where it is exact.
    exact : ndarray of bool, shape (candidates,)
        True where all contributions are exact.
    """

    fields: tuple[str, ...]
    baseline: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]
    standard_errors: npt.NDArray[np.float64]
    exact: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Explanation of the prediction for the candidates of one request.

    Attributes
    ----------
    contributions
        None if they were not asked for.
    changes
        For each candidate, changes that turn a negative answer; empty for a positive one. None if they were
        not asked for.
    """

    contributions: Contributions | None
    changes: Sequence[Changes] | None
