"""The versions that this transformer knows: how to feed each, and how to recognise its model."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transformer.bundle.candidates import Candidates, Rows
from transformer.bundle.encoder import Encoder
from transformer.bundle.format import REFERENCE_TOLERANCE, Bundle, Version
from transformer.bundle.prediction import Prediction
from transformer.bundle.signature import Signature
from transformer.bundle.validation import UnknownCategory
from transformer.errors import InvalidCandidates
from transformer.upstream.messages import Matrix

#: What answers are labelled with whose model is none of the known ones.
UNVERIFIED = "unverified"


class KnownVersion:
    """One version, ready to be fed and recognised.

    Parameters
    ----------
    version
        What a bundle says of it.
    unknown_category
        What becomes of a category that no version knows.
    newest
        Signature of the newest version, whose categories an older one must not ignore.
    """

    def __init__(
        self, version: Version, unknown_category: UnknownCategory = "refuse", newest: Signature | None = None
    ) -> None:
        self.name = version.version
        self.feature_names = version.vectorizer.feature_names
        self.classes = len(version.classes)
        self._version = version
        self._encoder = Encoder(version.vectorizer, version.signature, unknown_category, newest)
        rows = Rows(list(version.reference.candidates), "reference")
        self.reference: Matrix = self._encoder.encode(rows)
        self._expected = np.array(version.reference.probabilities)

    def encode(self, candidates: Candidates) -> Matrix:
        """Candidates in this version's encoding; see `transformer.bundle.format.encoder.Encoder.encode`."""
        return self._encoder.encode(candidates)

    def try_encode(self, candidates: Candidates) -> Matrix | None:
        """The same of candidates that a newer version takes, or None if this one cannot express them.

        It cannot where its signature does not allow what the newest one does: a new category, a wider range.
        """
        try:
            return self._encoder.encode(candidates)
        except InvalidCandidates:
            return None

    def matches(self, probabilities: Matrix) -> bool:
        """Whether a model that scores the reference rows so is this version's."""
        scores = probabilities[:, self._version.positive_column]
        return bool(np.allclose(scores, self._expected, rtol=0, atol=REFERENCE_TOLERANCE))

    def prediction(self, probabilities: Matrix, label: str) -> Prediction:
        """Read the model's answer, as the version that `label` names."""
        positive: npt.NDArray[np.float64] = np.ascontiguousarray(
            probabilities[:, self._version.positive_column]
        )
        return Prediction(label, positive, positive >= self._version.threshold)


@dataclass(frozen=True, slots=True, eq=False)
class UpstreamModel:
    """What was found behind a connection.

    Attributes
    ----------
    version
        Whose feature names the model takes.
    verified
        Whether it is that version's model, or one that has the same encoding and is not known.
    fingerprint : ndarray of float64, shape (reference rows, classes)
        What it makes of that version's reference rows.
    """

    version: KnownVersion
    verified: bool
    fingerprint: Matrix

    @property
    def label(self) -> str:
        """The version that answers carry."""
        return self.version.name if self.verified else UNVERIFIED

    def is_same_model(self, other: "UpstreamModel") -> bool:
        """Whether the same model gave both, so that answers of both may stand in one response."""
        if self.version is not other.version or self.verified != other.verified:
            return False
        return self.verified or bool(
            np.allclose(self.fingerprint, other.fingerprint, rtol=0, atol=REFERENCE_TOLERANCE)
        )


def known_versions(bundle: Bundle, unknown_category: UnknownCategory = "refuse") -> tuple[KnownVersion, ...]:
    """Every version of a bundle, newest first."""
    return tuple(KnownVersion(version, unknown_category, bundle.signature) for version in bundle.versions)
