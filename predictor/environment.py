"""A pinned environment, one for each stock runtime: installed from its lock file, again when that changes."""

from __future__ import annotations

import ast
import fcntl
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from predictor.runtimes import Runtime

HOME: Final = Path(__file__).resolve().parent.parent / ".runtimes"
"""Where the environments are, one directory each: inside the checkout, ignored by git."""

Progress = Callable[[str], None]

_PYTHON: Final = (3, 11)
"""The lock files are resolved for this version of Python."""
_STAMP: Final = "installed-from"

_PIP_TO_UV: Final = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "cert": "SSL_CERT_FILE",
}
_UV_ALREADY_HAS: Final = {"UV_DEFAULT_INDEX": "UV_INDEX_URL", "UV_INDEX": "UV_EXTRA_INDEX_URL"}
"""Older names of the same settings."""


_CAUSE: Final = re.compile(r"(?:error|cause|caused by): (.+)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What is to be installed.

    Attributes
    ----------
    name
        Its directory's.
    lock
        Its lock file, with hashes.
    contents
        What it holds, for people.
    command
        What installs it, for those whose installation failed.
    """

    name: str
    lock: Path
    contents: str
    command: str

    @classmethod
    def of(cls, runtime: Runtime) -> Self:
        """The one that stands in for a stock runtime's image."""
        return cls(
            name=runtime.name,
            lock=runtime.lock,
            contents=f"{runtime.image}:{runtime.version}",
            command=f"python -m predictor install {runtime.name}",
        )


class InstallError(RuntimeError):
    """An environment could not be installed; the message is one line that says what to do."""

    def __init__(self, environment: Environment, reason: str) -> None:
        super().__init__(
            f"could not install {environment.name}: {reason}. Check the network, the package index and the "
            f"disk, then try again: {environment.command}"
        )


def ensure(wanted: Runtime | Environment, *, home: Path = HOME, progress: Progress | None = None) -> Path:
    """Return the interpreter of an environment, installing that first if need be.

    An interrupted installation is begun anew; of several callers at once, one installs and the others wait.

    Parameters
    ----------
    wanted
        The environment, or the runtime whose one it is.
    home
        Directory of all environments.
    progress
        Gets a line for each step, if anything has to be done.

    Raises
    ------
    InstallError
        When something could not be downloaded or written.
    """
    environment = wanted if isinstance(wanted, Environment) else Environment.of(wanted)
    directory = home / environment.name
    if not _is_current(directory, environment):
        tell = progress or (lambda _line: None)
        try:
            home.mkdir(parents=True, exist_ok=True)
            with _one_at_a_time(home / f".{environment.name}.lock", tell) as lock:
                if not _is_current(directory, environment):
                    _install(environment, directory, tell, lock)
        except OSError as error:
            raise InstallError(environment, str(error)) from error
    return _python(directory)


def _python(directory: Path) -> Path:
    return directory / "bin" / "python"


def _digest(environment: Environment) -> str:
    return hashlib.sha256(environment.lock.read_bytes()).hexdigest()


def _is_current(directory: Path, environment: Environment) -> bool:
    try:
        return (directory / _STAMP).read_text() == _digest(environment) and _python(directory).exists()
    except OSError:
        return False


@contextmanager
def _one_at_a_time(lock: Path, tell: Progress) -> Iterator[int]:
    """Hold a file lock, which ends with the last process that has its descriptor."""
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("another process is installing it; waiting")
            fcntl.flock(held, fcntl.LOCK_EX)
        yield held.fileno()


def _install(environment: Environment, directory: Path, tell: Progress, lock: int) -> None:
    tell(f"installing {environment.contents} into {directory}, once; some minutes on a slow network")
    interpreter = sys.executable if sys.version_info[:2] == _PYTHON else ".".join(map(str, _PYTHON))
    env = os.environ | _uv_settings(os.environ)
    _uv(environment, ["venv", "--quiet", "--clear", "--python", interpreter, str(directory)], env, tell, lock)
    sync = ["pip", "sync", "--require-hashes", "--python", str(_python(directory))]
    _uv(environment, [*sync, str(environment.lock)], env, tell, lock)
    unfinished = directory / f"{_STAMP}.tmp"
    unfinished.write_text(_digest(environment))
    unfinished.replace(directory / _STAMP)


def _uv(
    environment: Environment, command: list[str], env: Mapping[str, str], tell: Progress, lock: int
) -> None:
    lines: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-m", "uv", *command],
        env=dict(env),
        pass_fds=(lock,),  # so that nobody begins anew while it goes on without us
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None  # noqa: S101 - opened as a pipe
        for line in process.stdout:
            lines.append(line.strip())
            if not lines[-1].startswith("+"):  # the list of all packages, at the end
                tell(lines[-1])
    if process.returncode != 0:
        raise InstallError(environment, _reason(lines) or f"uv ended with status {process.returncode}")


def _reason(lines: list[str]) -> str:
    """Boil uv's account of an error down to what failed and its deepest cause."""
    causes = [match[1].rstrip(".:") for line in lines if (match := _CAUSE.match(line))]
    return " - ".join(dict.fromkeys([causes[0], causes[-1]])) if causes else " ".join(lines[-2:])


def _uv_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Give uv the package index that pip is set up to use, where uv has no setting of its own."""
    pip = _pip_settings()
    return {
        theirs: pip[ours]
        for ours, theirs in _PIP_TO_UV.items()
        if ours in pip and theirs not in environ and _UV_ALREADY_HAS.get(theirs, theirs) not in environ
    }


def _pip_settings() -> dict[str, str]:
    """Read pip's configuration, files and environment; empty where there is no pip."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    return _parse_pip_settings(listed.stdout)


def _parse_pip_settings(listing: str) -> dict[str, str]:
    found: dict[tuple[int, str], str] = {}
    for line in listing.splitlines():
        place, equals, value = line.partition("=")
        section, _, name = place.rpartition(".")
        rank = {"global": 0, "install": 1, ":env:": 2}.get(section)
        if equals and rank is not None:
            found[rank, name] = " ".join(str(ast.literal_eval(value)).split())
    return {name: value for (_, name), value in sorted(found.items())}
