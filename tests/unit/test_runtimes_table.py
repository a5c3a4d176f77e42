"""The table of stock runtimes, and their environments."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from predictor import environment
from predictor.__main__ import main
from predictor.environment import InstallError, ensure
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
    assert list(RUNTIMES) == ["kserve-mlserver", "kserve-sklearnserver"]


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


def test_variables_of_the_spec_win() -> None:
    spec = {"MLSERVER_HTTP_PORT": "8085", "MLSERVER_MODEL_URI": "/mnt/models/model.joblib", "DEBUG": "1"}
    launched = launch(MLSERVER, env=spec)
    assert launched.http_port == 8085
    assert launched.env["MLSERVER_MODEL_URI"] == "/storage/placement/v1/model.joblib"
    assert launched.env["DEBUG"] == "1"
    assert "MLSERVER_METRICS_PORT" not in launched.env


@pytest.mark.parametrize("args", [["--http_port=8085"], ["--http_port", "8085"]], ids=["equals", "two words"])
def test_arguments_of_the_spec_come_last_and_win(args: list[str]) -> None:
    launched = launch(SKLEARNSERVER, args=[*args, "--workers=2", "--model_dir=/mnt/models"])
    assert launched.argv[-len(args) - 2 :] == (*args, "--workers=2", "--model_dir=/storage/placement/v1")
    assert launched.http_port == 8085


def test_arguments_to_mlserver_take_the_place_of_its_command() -> None:
    launched = launch(MLSERVER, args=["mlserver", "start", "/mnt/models"])
    assert launched.argv == ("/env/bin/mlserver", "start", "/storage/placement/v1")
    with pytest.raises(
        LaunchError, match=r"'--http_port=8085' would be run as a program.*MLSERVER_HTTP_PORT"
    ):
        launch(MLSERVER, args=["--http_port=8085"])


def test_a_port_that_is_none_is_refused() -> None:
    with pytest.raises(LaunchError, match="--grpc_port must be a port from 1 to 65535, got '99999'"):
        launch(SKLEARNSERVER, args=["--grpc_port=99999"])


# Environments


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every runtime a lock file of nothing, which installs in no time and without a network."""
    path = tmp_path / "lock.txt"
    path.write_text("# nothing\n")
    monkeypatch.setattr(Runtime, "lock", property(lambda _self: path))
    monkeypatch.setattr(environment, "_pip_settings", dict)
    return path


def test_an_environment_is_installed_once_and_again_when_its_lock_changes(lock: Path, tmp_path: Path) -> None:
    steps: list[str] = []
    python = ensure(MLSERVER, home=tmp_path / "home", progress=steps.append)
    subprocess.run([python, "-c", "import sys; assert sys.prefix != sys.base_prefix"], check=True)
    assert steps[0].startswith("installing seldonio/mlserver:1.7.1")

    steps.clear()
    assert ensure(MLSERVER, home=tmp_path / "home", progress=steps.append) == python
    assert steps == []

    lock.write_text("# still nothing\n")
    ensure(MLSERVER, home=tmp_path / "home", progress=steps.append)
    assert steps


def test_an_interrupted_installation_is_begun_anew(lock: Path, tmp_path: Path) -> None:
    python = ensure(MLSERVER, home=tmp_path)
    (python.parent / "half-written").touch()
    (tmp_path / MLSERVER.name / "installed-from").unlink()
    ensure(MLSERVER, home=tmp_path)
    assert not (python.parent / "half-written").exists()


def test_of_several_callers_at_once_one_installs(lock: Path, tmp_path: Path) -> None:
    steps: list[str] = []
    callers = [
        threading.Thread(target=ensure, args=[MLSERVER], kwargs={"home": tmp_path, "progress": steps.append})
        for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert sum(step.startswith("installing") for step in steps) == 1


def test_a_broken_download_is_one_line_that_says_what_to_do(
    lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock.write_text(f"idna==3.10 --hash=sha256:{'0' * 64}\n")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(InstallError) as failure:
        ensure(MLSERVER, home=tmp_path / "home")
    message = str(failure.value)
    assert message.startswith("could not install kserve-mlserver: ")
    assert "refused" in message
    assert message.endswith("python -m predictor install kserve-mlserver")
    assert "\n" not in message
    assert not (tmp_path / "home" / MLSERVER.name / "installed-from").exists()


def test_a_place_that_cannot_be_written_is_an_install_error(lock: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InstallError, match="could not install kserve-mlserver"):
        ensure(MLSERVER, home=tmp_path / "file" / "home")


def test_uv_gets_the_index_that_pip_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = (
        "global.index-url='https://mirror.example/simple'\n"
        "install.index-url='https://install.example/simple'\n"
        "global.extra-index-url='\\nhttps://a.example\\nhttps://b.example'\n"
        "global.timeout='60'\n"
        ":env:.cert='/certs.pem'\n"
    )
    pip = environment._parse_pip_settings(listing)
    monkeypatch.setattr(environment, "_pip_settings", lambda: pip)
    assert environment._uv_settings({}) == {
        "UV_DEFAULT_INDEX": "https://install.example/simple",
        "UV_INDEX": "https://a.example https://b.example",
        "SSL_CERT_FILE": "/certs.pem",
    }
    own = {"UV_INDEX_URL": "https://own.example", "UV_INDEX": "https://own.example"}
    assert environment._uv_settings(own) == {"SSL_CERT_FILE": "/certs.pem"}


# The command


def test_list_shows_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert "scikit-learn        1.5.2" in capsys.readouterr().out
    assert main(["list", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == list(RUNTIMES)


def test_install_shows_what_it_does(
    lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "predictor.__main__.ensure",
        lambda runtime, progress: ensure(runtime, home=tmp_path, progress=progress),
    )
    assert main(["install"]) == 0
    assert "kserve-mlserver: installing seldonio/mlserver:1.7.1" in capsys.readouterr().err


def test_install_of_an_unknown_runtime_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["install", "kserve-xgbserver"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
