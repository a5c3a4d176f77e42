"""Verification: which version is behind a connection, or gave an answer, found by its reference rows.

Three facts make it sound. The ordered feature names wholly determine a DictVectorizer's encoding.
scikit-learn, fitted on a DataFrame, refuses other names or another order. Two models that give the same
probabilities, to six decimals, for about thirty candidates are the same model for this purpose.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from transformer.bundle.encoder import Matrix
from transformer.errors import EncodingRefused, InvalidPredictorResponse, PredictorUnavailable, ServiceError
from transformer.metrics import VERIFICATIONS
from transformer.settings import UnknownModel
from transformer.upstream.client import PredictorClient
from transformer.upstream.known_versions import KnownVersion, UpstreamModel


class NotVerified(PredictorUnavailable):
    """A predictor that must not be used; the message says which model it has."""


async def verify(
    client: PredictorClient, versions: Sequence[KnownVersion], unknown_model: UnknownModel
) -> UpstreamModel:
    """Find the model behind a client.

    Sends the reference rows with named columns, for the newest version first, until the model accepts the
    names and gives the known probabilities.

    Raises
    ------
    NotVerified
        If the model accepts no known version's names, or is unknown and `unknown_model` is refuse.
    ServiceError
        If the predictor does not answer.
    """
    unknown: UpstreamModel | None = None
    invalid: InvalidPredictorResponse | None = None
    refusals: list[str] = []
    for version in versions:
        try:
            probabilities = await client.call(version.reference, version.feature_names, version.classes, {})
        except EncodingRefused as refusal:
            refusals.append(f"{version.name}: {refusal}")
            continue
        except InvalidPredictorResponse as error:
            # It may have another number of classes than this version.
            invalid = invalid or error
            continue
        except ServiceError as error:
            # The first response may explain why the predictor does not answer now.
            first = [_with_detail(invalid)] if invalid else refusals
            raise PredictorUnavailable("; then ".join([*first, _with_detail(error)])) from error
        if version.matches(probabilities):
            VERIFICATIONS.labels("equal").inc()
            return UpstreamModel(version, verified=True, fingerprint=probabilities)
        unknown = unknown or UpstreamModel(version, verified=False, fingerprint=probabilities)
    if unknown is None and invalid is not None:
        raise PredictorUnavailable(_with_detail(invalid)) from invalid
    if unknown is None:
        VERIFICATIONS.labels("refused").inc()
        raise NotVerified(f"the predictor accepts no known version's encoding; {'; '.join(refusals)}")
    VERIFICATIONS.labels("unverified").inc()
    if unknown_model == "refuse":
        raise NotVerified(
            f"the predictor accepts {unknown.version.name}'s encoding, but its probabilities match no known "
            "version"
        )
    return unknown


def _with_detail(error: ServiceError) -> str:
    """Return an error with the predictor's own words, which repeat no candidates: none were sent."""
    return f"{error}: {error.detail}" if error.detail else str(error)


async def verified_call(
    client: PredictorClient,
    matrix: Matrix,
    version: KnownVersion,
    versions: Sequence[KnownVersion],
    headers: dict[str, str],
) -> tuple[UpstreamModel, Matrix]:
    """Score rows and verify the model in the same call.

    The columns are named, so that only a model of this encoding answers. The reference rows of each version
    with this encoding are in the call, too; their scores identify the model.

    Returns
    -------
    UpstreamModel, ndarray of float64 of shape (rows, classes)

    Raises
    ------
    EncodingRefused
        If the model takes other feature names.
    ServiceError
        If the predictor does not answer.
    """
    same_encoding = [one for one in versions if one.feature_names == version.feature_names]
    rows = [matrix, *(one.reference for one in same_encoding)]
    scores = await client.call(np.concatenate(rows), version.feature_names, version.classes, headers)
    ends = np.cumsum([len(part) for part in rows])
    fingerprints = [scores[start:end] for start, end in itertools.pairwise(ends)]
    for one, fingerprint in zip(same_encoding, fingerprints, strict=True):
        if one.matches(fingerprint):
            VERIFICATIONS.labels("equal").inc()
            return UpstreamModel(one, verified=True, fingerprint=fingerprint), scores[: len(matrix)]
    VERIFICATIONS.labels("unverified").inc()
    own = fingerprints[same_encoding.index(version)]
    return UpstreamModel(version, verified=False, fingerprint=own), scores[: len(matrix)]
