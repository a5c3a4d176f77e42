"""Installation of pinned environments from lock files, once per version of the lock file."""

import ast
import fcntl
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from predictor.runtimes import Runtime

#: Directory of all environments: inside the checkout, ignored by git.
HOME = Path(__file__).resolve().parent.parent / ".runtimes"

Progress = Callable[[str], None]

#: Version of Python for which the lock files are resolved.
_PYTHON = (3, 11)
#: File in an environment with the digest of the lock file that it was installed from.
_STAMP = "installed-from"

#: Variables of uv for pip's settings.
_PIP_TO_UV = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "cert": "SSL_CERT_FILE",
}
#: Older names of uv's variables.
_OLD_UV_NAMES = {"UV_DEFAULT_INDEX": "UV_INDEX_URL", "UV_INDEX": "UV_EXTRA_INDEX_URL"}

_CAUSE = re.compile(r"(?:error|cause|caused by): (.+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Environment:
    """Description of an environment to install.

    Attributes
    ----------
    name
        Name of its directory.
    lock
        Lock file with hashes.
    contents
        Contents in a few words, for messages.
    command
        Command that installs it, for the message of a failed installation.
    """

    name: str
    lock: Path
    contents: str
    command: str

    @classmethod
    def of(cls, runtime: Runtime) -> Self:
        """Return the environment with the packages of a stock runtime's image."""
        return cls(
            name=runtime.environment,
            lock=runtime.lock,
            contents=f"{runtime.image}:{runtime.version}",
            command=f"python -m predictor install {runtime.name}",
        )


class InstallError(RuntimeError):
    """An environment could not be installed; the message is one line that says what to do."""

    def __init__(self, environment: Environment, reason: str) -> None:
        super().__init__(
            f"could not install {environment.name}: {reason}. Check the network, the package index and the "
            f"disk, then run: {environment.command}"
        )


def ensure(wanted: Runtime | Environment, *, home: Path = HOME, progress: Progress | None = None) -> Path:
    """Install an environment unless it is up to date, and return its interpreter.

    An interrupted installation starts again. Of several concurrent callers one installs, the others wait.

    Parameters
    ----------
    wanted
        The environment, or the runtime that needs it.
    home
        Directory of all environments.
    progress
        Gets a line for each step of an installation.

    Raises
    ------
    InstallError
        If a package cannot be downloaded or written.
    """
    environment = wanted if isinstance(wanted, Environment) else Environment.of(wanted)
    directory = home / environment.name
    if not _is_current(directory, environment):
        report = progress or (lambda _: None)
        try:
            home.mkdir(parents=True, exist_ok=True)
            with _installation_lock(home / f".{environment.name}.lock", report) as lock:
                if not _is_current(directory, environment):
                    _install(environment, directory, report, lock)
        except OSError as error:
            raise InstallError(environment, str(error)) from error
    return _python(directory)


def installed(environment: Environment) -> Path | None:
    """Return the interpreter of an environment; None if it is not installed, or not up to date."""
    directory = HOME / environment.name
    return _python(directory) if _is_current(directory, environment) else None


def become(
    environment: Environment, module: Sequence[str], variables: Mapping[str, str], arguments: Sequence[str]
) -> None:
    """Install an environment unless it is up to date, and replace this process by a module that runs there.

    If the installation fails, the process ends with its error.

    Parameters
    ----------
    module
        Name of the module, and the arguments that it always gets.
    variables
        Variables of the module's process, besides those of this one.
    arguments
        ``--install`` to only install the environment, or further arguments of the module.
    """
    try:
        python = ensure(environment, progress=partial(print, file=sys.stderr))
    except InstallError as error:
        sys.exit(str(error))
    if list(arguments) != ["--install"]:
        os.execve(python, [str(python), "-m", *module, *arguments], os.environ | variables)  # noqa: S606 (a fixed command)


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
def _installation_lock(lock: Path, progress: Progress) -> Iterator[int]:
    """Hold a file lock, and yield its descriptor; the last process that has the descriptor releases it."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another process that is installing it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _install(environment: Environment, directory: Path, progress: Progress, lock: int) -> None:
    progress(f"installing {environment.contents} into {directory}; takes minutes on a slow network")
    interpreter = sys.executable if sys.version_info[:2] == _PYTHON else ".".join(map(str, _PYTHON))
    env = os.environ | _uv_settings(os.environ)
    create = ["venv", "--quiet", "--clear", "--python", interpreter, str(directory)]
    _run_uv(environment, create, env, progress, lock)
    sync = ["pip", "sync", "--require-hashes", "--python", str(_python(directory))]
    _run_uv(environment, [*sync, str(environment.lock)], env, progress, lock)
    unfinished = directory / f"{_STAMP}.tmp"
    unfinished.write_text(_digest(environment))
    unfinished.replace(directory / _STAMP)


def _run_uv(
    environment: Environment, command: list[str], env: Mapping[str, str], progress: Progress, lock: int
) -> None:
    lines: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-m", "uv", *command],
        env=dict(env),
        pass_fds=(lock,),  # keeps the lock until uv ends, even if this process is killed
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None  # noqa: S101 (opened as a pipe)
        for line in process.stdout:
            lines.append(line.strip())
            if not lines[-1].startswith("+"):  # not the final list of packages
                progress(lines[-1])
    if process.returncode != 0:
        raise InstallError(environment, _reason(lines) or f"uv ended with status {process.returncode}")


def _reason(lines: list[str]) -> str:
    """Reduce uv's error report to the failure and its deepest cause."""
    causes = [match[1].rstrip(".:") for line in lines if (match := _CAUSE.match(line))]
    return " - ".join(dict.fromkeys([causes[0], causes[-1]])) if causes else " ".join(lines[-2:])


def _uv_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return variables that make uv use pip's settings, except for those that uv has itself."""
    pip = _pip_settings()
    return {
        variable: pip[setting]
        for setting, variable in _PIP_TO_UV.items()
        if setting in pip and variable not in environ and _OLD_UV_NAMES.get(variable, variable) not in environ
    }


def _pip_settings() -> dict[str, str]:
    """Read pip's configuration from its files and environment; empty without pip."""
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
