"""`placement up` starts and stops every process, and `placement rollout` to it can be interrupted."""

import itertools
import json
import os
import signal
import socket
import subprocess

import psutil
import pytest

from predictor.process import free_ports
from tests.support.paths import PLACEMENT
from tests.support.placement_command import (
    COMMAND_TIMEOUT_S,
    PlacementUp,
    error_of,
    run_placement,
    run_placement_process,
)
from training.candidates import SAMPLE

#: Beginnings of the names of our temporary directories.
OWN_DIRECTORIES = ("local-inferenceservice-", "new-local-inferenceservice-", "placement-")


def test_up_once_ends_after_the_answer_to_the_sample(trained_bundle, sklearn_reference, tmp_path):
    with PlacementUp(trained_bundle, tmp_path / "up", "--once", "--json") as up:
        output, _ = up.process.communicate(timeout=COMMAND_TIMEOUT_S)
        assert up.process.returncode == 0, up.output()
        assert up.output().splitlines()[-1].endswith(" s  stopped")
    message = json.loads(output)
    assert message["url"] == f"http://127.0.0.1:{up.port}"
    assert message["grpc"] == f"127.0.0.1:{up.grpc_port}"
    assert message["version"] == "v1"
    assert message["candidate"] == SAMPLE
    assert message["prediction"]["placement_probability"] == pytest.approx(
        sklearn_reference.probabilities([SAMPLE])[0]
    )


def test_ctrl_c_stops_every_child_of_up(trained_bundle, tmp_path):
    with PlacementUp(trained_bundle, tmp_path / "up") as up:
        up.wait_for("ready")
        family = up.family()
        assert len(family) > 4, "the model server, the transformer and the guard of each"
        up.process.send_signal(signal.SIGINT)
        output, _ = up.process.communicate(timeout=COMMAND_TIMEOUT_S)
        assert up.process.returncode == 0, up.output()
        assert psutil.wait_procs(family, timeout=10)[1] == []
        assert "Traceback" not in up.output()
    # The output while it was ready has a curl command to copy.
    assert f"ready      http://127.0.0.1:{up.port}  (gRPC 127.0.0.1:{up.grpc_port})" in output
    assert f"curl http://127.0.0.1:{up.port}/v1/models/placement:predict -d " in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_before_up_is_ready_stops_every_child(number, trained_bundle, tmp_path):
    with PlacementUp(trained_bundle, tmp_path / "up") as up:
        up.wait_for("is loading placement")
        family = up.family()
        up.process.send_signal(number)
        assert up.process.wait(COMMAND_TIMEOUT_S) == 0, up.output()
        assert psutil.wait_procs(family, timeout=10)[1] == []
        assert "Traceback" not in up.output()


def test_a_second_signal_ends_up_at_once_and_leaves_no_files(trained_bundle, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    with PlacementUp(trained_bundle, tmp_path / "up") as up:
        up.wait_for("ready")
        family = up.family()
        assert len(list((tmp_path / "tmp").glob("local-inferenceservice-*/*-models"))) == 2
        up.process.send_signal(signal.SIGINT)
        up.process.send_signal(signal.SIGTERM)
        assert up.process.wait(COMMAND_TIMEOUT_S) == 130, up.output()
        assert psutil.wait_procs(family, timeout=10)[1] == []
        left = [path.name for path in (tmp_path / "tmp").iterdir() if path.name.startswith(OWN_DIRECTORIES)]
        assert left == []
        assert "Traceback" not in up.output()


def test_rollouts_of_a_fifo_fail_and_up_still_stops(trained_bundle, tmp_path):
    fifo = tmp_path / "v9"
    fifo.mkdir()
    os.mkfifo(fifo / "bundle.json")
    with PlacementUp(trained_bundle, tmp_path / "up") as up:
        up.wait_for("ready")
        for _ in range(3):
            done = run_placement_process("rollout", fifo, "--run", up.directory)
            assert error_of(done, "rollout") == (f"{fifo}/bundle.json: must be a regular file, got a FIFO")
        family = up.family()
        up.process.send_signal(signal.SIGTERM)
        assert up.process.wait(COMMAND_TIMEOUT_S) == 0, up.output()
        assert psutil.wait_procs(family, timeout=10)[1] == []
    port, grpc_port = free_ports(2)
    arguments = ("--port", port, "--grpc-port", grpc_port, "--run", tmp_path / "up")
    done = run_placement_process("up", "--model", fifo, *arguments)
    assert error_of(done, "up") == f"{fifo}/bundle.json: must be a regular file, got a FIFO"


def test_the_printed_curl_command_works(trained_bundle, up, sklearn_reference):
    lines: list[str] = []
    assert up.process.stdout is not None
    while not lines or "curl" not in lines[-1]:
        lines.append(up.process.stdout.readline())
    done = subprocess.run(lines[-1], shell=True, capture_output=True, text=True, check=True)
    (prediction,) = json.loads(done.stdout)["predictions"]
    assert prediction["placement_probability"] == pytest.approx(sklearn_reference.probabilities([SAMPLE])[0])


@pytest.mark.parametrize("option", ["--port", "--grpc-port"])
def test_up_reports_a_port_in_use(option, trained_bundle, tmp_path):
    other = "--port" if option == "--grpc-port" else "--grpc-port"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        done = run_placement_process(
            *("up", "--model", trained_bundle, "--run", tmp_path),
            *(option, number, other, *free_ports(1)),
        )
    assert error_of(done, "up") == f"port {number} is in use; free it, or choose another with {option}"


def test_up_refuses_the_directory_of_a_running_service(trained_bundle, up):
    control = (up.directory / "control.json").read_text()
    done = run_placement_process(
        *("up", "--model", trained_bundle, "--run", up.directory),
        *itertools.chain(*zip(("--port", "--grpc-port"), free_ports(2), strict=True)),
    )
    message = error_of(done, "up")
    assert message == (
        f"{up.directory}: a local service runs here; stop it, or name another directory with --run"
    )
    assert (up.directory / "control.json").read_text() == control


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["-f", "missing.yaml"], "missing.yaml: No such file or directory"),
        (["--model", "models/none"], "models/none: no version here, bundle.json is missing; "),
    ],
    ids=["spec", "model"],
)
def test_up_reports_a_missing_spec_or_model(arguments, error, tmp_path):
    port, grpc_port = free_ports(2)
    done = run_placement_process(
        "up", *arguments, "--port", port, "--grpc-port", grpc_port, "--run", tmp_path
    )
    assert error_of(done, "up").startswith(error)


def test_versions_says_what_serves(trained_bundle, up):
    storage = ("--storage", trained_bundle.parent.parent)
    done = run_placement("versions", *storage, "--run", up.directory)
    assert done.returncode == 0, done.stderr
    _, line = done.stdout.splitlines()
    assert line.split()[0] == "v1"
    assert line.split()[-1] == "serves"
    done = run_placement("versions", *storage, "--run", up.directory / "none", "--json")
    (version,) = json.loads(done.stdout)
    assert (version["version"], version["serves"]) == ("v1", [])


# rollout


def test_ctrl_c_during_a_rollout_restores_the_previous_state(trained_bundle, up, tmp_path):
    """The service finishes the current step, and the rollout then undoes it."""
    storage = ("--storage", tmp_path, "--version", "v2", "--estimator", "forest-50", "--rows", 100)
    assert run_placement("train", *storage, "--previous", trained_bundle).returncode == 0
    family = {process.pid for process in up.family()}
    before = run_placement("status", "--run", up.directory, "--json")
    rolling = subprocess.Popen(
        [PLACEMENT, "rollout", tmp_path / "placement" / "v2", "--run", up.directory],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert rolling.stderr is not None
    message = ""
    while "starting with placement v2" not in message:
        message += rolling.stderr.readline()
    rolling.send_signal(signal.SIGINT)
    message += rolling.communicate(timeout=COMMAND_TIMEOUT_S)[1]
    assert rolling.returncode == 130, message
    assert message.splitlines()[-1].endswith("the previous state is restored"), message
    after = run_placement("status", "--run", up.directory, "--json")
    uris = ("transformer_uri", "predictor_uri", "previous_uri", "canary")
    assert [json.loads(after.stdout)[name] for name in uris] == [
        json.loads(before.stdout)[name] for name in uris
    ]
    assert len(up.family()) == len(family)
    assert "Traceback" not in message + up.output()
