"""Explanations by a version's model in this process, with which tests compare every served explanation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.support.explained_model import scored
from tests.support.sklearn_reference import SklearnReference
from transformer.bundle.candidates import Rows
from transformer.bundle.explanation import Contributions
from transformer.bundle.format import Bundle
from transformer.explanation.contributions import contributions
from transformer.explanation.game import Game
from transformer.settings import Settings
from transformer.upstream.known_versions import KnownVersion


class ExpectedExplanation:
    """Explains candidates with scikit-learn.

    Parameters
    ----------
    reference
        The version's model.
    max_rows
        As `--max_explanation_rows`.
    bundle
        The bundle whose encoding and background rows are used; by default the model's own.
    """

    def __init__(
        self,
        reference: SklearnReference,
        max_rows: int = Settings.max_explanation_rows,
        bundle: Bundle | None = None,
    ) -> None:
        bundle = bundle or reference.bundle
        assert bundle.background is not None
        self._reference = reference
        self._known = KnownVersion(bundle)
        self._game = Game(bundle, bundle.background, self._known.encode)
        self._max_rows = max_rows

    def contributions(self, candidate: Mapping[str, Any]) -> Contributions:
        """Return the contributions of one candidate's fields."""
        (row,) = self._known.encode(Rows([dict(candidate)], "instances"))
        column = self._reference.bundle.target.positive_column
        return scored(
            contributions(self._game, row, self._max_rows),
            lambda rows: np.ascontiguousarray(self._reference.predict_proba(rows)[:, column]),
        )

    def differences(self, candidate: Mapping[str, Any], explained: Mapping[str, Any]) -> Sequence[float]:
        """Return by how much an explanation over V1 differs: baseline, contributions, and probability."""
        found = self.contributions(candidate)
        (probability,) = self._reference.probabilities([dict(candidate)])
        pairs = [
            (explained["baseline"], float(found.baseline[0])),
            (explained["placement_probability"], probability),
            *zip(explained["contributions"].values(), found.values[0].tolist(), strict=True),
        ]
        assert tuple(explained["contributions"]) == found.fields
        assert explained["exact"] == bool(found.exact[0])
        return [abs(given - expected) for given, expected in pairs]
