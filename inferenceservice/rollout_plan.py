"""What a rollout or a rollback is going to do, decided before anything is changed."""

from dataclasses import dataclass
from enum import Enum

from inferenceservice.rollout_target import Progress, RolloutTarget, State, TargetError
from transformer.bundle.format import Bundle


class RolloutError(Exception):
    """A rollout that was refused, or failed and was undone; the message says why and what to do."""


class Order(Enum):
    """In which order both components change.

    A transformer must know the version of the predictor that it meets: by its own bundle, or by `previous`.
    """

    #: The new bundle knows the version that serves.
    TRANSFORMER_FIRST = "transformer first"
    #: The bundle that the transformer has knows the new version.
    PREDICTOR_FIRST = "predictor first"
    #: Neither knows the other, or they share a pod.
    AT_ONCE = "both at once"

    @property
    def back(self) -> "Order":
        """The order of the way back."""
        first = {
            Order.TRANSFORMER_FIRST: Order.PREDICTOR_FIRST,
            Order.PREDICTOR_FIRST: Order.TRANSFORMER_FIRST,
        }
        return first.get(self, self)


@dataclass(frozen=True, slots=True)
class Plan:
    """A change of version.

    Attributes
    ----------
    before
        What is served before it.
    uri, bundle
        The version that is to serve.
    serving
        Bundle of the predictor that serves before it, where it had to be read.
    """

    before: State
    uri: str
    bundle: Bundle
    order: Order
    serving: Bundle | None = None


async def plan_rollout(
    target: RolloutTarget, uri: str, progress: Progress, *, canary: bool, force: bool
) -> Plan:
    """Plan a rollout; see `rollout.rollout`."""
    before = await _settled(target)
    bundle = await target.read_bundle(uri)
    _check_canary(before, uri, canary=canary)
    if before.predictor_uri == uri:
        return Plan(before, uri, bundle, Order.AT_ONCE if before.collocated else Order.TRANSFORMER_FIRST)
    if canary:
        return await _canary(target, before, uri, bundle)
    if before.collocated:
        return Plan(before, uri, bundle, Order.AT_ONCE)
    return await _whole(target, before, uri, bundle, progress, force=force)


async def plan_rollback(target: RolloutTarget, progress: Progress) -> Plan:
    """Plan a rollback; see `rollout.rollback`."""
    before = await _settled(target)
    if before.canary is not None or before.transformer_uri != before.predictor_uri:
        # The predictor serves what is gone back to, so that the transformer can be given it, too.
        bundle = await target.read_bundle(before.predictor_uri)
        return Plan(before, before.predictor_uri, bundle, Order.PREDICTOR_FIRST)
    if before.previous_uri is None:
        raise RolloutError(
            "there is no earlier version to go back to; roll one out with `placement rollout URI`"
        )
    bundle = await target.read_bundle(before.previous_uri)
    order = Order.AT_ONCE
    if not before.collocated:
        order = await _order_back(target, before.transformer_uri, bundle, progress)
    return Plan(before, before.previous_uri, bundle, order)


def knows(bundle: Bundle, other: Bundle) -> bool:
    """Whether a transformer with a bundle recognises another bundle's model."""
    return any(
        (one.version, one.vectorizer, one.reference) == (other.version, other.vectorizer, other.reference)
        for one in bundle.versions
    )


async def _settled(target: RolloutTarget) -> State:
    """What is served when no step of a rollout that was interrupted is under way any more."""
    await target.settle()
    return await target.state()


def _check_canary(before: State, uri: str, *, canary: bool) -> None:
    """Hold that one canary at a time is under way, and that it is another version than the rest."""
    under_way = before.canary.uri if before.canary is not None else uri
    if under_way != uri and (canary or before.predictor_uri != uri):
        raise RolloutError(
            f"a canary of {under_way} is under way; finish it with `placement rollout {under_way}`, or undo "
            "it with `placement rollback`"
        )
    if canary and before.predictor_uri == uri:
        raise RolloutError(f"{uri} serves already; a canary must be another version")


async def _canary(target: RolloutTarget, before: State, uri: str, bundle: Bundle) -> Plan:
    serving = await target.read_bundle(before.predictor_uri)
    if before.collocated:
        return Plan(before, uri, bundle, Order.AT_ONCE, serving)
    if not knows(bundle, serving):
        raise RolloutError(
            f"{bundle.version} does not know {serving.version}, which keeps the rest of the traffic. Train "
            f"it with `placement train --previous {before.predictor_uri}`"
        )
    return Plan(before, uri, bundle, Order.TRANSFORMER_FIRST, serving)


async def _whole(
    target: RolloutTarget, before: State, uri: str, bundle: Bundle, progress: Progress, *, force: bool
) -> Plan:
    try:
        serving = await target.read_bundle(before.predictor_uri)
        order = await _order_out(target, before, uri, bundle, serving)
    except TargetError as error:
        if not force:
            raise
        progress(f"{error}; so it is not known whether the versions know each other: both change at once")
        return Plan(before, uri, bundle, Order.AT_ONCE)
    if order is Order.AT_ONCE:
        if not force:
            raise RolloutError(
                f"{bundle.version} does not know {serving.version}, which serves now: there would be 503s "
                f"while they change. Train it with `placement train --previous {before.predictor_uri}`, or "
                "use --force"
            )
        progress(_strangers(bundle, serving))
    return Plan(before, uri, bundle, order, serving)


async def _order_out(
    target: RolloutTarget, before: State, uri: str, bundle: Bundle, serving: Bundle
) -> Order:
    if knows(bundle, serving):
        return Order.TRANSFORMER_FIRST
    transformers = serving
    if before.transformer_uri != before.predictor_uri:
        transformers = (
            bundle if before.transformer_uri == uri else await target.read_bundle(before.transformer_uri)
        )
    return Order.PREDICTOR_FIRST if knows(transformers, bundle) else Order.AT_ONCE


async def _order_back(target: RolloutTarget, uri: str, bundle: Bundle, progress: Progress) -> Order:
    """Order of the way back from the bundle at a URI; in an emergency it may be out of reach."""
    try:
        serving = await target.read_bundle(uri)
    except TargetError as error:
        progress(f"{error}; so it is not known whether it knows {bundle.version}: the predictor goes first")
        return Order.PREDICTOR_FIRST
    if knows(serving, bundle):
        progress(f"{serving.version} knows {bundle.version}: the predictor goes first")
        return Order.PREDICTOR_FIRST
    if knows(bundle, serving):
        progress(f"{bundle.version} knows {serving.version}: the transformer goes first")
        return Order.TRANSFORMER_FIRST
    progress(_strangers(bundle, serving))
    return Order.AT_ONCE


def _strangers(bundle: Bundle, serving: Bundle) -> str:
    return (
        f"{bundle.version} and {serving.version} do not know each other: both components change at once, and "
        "there may be 503s meanwhile"
    )
