"""The real commands refuse what cannot be served or stored, in one line that says what to do."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from predictor.process import free_ports
from storage.bundles import fetch, versions
from tests.support.bundle_copies import damaged_copy
from tests.support.paths import PLACEMENT, ROOT
from training.generator import generate
from training.train import train
from transformer.bundle.format import BUNDLE_FILE, FORMAT, MODEL_FILE

TIMEOUT_S = 120


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version with a small model."""
    storage = tmp_path_factory.mktemp("small")
    return Path(train(generate(100), storage=storage, estimator="logistic-regression").uri)


# Invalid bundles


def without_a_name(content: dict[str, Any]) -> None:
    content["vectorizer"]["feature_names"].remove("ssc_p")


def without_a_value(content: dict[str, Any]) -> None:
    del content["reference"]["candidates"][1]["ssc_p"]


def changed(version: Path, copy: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Copy a version, and change the content of its bundle."""
    shutil.copytree(version, copy)
    content = json.loads((copy / BUNDLE_FILE).read_text())
    change(content)
    (copy / BUNDLE_FILE).write_text(json.dumps(content))
    return copy


def truncated(version: Path, copy: Path) -> Path:
    """Copy a version with a truncated bundle."""
    shutil.copytree(version, copy)
    content = (copy / BUNDLE_FILE).read_bytes()
    (copy / BUNDLE_FILE).write_bytes(content[: len(content) // 2])
    return copy


BUNDLES: dict[str, tuple[Callable[[Path, Path], Path], str, str]] = {
    "missing": (
        lambda _, copy: copy,
        "No such file or directory",
        "STORAGE_URI must name a version's directory, as `placement train` prints it",
    ),
    "truncated": (
        truncated,
        "content: is not JSON: EOF while parsing",
        "train the version again with `placement train`",
    ),
    "of a newer format": (
        lambda version, copy: changed(version, copy, lambda content: content.update(format=FORMAT + 1)),
        f"format: must be 1 to {FORMAT}, got {FORMAT + 1}",
        "serve it with the transformer of the release that trained it",
    ),
    "contradicting itself": (
        lambda version, copy: changed(version, copy, without_a_name),
        "vectorizer and signature differ in: ssc_p",
        "train the version again with `placement train`",
    ),
    "contradicting itself in a reference candidate": (
        lambda version, copy: changed(version, copy, without_a_value),
        "reference candidate is invalid: reference[1].ssc_p: is required",
        "train the version again with `placement train`",
    ),
}


@pytest.fixture(scope="module")
def refused(
    small: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """A transformer process for each bundle, started at the same time, since each takes seconds to start."""
    storage = tmp_path_factory.mktemp("refused")
    started = {
        case: subprocess.Popen(
            [sys.executable, "-m", "transformer", "--predictor_host=127.0.0.1:1"],
            env={**os.environ, "STORAGE_URI": str(make(small, storage / str(number)))},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, (case, (make, _, _)) in enumerate(BUNDLES.items())
    }
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.mark.parametrize("case", BUNDLES)
def test_the_transformer_does_not_start_with_a_bundle_that_is(case, refused):
    output, message = refused[case].communicate(timeout=TIMEOUT_S)
    assert refused[case].returncode == 1
    (line,) = message.splitlines()
    _, problem, advice = BUNDLES[case]
    number = list(BUNDLES).index(case)
    assert line.startswith("transformer: ")
    assert f"{number}/{BUNDLE_FILE}: " in line
    assert problem in line
    assert line.endswith(f"; {advice}")
    assert output == ""


#: Runs the command with a limit of the file size, which fails as a full disk does.
_LIMITED = """
import resource
import sys

from placement.cli import main

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(main(sys.argv[2:]))
"""


def placement(
    *arguments: object, longest_file: int | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [PLACEMENT] if longest_file is None else [sys.executable, "-c", _LIMITED, str(longest_file)]
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line of the error, after the lines of progress."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1].partition(": ")[2]


def test_up_refuses_a_model_that_differs_from_its_digest(small, tmp_path):
    version = damaged_copy(small, tmp_path / "v1")
    port, grpc_port = free_ports(2)
    done = placement("up", "--model", version, "--run", tmp_path, "--port", port, "--grpc-port", grpc_port)
    message = refusal(done)
    assert message.startswith(f"{version}/{MODEL_FILE}: SHA-256 is ")
    assert message.endswith(
        ": the file was changed; restore it, or write a new version with `placement train`"
    )


# Storage that fails while a version is written


TRAIN = ("train", "--rows", 100, "--estimator", "logistic-regression", "--storage")


def test_a_full_disk_while_writing_a_version_is_reported_and_leaves_nothing(tmp_path):
    done = placement(*TRAIN, tmp_path, longest_file=500)
    assert refusal(done) == f"{tmp_path}/placement/v1: File too large"
    assert list((tmp_path / "placement").iterdir()) == []
    assert placement(*TRAIN, tmp_path).returncode == 0
    assert versions(tmp_path, "placement") == ["v1"]


def test_a_full_disk_while_writing_the_report_leaves_a_complete_version(small, tmp_path):
    enough = max((small / file).stat().st_size for file in (BUNDLE_FILE, MODEL_FILE)) + 1000
    assert Path(f"{small}.html").stat().st_size > enough
    done = placement(*TRAIN, tmp_path, longest_file=enough)
    assert done.returncode == 0, done.stderr
    report = f"{tmp_path}/placement/v1.html: File too large"
    told = f"WARNING: the report was not written: {report}; once that is solved, run `placement report "
    assert told in done.stderr.splitlines()[-1]
    assert fetch(tmp_path / "placement" / "v1", tmp_path / "mnt").version == "v1"
    assert [path.name for path in (tmp_path / "placement").iterdir()] == ["v1"]


def test_a_full_disk_while_copying_a_version_is_reported(small, tmp_path):
    port, grpc_port = free_ports(2)
    done = placement(
        *("up", "--model", small, "--run", tmp_path / "run", "--port", port, "--grpc-port", grpc_port),
        longest_file=500,
    )
    message = refusal(done)
    assert message.startswith(f"{small}: cannot be copied to ")
    assert message.endswith(": File too large")


def test_unreachable_s3_storage_is_reported_before_training():
    nobody = "http://127.0.0.1:1"
    s3 = {
        "AWS_ENDPOINT_URL": nobody,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_MAX_ATTEMPTS": "1",
    }
    done = placement(
        *TRAIN, "s3://bucket/models", env={**os.environ, **s3, "AWS_DEFAULT_REGION": "us-east-1"}
    )
    message = refusal(done)
    assert message.startswith(
        's3://bucket/models/placement: Could not connect to the endpoint URL: "http://127.0.0.1:1/'
    )
    assert message.endswith("; set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL")
    assert "choosing" not in done.stderr


#: Trains once, and copies the storage before each of its changes: the state that a kill would leave.
_WATCHED = """
import shutil
import sys
from pathlib import Path

from placement.cli import main

storage, left = map(Path, sys.argv[1:3])
events = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
copying = False
steps = 0


def watch(event, args):
    global copying, steps
    if copying or event not in events or not str(args[0]).startswith(str(storage)):
        return
    copying = True
    if storage.exists():
        shutil.copytree(storage, left / str(steps))
        steps += 1
    copying = False


sys.addaudithook(watch)
sys.exit(main(["train", "--rows", "100", "--estimator", "logistic-regression", "--storage", str(storage)]))
"""


def test_training_killed_at_any_step_leaves_a_complete_version_or_none(tmp_path):
    left = tmp_path / "left"
    done = subprocess.run(
        [sys.executable, "-c", _WATCHED, tmp_path / "storage", left],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    storages = sorted(left.iterdir(), key=lambda path: int(path.name))
    found = [versions(storage, "placement") for storage in storages]
    without = found.count([])
    assert found == [[]] * without + [["v1"]] * (len(found) - without)
    half = [list(storage.glob("placement/.v1.*/*")) for storage in storages[:without]]
    assert max(map(len, half)) == 2, "it was seen while it wrote"
    assert without < len(found), "and while it wrote the report"
    for storage in storages[without:]:
        # Fetching compares the model's digest.
        fetch(storage / "placement" / "v1", tmp_path / "mnt" / storage.name)
    # Left-over files do not prevent the next training.
    again = train(generate(100), storage=storages[without - 1], estimator="logistic-regression")
    assert again.bundle.version == "v1"
