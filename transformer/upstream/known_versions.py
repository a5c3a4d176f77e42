"""The versions in the bundle: how to encode for each, and how to recognise its model."""

from dataclasses import dataclass

from transformer.bundle.candidates import Candidates, Rows
from transformer.bundle.encoder import Encoder, Matrix
from transformer.bundle.format import UNVERIFIED, Bundle, Version
from transformer.bundle.prediction import Prediction
from transformer.bundle.signature import Signature
from transformer.bundle.target import Scores
from transformer.bundle.validation import UnknownCategory
from transformer.errors import InvalidCandidates


class KnownVersion:
    """One version: its encoder, and the reference rows that identify its model.

    Parameters
    ----------
    version
        The version's part of a bundle.
    unknown_category
        Refuse a category that no version lists, or encode it as zeros.
    newest
        Signature of the newest version. An older one must not ignore its categories.
    """

    def __init__(
        self, version: Version, unknown_category: UnknownCategory = "refuse", newest: Signature | None = None
    ) -> None:
        self.name = version.version
        self.feature_names = version.vectorizer.feature_names
        self.target = version.target
        self._expected = version.expected
        self._encoder = Encoder(version.vectorizer, version.signature, unknown_category, newest)
        rows = Rows(list(version.reference.candidates), "reference")
        self.reference: Matrix = self._encoder.encode(rows)

    def encode(self, candidates: Candidates) -> Matrix:
        """Encode candidates; see `transformer.bundle.encoder.Encoder.encode`."""
        return self._encoder.encode(candidates)

    def try_encode(self, candidates: Candidates) -> Matrix | None:
        """Encode candidates that a newer version accepts; return None if this version cannot express them.

        It cannot if the newest signature allows more: a new category or a wider range.
        """
        try:
            return self._encoder.encode(candidates)
        except InvalidCandidates:
            return None

    def matches(self, scores: Scores) -> bool:
        """Return True if these scores of the reference rows identify this version's model."""
        return self.target.same(self.target.fingerprint(scores), self._expected)

    def prediction(self, matrix: Matrix, scores: Scores, label: str) -> Prediction:
        """Turn the model's scores for a matrix into predictions of the version that `label` names."""
        return Prediction(label, self.name, matrix, self.target, *self.target.answers(scores))


@dataclass(frozen=True, slots=True, eq=False)
class UpstreamModel:
    """The model that was found behind a connection.

    Attributes
    ----------
    version
        The version whose feature names the model takes.
    verified
        True if it is that version's model; False if it is an unknown model of the same encoding.
    fingerprint : ndarray of float64, shape (reference rows, columns)
        Its scores for that version's reference rows.
    """

    version: KnownVersion
    verified: bool
    fingerprint: Scores

    @property
    def label(self) -> str:
        """The version that answers carry."""
        return self.version.name if self.verified else UNVERIFIED

    def is_same_model(self, other: "UpstreamModel") -> bool:
        """Return True if both are the same model, so that one response may hold answers of both."""
        if self.version is not other.version or self.verified != other.verified:
            return False
        return self.verified or self.version.target.same(self.fingerprint, other.fingerprint)


def known_versions(bundle: Bundle, unknown_category: UnknownCategory = "refuse") -> tuple[KnownVersion, ...]:
    """Return every version of a bundle, newest first."""
    return tuple(KnownVersion(version, unknown_category, bundle.signature) for version in bundle.versions)
