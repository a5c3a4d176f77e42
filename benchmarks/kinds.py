"""The servers: how each is started, and which others must run before it."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.load import ROOT
from benchmarks.models import CHOSEN, FOREST, ServedModel
from benchmarks.servers import Process
from inferenceservice import spec
from predictor.child import ChildProcess
from predictor.environment import Environment, Progress, ensure
from predictor.process import INHERITED_VARIABLES, PredictorProcess, free_ports
from predictor.runtimes import get_runtime

_HERE: Final = Path(__file__).resolve().parent
PEERS: Final = _HERE / "peers"
ENVIRONMENT: Final = Environment(
    name="benchmarks",
    lock=_HERE / "environment.txt",
    contents="the benchmark's peers",
    command="placement bench",
)
#: Workers with which gunicorn is fastest: of 1, 2 and 4, and of 2 with 4 threads each, on two virtual cores.
WORKERS: Final = max(os.cpu_count() or 1, 2)

MLSERVER: Final = "kserve-mlserver"
#: An MLServer that has a worker process for each of two cores, and ours in front of it.
MLSERVER_2_WORKERS: Final = f"{MLSERVER}/{FOREST}/2-workers"
OURS_2_WORKERS: Final = "ours-mlserver-v2-2-workers"
SKLEARNSERVER: Final = "kserve-sklearnserver"


@dataclass
class Place:
    """Where servers run: their models, ports and logs.

    Attributes
    ----------
    models
        By name.
    work
        Directory for logs and scratch files.
    """

    models: Mapping[str, ServedModel]
    work: Path
    progress: Progress
    _ports: dict[str, int] = field(default_factory=dict)

    def port(self, server: str) -> int:
        """The port of a server, the same one for as long as this lives."""
        if server not in self._ports:
            self._ports[server] = free_ports(1)[0]
        return self._ports[server]

    def child(self, server: str, command: Sequence[object], **variables: str | Path) -> ChildProcess:
        """Start a command, with a log of its own."""
        ours = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
        path = os.pathsep.join([str(Path(str(command[0])).parent), os.environ.get("PATH", os.defpath)])
        env = {**ours, "PATH": path, **{name: str(value) for name, value in variables.items()}}
        return ChildProcess([str(part) for part in command], env=env, log=self.log(server))

    def log(self, server: str) -> Path:
        """The log of a server, empty."""
        file = self.work / "logs" / f"{server.replace('/', '-')}.log"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        return file

    def peer(self) -> Path:
        """Interpreter of the peers' environment, which is installed if need be."""
        return ensure(ENVIRONMENT, progress=self.progress)


@dataclass(frozen=True)
class Kind:
    """How a server is started, and which others must run before.

    Attributes
    ----------
    model
        Name of the model that it serves.
    """

    start: Callable[[Place], Process]
    model: str = FOREST
    needs: tuple[str, ...] = ()


def _described() -> spec.InferenceService:
    """The InferenceService that users begin with: ours run with its settings."""
    return spec.read(ROOT / "inferenceservice" / "placement.yaml")


def _gunicorn(server: str, workers: int) -> Kind:
    def start(place: Place) -> Process:
        gunicorn = place.peer().with_name("gunicorn")
        # Its watchdog would take a paused worker for a dead one.
        options = [f"--bind=127.0.0.1:{place.port(server)}", f"--workers={workers}", "--timeout=86400"]
        return place.child(
            server,
            [gunicorn, *options, f"--chdir={PEERS}", "flask_app:app"],
            MODEL=place.models[FOREST].pickled,
        )

    return Kind(start)


def _kserve(server: str, script: str, *needs: str) -> Kind:
    def start(place: Place) -> Process:
        command = [str(place.peer()), str(PEERS / script), "--model_name=placement", "--enable_grpc=false"]
        command += [f"--http_port={place.port(server)}"]
        command += [f"--predictor_host=127.0.0.1:{place.port(one)}" for one in needs]
        return place.child(server, command, MODEL=place.models[FOREST].pickled)

    return Kind(start, needs=needs)


def _start_litserve(place: Place) -> Process:
    command = [place.peer(), PEERS / "litserve_api.py", str(place.port("litserve"))]
    return place.child("litserve", command, MODEL=place.models[FOREST].pickled)


def _start_bentoml(place: Place) -> Process:
    bentoml = place.peer().with_name("bentoml")
    address = ["--host=127.0.0.1", f"--port={place.port('bentoml')}", f"--working-dir={PEERS}"]
    return place.child(
        "bentoml",
        [bentoml, "serve", "bentoml_service:Placement", *address],
        MODEL=place.models[FOREST].pickled,
        BENTOML_HOME=place.work / "bentoml",
        BENTOML_DO_NOT_TRACK="true",
        PYTHONDONTWRITEBYTECODE="1",
    )


def _start_echo(place: Place) -> Process:
    uvicorn = place.peer().with_name("uvicorn")
    options = [f"--port={place.port('echo')}", f"--app-dir={PEERS}", "--no-access-log", "--log-level=warning"]
    return place.child("echo", [uvicorn, "asgi_echo:echo", *options])


def _predictor(server: str, runtime_name: str, model: str, **variables: str) -> Kind:
    def start(place: Place) -> Process:
        runtime = get_runtime(runtime_name)
        described = _described()
        env = dict(runtime.probability_env)
        if described.runtime == runtime_name:
            env |= {
                name: value for name, value in described.predictor_env.items() if not name.endswith("_PORT")
            }
        return PredictorProcess(
            runtime,
            place.models[model].directory,
            python=ensure(runtime, progress=place.progress),
            model_name="placement",
            http_port=place.port(server),
            grpc_port=place.port(f"{server}/grpc"),
            env=env | variables,
            log=place.log(server),
        )

    return Kind(start, model)


def _start_stub(place: Place) -> Process:
    command = [sys.executable, "-m", "benchmarks.stub_predictor"]
    command += [str(place.models[FOREST].directory), str(place.port("stub"))]
    return place.child("stub", command, PYTHONPATH=ROOT)


def _ours(server: str, predictor: str, protocol: str, model: str, output: str = "predict_proba") -> Kind:
    def start(place: Place) -> Process:
        port = place.port(f"{predictor}/grpc" if protocol == "grpc-v2" else predictor)
        options = [
            *_described().transformer_args,
            "--model_name=placement",
            f"--http_port={place.port(server)}",
            f"--grpc_port={place.port(f'{server}/grpc')}",
            f"--predictor_host=127.0.0.1:{port}",
            f"--predictor_protocol={protocol}",
            f"--predictor_output={output}",
        ]
        return place.child(
            server,
            [sys.executable, "-m", "transformer", *options],
            STORAGE_URI=place.models[model].directory,
            PYTHONPATH=ROOT,
        )

    return Kind(start, model, (predictor,))


def _kinds() -> dict[str, Kind]:
    kinds = {
        "tutorial": _gunicorn("tutorial", 1),
        "tutorial-workers": _gunicorn("tutorial-workers", WORKERS),
        "documented": _kserve("documented", "kserve_transformer.py", f"{SKLEARNSERVER}/{FOREST}"),
        "litserve": Kind(_start_litserve),
        "bentoml": Kind(_start_bentoml),
        "noop": _kserve("noop", "kserve_noop.py"),
        "echo": Kind(_start_echo),
        "stub": Kind(_start_stub),
        "front-end": _ours("front-end", "stub", "v1", FOREST),
    }
    for runtime in (SKLEARNSERVER, MLSERVER):
        for model in (FOREST, CHOSEN):
            kinds[f"{runtime}/{model}"] = _predictor(f"{runtime}/{model}", runtime, model)
            for protocol in get_runtime(runtime).protocols:
                server = our_name(runtime, protocol, model)
                output = get_runtime(runtime).probability_output
                kinds[server] = _ours(server, f"{runtime}/{model}", protocol, model, output)
    kinds[MLSERVER_2_WORKERS] = _predictor(
        MLSERVER_2_WORKERS, MLSERVER, FOREST, MLSERVER_PARALLEL_WORKERS="2"
    )
    kinds[OURS_2_WORKERS] = _ours(OURS_2_WORKERS, MLSERVER_2_WORKERS, "v2", FOREST)
    return kinds


def our_name(runtime: str, protocol: str, model: str) -> str:
    """Name of our service with one of the stock runtimes."""
    return f"ours-{'' if model == FOREST else f'{model}-'}{runtime.removeprefix('kserve-')}-{protocol}"


KINDS: Final = _kinds()
