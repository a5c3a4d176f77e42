"""The table of stock runtimes: what each one is and how its ClusterServingRuntime starts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

HERE: Final = Path(__file__).resolve().parent
MODEL_MOUNT: Final = "/mnt/models"
"""Where the cluster mounts the model; it stands for the model directory in arguments and variables."""


class UnknownRuntimeError(ValueError):
    """No stock runtime that we support has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"unknown runtime {name!r}; known are: {', '.join(RUNTIMES)}")


class LaunchError(ValueError):
    """The arguments or variables given to a runtime cannot start it."""


@dataclass(frozen=True)
class Launch:
    """What to start on this machine, and where it will listen once the spec's own settings have won."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    model_name: str
    http_port: int
    grpc_port: int


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """One ClusterServingRuntime of KServe v0.20 that serves scikit-learn models.

    The versions are those of the image; fit models with the same scikit-learn.
    In ``command``, ``args``, ``env`` and ``local_env`` the fields of ``launch`` stand in braces.
    """

    name: str
    image: str
    version: str
    """The image's tag: ``runtimeVersion`` in an InferenceService."""
    protocols: tuple[str, ...]
    """Protocols to it, as ``--predictor_protocol`` names them."""
    python: str
    scikit_learn: str
    numpy: str
    joblib: str
    probability_output: str
    """The V2 output that holds the probabilities, one column per class."""
    probability_env: Mapping[str, str] = field(default_factory=dict)
    """What the InferenceService must set in ``predictor.model.env`` to get probabilities."""
    readiness_path: str
    """Answers 200 once the model is loaded."""
    model_name_setting: str
    http_port_setting: str
    grpc_port_setting: str
    command: tuple[str, ...]
    """The image's own command."""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    local_env: Mapping[str, str] = field(default_factory=dict)
    """What a machine shared with others needs beyond the cluster's settings."""
    args_replace_command: bool = False
    """Whether ``predictor.model.args`` take the place of the image's command (it has no entry point)."""

    @property
    def lock(self) -> Path:
        """The lock file of the environment that stands in for the image on this machine."""
        return HERE / "environments" / f"{self.name}.txt"

    def launch(
        self,
        python: Path,
        *,
        model_name: str,
        model_dir: Path,
        http_port: int,
        grpc_port: int,
        metrics_port: int | None = None,
        args: Sequence[str] = (),
        env: Mapping[str, str] = MappingProxyType({}),
    ) -> Launch:
        """Say what KServe's controller would start, for this machine.

        Parameters
        ----------
        python
            The interpreter of the runtime's environment (``environment.ensure``).
        model_name, model_dir
            The InferenceService's name and the directory that holds one model file.
        http_port, grpc_port, metrics_port
            Where to listen; a metrics port is needed only by MLServer, whose default is one fixed port.
        args, env
            ``predictor.model.args`` and ``.env`` of the InferenceService. They win, as in the cluster:
            arguments come after the runtime's own, variables replace those of the same name. ``/mnt/models``
            in them becomes ``model_dir``.

        Raises
        ------
        LaunchError
            When a setting in ``args`` or ``env`` cannot work: a port that is none, arguments to MLServer
            that are not a command.
        """
        facts = {
            "python": str(python),
            "bin": str(python.parent),
            "here": str(HERE),
            "model_name": model_name,
            "model_dir": str(model_dir),
            "http_port": str(http_port),
            "grpc_port": str(grpc_port),
            "metrics_port": None if metrics_port is None else str(metrics_port),
        }
        given_args = tuple(arg.replace(MODEL_MOUNT, str(model_dir)) for arg in args)
        given_env = {name: value.replace(MODEL_MOUNT, str(model_dir)) for name, value in env.items()}
        variables = _filled({**self.env, **self.local_env}, facts) | given_env
        if self.args_replace_command and given_args:
            argv = self._command_of(given_args, python)
        else:
            argv = tuple(part.format(**facts) for part in (*self.command, *self.args)) + given_args
        return Launch(
            argv=argv,
            env=MappingProxyType(variables),
            model_name=_setting(self.model_name_setting, argv, variables),
            http_port=_port(self.http_port_setting, argv, variables),
            grpc_port=_port(self.grpc_port_setting, argv, variables),
        )

    def _command_of(self, args: tuple[str, ...], python: Path) -> tuple[str, ...]:
        if args[0].startswith("-"):
            msg = (
                f"{self.name}: model.args take the place of the image's command, so {args[0]!r} would be run "
                f"as a program; set what you need in model.env (for example {self.http_port_setting})"
            )
            raise LaunchError(msg)
        return (str(python.parent / args[0]), *args[1:])


def get_runtime(name: str) -> Runtime:
    """Return the stock runtime of this name.

    Raises
    ------
    UnknownRuntimeError
        When we support none of this name; the message names those that we do.
    """
    try:
        return RUNTIMES[name]
    except KeyError:
        raise UnknownRuntimeError(name) from None


def _filled(templates: Mapping[str, str], facts: Mapping[str, str | None]) -> dict[str, str]:
    """Fill in the templates, leaving out those whose fact is unknown."""
    unknown = [f"{{{fact}}}" for fact, value in facts.items() if value is None]
    return {
        name: template.format(**facts)
        for name, template in templates.items()
        if not any(field_ in template for field_ in unknown)
    }


def _setting(name: str, argv: Sequence[str], env: Mapping[str, str]) -> str:
    """Return what the runtime will read: the last such argument, or the variable."""
    if not name.startswith("--"):
        return env[name]
    found = ""
    for position, arg in enumerate(argv):
        if arg.startswith(f"{name}="):
            found = arg.partition("=")[2]
        elif arg == name and position + 1 < len(argv):
            found = argv[position + 1]
    return found


def _port(name: str, argv: Sequence[str], env: Mapping[str, str]) -> int:
    value = _setting(name, argv, env)
    if not value.isdecimal() or not 0 < int(value) < 65536:
        msg = f"{name} must be a port from 1 to 65535, got {value!r}"
        raise LaunchError(msg)
    return int(value)


_MLSERVER: Final = Runtime(
    name="kserve-mlserver",
    image="seldonio/mlserver",
    version="1.7.1",
    protocols=("v2", "grpc-v2"),
    python="3.10",
    scikit_learn="1.5.2",
    numpy="1.26.4",
    joblib="1.4.2",
    probability_output="predict_proba",
    readiness_path="/v2/models/{model_name}/ready",
    model_name_setting="MLSERVER_MODEL_NAME",
    http_port_setting="MLSERVER_HTTP_PORT",
    grpc_port_setting="MLSERVER_GRPC_PORT",
    command=("{bin}/mlserver", "start", "{model_dir}"),
    args_replace_command=True,
    env={
        "MLSERVER_MODEL_IMPLEMENTATION": "mlserver_sklearn.SKLearnModel",
        "MLSERVER_MODEL_NAME": "{model_name}",
        "MLSERVER_MODEL_URI": "{model_dir}",
        "MLSERVER_MODELS_DIR": "{model_dir}",
        "MODELS_DIR": "{model_dir}",
        "MLSERVER_HTTP_PORT": "{http_port}",
        "MLSERVER_GRPC_PORT": "{grpc_port}",
    },
    local_env={"MLSERVER_HOST": "127.0.0.1", "MLSERVER_METRICS_PORT": "{metrics_port}"},
)

_SKLEARNSERVER: Final = Runtime(
    name="kserve-sklearnserver",
    image="kserve/sklearnserver",
    version="v0.20.0",
    protocols=("v1", "v2", "grpc-v2"),
    python="3.11",
    scikit_learn="1.5.2",
    numpy="2.4",
    joblib="1.5.3",
    probability_output="output-0",
    probability_env={"PREDICT_PROBA": "true"},
    readiness_path="/v1/models/{model_name}",
    model_name_setting="--model_name",
    http_port_setting="--http_port",
    grpc_port_setting="--grpc_port",
    command=("{python}", "{here}/sklearnserver"),
    args=(
        "--model_name={model_name}",
        "--model_dir={model_dir}",
        "--http_port={http_port}",
        "--grpc_port={grpc_port}",  # the cluster leaves this one at the SDK's default
    ),
)

DEFAULT_RUNTIME: Final = _MLSERVER.name
RUNTIMES: Final[Mapping[str, Runtime]] = MappingProxyType(
    {runtime.name: runtime for runtime in (_MLSERVER, _SKLEARNSERVER)}
)
