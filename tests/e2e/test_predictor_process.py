"""Child processes never outlive their parent, and errors say why a predictor cannot start."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from predictor.child import ChildProcess, ChildStartError
from predictor.process import PredictorError, PredictorProcess
from predictor.runtimes import get_runtime
from tests.support.paths import ROOT
from tests.support.waiting import wait_until_sync

MLSERVER = get_runtime("kserve-mlserver")
PYTHON = Path("/env/bin/python")
HERE_ENV = {"PATH": os.environ["PATH"]}


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


# Child processes


def test_a_child_reports_its_exit_status_and_last_lines() -> None:
    lines: list[str] = []
    script = "import sys; print('out'); print('bad', file=sys.stderr); sys.exit(3)"
    with ChildProcess([sys.executable, "-u", "-c", script], env=HERE_ENV, log=lines.append) as child:
        wait_until_sync(lambda: child.poll() is not None)
        assert child.tail() == ["out", "bad"]
    assert (child.poll(), lines) == (3, ["out", "bad"])


def test_a_child_killed_by_a_signal_reports_it_as_a_shell_does() -> None:
    with ChildProcess(["sleep", "60"], env=HERE_ENV) as child:
        os.kill(child.pid, signal.SIGKILL)
        wait_until_sync(lambda: child.poll() is not None)
    assert child.poll() == 128 + signal.SIGKILL


def test_a_log_file_is_appended_to_and_the_tail_has_only_new_lines(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("from before\n")
    with ChildProcess(["echo", "now"], env=HERE_ENV, log=log) as child:
        wait_until_sync(lambda: child.poll() is not None)
        assert child.tail() == ["now"]
    assert log.read_text() == "from before\nnow\n"


def test_a_child_has_its_own_environment_and_scratch_directory() -> None:
    script = "import json, os; print(json.dumps([sorted(os.environ), os.getcwd()]))"
    with ChildProcess([sys.executable, "-c", script], env={"ONLY": "this", "LC_ALL": "C"}) as child:
        wait_until_sync(lambda: child.poll() is not None)
        names, directory = json.loads(child.tail()[-1])
    assert names == ["LC_ALL", "ONLY"]
    assert directory != str(Path.cwd())
    assert not Path(directory).exists()


def test_a_command_that_does_not_exist_is_an_error_at_once() -> None:
    with pytest.raises(ChildStartError, match="cannot start /no/such/program: No such file"):
        ChildProcess(["/no/such/program"], env={})


STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
helper = subprocess.Popen([sys.executable, "-c", "import signal, time; "
    "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"])
print(helper.pid, flush=True)
time.sleep(60)
"""


def test_stop_kills_a_child_that_ignores_signals_and_its_helpers() -> None:
    lines: list[str] = []
    with ChildProcess([sys.executable, "-c", STUBBORN], env=HERE_ENV, log=lines.append) as child:
        wait_until_sync(lambda: len(lines) == 2)
        assert child.stop(grace=0.2) == 128 + signal.SIGKILL
    helper = int(next(line for line in lines if line.isdigit()))
    wait_until_sync(lambda: not alive(child.pid) and not alive(helper))
    assert child.stop() == 128 + signal.SIGKILL  # Stopping twice is allowed.


def test_helpers_of_a_crashed_child_are_ended() -> None:
    lines: list[str] = []
    with ChildProcess([sys.executable, "-c", STUBBORN], env=HERE_ENV, log=lines.append) as child:
        wait_until_sync(lambda: len(lines) == 2)
        os.kill(child.pid, signal.SIGKILL)
        helper = int(next(line for line in lines if line.isdigit()))
        wait_until_sync(lambda: not alive(helper))


def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    parent_script = f"""
import os, sys, time
from predictor.child import ChildProcess
child = ChildProcess(["sleep", "60"], env={HERE_ENV!r})
print(child.pid, child._scratch, flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", parent_script],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as parent:
        assert parent.stdout is not None
        pid, scratch = parent.stdout.readline().split()
        assert alive(int(pid))
        parent.kill()
    wait_until_sync(lambda: not alive(int(pid)))
    wait_until_sync(lambda: not Path(scratch).exists())


# A predictor that cannot start


@pytest.mark.parametrize("files", [[], ["model.joblib", "model.pkl"]], ids=["zero", "two"])
def test_a_directory_without_exactly_one_model_file_is_refused(files: list[str], tmp_path: Path) -> None:
    for file in files:
        (tmp_path / file).touch()
    found = ", ".join(files) or "none"
    with pytest.raises(PredictorError, match=rf"must hold exactly one model file \(.*\), found {found}"):
        PredictorProcess(MLSERVER, tmp_path, python=PYTHON, model_name="placement")


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    (tmp_path / "model.joblib").touch()
    return tmp_path


def test_a_port_in_use_is_a_one_line_error_that_says_what_to_do(model_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PredictorError, match=rf"cannot use port {port} \(.*in use\); stop the process"):
            PredictorProcess(MLSERVER, model_dir, python=PYTHON, model_name="placement", http_port=port)
