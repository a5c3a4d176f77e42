"""Where a version is rolled out: the steps that the local service and a cluster both offer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from transformer.bundle.format import Bundle

Progress = Callable[[str], None]


class TargetError(Exception):
    """A step that the target could not do."""


@dataclass(frozen=True, slots=True)
class Canary:
    """A part of the traffic that another predictor answers."""

    uri: str
    percent: int


@dataclass(frozen=True, slots=True)
class State:
    """What a target serves.

    Attributes
    ----------
    transformer_uri, predictor_uri
        Bundle of each component.
    previous_uri
        Bundle that the predictor served before, if it is known.
    collocated
        Whether both components share a pod, and so always a bundle.
    """

    transformer_uri: str
    predictor_uri: str
    previous_uri: str | None = None
    canary: Canary | None = None
    collocated: bool = False


@dataclass(frozen=True, slots=True)
class Scored:
    """Answer of the service: probabilities of the positive class, and the version that gave them."""

    probabilities: tuple[float, ...]
    version: str


class RolloutTarget(Protocol):
    """Where a version is rolled out: the local service or a cluster. A step that fails raises TargetError."""

    async def state(self) -> State:
        """What is served now."""

    async def read_bundle(self, uri: str) -> Bundle:
        """The bundle at a URI, its model held against its digest."""

    async def set_transformer(self, uri: str, progress: Progress) -> None:
        """Give the transformer another bundle, and wait until it is ready with it."""

    async def set_predictor(self, uri: str, progress: Progress) -> None:
        """Give the predictor another bundle, and wait until it is ready with it. Ends a canary."""

    async def set_both(self, uri: str, progress: Progress) -> None:
        """Give both components another bundle at once, and wait until both serve it. Ends a canary."""

    async def check_canary(self) -> None:
        """Refuse a canary where the traffic would not be split, before anything is changed."""

    async def set_canary(self, canary: Canary, progress: Progress) -> None:
        """Let a predictor with another bundle answer a part of the traffic, and wait until it is ready."""

    async def end_canary(self, progress: Progress) -> None:
        """Let the predictor that is no canary answer everything."""

    async def settle(self) -> None:
        """Wait until no step that was interrupted is under way any more."""

    async def score(self, candidates: Sequence[dict[str, Any]], name: str) -> Scored:
        """Score candidates through the service as a client would, by the name of its model."""
