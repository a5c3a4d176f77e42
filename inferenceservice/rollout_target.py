"""Interface of a place that a version is rolled out to: the local service or a cluster."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from transformer.bundle.format import Bundle
from transformer.bundle.target import AnswerScore

Progress = Callable[[str], None]


class TargetError(Exception):
    """A step of a rollout that failed on the target; the message says why."""


class NoInferenceServiceError(TargetError):
    """There is no InferenceService of this name."""


class ForeignChange(TargetError):
    """A change by another client during the rollout, which then leaves the target as it is."""


@dataclass(frozen=True, slots=True)
class Canary:
    """A second predictor version that answers a share of the traffic."""

    uri: str
    percent: int


@dataclass(frozen=True, slots=True)
class State:
    """Bundles that a target serves.

    Attributes
    ----------
    transformer_uri, predictor_uri
        Bundle of each component.
    previous_uri
        Bundle that the predictor served before, if it is known.
    collocated
        True if both components share a pod, and therefore a bundle.
    """

    transformer_uri: str
    predictor_uri: str
    previous_uri: str | None = None
    canary: Canary | None = None
    collocated: bool = False


@dataclass(frozen=True, slots=True)
class Scores:
    """Answers in one response, see `answer_score`, and the version that the response names."""

    answers: tuple[AnswerScore, ...]
    version: str


class RolloutTarget(Protocol):
    """Steps of a rollout. A step that fails raises TargetError."""

    def exclusive(self, change: str) -> AbstractAsyncContextManager[None]:
        """Return a context in which no other client rolls out.

        Parameters
        ----------
        change
            The change in words, for the error that other clients get: ``a rollout of models/placement/v2``.

        Raises
        ------
        TargetError
            If another rollout is in progress; the message names it.
        """

    async def state(self) -> State:
        """Return the bundles that are served now."""

    async def read_bundle(self, uri: str) -> Bundle:
        """Read the bundle at a URI, and check the digest of its model."""

    async def set_transformer(self, uri: str, progress: Progress) -> None:
        """Give the transformer another bundle, and wait until it is ready with it."""

    async def set_predictor(self, uri: str, progress: Progress) -> None:
        """Give the predictor another bundle, and wait until it is ready with it. Ends a canary."""

    async def set_both(self, uri: str, progress: Progress) -> None:
        """Give both components another bundle at once, and wait until both serve it. Ends a canary."""

    async def require_canary_support(self) -> None:
        """Raise TargetError where the traffic of a canary would not be split. Changes nothing."""

    async def set_canary(self, canary: Canary, progress: Progress) -> None:
        """Give a share of the traffic to a predictor with another bundle, and wait until it is ready."""

    async def end_canary(self, progress: Progress) -> None:
        """Give all traffic to the stable predictor."""

    async def wait_until_idle(self) -> None:
        """Wait until no step is running, including a step whose caller was interrupted."""

    async def score(self, candidates: Sequence[dict[str, Any]], name: str) -> Scores:
        """Score candidates through the service as a client does.

        Parameters
        ----------
        name
            Name of the model, and so the prefix of its outputs.
        """
