"""Start commands of all servers, and which servers each of them needs."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.load import ROOT
from benchmarks.models import CHOSEN, FOREST, ORIGINAL_FOREST, ServedModel
from benchmarks.server_process import Process
from inferenceservice import spec
from predictor.child import ChildProcess
from predictor.environment import Environment, Progress, ensure
from predictor.process import INHERITED_VARIABLES, PredictorProcess, free_ports
from predictor.runtimes import get_runtime

_HERE = Path(__file__).resolve().parent
PEERS = _HERE / "peers"
ENVIRONMENT = Environment(
    name="benchmarks",
    lock=_HERE / "environment.txt",
    contents="the benchmark's peers",
    command="placement bench",
)
#: Fastest number of gunicorn workers. Measured on two virtual cores: 1, 2 and 4 workers, and 2 workers with 4
#: threads each.
WORKERS = max(os.cpu_count() or 1, 2)

MLSERVER = "kserve-mlserver"
#: MLServer with a worker process for each of two cores, and our service in front of it.
MLSERVER_2_WORKERS = f"{MLSERVER}/{FOREST}/2-workers"
OURS_2_WORKERS = "ours-mlserver-v2-2-workers"
SKLEARNSERVER = "kserve-sklearnserver"


@dataclass
class Workspace:
    """Models, ports and logs of the servers.

    Attributes
    ----------
    models
        The served models, by name.
    work
        Directory for logs and scratch files.
    """

    models: Mapping[str, ServedModel]
    work: Path
    progress: Progress
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

    def peer_python(self) -> Path:
        """Python interpreter of the peers' environment, which is installed if it is missing."""
        return ensure(ENVIRONMENT, progress=self.progress)


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


def _default_spec() -> spec.InferenceService:
    """Read the default InferenceService; our service runs with its settings."""
    return spec.read(ROOT / "inferenceservice" / "placement.yaml")


def _gunicorn(server: str, workers: int) -> Launcher:
    def start(workspace: Workspace) -> Process:
        gunicorn = workspace.peer_python().with_name("gunicorn")
        # A long time-out: gunicorn kills workers that do not respond, and a paused worker does not.
        options = [f"--bind=127.0.0.1:{workspace.port(server)}", f"--workers={workers}", "--timeout=86400"]
        return workspace.child(
            server,
            [gunicorn, *options, f"--chdir={PEERS}", "flask_app:app"],
            MODEL=workspace.models[ORIGINAL_FOREST].pickled,
        )

    return Launcher(start)


def _kserve(server: str, script: str, *needs: str) -> Launcher:
    def start(workspace: Workspace) -> Process:
        command = [
            str(workspace.peer_python()),
            str(PEERS / script),
            "--model_name=placement",
            "--enable_grpc=false",
        ]
        command += [f"--http_port={workspace.port(server)}"]
        command += [f"--predictor_host=127.0.0.1:{workspace.port(one)}" for one in needs]
        return workspace.child(server, command, MODEL=workspace.models[ORIGINAL_FOREST].pickled)

    return Launcher(start, needs=needs)


def _start_litserve(workspace: Workspace) -> Process:
    command = [workspace.peer_python(), PEERS / "litserve_api.py", str(workspace.port("litserve"))]
    return workspace.child("litserve", command, MODEL=workspace.models[ORIGINAL_FOREST].pickled)


def _start_bentoml(workspace: Workspace) -> Process:
    bentoml = workspace.peer_python().with_name("bentoml")
    address = ["--host=127.0.0.1", f"--port={workspace.port('bentoml')}", f"--working-dir={PEERS}"]
    return workspace.child(
        "bentoml",
        [bentoml, "serve", "bentoml_service:Placement", *address],
        MODEL=workspace.models[ORIGINAL_FOREST].pickled,
        BENTOML_HOME=workspace.work / "bentoml",
        BENTOML_DO_NOT_TRACK="true",
        PYTHONDONTWRITEBYTECODE="1",
    )


def _start_echo(workspace: Workspace) -> Process:
    uvicorn = workspace.peer_python().with_name("uvicorn")
    options = [
        f"--port={workspace.port('echo')}",
        f"--app-dir={PEERS}",
        "--no-access-log",
        "--log-level=warning",
    ]
    return workspace.child("echo", [uvicorn, "asgi_echo:echo", *options])


def _predictor(server: str, runtime_name: str, model: str, **variables: str) -> Launcher:
    def start(workspace: Workspace) -> Process:
        runtime = get_runtime(runtime_name)
        default = _default_spec()
        env = dict(runtime.probability_env)
        if default.runtime == runtime_name:
            env |= {
                name: value for name, value in default.predictor_env.items() if not name.endswith("_PORT")
            }
        return PredictorProcess(
            runtime,
            workspace.models[model].directory,
            python=ensure(runtime, progress=workspace.progress),
            model_name="placement",
            http_port=workspace.port(server),
            grpc_port=workspace.port(f"{server}/grpc"),
            env=env | variables,
            log=workspace.log(server),
        )

    return Launcher(start, model)


def _start_stub(workspace: Workspace) -> Process:
    command = [sys.executable, "-m", "benchmarks.stub_predictor"]
    command += [str(workspace.models[FOREST].directory), str(workspace.port("stub"))]
    return workspace.child("stub", command, PYTHONPATH=ROOT)


def _ours(server: str, predictor: str, protocol: str, model: str, output: str = "predict_proba") -> Launcher:
    def start(workspace: Workspace) -> Process:
        port = workspace.port(f"{predictor}/grpc" if protocol == "grpc-v2" else predictor)
        options = [
            *_default_spec().transformer_args,
            "--model_name=placement",
            f"--http_port={workspace.port(server)}",
            f"--grpc_port={workspace.port(f'{server}/grpc')}",
            f"--predictor_host=127.0.0.1:{port}",
            f"--predictor_protocol={protocol}",
            f"--predictor_output={output}",
        ]
        return workspace.child(
            server,
            [sys.executable, "-m", "transformer", *options],
            STORAGE_URI=workspace.models[model].directory,
            PYTHONPATH=ROOT,
        )

    return Launcher(start, model, (predictor,))


def _launchers() -> dict[str, Launcher]:
    launchers = {
        "tutorial": _gunicorn("tutorial", 1),
        "tutorial-workers": _gunicorn("tutorial-workers", WORKERS),
        "documented": _kserve("documented", "kserve_transformer.py", f"{SKLEARNSERVER}/{ORIGINAL_FOREST}"),
        "litserve": Launcher(_start_litserve),
        "bentoml": Launcher(_start_bentoml),
        "noop": _kserve("noop", "kserve_noop.py"),
        "echo": Launcher(_start_echo),
        "stub": Launcher(_start_stub),
        "front-end": _ours("front-end", "stub", "v1", FOREST),
    }
    for runtime in (SKLEARNSERVER, MLSERVER):
        for model in (FOREST, ORIGINAL_FOREST, CHOSEN):
            launchers[f"{runtime}/{model}"] = _predictor(f"{runtime}/{model}", runtime, model)
            for protocol in get_runtime(runtime).protocols:
                server = our_name(runtime, protocol, model)
                output = get_runtime(runtime).probability_output
                launchers[server] = _ours(server, f"{runtime}/{model}", protocol, model, output)
    launchers[MLSERVER_2_WORKERS] = _predictor(
        MLSERVER_2_WORKERS, MLSERVER, FOREST, MLSERVER_PARALLEL_WORKERS="2"
    )
    launchers[OURS_2_WORKERS] = _ours(OURS_2_WORKERS, MLSERVER_2_WORKERS, "v2", FOREST)
    return launchers


def our_name(runtime: str, protocol: str, model: str) -> str:
    """Name of our service in front of one of the stock runtimes."""
    return f"ours-{'' if model == FOREST else f'{model}-'}{runtime.removeprefix('kserve-')}-{protocol}"


LAUNCHERS = _launchers()
