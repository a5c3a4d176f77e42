"""A change of the local service that is interrupted at any moment is done or undone, and leaves no process.

The processes of these tests only sleep, so that every moment of every change can be tried.
"""

import asyncio
import contextlib
import functools
import itertools
import shutil
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from inferenceservice.local import supervisor
from inferenceservice.local.running_process import LocalServiceError
from inferenceservice.local.supervisor import ProcessSupervisor
from inferenceservice.local.tracks import Track, TrackRouter
from inferenceservice.local.version_switch import VersionSwitch
from inferenceservice.rollout_target import Canary
from tests.support.inference_service import SPEC
from tests.support.sleeping_process import SleepingProcess, use_sleeping_processes


@pytest.fixture(autouse=True)
def sleeping_processes(monkeypatch):
    use_sleeping_processes(monkeypatch)


@pytest.fixture(autouse=True)
def temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "tmp"
    directory.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(directory))
    return directory


@dataclass(frozen=True)
class Versions:
    """URIs of three versions."""

    old: str
    new: str
    other: str


@pytest.fixture(scope="module")
def versions(trained_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Versions:
    storage = tmp_path_factory.mktemp("versions")
    return Versions(*(shutil.copytree(trained_bundle, storage / name).as_posix() for name in "abc"))


def ignore_progress(_: str) -> None:
    """Drop a line of progress."""


Change = Callable[[VersionSwitch, Versions], Coroutine[Any, Any, None]]

#: Changes to the new version, and the canary that exists before.
CHANGES: dict[str, tuple[Change, str | None]] = {
    "transformer": (lambda serving, to: serving.change_transformer(to.new, ignore_progress), None),
    "predictor": (lambda serving, to: serving.change_predictor(to.new, ignore_progress), None),
    "predictor, the canary's": (lambda serving, to: serving.change_predictor(to.new, ignore_progress), "new"),
    "predictor, not the canary's": (
        lambda serving, to: serving.change_predictor(to.new, ignore_progress),
        "other",
    ),
    "both": (lambda serving, to: serving.change_both(to.new, ignore_progress), None),
    "both, the canary's": (lambda serving, to: serving.change_both(to.new, ignore_progress), "new"),
    "both, not the canary's": (lambda serving, to: serving.change_both(to.new, ignore_progress), "other"),
    "each": (lambda serving, to: serving.change_each(to.new, ignore_progress), None),
    "canary": (lambda serving, to: serving.change_canary(Canary(to.new, 10), ignore_progress), None),
    "another canary": (
        lambda serving, to: serving.change_canary(Canary(to.new, 10), ignore_progress),
        "other",
    ),
    "no canary": (lambda serving, _: serving.end_canary(), "new"),
}


@contextlib.asynccontextmanager
async def running_service(versions: Versions, canary: str | None, logs: Path) -> AsyncIterator[VersionSwitch]:
    serving = VersionSwitch(ProcessSupervisor(SPEC, logs), TrackRouter("placement", "default"))
    try:
        await serving.start(versions.old, ignore_progress)
        if canary is not None:
            await serving.change_canary(Canary(getattr(versions, canary), 50), ignore_progress)
        yield serving
    finally:
        await serving.close()


def running() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def listening() -> int:
    connections = psutil.Process().connections(kind="tcp")
    return sum(one.status == psutil.CONN_LISTEN for one in connections)


def serving_tracks(serving: VersionSwitch) -> list[Track]:
    return [track for track in (serving.stable, serving.canary) if track is not None]


class Moments:
    """Counts how often tasks wait, and sets an event at a given number."""

    def __init__(self, wanted: int) -> None:
        self.reached = asyncio.Event()
        self._left = wanted

    def task(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        """Create a task; a task factory of asyncio."""
        task = asyncio.Task(self._watched(work), loop=loop, **options)
        # The task may be cancelled before it begins.
        task.add_done_callback(lambda _: work.close())
        return task

    async def _watched(self, work: Any) -> Any:
        return await self._counting(work)

    @types.coroutine
    def _counting(self, work: Any) -> Generator[Any, Any, Any]:
        go_on: Callable[[], Any] = functools.partial(work.send, None)
        while True:
            try:
                waits_for = go_on()
            except StopIteration as end:
                return end.value
            if self._left == 0:
                self.reached.set()
            self._left -= 1
            try:
                yield waits_for
            except BaseException as error:  # noqa: BLE001 (the work's own to handle)
                go_on = functools.partial(work.throw, error)
            else:
                go_on = functools.partial(work.send, None)


async def run_until(moment: int, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
    """Run the work until it and its tasks have waited so often; return None if it ends before."""
    loop, moments = asyncio.get_running_loop(), Moments(moment)
    waiting = asyncio.create_task(moments.reached.wait())
    loop.set_task_factory(moments.task)
    task = loop.create_task(work)
    try:
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    finally:
        loop.set_task_factory(None)
        waiting.cancel()
    if moments.reached.is_set():
        return task
    await task
    return None


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_an_interrupted_change_leaves_only_the_processes_that_serve(
    change, versions, tmp_path, temporary_directory
):
    work, canary = change
    for moment in itertools.count():
        none, nowhere = running(), listening()
        async with running_service(versions, canary, tmp_path) as serving:
            changing = await run_until(moment, work(serving, versions))
            if changing is not None:
                changing.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await changing
            await serving.wait_until_drained()
            there = {one.process.pid for track in serving_tracks(serving) for one in track.processes}
            assert running() - none == there, f"at moment {moment}"
            assert listening() - nowhere == 2 * len(serving_tracks(serving))
            copies = {one.directory for track in serving_tracks(serving) for one in track.processes}
            assert set(temporary_directory.glob("*/*")) == copies
            for track in serving_tracks(serving):
                assert len(track.processes) == 2
        assert running() == none
        assert listening() == nowhere
        assert list(temporary_directory.iterdir()) == []
        if changing is None:
            break
    assert moment > 0, "never interrupted"


@pytest.mark.parametrize("interrupted", [True, False], ids=["interrupted", "going on"])
@pytest.mark.parametrize("change", ["transformer", "each", "both, not the canary's"])
async def test_a_service_that_stops_during_a_change_leaves_no_process(
    change, interrupted, versions, tmp_path
):
    work, canary = CHANGES[change]
    for moment in itertools.count():
        none, nowhere = running(), listening()
        async with running_service(versions, canary, tmp_path) as serving:
            changing = await run_until(moment, work(serving, versions))
            if changing is not None and interrupted:
                changing.cancel()
        if changing is None:
            break
        assert running() == none, f"at moment {moment}"
        await asyncio.gather(changing, return_exceptions=True)
        assert running() == none, f"at moment {moment}"
        assert listening() == nowhere


def files_of(serving: VersionSwitch) -> tuple[set[Path], set[Path]]:
    """Return the copies of bundles and the logs of the processes that serve."""
    processes = [one for track in serving_tracks(serving) for one in track.processes]
    return {one.directory for one in processes}, {one.log for one in processes}


async def test_many_changes_leave_only_the_files_of_the_processes_that_serve(
    versions, tmp_path, temporary_directory, monkeypatch
):
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "transformer-v1-7.log").touch()
    (logs / "notes.log").touch()
    async with running_service(versions, None, logs) as serving:
        (logs / "notes.log").unlink()
        for _ in range(10):
            for uri in (versions.new, versions.old):
                await serving.change_transformer(uri, ignore_progress)
                await serving.change_predictor(uri, ignore_progress)
        await serving.change_both(versions.new, ignore_progress)
        await serving.change_canary(Canary(versions.other, 10), ignore_progress)
        await serving.end_canary()
        assert files_of(serving) == (set(temporary_directory.glob("*/*")), set(logs.iterdir()))
        monkeypatch.setattr(SleepingProcess, "poll", lambda _: 1)
        monkeypatch.setattr(SleepingProcess, "ready", lambda _: False)
        for _ in range(supervisor.MAX_FAILED_LOGS + 5):
            with pytest.raises(LocalServiceError, match="ended with status 1"):
                await serving.change_predictor(versions.old, ignore_progress)
        copies, own = files_of(serving)
        assert set(temporary_directory.glob("*/*")) == copies
        assert len(set(logs.iterdir()) - own) == supervisor.MAX_FAILED_LOGS, "the logs of the last failures"
    assert list(temporary_directory.iterdir()) == []
    assert own < set(logs.iterdir()), "what served last can be read"


async def test_a_change_can_be_undone(versions, tmp_path):
    """The previous version is known, also after a change back."""
    async with running_service(versions, None, tmp_path) as serving:
        await serving.change_both(versions.new, ignore_progress)
        assert serving.history == [versions.old]
        await serving.change_predictor(versions.other, ignore_progress)
        assert serving.history == [versions.old, versions.new]
        await serving.change_both(versions.new, ignore_progress)
        assert serving.history == [versions.old]
        await serving.change_both(versions.new, ignore_progress)
        assert serving.history == [versions.old], "the same once more is no step"
        await serving.change_canary(Canary(versions.old, 10), ignore_progress)
        assert serving.canary is not None
        pids = [one.process.pid for one in serving.canary.processes]
        await serving.change_both(versions.old, ignore_progress)
        assert [one.process.pid for one in serving.stable.processes] == pids, "the canary itself serves"
        assert serving.history == []
