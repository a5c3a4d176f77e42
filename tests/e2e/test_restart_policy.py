"""Restarts have a back-off, follow liveness, and never restart what was replaced.

The processes of these tests only sleep; see `test_restarts` for real ones.
"""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from inferenceservice.local import restarts
from inferenceservice.local.forwarder import DOWN
from inferenceservice.local.local_service import LocalService
from inferenceservice.local.rolled_out import RolledOut, RolledOutFile
from inferenceservice.local.running_process import Process, RunningProcess
from inferenceservice.local.service_client import ServiceClient
from inferenceservice.rollout_target import Canary, State
from predictor.process import free_ports
from tests.support.inference_service import SPEC
from tests.support.sleeping_process import use_sleeping_processes
from tests.support.waiting import wait_until

NOW = datetime.now().astimezone()


@pytest.fixture(autouse=True)
def sleeping_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_sleeping_processes(monkeypatch)
    monkeypatch.setattr(restarts, "_POLL_S", 0.01)
    monkeypatch.setattr(restarts, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    async def predict_nothing(*_: object) -> None:
        """Sleeping processes have no answers."""

    monkeypatch.setattr(ServiceClient, "check_reference_rows", predict_nothing)


@dataclass(frozen=True)
class Versions:
    """URIs of two versions."""

    old: str
    new: str


@pytest.fixture
def versions(trained_bundle: Path, tmp_path: Path) -> Versions:
    return Versions(*(str(shutil.copytree(trained_bundle, tmp_path / name)) for name in ("old", "new")))


@contextlib.asynccontextmanager
async def serving(
    uri: str, run: Path, *, canary: Canary | None = None
) -> AsyncIterator[tuple[LocalService, list[str]]]:
    """Run a service that starts with a version, and with a canary as after a stop."""
    report: list[str] = []
    port, grpc_port = free_ports(2)
    async with LocalService(
        SPEC,
        port=port,
        grpc_port=grpc_port,
        logs=run / "logs",
        progress=report.append,
        rolled_out=RolledOutFile(run / "rolled_out.json", "default/placement", uri),
    ) as local:
        await local.start(RolledOut(spec_uri=uri, uri=uri, history=("before",), canary=canary, at=NOW))
        report.clear()
        yield local, report


def running() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def shares(local: LocalService) -> list[tuple[str, float]]:
    return [(backend.address, backend.weight) for backend in local._router._ingress.transformer]


def end(one: RunningProcess) -> None:
    psutil.Process(one.process.pid).kill()


def ignore_progress(_: str) -> None:
    """Drop a line of progress."""


def no_memory() -> Process:
    raise OSError(12, "Cannot allocate memory")


async def test_the_back_off_doubles_up_to_a_limit(versions, tmp_path, monkeypatch):
    monkeypatch.setattr(restarts, "MAX_DELAY_S", 0.03)
    async with serving(versions.old, tmp_path) as (local, report):
        one = local._predictor
        launch, one.launch = one.launch, no_memory
        end(one)
        await wait_until(lambda: len(report) == 4)
        one.launch = launch
        await wait_until(lambda: one.ready)
        restarted = report[-1]
    assert [line.partition("restart in ")[2].partition(" s")[0] for line in report[:4]] == [
        "0.01",
        "0.02",
        "0.03",
        "0.03",
    ]
    assert report[0] == "the predictor of v1 ended with status -9; restart in 0.01 s"
    assert report[2] == (
        "the predictor of v1 did not start: [Errno 12] Cannot allocate memory: 3 times in a row, restart in "
        f"0.03 s; the log is {one.log}; `placement rollback` returns to before"
    )
    assert restarted == f"the predictor of v1 runs again, after restart {one.restarts}"


async def test_a_process_that_does_not_answer_is_restarted(versions, tmp_path, monkeypatch):
    monkeypatch.setattr(restarts, "LIVENESS_PERIOD_S", 0.02)
    async with serving(versions.old, tmp_path) as (local, report):
        one = local._transformer
        frozen = one.process
        monkeypatch.setattr(frozen, "live", lambda: False)
        await wait_until(lambda: one.restarts == 1 and one.ready)
        assert frozen.poll() is not None
        assert one.process.poll() is None
    assert report[0] == (
        "the transformer of v1 gave no answer to 3 liveness checks in a row; restart in 0.01 s"
    )


async def test_a_replaced_process_is_not_restarted(versions, tmp_path, monkeypatch):
    """Neither one that waits for its restart, nor one whose end comes later."""
    monkeypatch.setattr(restarts, "FIRST_DELAY_S", 1000)
    before = running()
    async with serving(versions.old, tmp_path) as (local, report):
        one = local._predictor
        end(one)
        await wait_until(lambda: report)
        await local.set_predictor(versions.new, ignore_progress)
        assert local._predictor is not one
        assert local._predictor.ready
        assert one.process.poll() is not None
        assert len(running() - before) == 2
        assert len(report) == 1
    assert running() == before


async def test_the_share_of_a_canary_that_ended_goes_to_the_stable_track_and_not_the_reverse(
    versions, tmp_path, monkeypatch
):
    monkeypatch.setattr(restarts, "FIRST_DELAY_S", 1000)
    async with serving(versions.old, tmp_path) as (local, report):
        await local.set_canary(Canary(versions.new, 30), ignore_progress)
        canary = local._versions.canary
        assert canary is not None
        stable = local._transformer
        assert shares(local) == [(stable.address, 70), (canary.transformer.address, 30)]
        end(stable)
        await wait_until(lambda: shares(local) == [(DOWN, 70), (canary.transformer.address, 30)])
        end(canary.predictor)
        await wait_until(lambda: shares(local) == [(DOWN, 100)])
        assert report[-1].startswith("the canary's predictor of v1 ended with status -9")
        await local.end_canary(ignore_progress)
        assert shares(local) == [(DOWN, 100)]


async def test_a_service_that_stops_during_a_restart_leaves_no_process(versions, tmp_path):
    before = running()
    for polls in range(12):
        async with serving(versions.old, tmp_path) as (local, _):
            end(local._predictor)
            end(local._transformer)
            await asyncio.sleep(polls * restarts._POLL_S)
        assert running() == before, f"after {polls} polls"


async def test_a_canary_is_restored_after_a_stop_and_every_change_is_recorded(versions, tmp_path):
    canary = Canary(versions.new, 30)
    async with serving(versions.old, tmp_path, canary=canary) as (local, report):
        assert await local.state() == State(versions.new, versions.old, "before", canary)
        assert local._rolled_out is not None
        assert local._rolled_out.read() is None, "nothing was changed"
        await local.end_canary(ignore_progress)
        recorded = local._rolled_out.read()
        assert recorded is not None
        assert (recorded.uri, recorded.canary) == (versions.old, None)
        await local.set_both(versions.new, ignore_progress)
        recorded = local._rolled_out.read()
        assert recorded is not None
        assert (recorded.uri, recorded.history) == (versions.new, ("before", versions.old))
        report.clear()
        (tmp_path / "rolled_out.new").mkdir()
        await local.set_both(versions.old, ignore_progress)
        assert await local.state() == State(versions.old, versions.old, "before")
    assert report == [
        "what serves now cannot be recorded: [Errno 21] Is a directory: "
        f"'{tmp_path}/rolled_out.new'; after a stop, start it with --model {versions.old}"
    ]


async def test_a_canary_that_cannot_be_restored_leaves_its_traffic_to_the_stable_version(versions, tmp_path):
    shutil.rmtree(versions.new)
    report: list[str] = []
    port, grpc_port = free_ports(2)
    async with LocalService(
        SPEC, port=port, grpc_port=grpc_port, logs=tmp_path / "logs", progress=report.append
    ) as local:
        canary = Canary(versions.new, 30)
        last = RolledOut(spec_uri=versions.old, uri=versions.old, history=(), canary=canary, at=NOW)
        await local.start(last)
        assert await local.state() == State(versions.old, versions.old)
    assert report[-1].startswith(
        f"the canary of {versions.new} does not start: {versions.new}: no version here"
    )
    assert report[-1].endswith(f"; all requests go to {versions.old}")
