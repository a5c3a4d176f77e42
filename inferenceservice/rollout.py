"""Rollout and rollback of a version: the steps, the check of the answers, and the undo after a failure.

The components change in an order in which the transformer recognises the predictor's version at every
moment; see `rollout_plan`. The steps are the same for every `RolloutTarget`.
"""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import NoReturn

from inferenceservice.answer_checks import WrongAnswer, check_canary_answers, wait_until_serving
from inferenceservice.rollout_plan import Order, Plan, RolloutError, plan_rollback, plan_rollout
from inferenceservice.rollout_target import (
    Canary,
    ForeignChange,
    Progress,
    RolloutTarget,
    State,
    TargetError,
)

__all__ = ["RolloutError", "rollback", "rollout"]

_Step = tuple[str, str, Callable[[str, Progress], Awaitable[None]]]


async def rollout(
    target: RolloutTarget,
    uri: str,
    progress: Progress,
    *,
    canary: int | None = None,
    force: bool = False,
    replaces: str | None = None,
) -> str:
    """Roll a version out, and return its name.

    Parameters
    ----------
    uri
        The version's bundle.
    canary
        Percent of the traffic for the version. A later call without it completes the rollout.
    force
        Continue although the new bundle and the one that serves now do not recognise each other.
    replaces
        Bundle that the version was compared with: refuse the rollout if another one serves now, unless it is
        the version itself.

    Raises
    ------
    RolloutError
        If the rollout is refused, or if it failed; after a failure the previous state is restored.
    TargetError
        If another rollout is in progress, or the target cannot be read.
    """
    async with target.exclusive(f"a rollout of {uri}"):
        if canary is not None:
            await target.require_canary_support()
        plan = await plan_rollout(target, uri, progress, canary=canary is not None, force=force)
        now = plan.before.predictor_uri
        if replaces is not None and now not in (replaces, uri):
            raise RolloutError(
                f"{uri} was compared with {replaces}, but {now} serves now; start the comparison again"
            )
        try:
            if canary is None:
                await _roll_out_fully(target, plan, progress)
            else:
                await _roll_out_canary(target, plan, canary, progress)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 (raised again)
            await _undo(target, plan, error, progress)
    return plan.bundle.version


async def rollback(target: RolloutTarget, progress: Progress) -> str:
    """Undo the rollout in progress or else the last one, and return the version that serves afterwards.

    Raises
    ------
    RolloutError
        If there is no earlier version, or a step fails.
    TargetError
        If another rollout is in progress.
    """
    async with target.exclusive("a rollback"):
        return await _roll_back(target, progress)


async def _roll_back(target: RolloutTarget, progress: Progress) -> str:
    plan = await plan_rollback(target, progress)
    to = State(plan.uri, plan.uri, collocated=plan.before.collocated)
    try:
        await _change(target, plan.before, to, plan.order, progress, back=True)
        await wait_until_serving(target, plan.bundle)
    except asyncio.CancelledError:
        progress(f"interrupted while rolling back; {_recovery_advice(plan.uri, plan)}")
        raise
    except TargetError as error:
        raise RolloutError(f"rolling back to {plan.uri} failed: {error}") from error
    return plan.bundle.version


async def _roll_out_fully(target: RolloutTarget, plan: Plan, progress: Progress) -> None:
    to = State(plan.uri, plan.uri, collocated=plan.before.collocated)
    await _change(target, plan.before, to, plan.order, progress)
    progress(f"checking that {plan.bundle.version} serves")
    await wait_until_serving(target, plan.bundle)


async def _roll_out_canary(target: RolloutTarget, plan: Plan, percent: int, progress: Progress) -> None:
    assert plan.stable_bundle is not None  # noqa: S101 (see plan_rollout)
    canary = Canary(plan.uri, percent)
    if not plan.before.collocated and plan.before.transformer_uri != plan.uri:
        progress(f"transformer: {plan.uri}")
        await target.set_transformer(plan.uri, progress)
    progress(f"predictor: {plan.uri} for {percent} % of the traffic")
    await target.set_canary(canary, progress)
    progress(f"checking the answers of {plan.bundle.version} and {plan.stable_bundle.version}")
    for version in await check_canary_answers(target, canary, plan.bundle, plan.stable_bundle):
        progress(
            f"answers of {version} were not compared: the other version accepts none of its reference rows"
        )


async def _undo(target: RolloutTarget, plan: Plan, error: BaseException, progress: Progress) -> NoReturn:
    """Restore the previous state after a failure or interruption, and raise an error for both."""
    if isinstance(error, ForeignChange):
        raise RolloutError(f"{plan.bundle.version} was not rolled out: {error}") from error
    progress(f"{_reason(error).splitlines()[0]}; rolling back")
    to = plan.before
    if isinstance(error, WrongAnswer) and to.canary is not None:
        # A canary that gives wrong answers is removed even if it was there before this rollout.
        to = dataclasses.replace(to, canary=None, transformer_uri=to.predictor_uri)
    failed = f"{plan.bundle.version} was not rolled out"
    advice = _recovery_advice(to.predictor_uri, plan)
    try:
        await target.wait_until_idle()
        await _change(target, await target.state(), to, plan.order.reversed, progress, back=True)
    except asyncio.CancelledError:
        progress(f"interrupted while rolling back; {advice}")
        raise
    except ForeignChange as change:
        raise RolloutError(f"{failed} ({_reason(error)}), and not rolled back: {change}") from error
    except TargetError as failure:
        raise RolloutError(
            f"{failed} ({_reason(error)}), and rolling back failed: {failure}; {advice}"
        ) from error
    restored = to.canary == plan.before.canary
    result = "the previous state is restored" if restored else "and its canary was removed"
    if isinstance(error, TargetError):
        raise RolloutError(f"{failed}, {result}: {error}") from error
    progress(result)
    raise error


def _reason(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError):
        return "interrupted"
    return str(error) if isinstance(error, TargetError) else repr(error)


async def _change(
    target: RolloutTarget, now: State, to: State, order: Order, progress: Progress, *, back: bool = False
) -> None:
    """Change the target from one state to another; do only the steps that are needed.

    Parameters
    ----------
    now
        State that is served now.
    back
        True if the change restores an earlier state; affects only the text of the progress.
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
    """Return the components to change, each with its bundle and the target's step, in order."""
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


def _recovery_advice(uri: str, plan: Plan) -> str:
    """Text for a change that stopped half-way: how to see the state, and how to restore a version."""
    force = " --force" if plan.order is Order.AT_ONCE and not plan.before.collocated else ""
    return (
        "two versions may be serving now: see `placement status`, and run "
        f"`placement rollout {uri}{force}` to recover"
    )
