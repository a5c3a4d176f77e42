"""Start commands of the other systems."""

import os
import subprocess
from pathlib import Path

import orjson

from benchmarks.models import FOREST, ORIGINAL_FOREST, candidates
from benchmarks.server_process import Process, ServerError
from benchmarks.workspace import PEERS, RAY, Launcher, Workspace

_PROGRAMS = Path(__file__).resolve().parent / "peers"
#: Fastest number of worker processes of gunicorn and uvicorn. Measured on two virtual cores: 1, 2 and 4
#: workers, and with gunicorn 2 workers with 4 threads each.
WORKERS = max(os.cpu_count() or 1, 2)
#: Addition to the name of a peer for each of the forest's forms.
FORMS = {ORIGINAL_FOREST: "", FOREST: "-serving-form"}
#: Number of candidates that check a conversion to ONNX.
_ONNX_CANDIDATES = 2000


def peer_launchers(predictor: str) -> dict[str, Launcher]:
    """Return the launchers of all peers, by name.

    Parameters
    ----------
    predictor
        Name of the server that KServe's documented transformer calls.
    """
    launchers = {
        "tutorial": _gunicorn("tutorial", 1),
        "tutorial-workers": _gunicorn("tutorial-workers", WORKERS),
        "documented": _kserve("documented", "kserve_transformer.py", predictor),
        "fastapi-workers": _fastapi("fastapi-workers", ORIGINAL_FOREST, WORKERS),
        "onnx": _fastapi("onnx", ORIGINAL_FOREST, WORKERS, onnx=True),
        "noop": _kserve("noop", "kserve_noop.py"),
        "echo": Launcher(_start_echo),
    }
    for model, suffix in FORMS.items():
        workers = 1 if model == ORIGINAL_FOREST else WORKERS
        launchers[f"fastapi{suffix}"] = _fastapi(f"fastapi{suffix}", model, workers)
        launchers[f"litserve{suffix}"] = _litserve(f"litserve{suffix}", model)
        launchers[f"bentoml{suffix}"] = _bentoml(f"bentoml{suffix}", model)
        launchers[f"ray{suffix}"] = _ray(f"ray{suffix}", model)
    return launchers


def _gunicorn(server: str, workers: int) -> Launcher:
    def start(workspace: Workspace) -> Process:
        gunicorn = workspace.python(PEERS).with_name("gunicorn")
        # A long time-out: gunicorn kills workers that do not respond, and a paused worker does not.
        options = [f"--bind=127.0.0.1:{workspace.port(server)}", f"--workers={workers}", "--timeout=86400"]
        return workspace.child(
            server,
            [gunicorn, *options, f"--chdir={_PROGRAMS}", "flask_app:app"],
            MODEL=workspace.models[ORIGINAL_FOREST].pickled,
        )

    return Launcher(start, ORIGINAL_FOREST)


def _kserve(server: str, script: str, *needs: str) -> Launcher:
    def start(workspace: Workspace) -> Process:
        command = [workspace.python(PEERS), _PROGRAMS / script, "--model_name=placement"]
        options = ["--enable_grpc=false", f"--http_port={workspace.port(server)}"]
        options += [f"--predictor_host=127.0.0.1:{workspace.port(one)}" for one in needs]
        return workspace.child(server, [*command, *options], MODEL=workspace.models[ORIGINAL_FOREST].pickled)

    return Launcher(start, ORIGINAL_FOREST, needs)


def _uvicorn(workspace: Workspace, server: str, application: str, workers: int = 1) -> list[object]:
    """Command that serves an application of the directory `peers`."""
    return [
        workspace.python(PEERS).with_name("uvicorn"),
        f"--port={workspace.port(server)}",
        f"--workers={workers}",
        # uvicorn kills workers that do not respond, and a paused worker does not.
        "--timeout-worker-healthcheck=86400",
        f"--app-dir={_PROGRAMS}",
        "--no-access-log",
        "--log-level=warning",
        application,
    ]


def _start_echo(workspace: Workspace) -> Process:
    return workspace.child("echo", _uvicorn(workspace, "echo", "asgi_echo:echo"))


def _fastapi(server: str, model: str, workers: int, *, onnx: bool = False) -> Launcher:
    def start(workspace: Workspace) -> Process:
        application = "fastapi_onnx:app" if onnx else "fastapi_app:app"
        variables = {"MODEL": workspace.models[model].pickled}
        if onnx:
            variables["ONNX_MODEL"] = _convert(workspace)
        return workspace.child(server, _uvicorn(workspace, server, application, workers), **variables)

    return Launcher(start, model)


def _convert(workspace: Workspace) -> Path:
    """Convert the original forest to ONNX and return the file; the converter compares the probabilities."""
    converted, sent = workspace.scratch / "forest.onnx", workspace.scratch / "onnx-candidates.json"
    if not converted.exists():
        sent.write_bytes(orjson.dumps(candidates(_ONNX_CANDIDATES)))
        pickled = workspace.models[ORIGINAL_FOREST].pickled
        command = [workspace.python(PEERS), _PROGRAMS / "onnx_convert.py", pickled, sent, converted]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ServerError(f"the conversion to ONNX failed:\n{done.stderr.strip()[-500:]}")
    return converted


def _litserve(server: str, model: str) -> Launcher:
    def start(workspace: Workspace) -> Process:
        command = [workspace.python(PEERS), _PROGRAMS / "litserve_api.py", workspace.port(server)]
        return workspace.child(server, command, MODEL=workspace.models[model].pickled)

    return Launcher(start, model)


def _bentoml(server: str, model: str) -> Launcher:
    def start(workspace: Workspace) -> Process:
        bentoml = workspace.python(PEERS).with_name("bentoml")
        address = ["--host=127.0.0.1", f"--port={workspace.port(server)}", f"--working-dir={_PROGRAMS}"]
        return workspace.child(
            server,
            [bentoml, "serve", "bentoml_service:Placement", *address],
            MODEL=workspace.models[model].pickled,
            BENTOML_HOME=workspace.work / "bentoml",
            BENTOML_DO_NOT_TRACK="true",
            PYTHONDONTWRITEBYTECODE="1",
        )

    return Launcher(start, model)


def _ray(server: str, model: str) -> Launcher:
    def start(workspace: Workspace) -> Process:
        # HAProxy adds 57 characters, and a socket's path has at most 97.
        directory = workspace.scratch / str(workspace.port(server))
        command = [workspace.python(RAY), _PROGRAMS / "ray_serve_app.py", workspace.port(server), directory]
        haproxy: dict[str, str | Path] = {
            "CONFIG_FILE_LOC": directory / "haproxy.cfg",
            "SOCKET_PATH": directory / "admin.sock",
            "SERVER_STATE_BASE": directory,
            "SERVER_STATE_FILE": directory / "server-state",
            "METRICS_PORT": str(workspace.port(f"{server}/metrics")),
            "STATS_PORT": str(workspace.port(f"{server}/stats")),
        }
        return workspace.child(
            server,
            command,
            MODEL=workspace.models[model].pickled,
            # The two settings that Ray documents for high throughput.
            RAY_SERVE_ENABLE_HA_PROXY="1",
            RAY_SERVE_THROUGHPUT_OPTIMIZED="1",
            RAY_AUTH_MODE="disabled",
            RAY_USAGE_STATS_ENABLED="0",
            **{f"RAY_SERVE_HAPROXY_{name}": value for name, value in haproxy.items()},
        )

    return Launcher(start, model)
