"""The command `placement`, in this process and as a process."""

import contextlib
import io
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil
import pytest

from placement.cli import main
from predictor.process import free_ports
from tests.support.paths import PLACEMENT
from tests.support.waiting import wait_until_sync

COMMAND_TIMEOUT_S = 120


@dataclass(frozen=True)
class CommandResult:
    """The result of a command."""

    returncode: int
    stdout: str
    stderr: str


def run_placement(*arguments: object, stdin: str = "") -> CommandResult:
    """Run the command in this process, which is faster."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        status = main([*map(str, arguments)])
    return CommandResult(status, stdout.getvalue(), stderr.getvalue())


def run_placement_process(
    *arguments: object, stdin: str = "", env: dict[str, str] | None = None
) -> CommandResult:
    """Run the command as a process."""
    done = subprocess.run(
        [PLACEMENT, *map(str, arguments)],
        input=stdin,
        env=env,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    return CommandResult(done.returncode, done.stdout, done.stderr)


def error_of(done: CommandResult, command: str) -> str:
    """Return the error of a failed command, without its name and progress."""
    assert done.returncode == 1
    progress, found, message = done.stderr.partition(f"placement {command}: ")
    assert found, done.stderr
    assert all(re.match(r" *[0-9.]+ s  ", line) for line in progress.splitlines()), done.stderr
    assert "Traceback" not in message
    return message.removesuffix("\n")


class PlacementUp:
    """`placement up` as a process, and its output. Without a model it serves that of its spec."""

    def __init__(
        self, model: Path | None, directory: Path, *arguments: object, cwd: Path | None = None
    ) -> None:
        self.port, self.grpc_port = free_ports(2)
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self._stderr: IO[bytes] = (directory / "stderr").open("wb")
        self.process = subprocess.Popen(
            [
                *map(str, (PLACEMENT, "up", *(("--model", model) if model else ()), "--run", directory)),
                *map(str, ("--port", self.port, "--grpc-port", self.grpc_port, *arguments)),
            ],
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            cwd=cwd,
        )

    def wait_for(self, what: str) -> None:
        """Wait until it has printed a text."""

        def printed() -> bool:
            assert self.process.poll() is None, self.output()
            return what in self.output()

        wait_until_sync(printed, timeout_s=COMMAND_TIMEOUT_S)

    def output(self) -> str:
        return Path(self._stderr.name).read_text()

    def family(self) -> list[psutil.Process]:
        me = psutil.Process(self.process.pid)
        return [me, *me.children(recursive=True)]

    def __enter__(self) -> "PlacementUp":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(COMMAND_TIMEOUT_S)
        self.process.kill()
        self.process.communicate()
        self._stderr.close()
