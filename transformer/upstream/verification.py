"""Verification: which version is behind a connection, or gave an answer, found by its reference rows.

Three facts make it sound. The ordered feature names wholly determine a DictVectorizer's encoding.
scikit-learn, fitted on a DataFrame, refuses other names or another order. Two models that give the same
probabilities, to six decimals, for about thirty candidates are the same model for this purpose.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from transformer.bundle.encoder import Matrix
from transformer.errors import (
    EncodingRefused,
    InvalidPredictorResponse,
    PredictorError,
    PredictorUnavailable,
    ServiceError,
    UnexplainedError,
)
from transformer.metrics import VERIFICATIONS
from transformer.settings import UnknownModel
from transformer.upstream.client import PredictorClient
from transformer.upstream.known_versions import KnownVersion, UpstreamModel

if TYPE_CHECKING:
    from transformer.tracing.spans import RequestTrace


class NotVerified(PredictorUnavailable):
    """A predictor that must not be used; the message says which model it has."""


async def verify(
    client: PredictorClient, versions: Sequence[KnownVersion], unknown_model: UnknownModel
) -> UpstreamModel:
    """Find the model behind a client.

    Sends the reference rows with named columns, for the newest version first, until the model accepts the
    names and gives the known probabilities. An error means "not this version", whatever its reason; only an
    answer to named columns verifies a connection.

    Raises
    ------
    NotVerified
        If the model accepts no known version's names, or is unknown and `unknown_model` is refuse.
    ServiceError
        If the predictor does not answer.
    """
    unknown: UpstreamModel | None = None
    failures: dict[KnownVersion, ServiceError] = {}
    for version in versions:
        if unknown is not None and not client.reconnects and not _same_names(version, unknown.version):
            # The model would refuse these names, and MLServer may then close the connection.
            continue
        try:
            probabilities = await client.call(version.reference, version.feature_names, version.classes, {})
        except (EncodingRefused, UnexplainedError, InvalidPredictorResponse) as error:
            # An invalid response may have another number of classes than this version.
            failures[version] = error
            if unknown is None and isinstance(error, UnexplainedError):
                # MLServer closes the connection soon.
                client.disconnect()
            continue
        except ServiceError as error:
            # The first response may explain why the predictor does not answer now.
            raise PredictorUnavailable("; then ".join([*_first(failures), _with_detail(error)])) from error
        if version.matches(probabilities):
            VERIFICATIONS.labels("equal").inc()
            return UpstreamModel(version, verified=True, fingerprint=probabilities)
        unknown = unknown or UpstreamModel(version, verified=False, fingerprint=probabilities)
    if unknown is None:
        raise _not_verified(failures)
    _check_consistent(unknown, failures)
    VERIFICATIONS.labels("unverified").inc()
    if unknown_model == "refuse":
        raise NotVerified(
            f"the predictor accepts {unknown.version.name}'s encoding, but its probabilities match no known "
            "version"
        )
    return unknown


def _not_verified(failures: Mapping[KnownVersion, ServiceError]) -> PredictorUnavailable:
    """Return the error for a predictor that gave no version's columns a valid response."""
    invalid = next((one for one in failures.values() if isinstance(one, InvalidPredictorResponse)), None)
    if invalid is not None:
        return PredictorUnavailable(_with_detail(invalid))
    explained = any(isinstance(one, EncodingRefused) for one in failures.values())
    VERIFICATIONS.labels("refused" if explained else "failed").inc()
    reasons = "; ".join(f"{version.name}: {error}" for version, error in failures.items())
    advice = "" if explained else "; its model takes other features, or it is not ready"
    return NotVerified(f"the predictor accepts no known version's encoding; {reasons}{advice}")


def _check_consistent(model: UpstreamModel, failures: Mapping[KnownVersion, ServiceError]) -> None:
    """Refuse an unknown model if the same feature names got an error: it may be that version's own model.

    Raises
    ------
    NotVerified
        If an error is not explained by the feature names, because the model takes them.
    """
    for version, error in failures.items():
        if _same_names(version, model.version) and isinstance(error, UnexplainedError | PredictorError):
            VERIFICATIONS.labels("failed").inc()
            raise NotVerified(
                f"the predictor accepts {model.version.name}'s encoding, which is also {version.name}'s, but "
                f"for that version {_with_detail(error)}"
            )


def _same_names(one: KnownVersion, other: KnownVersion) -> bool:
    return one.feature_names == other.feature_names


def _first(failures: Mapping[KnownVersion, ServiceError]) -> list[str]:
    """Return what to log about the versions before the predictor ceased to answer."""
    invalid = (one for one in failures.values() if not isinstance(one, EncodingRefused | UnexplainedError))
    for error in invalid:
        return [_with_detail(error)]
    return [f"{version.name}: {error}" for version, error in failures.items()]


def _with_detail(error: ServiceError) -> str:
    """Return an error with the predictor's own words, which repeat no candidates: none were sent."""
    return f"{error}: {error.detail}" if error.detail else str(error)


async def verified_call(
    client: PredictorClient,
    matrix: Matrix,
    version: KnownVersion,
    versions: Sequence[KnownVersion],
    headers: Mapping[str, str],
    traces: "Sequence[RequestTrace]" = (),
) -> tuple[UpstreamModel, Matrix]:
    """Score rows and verify the model in the same call.

    The columns are named, so that only a model of this encoding answers. The reference rows of each version
    with this encoding are in the call, too; their scores identify the model.

    Returns
    -------
    UpstreamModel, ndarray of float64 of shape (rows, classes)

    Raises
    ------
    EncodingRefused, UnexplainedError
        If the model takes other feature names; with MLServer's worker process it says so.
    ServiceError
        If the predictor does not answer.
    """
    same_encoding = [one for one in versions if one.feature_names == version.feature_names]
    rows = [matrix, *(one.reference for one in same_encoding)]
    scores = await client.call(np.concatenate(rows), version.feature_names, version.classes, headers, traces)
    ends = np.cumsum([len(part) for part in rows])
    fingerprints = [scores[start:end] for start, end in itertools.pairwise(ends)]
    for one, fingerprint in zip(same_encoding, fingerprints, strict=True):
        if one.matches(fingerprint):
            VERIFICATIONS.labels("equal").inc()
            return UpstreamModel(one, verified=True, fingerprint=fingerprint), scores[: len(matrix)]
    VERIFICATIONS.labels("unverified").inc()
    own = fingerprints[same_encoding.index(version)]
    return UpstreamModel(version, verified=False, fingerprint=own), scores[: len(matrix)]
