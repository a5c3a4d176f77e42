"""Calls through a proxy that balances requests (`--verify=request`), where each may reach another version.

The columns of each call are named, so that only a model of this encoding answers. A refusal leads to a call
in another version's encoding.
"""

import random
from collections.abc import Collection, Sequence

import numpy as np

from transformer.batching.jobs import Batch, Part, encode, traces_of
from transformer.batching.usable_models import UsableModels
from transformer.bundle.encoder import Matrix
from transformer.errors import EncodingRefused, UnexplainedError
from transformer.metrics import RETRIES
from transformer.settings import UnknownModel
from transformer.upstream.client import PredictorClient
from transformer.upstream.known_versions import KnownVersion, UpstreamModel
from transformer.upstream.verification import verified_call

#: Calls that search for a model that takes a batch, before other batches go first.
MAX_CALLS = 8


class BalancedUpstream:
    """Scores batches where each call may reach another version.

    Parameters
    ----------
    models
        The known versions, and when each last answered.
    unknown_model
        Use the answers of a model that matches no known version, or search on.
    """

    def __init__(self, models: UsableModels, unknown_model: UnknownModel) -> None:
        self._models = models
        self._unknown_model = unknown_model

    async def score(self, client: PredictorClient, batch: Batch) -> None:
        """Score a batch, in the encodings of as many versions as its requests need.

        Raises
        ------
        EncodingRefused
            If the parts that are left in `batch.unanswered` reached no model that may answer them.
        UnexplainedError
            The same, if the last call got an error without a reason: the rows may have caused it.
        ServiceError
            If a call failed.
        """
        refused = False
        unexplained: UnexplainedError | None = None
        for _ in range(MAX_CALLS):
            version = self._choose_version(batch.unanswered, refused=refused)
            if version is None:
                break
            parts = [part for part in batch.unanswered if _may_go(part, version)]
            matrix = encode(parts, version)
            try:
                model, probabilities = await verified_call(
                    client, matrix, version, self._models.versions, batch.headers, traces_of(parts)
                )
            except (EncodingRefused, UnexplainedError) as error:
                RETRIES.labels("refused").inc()
                refused = True
                unexplained = error if isinstance(error, UnexplainedError) else None
                continue
            unexplained = None
            if not model.verified and self._unknown_model == "refuse":
                continue
            self._models.saw(model)
            if _is_valid_for(model, version, parts, matrix):
                _answer(batch, parts, matrix, probabilities, model)
            if not batch.unanswered:
                return
            if not all(part.job.accepts(model) for part in parts):
                # The next call may reach the version that the caller asks for, but each call scores the rows.
                RETRIES.labels("other version").inc()
                break
        if unexplained is not None:
            raise unexplained
        raise EncodingRefused("no predictor accepted any known encoding of this request")

    def _choose_version(self, parts: Collection[Part], *, refused: bool) -> KnownVersion | None:
        """Choose a version whose model the next call may reach, and that any of the parts can go to.

        All versions that answered recently are equally likely. So a canary gives exactly its share of the
        answers, which is its share of the calls; starting with the version that answered last would give
        little more than the square of that share.
        """
        able = [version for version in self._models.versions if any(_may_go(part, version) for part in parts)]
        recent = [version for version in self._models.recent_encodings() if version in able]
        possible = able if refused or not recent else recent
        return random.choice(possible) if possible else None  # noqa: S311 (no secret)


def _may_go(part: Part, version: KnownVersion) -> bool:
    """Return True if a part may be sent to a version's model."""
    return part.job.version in {None, version.name} and part.matrix(version) is not None


def _is_valid_for(model: UpstreamModel, version: KnownVersion, parts: Sequence[Part], matrix: Matrix) -> bool:
    """Return True if the matrix, encoded for a version, is also the encoding for the model that answered.

    Versions of the same feature names may still differ in how they encode missing or unknown values.
    """
    if model.version is version:
        return True
    start = 0
    for part in parts:
        own = part.matrix(model.version)
        if own is None or not np.array_equal(own, matrix[start : start + part.rows]):
            return False
        start += part.rows
    return True


def _answer(
    batch: Batch, parts: list[Part], matrix: Matrix, probabilities: Matrix, model: UpstreamModel
) -> None:
    """Give the answers to the callers that accept the model's version."""
    if not all(part.job.accepts(model) for part in parts):
        accepted = np.concatenate([np.full(part.rows, part.job.accepts(model)) for part in parts])
        parts = [part for part in parts if part.job.accepts(model)]
        matrix, probabilities = matrix[accepted], probabilities[accepted]
    # Requests are not split here, so one model always answers all of a request.
    again = batch.answer(parts, matrix, probabilities, model)
    assert not again  # noqa: S101
