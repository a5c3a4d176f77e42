"""The table of stock runtimes: versions, and commands that are those of the cluster."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from predictor.__main__ import main
from predictor.environment import Environment
from predictor.runtimes import (
    DEFAULT_RUNTIME,
    RUNTIMES,
    Launch,
    LaunchError,
    Runtime,
    UnknownRuntimeError,
    get_runtime,
)

MLSERVER = get_runtime("kserve-mlserver")
SKLEARNSERVER = get_runtime("kserve-sklearnserver")
PREDICTIVESERVER = get_runtime("kserve-predictiveserver")
PYTHON = Path("/env/bin/python")
MODEL_DIR = Path("/storage/placement/v1")


def launch(
    runtime: Runtime,
    *,
    metrics_port: int | None = None,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Launch:
    return runtime.launch(
        PYTHON,
        model_name="placement",
        model_dir=MODEL_DIR,
        http_port=5001,
        grpc_port=5002,
        metrics_port=metrics_port,
        args=args,
        env=env or {},
    )


# The table


def test_the_default_runtime_is_mlserver() -> None:
    assert DEFAULT_RUNTIME == "kserve-mlserver"
    assert list(RUNTIMES) == ["kserve-mlserver", "kserve-sklearnserver", "kserve-predictiveserver"]


def test_an_unknown_runtime_is_refused_with_the_known_names() -> None:
    with pytest.raises(
        UnknownRuntimeError, match="'kserve-xgbserver'; supported: kserve-mlserver, kserve-skl"
    ):
        get_runtime("kserve-xgbserver")


@pytest.mark.parametrize("runtime", RUNTIMES.values(), ids=lambda runtime: runtime.name)
def test_the_locked_environment_holds_the_versions_of_the_image(runtime: Runtime) -> None:
    locked = dict(re.findall(r"^([a-z-]+)==([^ ]+)", runtime.lock.read_text(), flags=re.MULTILINE))
    assert locked["scikit-learn"] == runtime.scikit_learn
    assert locked["joblib"] == runtime.joblib
    assert f"{locked['numpy']}.".startswith(f"{runtime.numpy}.")
    server = locked["mlserver"] if runtime is MLSERVER else f"v{locked['kserve']}"
    assert server == runtime.version


def test_mlserver_is_started_by_its_environment_as_the_cluster_does() -> None:
    launched = launch(MLSERVER, metrics_port=5003)
    assert launched.argv == ("/env/bin/mlserver", "start", "/storage/placement/v1")
    assert dict(launched.env) == {
        "MLSERVER_MODEL_IMPLEMENTATION": "mlserver_sklearn.SKLearnModel",
        "MLSERVER_MODEL_NAME": "placement",
        "MLSERVER_MODEL_URI": "/storage/placement/v1",
        "MLSERVER_MODELS_DIR": "/storage/placement/v1",
        "MODELS_DIR": "/storage/placement/v1",
        "MLSERVER_HTTP_PORT": "5001",
        "MLSERVER_GRPC_PORT": "5002",
        "MLSERVER_METRICS_PORT": "5003",
        "MLSERVER_HOST": "127.0.0.1",
    }
    assert (launched.model_name, launched.http_port, launched.grpc_port) == ("placement", 5001, 5002)


def test_sklearnserver_is_started_by_its_arguments_as_the_cluster_does() -> None:
    launched = launch(SKLEARNSERVER)
    assert launched.argv[0] == "/env/bin/python"
    assert Path(launched.argv[1], "__main__.py").is_file()
    assert launched.argv[2:] == (
        "--model_name=placement",
        "--model_dir=/storage/placement/v1",
        "--http_port=5001",
        "--grpc_port=5002",
    )
    assert dict(launched.env) == {}
    assert (launched.model_name, launched.http_port, launched.grpc_port) == ("placement", 5001, 5002)


def test_predictiveserver_is_started_for_scikit_learn_in_sklearnservers_environment() -> None:
    launched = launch(PREDICTIVESERVER)
    assert launched.argv[2:] == (*launch(SKLEARNSERVER).argv[2:], "--framework=sklearn", "--nthread=1")
    assert Environment.of(PREDICTIVESERVER).name == Environment.of(SKLEARNSERVER).name
    assert PREDICTIVESERVER.lock == SKLEARNSERVER.lock


def test_environment_variables_of_the_spec_override_the_runtimes() -> None:
    spec = {"MLSERVER_HTTP_PORT": "8085", "MLSERVER_MODEL_URI": "/mnt/models/model.joblib", "DEBUG": "1"}
    launched = launch(MLSERVER, env=spec)
    assert launched.http_port == 8085
    assert launched.env["MLSERVER_MODEL_URI"] == "/storage/placement/v1/model.joblib"
    assert launched.env["DEBUG"] == "1"
    assert "MLSERVER_METRICS_PORT" not in launched.env


@pytest.mark.parametrize("args", [["--http_port=8085"], ["--http_port", "8085"]], ids=["equals", "two words"])
def test_arguments_of_the_spec_override_the_runtimes(args: list[str]) -> None:
    launched = launch(SKLEARNSERVER, args=[*args, "--workers=2", "--model_dir=/mnt/models"])
    assert launched.argv[-len(args) - 2 :] == (*args, "--workers=2", "--model_dir=/storage/placement/v1")
    assert launched.http_port == 8085


def test_arguments_for_mlserver_replace_its_command() -> None:
    launched = launch(MLSERVER, args=["mlserver", "start", "/mnt/models"])
    assert launched.argv == ("/env/bin/mlserver", "start", "/storage/placement/v1")
    with pytest.raises(
        LaunchError, match=r"'--http_port=8085' would be run as a program.*MLSERVER_HTTP_PORT"
    ):
        launch(MLSERVER, args=["--http_port=8085"])


def test_an_invalid_port_is_refused() -> None:
    with pytest.raises(LaunchError, match="--grpc_port must be a port from 1 to 65535, got '99999'"):
        launch(SKLEARNSERVER, args=["--grpc_port=99999"])


# The command


def test_the_list_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert "scikit-learn        1.5.2" in capsys.readouterr().out
    assert main(["list", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == list(RUNTIMES)


def test_installing_an_unknown_runtime_is_a_one_line_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["install", "kserve-xgbserver"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
