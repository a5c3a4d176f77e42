"""The local service restarts what is killed, as a kubelet does, and answers meanwhile as far as it can."""

import contextlib
import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from inferenceservice.local import restarts
from inferenceservice.local.control_client import LocalTarget
from inferenceservice.local.control_file import CONTROL_FILE
from inferenceservice.local.control_server import ControlServer
from inferenceservice.local.local_service import LocalService
from inferenceservice.local.running_process import RunningProcess
from inferenceservice.rollout import rollout
from inferenceservice.rollout_target import Canary, State
from tests.support.async_clients import NO_ANSWER, TRY_AGAIN
from tests.support.async_processes import running_local_service
from tests.support.in_memory_target import ignore_progress
from tests.support.inference_service import SPEC
from tests.support.load import Tally, under_load
from tests.support.waiting import wait_until
from transformer.bundle.format import MODEL_FILE

#: Requests that may fail when a canary is killed: those that it had, and those until its end is noticed. Six
#: clients send half of their requests to it.
LOST = 12
#: Beginning of the reason of gRPC calls to an address where nothing listens; clients may try them again.
UNAVAILABLE = f"{NO_ANSWER} UNAVAILABLE"


def serving(
    uri: Path, run: Path, report: Callable[[str], None]
) -> contextlib.AbstractAsyncContextManager[LocalService]:
    return running_local_service(dataclasses.replace(SPEC, storage_uri=str(uri)), run, report)


def find(local: LocalService, component: str, *, canary: bool = False) -> RunningProcess:
    track = local._versions.canary if canary else local._versions.stable
    assert track is not None
    (one,) = [one for one in track.processes if one.component == component]
    return one


def kill(one: RunningProcess) -> None:
    os.kill(one.process.pid, signal.SIGKILL)


async def some_more(tally: Tally, version: str) -> None:
    enough = tally.answered[version] + 30
    await tally.reach(lambda now: now.answered[version] >= enough)


@pytest.mark.parametrize("component", ["predictor", "transformer"])
async def test_killed_components_are_restarted_and_a_canary_leaves_the_stable_version_alone(
    component, pair, tmp_path
):
    report: list[str] = []
    async with serving(pair.old, tmp_path, report.append) as local:
        async with under_load(pair, local.url, local.grpc_address, clients=1) as tally:
            await some_more(tally, "v1")
            one = find(local, component)
            kill(one)
            await wait_until(lambda: one.restarts == 1 and one.ready)
            await some_more(tally, "v1")
        killed = "ended with status 137 (SIGKILL: by hand, or for lack of memory)"
        assert report[-2:] == [
            f"the {component} of v1 {killed}; restart in 0.5 s",
            f"the {component} of v1 runs again, after restart 1",
        ]
        # What a killed transformer was answering is lost with it, at most one request of each client.
        lost = [
            count
            for reason, count in tally.failed.items()
            if reason != TRY_AGAIN and not reason.startswith(UNAVAILABLE)
        ]
        assert sum(lost) <= (3 if component == "transformer" else 0), tally
        assert tally.wrong == []

        await local.set_canary(Canary(str(pair.new), 50), ignore_progress)
        canary = local._versions.canary
        assert canary is not None
        async with under_load(pair, local.url, local.grpc_address) as tally:
            await some_more(tally, "v2")
            one = find(local, component, canary=True)
            kill(one)
            await wait_until(lambda: one.restarts == 1)
            await some_more(tally, "v1")
            await wait_until(lambda: canary.ready)
            await some_more(tally, "v2")
        assert tally.failed.total() <= LOST, tally
        assert tally.wrong == []
        assert f"the canary's {component} of v2 {killed}; restart in 0.5 s" in report
        states = [
            (state["canary"], state["component"], state["restarts"]) for state in await local.processes()
        ]
        assert sorted(states) == sorted(
            (is_canary, name, int(name == component))
            for is_canary in (False, True)
            for name in ("predictor", "transformer")
        )


async def test_a_predictor_that_keeps_ending_is_named_with_its_reason_and_can_be_replaced(
    pair, tmp_path, monkeypatch
):
    """Its copy of the model is damaged. The new transformer cannot get ready before the new predictor."""
    monkeypatch.setattr(restarts, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(restarts, "REPEATED", 2)
    report: list[str] = []
    file = tmp_path / CONTROL_FILE
    async with serving(pair.old, tmp_path, report.append) as local, ControlServer(local, file):
        one = find(local, "predictor")
        (one.directory / MODEL_FILE).write_bytes(b"no model")
        kill(one)
        await wait_until(lambda: any(" in a row" in line for line in report))
        told = next(line for line in report if " in a row" in line)
        assert told.startswith(
            "the predictor of v1 ended with status 0: cannot load the model: KeyError: 110"
        )
        assert "kserve-mlserver has scikit-learn 1.5.2 and none of your own packages; train" in told
        assert told.endswith(f"the log is {one.log}; `placement rollout URI` serves another version")
        (state,) = [state for state in await local.processes() if state["log"] == str(one.log)]
        assert (state["ready"], "cannot load the model" in state["last_end"]["why"]) == (False, True)
        assert await rollout(LocalTarget(file), str(pair.new), ignore_progress) == "v2"
        assert await local.state() == State(str(pair.new), str(pair.new), str(pair.old))
        assert one.process.poll() is not None, "what was replaced is not restarted"
