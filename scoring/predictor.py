"""The model of a version in the process of a worker, with the service's own encoder and validation."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, Self

import pandas as pd
from threadpoolctl import ThreadpoolController

from scoring.errors import ScoringError
from training.cells import LIST
from training.estimators import output_of
from training.stored import StoredVersion
from transformer.bundle.candidates import Candidates, Rows
from transformer.bundle.classes import Label
from transformer.bundle.encoder import Encoder, Matrix
from transformer.bundle.format import Bundle
from transformer.bundle.signature import CategoryList
from transformer.bundle.target import Floats, Scores

#: Maximum candidates per call of a model. A forest is then as fast as with all rows at once; with 16,384 it
#: takes 4 % longer, with 4,096 a sixth, measured on a virtual machine with two cores.
MAX_BATCH_ROWS = 1 << 16
#: Maximum bytes of features per call, so that a wide vocabulary takes no more memory.
MAX_BATCH_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Answers:
    """Predictions for some candidates, by one version.

    Attributes
    ----------
    labels
        The answer to each candidate: a boolean, a class or a number.
    probabilities : ndarray of float64, shape (candidates,)
        Probability of the positive class, or of many classes that of the likeliest one; None if the model
        gives none.
    """

    labels: Sequence[Label]
    probabilities: Floats | None
    version: str


@dataclass(frozen=True, slots=True)
class AnswerType:
    """Type of the answers, which all versions of a model share.

    Attributes
    ----------
    datatype
        V2 datatype of `Answers.labels`.
    has_probabilities
        True if there are `Answers.probabilities`.
    """

    datatype: str
    has_probabilities: bool


class Predictor(Protocol):
    """Answers candidates: a model in this process, or a running service."""

    @property
    def fields(self) -> Mapping[str, str]:
        """V2 datatype of each raw field, or `training.cells.LIST`."""

    @property
    def answer_type(self) -> AnswerType:
        """Type of the answers."""

    @property
    def batch_rows(self) -> int:
        """Maximum candidates per call."""

    def predict(self, candidates: Candidates) -> Answers:
        """Validate and score candidates.

        Raises
        ------
        transformer.errors.InvalidRequest
            If any candidate is invalid, with the service's text.
        """


class Source(Protocol):
    """Origin of a predictor: small, hashable and picklable, so that each worker opens its own predictor."""

    def __hash__(self) -> int: ...

    @property
    def identity(self) -> dict[str, str]:
        """What must not change between two runs of a job."""

    def open(self) -> Predictor:
        """Return a new predictor.

        Raises
        ------
        ScoringError
            If there is none, or not the expected one.
        """


class BundlePredictor:
    """The model of a bundle. Its digest and its answers to the reference rows are checked first.

    Loading a model executes code from its file, as in the predictor of the service: use trusted bundles only.

    Parameters
    ----------
    uri
        URI of the version.
    digest
        SHA-256 that the model must have; by default the one in the bundle.

    Raises
    ------
    ScoringError, storage.errors.StorageError, transformer.bundle.format.BundleError
        If the version cannot be read, its model cannot be loaded or is another one, or gives other scores.
    """

    def __init__(self, uri: str, digest: str | None = None) -> None:
        version = StoredVersion.load(uri, digest)
        bundle = version.bundle
        self._model = version.model
        self.fields = {
            one.name: LIST if isinstance(one, CategoryList) else one.datatype
            for one in bundle.signature.fields
        }
        self.batch_rows = max(
            1, min(MAX_BATCH_ROWS, MAX_BATCH_BYTES // (8 * len(bundle.vectorizer.feature_names)))
        )
        self.answer_type = AnswerType(bundle.target.datatype, bundle.target.has_probabilities)
        self._uri = uri
        self._bundle = bundle
        self._encoder = Encoder(bundle.vectorizer, bundle.signature)
        self._threads = ThreadpoolController()
        reference = self._encoder.encode(Rows(list(bundle.reference.candidates), "reference"))
        # As in the service, columns have names once, so that scikit-learn refuses another model's encoding.
        # In every call that would take a fifth of a fast forest's time.
        named = pd.DataFrame(reference, columns=list(bundle.vectorizer.feature_names))
        if not bundle.is_matched_by(bundle.target.recorded(self._scores(named))):
            raise ScoringError(
                f"{uri}: the model scores its reference rows differently from its bundle; use the libraries "
                f"that fitted it: {bundle.model.library_versions}"
            )

    def predict(self, candidates: Candidates) -> Answers:
        """See `Predictor`."""
        target = self._bundle.target
        values, probabilities = target.answers(self._scores(self._encoder.encode(candidates)))
        likeliest = None if probabilities is None else target.ordered_scores(values, probabilities)
        return Answers(target.labels(values), likeliest, self._bundle.version)

    def _scores(self, features: Matrix | pd.DataFrame) -> Scores:
        # A worker uses one core.
        with self._threads.limit(limits=1), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "X does not have valid feature names", UserWarning)
            output = output_of(self._model, features, self._bundle.target)
        try:
            return self._bundle.target.read(output, len(features))
        except ValueError as error:
            raise ScoringError(
                f"{self._uri}: invalid output of the model: {error}; expected {self._bundle.target.expected}"
            ) from error


@dataclass(frozen=True, slots=True)
class BundleSource:
    """A version in storage, pinned by the digest of its model."""

    uri: str
    version: str
    digest: str

    @classmethod
    def of(cls, uri: str, bundle: Bundle) -> Self:
        """Return the source of a version whose bundle was read."""
        return cls(uri, bundle.version, bundle.model.sha256)

    @property
    def identity(self) -> dict[str, str]:
        """See `Source`."""
        return {"version": self.version, "model_sha256": self.digest}

    def open(self) -> BundlePredictor:
        """See `Source`."""
        return BundlePredictor(self.uri, self.digest)


@lru_cache(1)
def opened(source: Source) -> Predictor:
    """Return the predictor of a source; a process opens it once."""
    return source.open()
