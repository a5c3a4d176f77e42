"""The versions that this transformer knows: how to feed each, and how to recognise its model."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transformer.bundle import REFERENCE_TOLERANCE, Bundle, Version
from transformer.encoder import Encoder
from transformer.errors import InvalidCandidates
from transformer.prediction import Prediction
from transformer.v1 import from_dicts
from transformer.validation import Candidates, UnknownCategory, ValidCandidates, validate
from transformer.wire import Matrix

#: What answers are labelled with whose model is none of the known ones.
UNVERIFIED = "unverified"


class KnownVersion:
    """One version, ready to be fed and recognised."""

    def __init__(self, version: Version) -> None:
        self.name = version.version
        self.feature_names = version.vectorizer.feature_names
        self.classes = len(version.classes)
        self._version = version
        self._encoder = Encoder(version.vectorizer, version.signature)
        rows = from_dicts(list(version.reference.candidates), version.signature.names, "reference")
        self.reference: Matrix = self._encoder.encode(validate(rows, version.signature))
        self._expected = np.array(version.reference.probabilities)

    def validate(self, candidates: Candidates, unknown_category: UnknownCategory) -> ValidCandidates:
        """Hold candidates against this version's signature; see `transformer.validation.validate`."""
        return validate(candidates, self._version.signature, unknown_category)

    def encode(self, valid: ValidCandidates) -> Matrix:
        """Encode what `validate` gave."""
        return self._encoder.encode(valid)

    def is_it(self, probabilities: Matrix) -> bool:
        """Whether a model that scores the reference rows so is this version's."""
        scores = probabilities[:, self._version.positive_column]
        return bool(np.allclose(scores, self._expected, rtol=0, atol=REFERENCE_TOLERANCE))

    def prediction(self, probabilities: Matrix, label: str) -> Prediction:
        """Read the model's answer, as the version that `label` names."""
        positive: npt.NDArray[np.float64] = np.ascontiguousarray(
            probabilities[:, self._version.positive_column]
        )
        return Prediction(label, positive, positive >= self._version.threshold)


@dataclass(frozen=True, slots=True)
class Behind:
    """What was found behind a connection.

    Attributes
    ----------
    version
        Whose feature names the model takes.
    verified
        Whether it is that version's model, or one that has the same encoding and is not known.
    """

    version: KnownVersion
    verified: bool

    @property
    def label(self) -> str:
        """The version that answers carry."""
        return self.version.name if self.verified else UNVERIFIED


def known_versions(bundle: Bundle) -> tuple[KnownVersion, ...]:
    """Every version of a bundle, newest first."""
    return tuple(KnownVersion(version) for version in bundle.versions)


def express(
    candidates: Candidates, newest: ValidCandidates, version: KnownVersion, unknown_category: UnknownCategory
) -> Matrix | None:
    """Candidates in an older version's encoding, or None if it cannot express them.

    It cannot where its signature does not allow what the newest one allows: a new category, a wider range.

    Parameters
    ----------
    candidates
        As they came in.
    newest
        The same, held against the newest signature.
    version
        The older version.
    unknown_category
        What becomes of a category that no version knows.
    """
    try:
        valid = version.validate(candidates, unknown_category)
    except InvalidCandidates:
        return None
    for name, column in valid.columns.items():
        known = newest.columns.get(name)
        if not (isinstance(column, list) and isinstance(known, list)):
            continue
        for value, newer in zip(column, known, strict=True):
            if value is None and newer is not None:
                # A category that this version would ignore and a newer one knows.
                return None
    return version.encode(valid)
