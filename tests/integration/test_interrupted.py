"""Interrupting a rollout undoes it after the current step; interrupting again ends it and says what to do."""

import asyncio
from dataclasses import replace

import pytest

from inferenceservice.rollout import rollback, rollout
from tests.support.in_memory_target import InMemoryTarget, unrelated_version


def interrupted_during(target: InMemoryTarget, *steps: str) -> None:
    """Interrupt the rollout in each of these steps, after its change."""
    left = list(steps)

    async def during(step: str) -> None:
        if step in left[:1]:
            left.pop(0)
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

    target.during = during


async def test_an_interrupted_rollout_is_undone(pair):
    target = InMemoryTarget(pair.old)
    interrupted_during(target, "predictor v2")
    progress: list[str] = []
    with pytest.raises(asyncio.CancelledError):
        await rollout(target, str(pair.new), progress.append)
    assert target.steps == ["transformer v2", "predictor v2", "predictor v1", "transformer v1"]
    assert progress[2] == "interrupted; rolling back"
    assert progress[-1] == "the previous state is restored"


async def test_an_interrupted_step_is_waited_for_and_undone(pair, monkeypatch):
    """The local service finishes a step whose caller has disconnected."""
    target = InMemoryTarget(pair.old)
    interrupted_during(target, "transformer v2")

    async def finishes() -> None:
        if target.steps:
            target.now = replace(target.now, predictor_uri=str(pair.new))

    monkeypatch.setattr(target, "wait_until_idle", finishes)
    with pytest.raises(asyncio.CancelledError):
        await rollout(target, str(pair.new), print)
    assert target.steps == ["transformer v2", "predictor v1", "transformer v1"]


@pytest.mark.parametrize("change", [rollout, lambda target, _, progress: rollback(target, progress)])
async def test_a_step_of_an_earlier_interrupted_rollout_is_waited_for(change, pair, monkeypatch):
    """A new `placement rollout` follows one that was interrupted twice."""
    target = InMemoryTarget(pair.old)
    target.now = replace(target.now, transformer_uri=str(pair.new))

    async def finishes() -> None:
        target.now = replace(target.now, predictor_uri=str(pair.new), previous_uri=str(pair.old))

    monkeypatch.setattr(target, "wait_until_idle", finishes)
    assert await change(target, str(pair.old), print) == "v1"
    assert target.steps == ["predictor v1", "transformer v1"]


@pytest.mark.parametrize("step", ["wait_until_idle", "predictor v1", "transformer v1"])
async def test_interrupting_twice_prints_the_command_to_recover(step, pair):
    target = InMemoryTarget(pair.old)
    interrupted_during(target, "predictor v2", step)
    progress: list[str] = []
    with pytest.raises(asyncio.CancelledError):
        await rollout(target, str(pair.new), progress.append)
    assert step in (target.steps[-1], "wait_until_idle")
    assert progress[-1] == (
        "interrupted while rolling back; two versions may be serving now: see `placement status`, and run "
        f"`placement rollout {pair.old}` to recover"
    )
    interrupted_during(target)
    await rollout(target, str(pair.old), progress.append)
    assert (target.now.transformer_uri, target.now.predictor_uri) == (str(pair.old), str(pair.old))


async def test_the_command_to_recover_between_unrelated_versions_has_force(pair, tmp_path):
    target = InMemoryTarget(pair.new)
    interrupted_during(target, "both v9", "wait_until_idle")
    progress: list[str] = []
    with pytest.raises(asyncio.CancelledError):
        await rollout(target, str(unrelated_version(pair.new, tmp_path / "v9")), progress.append, force=True)
    assert progress[-1].endswith(f"`placement rollout {pair.new} --force` to recover")
    await rollout(target, str(pair.new), progress.append, force=True)
    assert target.steps[-1] == "both v2"


async def test_an_interrupted_canary_can_be_undone(pair):
    target = InMemoryTarget(pair.old)
    interrupted_during(target, "canary v2", "wait_until_idle")
    progress: list[str] = []
    with pytest.raises(asyncio.CancelledError):
        await rollout(target, str(pair.new), progress.append, canary=10)
    assert progress[-1].endswith(f"`placement rollout {pair.old}` to recover")
    await rollout(target, str(pair.old), progress.append)
    assert target.steps[-2:] == ["end canary", "transformer v1"]


async def test_an_interrupted_rollback_prints_the_command_to_finish_it(pair):
    target = InMemoryTarget(pair.new)
    target.now = replace(target.now, previous_uri=str(pair.old))
    interrupted_during(target, "transformer v1")
    progress: list[str] = []
    with pytest.raises(asyncio.CancelledError):
        await rollback(target, progress.append)
    assert progress[-1].startswith("interrupted while rolling back; two versions may be serving now")
    assert progress[-1].endswith(f"`placement rollout {pair.old}` to recover")
