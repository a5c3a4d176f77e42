"""A search that is killed goes on; a cluster that loses a worker gives the result of one process."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from storage.bundles import read_bundle
from tests.support.paths import ENGINES_PYTHON, PLACEMENT, ROOT
from tests.support.waiting import wait_until_sync
from training.tuning import BATCH

SCRIPT = ROOT / "tests" / "support" / "dying_fit.py"
TIMEOUT_S = 400
PAGE = (ROOT / "docs" / "tuning.md").read_text()
#: A search with several batches.
SEARCH = ("--rows=150", "--estimator=logistic-regression", f"--tune={4 * BATCH}", "--seed=5", "--json")

needs_engines = pytest.mark.skipif(not ENGINES_PYTHON.exists(), reason="Ray and Dask: run `make engines`")


def command(*arguments):
    return [sys.executable, "-m", "placement.cli", "train", *map(str, arguments)]


def run(arguments, directory=ROOT):
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run(
        arguments, cwd=directory, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def trials_in(path):
    """The number of finished trials in a file."""
    if not path.exists():
        return 0
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as file:
        try:
            return file.execute("SELECT count(*) FROM trials WHERE state = 'COMPLETE'").fetchone()[0]
        except sqlite3.OperationalError:
            return 0


def comparable(uri):
    """The content of a bundle without its version and its time; the model's digest is in it."""
    return read_bundle(uri).model_dump(exclude={"version", "created"})


def documented(mark):
    """The command of docs/tuning.md that follows a mark."""
    (command,) = re.findall(rf"<!-- {mark} -->\n```bash\n(.*?)```", PAGE, re.DOTALL)
    return command


def run_documented(code, directory):
    """Run a command that trains, and return the path of the version."""
    (uri,) = re.findall(r"^uri +(\S+)$", run(["bash", "-euc", code], directory).stdout, re.MULTILINE)
    return directory / uri


@pytest.fixture
def checkout(tmp_path):
    """A directory with the environments of a checkout."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / ".runtimes").symlink_to(ROOT / ".runtimes")
    return tmp_path


def test_a_killed_search_goes_on_and_gives_the_version_of_one_that_was_not_killed(tmp_path):
    whole = json.loads(run(command(*SEARCH, "--storage", tmp_path / "whole")).stdout)
    file = tmp_path / "trials.db"
    arguments = command(*SEARCH, "--storage", tmp_path / "models", "--tune-storage", file)
    killed = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    wait_until_sync(lambda: trials_in(file) >= 3, timeout_s=TIMEOUT_S, poll_s=0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    known = trials_in(file)
    assert 3 <= known < 4 * BATCH
    assert not (tmp_path / "models").exists()
    resumed = json.loads(run(arguments).stdout)
    assert trials_in(file) == 4 * BATCH
    assert comparable(resumed["uri"]) == comparable(whole["uri"])


@needs_engines
@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_a_killed_worker_of_a_cluster_changes_nothing(backend, tmp_path):
    here = run([sys.executable, SCRIPT, "local", ""])
    there = run([ENGINES_PYTHON, SCRIPT, backend, tmp_path / "killed"])
    assert (tmp_path / "killed").exists(), "a worker was killed"
    assert json.loads(there.stdout.splitlines()[-1]) == json.loads(here.stdout)


@needs_engines
@pytest.mark.parametrize("backend", ["dask", "ray"])
def test_a_call_that_always_ends_its_worker_is_given_up_with_a_reason(backend):
    code = f"with connect({backend!r}) as run: list(run(os._exit, [(1,)]))"
    done = subprocess.run(
        [ENGINES_PYTHON, "-c", f"import os\nfrom training.backends import connect\n{code}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    given_up = f"BackendError: --backend {backend}: the cluster gave up a fit: .*worker.* died .*"
    assert re.search(f"{given_up}; workers often die because they have too little memory", done.stderr)


@needs_engines
def test_the_documented_command_gives_the_same_version_on_a_cluster(checkout):
    on_cluster = documented("tunes on a cluster")
    here = run_documented(on_cluster.replace(" --backend dask", ""), checkout)
    there = run_documented(on_cluster, checkout)
    assert "--backend dask" in on_cluster
    assert here != there
    assert comparable(there) == comparable(here)


def test_the_documented_search_keeps_its_trials_and_shows_them_in_the_report(checkout):
    uri = run_documented(documented("tunes"), checkout)
    assert trials_in(checkout / "trials.db") == 10
    assert "10 trials of other parameters" in Path(f"{uri}.html").read_text()
    recipe = read_bundle(uri).recipe
    assert recipe is not None
    tuned = recipe.tuned
    assert tuned is not None
    assert (tuned.trials, tuned.seed) == (10, 7)
    versions = [PLACEMENT, "versions", "--storage", checkout / "models"]
    assert f" {tuned.estimator}" in run(versions, checkout).stdout
    assert json.loads(run([*versions, "--json"], checkout).stdout)[0]["tuned"] == tuned.model_dump()


@needs_engines
@pytest.mark.parametrize(
    ("backend", "address"),
    [
        ("dask", "tcp://127.0.0.1:1"),
        ("dask", "tls://127.0.0.1:1"),
        ("ray", "127.0.0.1:1"),
        ("ray", "127.0.0.1:port"),
    ],
)
def test_a_cluster_that_does_not_answer_is_named(backend, address):
    problem = refused(backend, f"--cluster={address}", DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT="1s")
    assert f"placement train: --backend {backend}: no cluster answers at {address}: " in problem


@needs_engines
def test_a_local_cluster_that_cannot_start_is_named(tmp_path):
    (tmp_path / "file").touch()
    problem = refused("dask", DASK_TEMPORARY_DIRECTORY=str(tmp_path / "file" / "in"))
    assert "placement train: --backend dask: cannot start a cluster on this machine: " in problem


def refused(backend, *arguments, **env):
    """The error output of a training that cannot use its cluster."""
    done = subprocess.run(
        [ENGINES_PYTHON, "-m", "placement.cli", "train", "--rows=100", f"--backend={backend}", *arguments],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr
