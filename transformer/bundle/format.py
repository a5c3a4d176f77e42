"""Format of a bundle: one immutable directory per version, with the transformer's data in plain JSON.

The transformer reads ``bundle.json`` and unpickles nothing. Only the predictor reads ``model.joblib``.
"""

import os
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, FiniteFloat, ValidationError, model_validator

from transformer.bundle.candidates import Rows
from transformer.bundle.classes import LabelField
from transformer.bundle.distribution import Distribution
from transformer.bundle.plain_errors import first_problem
from transformer.bundle.regular_file import read_file
from transformer.bundle.signature import (
    DEFAULT_ROW_NAME,
    SEPARATOR,
    STRICT,
    RawField,
    RowName,
    Signature,
    Value,
    check_unique,
    features_of,
)
from transformer.bundle.target import AnswerScore, Target
from transformer.bundle.validation import validate
from transformer.errors import InvalidCandidates, shortened

#: Format number that this code writes. It reads the earlier ones, too: 1 had no `serving_form`; 2 had none of
#: `recipe`, `row_name`, `distribution`, `background` and `imported`, and a range for every number; 3 had only
#: two classes of text, with probabilities.
FORMAT: Literal[4] = 4
BUNDLE_FILE = "bundle.json"
MODEL_FILE = "model.joblib"
#: Maximum earlier versions in a bundle; their predictors may still be serving.
MAX_PREVIOUS = 3
#: Maximum values in a bundle's JSON; one with 15 fields and three earlier versions has 3,000. An invalid
#: value takes up to 1.3 KB while pydantic collects the errors: 410 MB in all.
MAX_VALUES = 200_000
#: Valid names of versions and models, which are parts of paths and URIs.
VERSION_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]*$"
NAME_PATTERN = "^[A-Za-z][A-Za-z0-9_-]*$"

#: Largest difference between 1 and the sum of a background's weights.
WEIGHTS_TOLERANCE = 1e-6
#: Version that responses name when a model with a known encoding matches no known version.
UNVERIFIED = "unverified"

Probability = Annotated[FiniteFloat, Field(ge=0, le=1)]
# JSON has arrays and no tuples, which strict mode would refuse.
_TUPLE = Field(strict=False)
_Probabilities = Annotated[tuple[Probability, ...], _TUPLE]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class BundleError(Exception):
    """A bundle that cannot be served; the message says which file, what is wrong and what to do."""


class Vectorizer(BaseModel):
    """A fitted DictVectorizer as data: the ordered feature names determine its encoding.

    See `sklearn.feature_extraction.DictVectorizer` of scikit-learn 1.5.
    """

    model_config = STRICT

    feature_names: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
    separator: str = Field(SEPARATOR, min_length=1)
    dtype: Literal["float64"] = "float64"

    @model_validator(mode="after")
    def _unique_names(self) -> "Vectorizer":
        check_unique(self.feature_names, "feature name")
        return self

    @cached_property
    def index(self) -> dict[str, int]:
        """Column of each feature name."""
        return {name: column for column, name in enumerate(self.feature_names)}

    def columns_of(self, field: RawField) -> tuple[int, ...]:
        """Return the columns of one field's features, in the order of its categories."""
        return tuple(self.index[name] for name in features_of(field, self.separator))


class Reference(BaseModel):
    """Reference rows: raw candidates, and this version's answers to them.

    Attributes
    ----------
    probabilities
        For each candidate the probability of the positive class; with more classes, of each class.
    predictions
        The answers of a model without probabilities: booleans, classes or numbers.
    """

    model_config = STRICT

    candidates: Annotated[tuple[dict[str, Value], ...], Field(min_length=1, strict=False)]
    probabilities: Annotated[tuple[Probability | _Probabilities, ...], _TUPLE] = ()
    predictions: Annotated[tuple[LabelField, ...], _TUPLE] = ()

    @model_validator(mode="after")
    def _same_length(self) -> "Reference":
        if self.probabilities and self.predictions:
            raise ValueError("must have probabilities or predictions, not both")
        if len(self.candidates) != len(self.answers):
            kind = "predictions" if self.predictions else "probabilities"
            raise ValueError(f"{len(self.candidates)} candidates, {len(self.answers)} {kind}")
        return self

    @property
    def answers(self) -> Sequence[AnswerScore]:
        """The probabilities or the predictions."""
        return self.predictions or self.probabilities


class Background(BaseModel):
    """Background rows of explanations: artificial candidates, and the weight of each.

    The weighted mean of the model's scores for them is the baseline of each explanation.
    """

    model_config = STRICT

    candidates: Annotated[tuple[dict[str, Value], ...], Field(min_length=1, strict=False)]
    weights: Annotated[tuple[Probability, ...], _TUPLE]

    @model_validator(mode="after")
    def _coherent(self) -> "Background":
        if len(self.candidates) != len(self.weights):
            raise ValueError(f"{len(self.candidates)} candidates, {len(self.weights)} weights")
        if abs(sum(self.weights) - 1) > WEIGHTS_TOLERANCE:
            raise ValueError(f"weights must add up to 1, got {sum(self.weights):g}")
        return self


class Version(BaseModel):
    """One version's data for verification, encoding, explanations and reading the predictor's responses."""

    model_config = STRICT

    version: str = Field(pattern=VERSION_PATTERN)
    signature: Signature
    vectorizer: Vectorizer
    #: The model's classes, in the order of its `predict_proba`; empty for regression.
    classes: Annotated[tuple[LabelField, ...], _TUPLE] = ()
    #: Class that the answer says yes to; None if there are not two classes.
    positive_class: LabelField | None = None
    #: Lowest probability of a yes; None if there is none.
    threshold: Probability | None = None
    #: True if the model gives the probability of each class.
    has_probabilities: bool = True
    reference: Reference
    #: The training candidates by bin; None in versions of the formats 1 and 2.
    distribution: Distribution | None = None
    #: None in versions of the formats 1 and 2, which cannot be explained.
    background: Background | None = None

    @model_validator(mode="after")
    def _coherent(self) -> "Version":
        self._check_reference()
        self.signature.check_feature_names(self.vectorizer.separator)
        possible = list(self.signature.feature_names(self.vectorizer.separator))
        if sorted(possible) != sorted(self.vectorizer.feature_names):
            differing = sorted(set(possible) ^ set(self.vectorizer.feature_names))
            raise ValueError(f"vectorizer and signature differ in: {', '.join(differing)}")
        self._check_rows(self.reference.candidates, "reference")
        if self.background is not None:
            self._check_rows(self.background.candidates, "background")
        if self.distribution is not None:
            self.distribution.check(self.signature)
        return self

    def _check_rows(self, candidates: Sequence[dict[str, Value]], name: str) -> None:
        try:
            validate(Rows(list(candidates), name), self.signature)
        except InvalidCandidates as error:
            raise ValueError(f"{name} candidate is invalid: {error.problems[0]}") from error

    def _check_reference(self) -> None:
        recorded = bool(self.reference.probabilities)
        if recorded != self.target.has_probabilities:
            raise ValueError(
                f"reference must have {'probabilities' if self.target.has_probabilities else 'predictions'}"
            )
        try:
            _ = self.expected
        except ValueError as error:
            raise ValueError(f"reference: {error}, expected those of a {self.target.kind} model") from error

    @cached_property
    def target(self) -> Target:
        """Target of the model."""
        return Target.of(
            self.classes, self.positive_class, self.threshold, has_probabilities=self.has_probabilities
        )

    @property
    def expected(self) -> npt.NDArray[np.float64]:
        """Fingerprint of the model; see `Target.fingerprint`."""
        return self.target.fingerprint_of(self.reference.answers)

    def is_matched_by(self, answers: Sequence[AnswerScore]) -> bool:
        """Return True if a model that gives the reference rows these answers is this version's."""
        return self.target.same_answers(answers, self.reference.answers)


class Model(BaseModel):
    """The model's file and its origin."""

    model_config = STRICT

    file: Literal["model.joblib"] = "model.joblib"
    sha256: Sha256
    #: The model as it was fitted.
    estimator: str
    #: The model in the file, if that is not the estimator itself but another one with equal results.
    serving_form: str | None = None
    #: Versions of Python, scikit-learn, numpy and joblib that fitted and wrote the model.
    libraries: dict[str, str]

    @property
    def library_versions(self) -> str:
        """These versions as text."""
        return ", ".join(f"{name} {version}" for name, version in self.libraries.items())


class TrainingData(BaseModel):
    """Origin of the training data."""

    model_config = STRICT

    source: str
    rows: int = Field(ge=1)
    sha256: Sha256
    #: In the formats 1 and 2 only; later ones have `Version.distribution`.
    histograms: dict[str, dict[str, Any]] | None = None


class Tuned(BaseModel):
    """Search for parameters, and the estimator that was chosen."""

    model_config = STRICT

    trials: int = Field(ge=1)
    seed: int
    estimator: str
    #: Parameters that the search has set; empty if the estimator was chosen as it is.
    parameters: dict[str, int | FiniteFloat]


class Recipe(BaseModel):
    """Arguments of the training, with which the same data give the same version again."""

    model_config = STRICT

    #: Column of the training data with the class.
    label: str
    estimator: str
    serving_form: str
    #: Rule of the threshold; None if there is none.
    threshold: str | None = None
    #: Seed of generated data; None for a file.
    seed: int | None = None
    #: Parameters of the estimator that were set by hand.
    parameters: dict[str, int | FiniteFloat] = Field(default_factory=dict)
    #: Search for parameters; None if there was none.
    tuned: Tuned | None = None


class Imported(BaseModel):
    """Origin of a model that was fitted elsewhere, and imported."""

    model_config = STRICT

    #: Name and digest of the model's file.
    file: str
    sha256: Sha256
    #: Versions of scikit-learn that wrote the file.
    scikit_learn: str
    #: Number of rows on which this version predicts the same as the file.
    compared: int = Field(ge=1)
    #: Rows that gave ranges, distribution and metrics.
    sample: TrainingData | None = None


class Bundle(Version):
    """One version of the model, and earlier versions that may still be serving.

    Attributes
    ----------
    name
        Name of the model and of its output: ``placement`` answers ``placement`` and
        ``placement_probability``, one of many classes ``placement_probabilities``.
    previous
        Up to `MAX_PREVIOUS` earlier versions, newest first.
    """

    format: Literal[1, 2, 3, 4] = FORMAT
    name: str = Field(pattern=NAME_PATTERN)
    #: Word for one row of data in messages and in the report: ``candidate``, ``customer``.
    row_name: RowName = DEFAULT_ROW_NAME
    recipe: Recipe | None = None
    created: Annotated[datetime, Field(strict=False)]
    model: Model
    #: Quality on held-out data, or on the sample of an imported model: accuracy, roc_auc, brier, …
    metrics: dict[str, float]
    #: None for an imported model, whose training data are unknown.
    training_data: TrainingData | None = None
    imported: Imported | None = None
    previous: Annotated[tuple[Version, ...], Field(max_length=MAX_PREVIOUS, strict=False)] = ()

    @model_validator(mode="after")
    def _unique_versions(self) -> "Bundle":
        check_unique((version.version for version in self.versions), "version")
        for version in self.previous:
            if version.target.outputs != self.target.outputs:
                raise ValueError(
                    f"previous version {version.version} has a {version.target} model and other outputs than "
                    f"this {self.target} model; use another name for another kind of question"
                )
        return self

    @property
    def versions(self) -> tuple[Version, ...]:
        """This version and the earlier ones, newest first."""
        return (self, *self.previous)

    def as_previous(self) -> Version:
        """Return the part of this bundle that later bundles keep."""
        return Version(**{name: getattr(self, name) for name in Version.model_fields})

    def to_json(self) -> str:
        """Return the content of ``bundle.json``."""
        return self.model_dump_json(indent=1) + "\n"


def parse_bundle(text: str | bytes, where: str = BUNDLE_FILE) -> Bundle:
    """Read a bundle from the content of its ``bundle.json``.

    Raises
    ------
    BundleError
        If it is not JSON, has another format or is inconsistent. The message starts with `where` and the
        first invalid field.
    """
    _require_few_values(text, where)
    try:
        return Bundle.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["loc"] == ("format",):
            raise BundleError(
                f"{where}: format: must be 1 to {FORMAT}, got {shortened(repr(first['input']), 40)}; "
                "serve it with the transformer of the release that trained it"
            ) from error
        raise BundleError(
            f"{where}: {first_problem(error)}; train the version again with `placement train`"
        ) from error


def _require_few_values(text: str | bytes, where: str) -> None:
    """Raise BundleError if parsing would take more memory than the transformer has."""
    content = text.encode(errors="replace") if isinstance(text, str) else text
    count = sum(content.count(start) for start in (b",", b"[", b"{"))
    if count > MAX_VALUES:
        raise BundleError(
            f"{where}: has too many values: limit {MAX_VALUES}, got about {count}; train the version again "
            "with fewer categories"
        )


def load_bundle(directory: str | os.PathLike[str]) -> Bundle:
    """Read the bundle in a version's directory.

    Raises
    ------
    BundleError
        If ``bundle.json`` is not a regular file of at most `MAX_BUNDLE_BYTES`, cannot be read within
        `READ_TIMEOUT_S`, or is invalid; see `parse_bundle`.
    """
    path = Path(directory) / BUNDLE_FILE
    try:
        text = read_file(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(
            f"{path}: {error.strerror}; "
            "STORAGE_URI must name a version's directory, as `placement train` prints it"
        ) from error
    except OSError as error:
        raise BundleError(
            f"{path}: {error.strerror}; check the storage, or train the version again with `placement train`"
        ) from error
    return parse_bundle(text, str(path))
