"""Cancelling a rollout to a cluster undoes it."""

import asyncio
from typing import Any

import pytest

from inferenceservice.rollout import rollout
from tests.support.cluster.fixtures import V1, V2, Start


async def test_an_interrupted_wait_leaves_the_spec_as_patched(start: Start, target: Any) -> None:
    cluster = await start()
    cluster.failing.add(V2)
    started = asyncio.Event()
    task = asyncio.create_task(target(timeout_s=60).set_predictor(V2, lambda _: started.set()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cluster.uri("predictor") == V2


async def test_an_interrupted_patch_is_waited_for(start: Start, target: Any) -> None:
    cluster = await start()
    cluster.hold = asyncio.Event()
    one = target()
    task = asyncio.create_task(one.set_predictor(V2, print))
    await cluster.held.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    settling = asyncio.create_task(one.wait_until_idle())
    assert not (await asyncio.wait([settling], timeout=0.1))[0]
    cluster.hold.set()
    await settling
    assert cluster.uri("predictor") == V2
    await target().wait_until_idle()


async def test_a_rollout_interrupted_at_any_moment_is_undone(start: Start, target: Any) -> None:
    cluster = await start()
    for moment in range(0, 60, 4):
        task = asyncio.create_task(rollout(target(), V2, print))
        await asyncio.sleep(moment / 1000)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (cluster.uri("transformer"), cluster.uri("predictor")) == (V1, V1), moment
