"""The bundle: one immutable directory per version, with all that the transformer needs in plain JSON.

``bundle.json`` is read here and never unpickled; ``model.joblib`` beside it is for the predictor alone.
"""

import hashlib
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
from transformer.bundle.signature import STRICT, Signature
from transformer.bundle.validation import validate
from transformer.errors import InvalidCandidates

#: Number of the format that this code reads and writes.
FORMAT = 1
BUNDLE_FILE = "bundle.json"
MODEL_FILE = "model.joblib"
#: Earlier versions that a bundle remembers, because their predictors may still be serving.
MAX_PREVIOUS = 3
#: Names of versions and of models, as they stand in paths and URIs.
VERSION_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]*$"
NAME_PATTERN = "^[A-Za-z][A-Za-z0-9_-]*$"

#: Largest difference between equal probabilities: libraries add up in different orders.
REFERENCE_TOLERANCE = 1e-6
#: Version that responses name when a model with a known encoding matches no known version.
UNVERIFIED = "unverified"

Probability = Annotated[FiniteFloat, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
# JSON knows arrays, not tuples: strict mode would refuse them.
_TUPLE = Field(strict=False)


def same_probabilities(given: npt.ArrayLike, expected: npt.ArrayLike) -> bool:
    """Return True if no two probabilities differ by more than `REFERENCE_TOLERANCE`.

    NaN equals nothing, and neither do arrays of different shapes.
    """
    one, other = np.asarray(given, np.float64), np.asarray(expected, np.float64)
    if one.shape != other.shape:
        return False
    with np.errstate(invalid="ignore"):
        return bool((np.abs(one - other) <= REFERENCE_TOLERANCE).all())


class BundleError(Exception):
    """A bundle that cannot be served; the message says which file, what is wrong and what to do."""


class Vectorizer(BaseModel):
    """A fitted DictVectorizer without its code: the ordered feature names determine its encoding.

    See `sklearn.feature_extraction.DictVectorizer` of scikit-learn 1.5.
    """

    model_config = STRICT

    feature_names: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
    separator: str = Field("=", min_length=1)
    dtype: Literal["float64"] = "float64"

    @model_validator(mode="after")
    def _names_once(self) -> "Vectorizer":
        if len(set(self.feature_names)) != len(self.feature_names):
            raise ValueError("a feature name stands twice")
        return self

    @cached_property
    def index(self) -> dict[str, int]:
        """Column of each feature name."""
        return {name: column for column, name in enumerate(self.feature_names)}


class Reference(BaseModel):
    """Raw candidates and the probabilities of the positive class that this version's model gives them."""

    model_config = STRICT

    candidates: Annotated[tuple[dict[str, str | float], ...], Field(min_length=1, strict=False)]
    probabilities: Annotated[tuple[Probability, ...], _TUPLE]

    @model_validator(mode="after")
    def _same_length(self) -> "Reference":
        if len(self.candidates) != len(self.probabilities):
            raise ValueError(f"{len(self.candidates)} candidates, {len(self.probabilities)} probabilities")
        return self

    def is_matched_by(self, probabilities: Sequence[float]) -> bool:
        """Return True if a model that gives the rows these probabilities is this version's."""
        return same_probabilities(probabilities, self.probabilities)


class Version(BaseModel):
    """What it takes to recognise one version behind a connection, to feed it and to read its answer."""

    model_config = STRICT

    version: str = Field(pattern=VERSION_PATTERN)
    signature: Signature
    vectorizer: Vectorizer
    classes: Annotated[tuple[str, ...], Field(min_length=2, strict=False)]
    positive_class: str
    threshold: Probability
    reference: Reference

    @model_validator(mode="after")
    def _coherent(self) -> "Version":
        if self.positive_class not in self.classes:
            raise ValueError(f"positive_class {self.positive_class!r} is not one of {list(self.classes)}")
        possible = list(self.signature.feature_names(self.vectorizer.separator))
        if sorted(possible) != sorted(self.vectorizer.feature_names):
            differing = sorted(set(possible) ^ set(self.vectorizer.feature_names))
            raise ValueError(f"vectorizer contradicts signature, they differ in: {', '.join(differing)}")
        try:
            validate(Rows(list(self.reference.candidates), "reference"), self.signature)
        except InvalidCandidates as error:
            raise ValueError(f"reference contradicts signature: {error.problems[0]}") from error
        return self

    @property
    def positive_column(self) -> int:
        """Column of the positive class in the model's `predict_proba`."""
        return self.classes.index(self.positive_class)


class Model(BaseModel):
    """The classifier's file and what made it."""

    model_config = STRICT

    file: Literal["model.joblib"] = "model.joblib"
    sha256: Sha256
    estimator: str
    #: Versions of Python, scikit-learn, numpy and joblib that fitted and wrote the model.
    libraries: dict[str, str]


class TrainingData(BaseModel):
    """Where the model's data came from, and how each field was distributed in it."""

    model_config = STRICT

    source: str
    rows: int = Field(ge=1)
    sha256: Sha256
    #: For a number: ``{"edges": […], "counts": […]}``; for a category: ``{value: count}``.
    histograms: dict[str, dict[str, Any]]


class Bundle(Version):
    """One version of the model, ready to be served, and the earlier ones that may still be serving.

    Attributes
    ----------
    name
        Name of the model and of its output: ``placement`` answers ``placement`` and
        ``placement_probability``.
    previous
        Up to `MAX_PREVIOUS` earlier versions, newest first.
    """

    format: Literal[1] = 1
    name: str = Field(pattern=NAME_PATTERN)
    created: Annotated[datetime, Field(strict=False)]
    model: Model
    #: Quality on held-out data: accuracy, roc_auc, brier, …
    metrics: dict[str, float]
    training_data: TrainingData
    previous: Annotated[tuple[Version, ...], Field(max_length=MAX_PREVIOUS, strict=False)] = ()

    @model_validator(mode="after")
    def _versions_once(self) -> "Bundle":
        versions = [version.version for version in self.versions]
        if len(set(versions)) != len(versions):
            raise ValueError(f"a version stands twice among {', '.join(versions)}")
        return self

    @property
    def versions(self) -> tuple[Version, ...]:
        """Every version that this bundle knows, newest first."""
        return (self, *self.previous)

    def as_previous(self) -> Version:
        """This bundle's part that later bundles keep of it."""
        return Version(**{name: getattr(self, name) for name in Version.model_fields})

    def to_json(self) -> str:
        """Content of ``bundle.json``."""
        return self.model_dump_json(indent=1) + "\n"


def parse_bundle(text: str | bytes, where: str = BUNDLE_FILE) -> Bundle:
    """Read a bundle from the content of its ``bundle.json``.

    Raises
    ------
    BundleError
        If it is not JSON, is of another format or contradicts itself; the message names the first
        field at fault and `where`.
    """
    try:
        return Bundle.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"])) or "content"
        if field == "format":
            raise BundleError(
                f"{where}: its format is not {FORMAT}, the one this transformer reads; "
                "serve it with the transformer that was released with its training code"
            ) from error
        raise BundleError(
            f"{where}: {field}: {first['msg']}; write the version anew with `placement train`"
        ) from error


def load_bundle(directory: str | os.PathLike[str]) -> Bundle:
    """Read the bundle of a version's directory.

    Raises
    ------
    BundleError
        If the directory or its ``bundle.json`` is missing or unreadable, or see `parse_bundle`.
    """
    path = Path(directory) / BUNDLE_FILE
    try:
        text = path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path}: {error.strerror}; "
            "STORAGE_URI must name a version's directory, as `placement train` prints it"
        ) from error
    return parse_bundle(text, str(path))


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
