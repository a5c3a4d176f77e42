"""Plan of a rollout or rollback: the order of its steps, decided before anything changes."""

import contextlib
from dataclasses import dataclass
from enum import Enum

from inferenceservice.rollout_target import Progress, RolloutTarget, State, TargetError
from transformer.bundle.format import Bundle, Version


class RolloutError(Exception):
    """A rollout that was refused, or that failed and was undone; the message says why and what to do."""


class Order(Enum):
    """Order in which the two components change.

    At every moment the transformer's bundle must recognise the predictor's version: as its own version or as
    one in `previous`.
    """

    #: The new bundle recognises the version that serves now.
    TRANSFORMER_FIRST = "transformer first"
    #: The transformer's current bundle recognises the new version.
    PREDICTOR_FIRST = "predictor first"
    #: Neither bundle recognises the other version, or both components share a pod.
    AT_ONCE = "both at once"

    @property
    def reversed(self) -> "Order":
        """Order that undoes this one."""
        opposite = {
            Order.TRANSFORMER_FIRST: Order.PREDICTOR_FIRST,
            Order.PREDICTOR_FIRST: Order.TRANSFORMER_FIRST,
        }
        return opposite.get(self, self)


@dataclass(frozen=True, slots=True)
class Plan:
    """A change of version.

    Attributes
    ----------
    before
        State that is served before the change.
    uri, bundle
        The version to serve.
    stable_bundle
        Bundle of the predictor before the change, if the plan had to read it.
    """

    before: State
    uri: str
    bundle: Bundle
    order: Order
    stable_bundle: Bundle | None = None


async def plan_rollout(
    target: RolloutTarget, uri: str, progress: Progress, *, canary: bool, force: bool
) -> Plan:
    """Plan a rollout; see `rollout.rollout`."""
    before = await _idle_state(target)
    bundle = await target.read_bundle(uri)
    _reject_canary_conflict(before, uri, canary=canary)
    if before.predictor_uri == uri:
        return Plan(before, uri, bundle, Order.AT_ONCE if before.collocated else Order.TRANSFORMER_FIRST)
    if canary:
        return await _plan_canary(target, before, uri, bundle)
    if before.collocated:
        return Plan(before, uri, bundle, Order.AT_ONCE)
    return await _plan_full_rollout(target, before, uri, bundle, progress, force=force)


async def plan_rollback(target: RolloutTarget, progress: Progress) -> Plan:
    """Plan a rollback; see `rollout.rollback`."""
    before = await _idle_state(target)
    if before.canary is not None or before.transformer_uri != before.predictor_uri:
        # A rollout is in progress: the stable predictor still has the bundle to roll back to.
        bundle = await target.read_bundle(before.predictor_uri)
        return Plan(before, before.predictor_uri, bundle, Order.PREDICTOR_FIRST)
    if before.previous_uri is None:
        raise RolloutError(
            "there is no earlier version to roll back to; use `placement rollout URI` to choose a version"
        )
    bundle = await target.read_bundle(before.previous_uri)
    order = Order.AT_ONCE
    if not before.collocated:
        order = await _rollback_order(target, before.transformer_uri, bundle, progress)
    return Plan(before, before.previous_uri, bundle, order)


def recognises(bundle: Bundle, other: Version) -> bool:
    """Return True if a transformer with a bundle recognises the model of another version."""
    return any(
        (one.version, one.vectorizer, one.reference) == (other.version, other.vectorizer, other.reference)
        for one in bundle.versions
    )


def _same_model(one: Version, other: Version) -> bool:
    """Return True if two versions differ in their threshold at most, as far as a transformer can see."""
    return (
        one.vectorizer == other.vectorizer
        and one.reference.candidates == other.reference.candidates
        and one.is_matched_by(other.reference.answers)
    )


async def _idle_state(target: RolloutTarget) -> State:
    """Return the state once an interrupted step of an earlier rollout has ended."""
    await target.wait_until_idle()
    return await target.state()


def _reject_canary_conflict(before: State, uri: str, *, canary: bool) -> None:
    """Reject a second canary, and a canary of the version that serves already."""
    in_progress = before.canary.uri if before.canary is not None else uri
    if in_progress != uri and (canary or before.predictor_uri != uri):
        raise RolloutError(
            f"a canary of {in_progress} is in progress; finish it with `placement rollout {in_progress}`, or "
            "undo it with `placement rollback`"
        )
    if canary and before.predictor_uri == uri:
        raise RolloutError(f"{uri} serves already; choose another version for a canary")


async def _plan_canary(target: RolloutTarget, before: State, uri: str, bundle: Bundle) -> Plan:
    stable = await target.read_bundle(before.predictor_uri)
    if before.collocated:
        return Plan(before, uri, bundle, Order.AT_ONCE, stable)
    if not recognises(bundle, stable):
        why = "which keeps the rest of the traffic"
        raise RolloutError(await _refusal(target, before, uri, bundle, stable, why))
    if _same_model(bundle, stable):
        raise RolloutError(
            f"{bundle.version} and {stable.version} have the same model, so the transformer cannot tell "
            f"which of them answers; roll {bundle.version} out without --canary"
        )
    return Plan(before, uri, bundle, Order.TRANSFORMER_FIRST, stable)


async def _plan_full_rollout(
    target: RolloutTarget, before: State, uri: str, bundle: Bundle, progress: Progress, *, force: bool
) -> Plan:
    try:
        stable = await target.read_bundle(before.predictor_uri)
        order = await _rollout_order(target, before, uri, bundle, stable)
    except TargetError as error:
        if not force:
            raise
        progress(f"cannot compare the versions ({error}): both components change at once")
        return Plan(before, uri, bundle, Order.AT_ONCE)
    if order is Order.AT_ONCE:
        if not force:
            why = "which serves now, so requests would get 503 during the change"
            raise RolloutError(await _refusal(target, before, uri, bundle, stable, why, "use --force"))
        progress(_unrelated(bundle, stable))
    return Plan(before, uri, bundle, order, stable)


async def _rollout_order(
    target: RolloutTarget, before: State, uri: str, bundle: Bundle, stable: Bundle
) -> Order:
    if recognises(bundle, stable):
        return Order.TRANSFORMER_FIRST
    current = stable
    if before.transformer_uri != before.predictor_uri:
        current = (
            bundle if before.transformer_uri == uri else await target.read_bundle(before.transformer_uri)
        )
    return Order.PREDICTOR_FIRST if recognises(current, bundle) else Order.AT_ONCE


async def _rollback_order(target: RolloutTarget, uri: str, bundle: Bundle, progress: Progress) -> Order:
    """Return the order for a rollback from the bundle at a URI, which may be unreadable in an emergency."""
    try:
        current = await target.read_bundle(uri)
    except TargetError as error:
        progress(f"cannot read the current bundle ({error}): the predictor changes first")
        return Order.PREDICTOR_FIRST
    if recognises(current, bundle):
        progress(f"{current.version} recognises {bundle.version}: the predictor changes first")
        return Order.PREDICTOR_FIRST
    if recognises(bundle, current):
        progress(f"{bundle.version} recognises {current.version}: the transformer changes first")
        return Order.TRANSFORMER_FIRST
    progress(_unrelated(bundle, current))
    return Order.AT_ONCE


async def _refusal(
    target: RolloutTarget, before: State, uri: str, bundle: Bundle, stable: Bundle, why: str, *more: str
) -> str:
    """Return the error for a version that does not recognise the one that serves, with every way out.

    Parameters
    ----------
    why
        The rest of the sentence about the version that serves.
    more
        Ways out besides those that are found here.
    """
    if bundle.name != stable.name:
        found = f"{bundle.name} {bundle.version} is another model than {stable.name} {stable.version}, {why}"
        ways_out = [f"give it an InferenceService of its own (on this machine: `placement up --model {uri}`)"]
    else:
        found = f"{bundle.version} does not recognise {stable.version}, {why}"
        ways_out = [f"train or import it again with `--previous {before.predictor_uri}`"]
        if (common := await _way_to_common_version(target, before, bundle, stable)) is not None:
            ways_out.append(f"{common}, and then roll this one out")
    return f"{found}; {', or '.join([*ways_out, *more])}"


async def _way_to_common_version(
    target: RolloutTarget, before: State, bundle: Bundle, stable: Bundle
) -> str | None:
    """Return how to get to a version that both bundles recognise, or None if there is none."""
    common = [one.version for one in bundle.previous if recognises(stable, one)]
    if before.previous_uri is not None:
        with contextlib.suppress(TargetError):
            previous = await target.read_bundle(before.previous_uri)
            if recognises(bundle, previous) and recognises(stable, previous):
                return f"return to {previous.version}, which both recognise, with `placement rollback`"
    return f"roll {common[0]} out first, which both recognise" if common else None


def _unrelated(bundle: Bundle, current: Bundle) -> str:
    return (
        f"{bundle.version} and {current.version} do not recognise each other: both components change at "
        "once, and requests may get 503 until the change is done"
    )
