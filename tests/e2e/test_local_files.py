"""The local service leaves no files of ended processes, and no blocked thread delays its end."""

import asyncio
import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from inferenceservice.cancellable_thread import run_cancellable
from inferenceservice.local.running_process import LocalServiceError
from inferenceservice.local.scratch_directory import ScratchDirectory
from inferenceservice.local.supervisor import ProcessSupervisor
from tests.support.hostile_s3 import hostile_s3, silent
from tests.support.inference_service import SPEC
from tests.support.paths import ROOT
from tests.support.waiting import wait_until_sync
from transformer.bundle.deadline import Deadline, call_within


@pytest.fixture(autouse=True)
def temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "tmp"
    directory.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(directory))
    monkeypatch.setenv("TMPDIR", str(directory))
    return directory


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# Scratch directories


def test_a_scratch_directory_is_private_and_is_removed(temporary_directory):
    scratch = ScratchDirectory()
    assert names(temporary_directory) == [scratch.path.name]
    assert scratch.path.stat().st_mode & 0o777 == 0o700
    (scratch.path / "file").touch()
    scratch.remove()
    assert names(temporary_directory) == []


def test_the_directory_of_a_killed_service_is_removed_and_that_of_a_running_one_is_not(temporary_directory):
    running = ScratchDirectory()
    script = (
        "from inferenceservice.local.scratch_directory import ScratchDirectory; import sys, time\n"
        "(ScratchDirectory().path / 'file').touch(); print(); sys.stdout.flush(); time.sleep(100)"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        killed.stdout.readline()
        ours = ScratchDirectory()
        assert len(names(temporary_directory)) == 3, "both services run"
        killed.kill()
    last = ScratchDirectory()
    assert names(temporary_directory) == sorted(one.path.name for one in (running, ours, last))
    for one in (running, ours, last):
        one.remove()


def test_a_link_in_the_temporary_directory_is_not_followed(temporary_directory, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (temporary_directory / "local-inferenceservice-x").symlink_to(tmp_path / "precious")
    ScratchDirectory().remove()
    assert names(tmp_path / "precious") == ["file"]


# Threads that block


@pytest.fixture
def blocked() -> Iterator[threading.Event]:
    """An event that the work of a test waits for, as for a storage that does not answer."""
    event = threading.Event()
    yield event
    event.set()


def test_work_that_blocks_is_given_up_at_its_deadline(blocked):
    with pytest.raises(TimeoutError, match=r"not read within 0\.2 s"):
        call_within(0.2, lambda _: blocked.wait())


async def test_blocked_work_does_not_delay_other_work_or_a_cancelled_caller(blocked):
    deadlines: list[Deadline] = []

    def block(deadline: Deadline) -> bool:
        deadlines.append(deadline)
        return blocked.wait()

    # More than asyncio's pool has threads.
    waiting = [asyncio.create_task(run_cancellable(block, 100)) for _ in range(50)]
    assert await run_cancellable(lambda _: "done", 100) == "done"
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    assert all(task.cancelled() for task in waiting)
    assert [one.left_s for one in deadlines] == [0.0] * 50, "work that is not blocked finds out"
    with pytest.raises(TimeoutError):
        await run_cancellable(lambda _: blocked.wait(), 0.2)


def test_a_process_ends_although_a_thread_blocks():
    script = (
        "import asyncio, threading\n"
        "from inferenceservice.cancellable_thread import run_cancellable\n"
        "from transformer.bundle.deadline import call_within\n"
        "async def main():\n"
        "    task = asyncio.create_task(run_cancellable(lambda _: threading.Event().wait(), 100))\n"
        "    await asyncio.sleep(0.1)\n"
        "    task.cancel()\n"
        "    await asyncio.wait([task])\n"
        "asyncio.run(main())\n"
        "try:\n"
        "    call_within(0.1, lambda _: threading.Event().wait())\n"
        "except TimeoutError:\n"
        "    print('given up')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "given up\n", "")


def test_a_process_ends_although_its_s3_endpoint_does_not_answer():
    script = (
        "import asyncio, contextlib\n"
        "from inferenceservice.cancellable_thread import run_cancellable\n"
        "from storage import bundles\n"
        "async def main():\n"
        "    task = asyncio.create_task(run_cancellable(lambda one: bundles.check('s3://a/b', one), 100))\n"
        "    await asyncio.to_thread(input)\n"
        "    task.cancel()\n"
        "    await asyncio.wait([task])\n"
        "    print(task.cancelled())\n"
        "asyncio.run(main())\n"
    )
    with hostile_s3(silent) as server:
        variables = {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": server.url,
        }
        with subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={**os.environ, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            wait_until_sync(lambda: server.requests)
            output, errors = process.communicate("\n", timeout=60)
    assert (process.returncode, output, errors) == (0, "True\n", "")


def test_sigterm_ends_a_transformer_that_waits_for_its_bundle(trained_bundle):
    """It has a handler, without which a container's first process would ignore the signal."""
    script = (
        "import threading, transformer.__main__ as program\n"
        "from transformer.bundle.deadline import call_within\n"
        "def hang(_):\n"
        "    print(flush=True)\n"
        "    call_within(100, lambda _: threading.Event().wait())\n"
        "program.load_bundle = hang\n"
        "program.main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, "--predictor_host=127.0.0.1:9"],
        cwd=ROOT,
        env={**os.environ, "STORAGE_URI": str(trained_bundle)},
        stdout=subprocess.PIPE,
    ) as waiting:
        assert waiting.stdout is not None
        waiting.stdout.readline()
        waiting.send_signal(signal.SIGTERM)
        assert waiting.wait(60) == 128 + signal.SIGTERM


def test_a_signal_ends_a_process_that_waits_for_a_storage():
    script = (
        "import threading; from transformer.bundle.deadline import call_within\n"
        "print(flush=True); call_within(100, lambda _: threading.Event().wait())"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE) as waiting:
        assert waiting.stdout is not None
        waiting.stdout.readline()
        waiting.send_signal(signal.SIGTERM)
        assert waiting.wait(60) == -signal.SIGTERM


async def test_versions_that_are_fifos_do_not_block_a_valid_one(trained_bundle, tmp_path):
    fifo = tmp_path / "v9"
    fifo.mkdir()
    os.mkfifo(fifo / "bundle.json")
    supervisor = ProcessSupervisor(SPEC, tmp_path / "logs")
    try:
        for _ in range(20):
            with pytest.raises(LocalServiceError, match="must be a regular file, got a FIFO"):
                await supervisor.read_bundle(str(fifo))
            with pytest.raises(LocalServiceError, match="must be a regular file, got a FIFO"):
                await supervisor.start_predictor(str(fifo), lambda _: None)
        assert (await supervisor.read_bundle(str(trained_bundle))).version == "v1"
        assert names(Path(tempfile.gettempdir(), names(Path(tempfile.gettempdir()))[0])) == []
    finally:
        await supervisor.close()
    assert names(Path(tempfile.gettempdir())) == []


async def test_a_storage_that_hangs_does_not_delay_the_end_of_the_service(
    blocked, trained_bundle, tmp_path, monkeypatch
):
    begun = threading.Event()

    def hang(*_: object) -> None:
        begun.set()
        blocked.wait()

    monkeypatch.setattr("storage.bundles.fetch", hang)
    supervisor = ProcessSupervisor(SPEC, tmp_path / "logs")
    starting = asyncio.create_task(supervisor.start_predictor(str(trained_bundle), lambda _: None))
    await asyncio.to_thread(functools.partial(begun.wait, 60))
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await starting
    await supervisor.close()
    assert starting.cancelled()
    assert not blocked.is_set()
    assert names(Path(tempfile.gettempdir())) == []
