"""A runtime is installed once, again when its lock file changes, and errors say what to do."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest

from predictor import environment
from predictor.__main__ import main
from predictor.environment import InstallError, ensure
from predictor.runtimes import (
    Runtime,
    get_runtime,
)

MLSERVER = get_runtime("kserve-mlserver")


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every runtime an empty lock file, which installs quickly and without a network."""
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


def test_an_interrupted_installation_is_repeated_from_the_start(lock: Path, tmp_path: Path) -> None:
    python = ensure(MLSERVER, home=tmp_path)
    (python.parent / "half-written").touch()
    (tmp_path / MLSERVER.name / "installed-from").unlink()
    ensure(MLSERVER, home=tmp_path)
    assert not (python.parent / "half-written").exists()


def test_of_several_callers_only_one_installs(lock: Path, tmp_path: Path) -> None:
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


def test_a_failed_download_is_a_one_line_error_that_says_what_to_do(
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


def test_a_directory_that_cannot_be_written_is_an_install_error(lock: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InstallError, match="could not install kserve-mlserver"):
        ensure(MLSERVER, home=tmp_path / "file" / "home")


def test_uv_uses_the_package_index_that_pip_is_configured_with(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_install_command_prints_its_progress(
    lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "predictor.__main__.ensure",
        lambda runtime, progress: ensure(runtime, home=tmp_path, progress=progress),
    )
    assert main(["install"]) == 0
    assert "kserve-mlserver: installing seldonio/mlserver:1.7.1" in capsys.readouterr().err
