"""Rolling a version out and back, in the order in which every step knows what it meets.

Out: the transformer first, because its new bundle knows the old version and the new one; then the predictor.
Back: in the opposite order. The steps are the same for every target; see `Target`.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from transformer.bundle import Bundle

Progress = Callable[[str], None]

#: So many answers in a row must come from the new version before it is said to serve.
ANSWERS = 20
#: Seconds until they do; a predictor's connections are renewed within some seconds of its going.
SERVES_TIMEOUT_S = 120.0
_POLL_S = 0.2


class RolloutError(Exception):
    """A rollout that was refused, or failed and was undone; the message says why and what to do."""


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


class Target(Protocol):
    """Where a version is rolled out: the local service or a cluster. A step that fails raises TargetError."""

    async def state(self) -> State:
        """What is served now."""

    async def read_bundle(self, uri: str) -> Bundle:
        """The bundle at a URI, its model held against its digest."""

    async def set_transformer(self, uri: str, progress: Progress) -> None:
        """Give the transformer another bundle, and wait until it is ready with it."""

    async def set_predictor(self, uri: str, progress: Progress) -> None:
        """Give the predictor another bundle, and wait until it is ready with it. Ends a canary."""

    async def check_canary(self) -> None:
        """Refuse a canary where the traffic would not be split, before anything is changed."""

    async def set_canary(self, canary: Canary, progress: Progress) -> None:
        """Let a predictor with another bundle answer a part of the traffic, and wait until it is ready."""

    async def end_canary(self, progress: Progress) -> None:
        """Let the predictor that is no canary answer everything."""

    async def score(self, candidates: Sequence[dict[str, Any]], name: str) -> Scored:
        """Score candidates through the service as a client would, by the name of its model."""


async def rollout(
    target: Target, uri: str, progress: Progress, *, canary: int | None = None, force: bool = False
) -> str:
    """Roll a version out, and return its name.

    Parameters
    ----------
    uri
        The version's bundle.
    canary
        Percent of the traffic that it is to answer for now; a later call without it finishes.
    force
        Whether to go on although the bundle does not know the version that serves now.

    Raises
    ------
    RolloutError
        If it is refused, or failed; then everything is as it was before.
    """
    before = await target.state()
    bundle = await target.read_bundle(uri)
    await _check(target, before, uri, bundle, canary, force)
    if canary is not None:
        await target.check_canary()
    try:
        if before.transformer_uri != uri:
            progress(f"transformer: {bundle.version}")
            await target.set_transformer(uri, progress)
        if canary is not None:
            progress(f"predictor: {bundle.version} for {canary} % of the traffic")
            await target.set_canary(Canary(uri, canary), progress)
            return bundle.version
        if before.predictor_uri != uri or before.canary is not None:
            progress(f"predictor: {bundle.version}")
            await target.set_predictor(uri, progress)
        progress(f"checking that {bundle.version} serves")
        await _serves(target, bundle)
    except (TargetError, asyncio.CancelledError) as error:
        progress(f"{error or 'interrupted'}; going back")
        try:
            await _restore(target, before, progress)
        except TargetError as failure:
            raise RolloutError(
                f"{bundle.version} was not rolled out ({error}), and going back failed: {failure}"
            ) from error
        if isinstance(error, asyncio.CancelledError):
            raise
        raise RolloutError(f"{bundle.version} was not rolled out, all is as before: {error}") from error
    return bundle.version


async def rollback(target: Target, progress: Progress) -> str:
    """Undo the rollout that is under way, or the last one, and return the version that serves then.

    Raises
    ------
    RolloutError
        If there is nothing to go back to, or a step fails.
    """
    state = await target.state()
    unfinished = state.canary is not None or state.transformer_uri != state.predictor_uri
    uri = state.predictor_uri if unfinished else state.previous_uri
    if uri is None:
        raise RolloutError(
            "there is no earlier version to go back to; roll one out with `placement rollout URI`"
        )
    try:
        bundle = await target.read_bundle(uri)
        await _restore(target, State(uri, uri), progress)
        await _serves(target, bundle)
    except TargetError as error:
        raise RolloutError(f"going back to {uri} failed: {error}") from error
    return bundle.version


async def _check(
    target: Target, before: State, uri: str, bundle: Bundle, canary: int | None, force: bool
) -> None:
    if before.canary is not None and before.canary.uri != uri:
        raise RolloutError(
            f"a canary of {before.canary.uri} is under way; finish it with `placement rollout "
            f"{before.canary.uri}`, or undo it with `placement rollback`"
        )
    if canary is not None and before.predictor_uri == uri:
        raise RolloutError(f"{uri} serves already; a canary must be another version")
    if force or before.predictor_uri == uri or before.collocated:
        return
    serving = await target.read_bundle(before.predictor_uri)
    if serving.version not in {version.version for version in bundle.versions}:
        raise RolloutError(
            f"{bundle.version} does not know {serving.version}, which serves now: there would be 503s while "
            f"they change. Train it with `placement train --previous {before.predictor_uri}`, or use --force"
        )


async def _restore(target: Target, state: State, progress: Progress) -> None:
    """Bring a state back: the predictor first, so that the transformer still knows both versions."""
    now = await target.state()
    if now.canary is not None and state.canary is None:
        progress("predictor: ending the canary")
        await target.end_canary(progress)
    if now.predictor_uri != state.predictor_uri:
        progress(f"predictor: back to {state.predictor_uri}")
        await target.set_predictor(state.predictor_uri, progress)
    if now.transformer_uri != state.transformer_uri:
        progress(f"transformer: back to {state.transformer_uri}")
        await target.set_transformer(state.transformer_uri, progress)


async def _serves(target: Target, bundle: Bundle) -> None:
    """Wait until the version answers, and hold its answers against its reference rows.

    Raises
    ------
    TargetError
        If it does not answer in time, or not as its bundle says.
    """
    candidates = [dict(candidate) for candidate in bundle.reference.candidates]
    version = "nothing"
    in_a_row = 0
    end = asyncio.get_running_loop().time() + SERVES_TIMEOUT_S
    while in_a_row < ANSWERS:
        if asyncio.get_running_loop().time() > end:
            raise TargetError(f"{version} answers instead of {bundle.version}")
        scored = await target.score(candidates, bundle.name)
        version = scored.version
        if version != bundle.version:
            in_a_row = 0
            await asyncio.sleep(_POLL_S)
            continue
        in_a_row += 1
        if not bundle.reference.is_matched_by(scored.probabilities):
            raise TargetError(f"{version} gives its reference rows other scores than its bundle says")
