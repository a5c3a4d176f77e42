"""Models, ports, logs and environments that the servers of a run share."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.models import FOREST, ServedModel
from benchmarks.server_process import Process
from predictor.child import ChildProcess
from predictor.environment import Environment, Progress, ensure
from predictor.process import INHERITED_VARIABLES, free_ports

_HERE = Path(__file__).resolve().parent
PEERS = Environment(
    name="benchmarks",
    lock=_HERE / "environment.txt",
    contents="the benchmark's peers",
    command="placement bench",
)
RAY = Environment(
    name="benchmarks-ray",
    lock=_HERE / "environment-ray.txt",
    contents="Ray Serve for the benchmark",
    command="placement bench",
)


@dataclass
class Workspace:
    """Models, ports and logs of the servers.

    Attributes
    ----------
    models
        The served models, by name.
    work
        Directory for logs and for files that the next run can use.
    scratch
        Directory that is removed after the run. Its path is short, because sockets are in it.
    pythons
        Interpreters of the peers' environments in use, by name of the environment.
    """

    models: Mapping[str, ServedModel]
    work: Path
    scratch: Path
    progress: Progress
    pythons: dict[str, Path] = field(default_factory=dict)
    _ports: dict[str, int] = field(default_factory=dict)

    def port(self, server: str) -> int:
        """Port of a server; it stays the same during a run."""
        if server not in self._ports:
            self._ports[server] = free_ports(1)[0]
        return self._ports[server]

    def child(self, server: str, command: Sequence[object], **variables: str | Path) -> ChildProcess:
        """Start a server's command, with output to its log."""
        ours = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
        path = os.pathsep.join([str(Path(str(command[0])).parent), os.environ.get("PATH", os.defpath)])
        env = {**ours, "PATH": path, **{name: str(value) for name, value in variables.items()}}
        return ChildProcess([str(part) for part in command], env=env, log=self.log(server))

    def log(self, server: str) -> Path:
        """Remove the old log of a server and return the log's path."""
        file = self.work / "logs" / f"{server.replace('/', '-')}.log"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        return file

    def python(self, environment: Environment) -> Path:
        """Python interpreter of an environment, which is installed if it is missing."""
        if environment.name not in self.pythons:
            self.pythons[environment.name] = ensure(environment, progress=self.progress)
        return self.pythons[environment.name]


@dataclass(frozen=True)
class Launcher:
    """Start function of a server.

    Attributes
    ----------
    model
        Name of the model that the server serves.
    needs
        Names of the servers that must run before it starts.
    """

    start: Callable[[Workspace], Process]
    model: str = FOREST
    needs: tuple[str, ...] = ()
