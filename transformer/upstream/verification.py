"""Which version is behind a connection, or gave an answer: asked of the model itself, by its reference rows.

Three facts make it sound. A DictVectorizer's encoding is wholly determined by its ordered feature names.
scikit-learn, fitted on a DataFrame, refuses other names or another order. Two models that give the same
probabilities to some thirty real candidates, to six decimals, are the same model for all that matters here.
"""

import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np

from transformer.errors import EncodingRefused, InvalidPredictorResponse, PredictorUnavailable, ServiceError
from transformer.metrics import VERIFICATIONS
from transformer.upstream.client import PredictorClient
from transformer.upstream.known_versions import KnownVersion, UpstreamModel
from transformer.upstream.messages import Matrix

UnknownModel = Literal["serve", "refuse"]


class NotVerified(PredictorUnavailable):
    """A predictor that must not be used; the message says what is behind it."""


async def verify(
    client: PredictorClient, versions: Sequence[KnownVersion], unknown_model: UnknownModel
) -> UpstreamModel:
    """Find out what is behind a client.

    The reference rows are sent with named columns, for the newest version first, until a model takes the
    names and gives the probabilities that are known of it.

    Raises
    ------
    NotVerified
        If it takes no known version's names, or its model is unknown and `unknown_model` is refuse.
    ServiceError
        If it does not answer.
    """
    taken: UpstreamModel | None = None
    unreadable: InvalidPredictorResponse | None = None
    refusals: list[str] = []
    for version in versions:
        try:
            probabilities = await client.call(version.reference, version.feature_names, version.classes, {})
        except EncodingRefused as refusal:
            refusals.append(f"{version.name}: {refusal}")
            continue
        except InvalidPredictorResponse as error:
            # It may have another number of classes than this version's.
            unreadable = unreadable or error
            continue
        except ServiceError as error:
            # What it said first may be why it does not answer any more.
            first = [_told(unreadable)] if unreadable else refusals
            raise PredictorUnavailable("; then ".join([*first, _told(error)])) from error
        if version.matches(probabilities):
            VERIFICATIONS.labels("equal").inc()
            return UpstreamModel(version, verified=True, fingerprint=probabilities)
        taken = taken or UpstreamModel(version, verified=False, fingerprint=probabilities)
    if taken is None and unreadable is not None:
        raise PredictorUnavailable(_told(unreadable)) from unreadable
    if taken is None:
        VERIFICATIONS.labels("refused").inc()
        raise NotVerified(f"the predictor takes no known version's encoding; {'; '.join(refusals)}")
    VERIFICATIONS.labels("unverified").inc()
    if unknown_model == "refuse":
        raise NotVerified(
            f"the predictor takes {taken.version.name}'s encoding, but its model is none that is known"
        )
    return taken


def _told(error: ServiceError) -> str:
    """An error with the predictor's own words, which cannot repeat a caller's candidates: none were sent."""
    return f"{error}: {error.detail}" if error.detail else str(error)


async def verified_call(
    client: PredictorClient,
    matrix: Matrix,
    version: KnownVersion,
    versions: Sequence[KnownVersion],
    headers: dict[str, str],
) -> tuple[UpstreamModel, Matrix]:
    """Score rows in one call that also says which model scored them.

    The columns are named, so that only a model of this encoding answers; the reference rows of each version
    that has the encoding go along, so that the answer tells which of their models it was.

    Returns
    -------
    UpstreamModel, ndarray of float64 of shape (rows, classes)

    Raises
    ------
    EncodingRefused
        If the model behind takes other names.
    ServiceError
        If it does not answer.
    """
    alike = [one for one in versions if one.feature_names == version.feature_names]
    rows = [matrix, *(one.reference for one in alike)]
    answer = await client.call(np.concatenate(rows), version.feature_names, version.classes, headers)
    ends = np.cumsum([len(part) for part in rows])
    fingerprints = [answer[start:end] for start, end in itertools.pairwise(ends)]
    for one, fingerprint in zip(alike, fingerprints, strict=True):
        if one.matches(fingerprint):
            VERIFICATIONS.labels("equal").inc()
            return UpstreamModel(one, verified=True, fingerprint=fingerprint), answer[: len(matrix)]
    VERIFICATIONS.labels("unverified").inc()
    own = fingerprints[alike.index(version)]
    return UpstreamModel(version, verified=False, fingerprint=own), answer[: len(matrix)]
