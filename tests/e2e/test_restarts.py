"""The local service restarts what is killed, as a kubelet does, and answers meanwhile as far as it can."""

import contextlib
import dataclasses
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from inferenceservice.local import launch, restarts
from inferenceservice.local.control_client import LocalTarget
from inferenceservice.local.control_file import CONTROL_FILE
from inferenceservice.local.control_server import ControlServer
from inferenceservice.local.local_service import LocalService
from inferenceservice.local.running_process import RunningProcess
from inferenceservice.rollout import rollback
from inferenceservice.rollout_target import Canary, State
from inferenceservice.spec import InferenceService
from predictor.process import free_ports
from tests.support.inference_service import SPEC
from tests.support.load import NO_ANSWER, TRY_AGAIN, Tally, under_load
from tests.support.waiting import wait_until
from transformer.bundle.format import MODEL_FILE

#: Requests that may fail when a canary is killed: those that it had, and those until its end is noticed. Six
#: clients send half of their requests to it.
LOST = 12
#: Beginning of the reason of gRPC calls to an address where nothing listens; clients may try them again.
UNAVAILABLE = f"{NO_ANSWER} UNAVAILABLE"


@contextlib.asynccontextmanager
async def serving(
    uri: Path, run: Path, report: Callable[[str], None], service: InferenceService = SPEC
) -> AsyncIterator[LocalService]:
    port, grpc_port = free_ports(2)
    async with LocalService(
        dataclasses.replace(service, storage_uri=str(uri)),
        port=port,
        grpc_port=grpc_port,
        logs=run / "logs",
        progress=report,
    ) as local:
        await local.start()
        yield local


def find(local: LocalService, component: str, *, canary: bool = False) -> RunningProcess:
    track = local._versions.canary if canary else local._versions.stable
    assert track is not None
    (one,) = [one for one in track.processes if one.component == component]
    return one


def kill(one: RunningProcess) -> None:
    os.kill(one.process.pid, signal.SIGKILL)


async def state_of(local: LocalService, one: RunningProcess) -> dict[str, Any]:
    (state,) = [state for state in await local.processes() if state["log"] == str(one.log)]
    return state


def ignore_progress(_: str) -> None:
    """Drop a line of progress."""


async def some_more(tally: Tally, version: str) -> None:
    enough = tally.answered[version] + 30
    await tally.reach(lambda now: now.answered[version] >= enough)


@pytest.mark.parametrize("component", ["predictor", "transformer"])
async def test_a_killed_component_is_restarted_and_clients_are_asked_to_try_again(component, pair, tmp_path):
    report: list[str] = []
    async with (
        serving(pair.old, tmp_path, report.append) as local,
        under_load(pair, local.url, local.grpc_address, clients=1) as tally,
    ):
        await some_more(tally, "v1")
        one = find(local, component)
        kill(one)
        await wait_until(lambda: one.restarts == 1 and one.ready)
        await some_more(tally, "v1")
        state = await state_of(local, one)
    assert (state["ready"], state["restarts"]) == (True, 1)
    killed = "status 137 (SIGKILL: by hand, or for lack of memory)"
    assert state["last_end"]["why"] == killed
    assert report[-2:] == [
        f"the {component} of v1 ended with {killed}; restart in 0.5 s",
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


@pytest.mark.parametrize("component", ["predictor", "transformer"])
async def test_a_killed_canary_leaves_the_stable_version_alone_and_comes_back(component, pair, tmp_path):
    async with serving(pair.old, tmp_path, ignore_progress) as local:
        await local.set_canary(Canary(str(pair.new), 50), ignore_progress)
        async with under_load(pair, local.url, local.grpc_address) as tally:
            await some_more(tally, "v2")
            one = find(local, component, canary=True)
            kill(one)
            await wait_until(lambda: one.restarts == 1)
            await some_more(tally, "v1")
            canary = local._versions.canary
            await wait_until(lambda: canary is not None and canary.ready)
            await some_more(tally, "v2")
    assert tally.failed.total() <= LOST, tally
    assert tally.wrong == []


async def test_mlserver_restarts_its_own_worker_process(pair, tmp_path):
    env = {**SPEC.predictor_env, "MLSERVER_PARALLEL_WORKERS": "1"}
    service = dataclasses.replace(SPEC, predictor_env=env)
    async with serving(pair.old, tmp_path, ignore_progress, service) as local:
        one = find(local, "predictor")
        (worker,) = [
            child
            for child in psutil.Process(one.process.pid).children()
            if "resource_tracker" not in " ".join(child.cmdline())
        ]
        worker.kill()
        async with under_load(pair, local.url, local.grpc_address, clients=1) as tally:
            await some_more(tally, "v1")
        assert (one.restarts, one.process.pid) == (0, psutil.Process(one.process.pid).pid)
    assert set(tally.failed) <= {TRY_AGAIN}, tally


async def test_a_predictor_that_keeps_ending_is_named_with_its_reason_and_the_way_out(
    pair, tmp_path, monkeypatch
):
    """Its copy of the model is damaged. A rollback still works, and ends the restarts."""
    monkeypatch.setattr(restarts, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(restarts, "REPEATED", 2)
    report: list[str] = []
    file = tmp_path / CONTROL_FILE
    async with serving(pair.old, tmp_path, report.append) as local, ControlServer(local, file):
        await local.set_both(str(pair.new), ignore_progress)
        one = find(local, "predictor")
        (one.directory / MODEL_FILE).write_bytes(b"no model")
        kill(one)
        await wait_until(lambda: any(" in a row" in line for line in report))
        told = next(line for line in report if " in a row" in line)
        assert told.startswith(
            "the predictor of v2 ended with status 0: cannot load the model: KeyError: 110"
        )
        assert "2 times in a row, restart in 0.02 s" in told
        assert "kserve-mlserver has scikit-learn 1.5.2 and none of your own packages; train" in told
        assert told.endswith(f"the log is {one.log}; `placement rollback` returns to {pair.old}")
        assert not (await state_of(local, one))["ready"]
        assert await rollback(LocalTarget(file), ignore_progress) == "v1"
        assert await local.state() == State(str(pair.old), str(pair.old))
        assert one.process.poll() is not None
        scores = await local.score(pair.candidates[:1], "placement")
    assert scores.version == "v1"


async def test_a_version_can_be_rolled_out_over_one_whose_predictor_does_not_start(
    pair, tmp_path, monkeypatch
):
    """The new transformer cannot get ready before the new predictor is there."""
    monkeypatch.setattr(restarts, "FIRST_DELAY_S", 0.01)
    async with serving(pair.old, tmp_path, ignore_progress) as local:
        one = find(local, "predictor")
        (one.directory / MODEL_FILE).write_bytes(b"no model")
        kill(one)
        await wait_until(lambda: not find(local, "transformer").ready)
        await local.set_transformer(str(pair.new), ignore_progress)
        await local.set_predictor(str(pair.new), ignore_progress)
        await wait_until(lambda: find(local, "transformer").ready)
        assert (await local.score(pair.candidates[:1], "placement")).version == "v2"


async def test_a_frozen_process_is_restarted_after_failed_liveness_checks(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(restarts, "LIVENESS_PERIOD_S", 0.1)
    monkeypatch.setattr(launch, "LIVE_TIMEOUT_S", 1)
    report: list[str] = []
    async with serving(pair.old, tmp_path, report.append) as local:
        one = find(local, "transformer")
        frozen = psutil.Process(one.process.pid)
        frozen.suspend()
        await wait_until(lambda: one.restarts and one.ready)
        assert not frozen.is_running()
        assert "the transformer of v1 ended with no answer to 3 liveness checks in a row" in "\n".join(report)
        assert (await local.score(pair.candidates[:1], "placement")).version == "v1"
