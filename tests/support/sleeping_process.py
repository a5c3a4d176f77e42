"""A component's process that only sleeps, so that many changes of it can be tried."""

import subprocess
from pathlib import Path

import pytest

from inferenceservice.local import supervisor, tracks
from predictor.process import free_ports


def use_sleeping_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start sleeping processes instead of model servers and transformers."""
    monkeypatch.setattr(supervisor, "TransformerProcess", SleepingProcess)
    monkeypatch.setattr(supervisor, "start_predictor", SleepingProcess)
    monkeypatch.setattr(supervisor, "install_predictor", lambda *_: Path())
    for module in (supervisor, tracks):
        monkeypatch.setattr(module, "_POLL_S", 0.01)


class SleepingProcess:
    """A process that is ready at its second readiness check."""

    def __init__(self, *arguments: object) -> None:
        log = arguments[-1]
        assert isinstance(log, Path)
        log.touch()
        self.http_port, self.grpc_port = free_ports(2)
        self._child = subprocess.Popen(["sleep", "1000"])
        self._asked = False

    @property
    def pid(self) -> int:
        return self._child.pid

    def poll(self) -> int | None:
        return self._child.poll()

    def tail(self, _: int = 0) -> list[str]:
        return []

    def ready(self) -> bool:
        asked, self._asked = self._asked, True
        return asked

    def live(self) -> bool:
        return True

    def stop(self, _: float = 0) -> int:
        self._child.terminate()
        return self._child.wait()
