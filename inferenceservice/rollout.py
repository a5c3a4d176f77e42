"""Rolling a version out and back, in the order in which every step knows what it meets.

Out: the transformer first, because its new bundle knows the old version and the new one; then the predictor.
Back: in the opposite order. Where neither knows the other, and in a pod that both share: both at once. The
steps are the same for every target; see `RolloutTarget`.
"""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import NoReturn

from inferenceservice.answer_checks import WrongAnswer, divided, serves
from inferenceservice.rollout_plan import Order, Plan, RolloutError, plan_rollback, plan_rollout
from inferenceservice.rollout_target import Canary, Progress, RolloutTarget, State, TargetError

__all__ = ["RolloutError", "rollback", "rollout"]

_Step = tuple[str, str, Callable[[str, Progress], Awaitable[None]]]


async def rollout(
    target: RolloutTarget, uri: str, progress: Progress, *, canary: int | None = None, force: bool = False
) -> str:
    """Roll a version out, and return its name.

    Parameters
    ----------
    uri
        The version's bundle.
    canary
        Percent of the traffic that it is to answer for now; a later call without it finishes.
    force
        Whether to go on although neither its bundle nor the one that serves now knows the other.

    Raises
    ------
    RolloutError
        If it is refused, or failed; then everything is as it was before.
    """
    plan = await plan_rollout(target, uri, progress, canary=canary is not None, force=force)
    if canary is not None:
        await target.check_canary()
    try:
        if canary is None:
            await _whole(target, plan, progress)
        else:
            await _canary(target, plan, canary, progress)
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 (raised again)
        await _undo(target, plan, error, progress)
    return plan.bundle.version


async def rollback(target: RolloutTarget, progress: Progress) -> str:
    """Undo the rollout that is under way, or the last one, and return the version that serves then.

    Raises
    ------
    RolloutError
        If there is nothing to go back to, or a step fails.
    """
    plan = await plan_rollback(target, progress)
    to = State(plan.uri, plan.uri, collocated=plan.before.collocated)
    try:
        await _go(target, plan.before, to, plan.order, progress, back=True)
        await serves(target, plan.bundle)
    except asyncio.CancelledError:
        progress(f"interrupted while going back; {_mended(plan.uri, plan)}")
        raise
    except TargetError as error:
        raise RolloutError(f"going back to {plan.uri} failed: {error}") from error
    return plan.bundle.version


async def _whole(target: RolloutTarget, plan: Plan, progress: Progress) -> None:
    to = State(plan.uri, plan.uri, collocated=plan.before.collocated)
    await _go(target, plan.before, to, plan.order, progress)
    progress(f"checking that {plan.bundle.version} serves")
    await serves(target, plan.bundle)


async def _canary(target: RolloutTarget, plan: Plan, percent: int, progress: Progress) -> None:
    assert plan.serving is not None  # noqa: S101 (see plan_rollout)
    canary = Canary(plan.uri, percent)
    if not plan.before.collocated and plan.before.transformer_uri != plan.uri:
        progress(f"transformer: {plan.uri}")
        await target.set_transformer(plan.uri, progress)
    progress(f"predictor: {plan.uri} for {percent} % of the traffic")
    await target.set_canary(canary, progress)
    progress(f"checking what {plan.bundle.version} and {plan.serving.version} answer")
    for version in await divided(target, canary, plan.bundle, plan.serving):
        progress(f"{version}'s answers were not compared: the other version takes none of its reference rows")


async def _undo(target: RolloutTarget, plan: Plan, error: BaseException, progress: Progress) -> NoReturn:
    """Bring everything back after a failure or an interruption, and raise what it comes to."""
    progress(f"{_reason(error).splitlines()[0]}; going back")
    to = plan.before
    if isinstance(error, WrongAnswer) and to.canary is not None:
        # It gives no more answers, even if it was there before.
        to = dataclasses.replace(to, canary=None, transformer_uri=to.predictor_uri)
    failed = f"{plan.bundle.version} was not rolled out"
    mended = _mended(to.predictor_uri, plan)
    try:
        await target.settle()
        await _go(target, await target.state(), to, plan.order.back, progress, back=True)
    except asyncio.CancelledError:
        progress(f"interrupted while going back; {mended}")
        raise
    except TargetError as failure:
        raise RolloutError(
            f"{failed} ({_reason(error)}), and going back failed: {failure}; {mended}"
        ) from error
    now = "all is as before" if to.canary == plan.before.canary else "and its canary was undone"
    if isinstance(error, TargetError):
        raise RolloutError(f"{failed}, {now}: {error}") from error
    progress(now)
    raise error


def _reason(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError):
        return "interrupted"
    return str(error) if isinstance(error, TargetError) else repr(error)


async def _go(
    target: RolloutTarget, now: State, to: State, order: Order, progress: Progress, *, back: bool = False
) -> None:
    """Bring another state about, as far as it is not there.

    Parameters
    ----------
    now
        What is served now.
    back
        Whether it is the way back, for whoever reads the progress.
    """
    if now.canary is not None and now.canary.uri not in (to.predictor_uri, to.canary and to.canary.uri):
        progress("predictor: ending the canary")
        await target.end_canary(progress)
    for component, uri, step in _steps(target, now, to, order):
        progress(f"{component}: {'back to ' if back else ''}{uri}")
        await step(uri, progress)
    if to.canary is not None and now.canary != to.canary:
        progress(f"predictor: back to {to.canary.percent} % of the traffic for {to.canary.uri}")
        await target.set_canary(to.canary, progress)


def _steps(target: RolloutTarget, now: State, to: State, order: Order) -> list[_Step]:
    """Components to change, each with the bundle and how it is given."""
    transformer = ("transformer", to.transformer_uri, target.set_transformer)
    predictor = ("predictor", to.predictor_uri, target.set_predictor)
    steps: list[_Step] = []
    if now.predictor_uri != to.predictor_uri:
        steps.append(predictor)
    if now.transformer_uri != to.transformer_uri:
        steps.append(transformer)
    if order is Order.TRANSFORMER_FIRST:
        steps.reverse()
    elif order is Order.AT_ONCE and (len(steps) == 2 or (steps and now.collocated)):
        steps = [("transformer and predictor", to.predictor_uri, target.set_both)]
        if to.transformer_uri != to.predictor_uri:
            steps.append(transformer)
    return steps


def _mended(uri: str, plan: Plan) -> str:
    """What may be left in the middle of a change, and how a version is brought about from there."""
    force = " --force" if plan.order is Order.AT_ONCE and not plan.before.collocated else ""
    return (
        "what serves now may be of two versions: `placement status` shows it, "
        f"`placement rollout {uri}{force}` mends it"
    )
