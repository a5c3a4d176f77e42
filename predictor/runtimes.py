"""The table of stock runtimes: each image's versions, and how its ClusterServingRuntime starts it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

HERE = Path(__file__).resolve().parent
#: A connection is verified with named columns; its other calls are plain arrays, and scikit-learn warns about
#: each of them. The filter hides only this warning: columns with wrong names are still an error.
QUIET_ENV: Mapping[str, str] = MappingProxyType(
    {"PYTHONWARNINGS": "ignore:X does not have valid feature names:UserWarning"}
)

#: Directory where a cluster mounts the model; in arguments and variables it stands for the model directory.
MODEL_MOUNT = "/mnt/models"


class UnknownRuntimeError(ValueError):
    """The name is not that of a supported stock runtime."""

    def __init__(self, name: str) -> None:
        super().__init__(f"unknown runtime {name!r}; supported: {', '.join(RUNTIMES)}")


class LaunchError(ValueError):
    """The arguments or variables given to a runtime are invalid."""


@dataclass(frozen=True, slots=True)
class Launch:
    """The command to start on this machine, and the ports and the name that result from all settings."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    model_name: str
    http_port: int
    grpc_port: int


@dataclass(frozen=True, slots=True)
class Runtime:
    """One ClusterServingRuntime of KServe v0.20 that serves scikit-learn models.

    In `command`, `args`, `env` and `local_env`, names in braces stand for parameters of `launch`.

    Attributes
    ----------
    version
        Tag of the image: `runtimeVersion` in an InferenceService.
    protocols
        Supported protocols, by the names of `--predictor_protocol`.
    python, scikit_learn, numpy, joblib
        Versions in the image. Fit models with the same version of scikit-learn.
    probability_output
        V2 output with the probabilities, one column per class.
    readiness_path
        Path that answers 200 once the model is loaded.
    model_name_setting, http_port_setting, grpc_port_setting
        Argument or variable that sets the value.
    command
        Command of the image.
    environment
        Name of the environment that replaces the image on this machine. Images with the same packages share
        one.
    local_env
        Variables that are needed only on a machine that is shared with other processes.
    probability_env
        Variables that `predictor.model.env` must set to get probabilities.
    tuned_env, tuned_args
        Variables and arguments that `predictor.model` sets for speed.
    args_replace_command
        True if `predictor.model.args` replace the image's command, because the image has no entry point.
    """

    name: str
    image: str
    version: str
    protocols: tuple[str, ...]
    python: str
    scikit_learn: str
    numpy: str
    joblib: str
    probability_output: str
    readiness_path: str
    model_name_setting: str
    http_port_setting: str
    grpc_port_setting: str
    command: tuple[str, ...]
    environment: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    local_env: Mapping[str, str] = field(default_factory=dict)
    probability_env: Mapping[str, str] = field(default_factory=dict)
    tuned_env: Mapping[str, str] = field(default_factory=dict)
    tuned_args: tuple[str, ...] = ()
    args_replace_command: bool = False

    @property
    def spec_env(self) -> Mapping[str, str]:
        """Variables that `predictor.model.env` sets in our specs, whatever the deployment."""
        return {**self.probability_env, **self.tuned_env, **QUIET_ENV}

    @property
    def lock(self) -> Path:
        """Lock file of the environment that replaces the image on this machine."""
        return HERE / "environments" / f"{self.environment}.txt"

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
        """Return the command that KServe's controller would start, adapted to this machine.

        Parameters
        ----------
        python
            Interpreter of the runtime's environment (`environment.ensure`).
        model_name, model_dir
            Name of the InferenceService, and directory with one model file.
        http_port, grpc_port, metrics_port
            Ports to listen on. Only MLServer uses the metrics port; its default is a fixed port.
        args, env
            `predictor.model.args` and `.env` of the InferenceService. They override the runtime's own, as in
            a cluster: arguments are appended, variables replaced. ``/mnt/models`` in them becomes
            `model_dir`.

        Raises
        ------
        LaunchError
            If `args` or `env` are invalid: a port out of range, or arguments to MLServer that are not a
            command.
        """
        values = {
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
        variables = _fill_templates({**self.env, **self.local_env}, values) | given_env
        if self.args_replace_command and given_args:
            argv = self._command_of(given_args, python)
        else:
            argv = tuple(part.format(**values) for part in (*self.command, *self.args)) + given_args
        return Launch(
            argv=argv,
            env=MappingProxyType(variables),
            model_name=_setting(self.model_name_setting, argv, variables),
            http_port=_port(self.http_port_setting, argv, variables),
            grpc_port=_port(self.grpc_port_setting, argv, variables),
        )

    def container_settings(self, model_name: str) -> tuple[tuple[str, ...], Mapping[str, str]]:
        """Return the arguments and variables of the ClusterServingRuntime's container."""
        ports = {"http_port": "8080", "grpc_port": "9000"}
        values = {"model_name": model_name, "model_dir": MODEL_MOUNT, **ports}
        args = (part.format(**values) for part in self.args if part not in _LOCAL_ARGS)
        return tuple(args), _fill_templates(self.env, values)

    def _command_of(self, args: tuple[str, ...], python: Path) -> tuple[str, ...]:
        if args[0].startswith("-"):
            raise LaunchError(
                f"{self.name}: model.args replace the image's command, so {args[0]!r} would be run as a "
                f"program; use model.env instead (for example {self.http_port_setting})"
            )
        return (str(python.parent / args[0]), *args[1:])


def get_runtime(name: str) -> Runtime:
    """Return the stock runtime with this name.

    Raises
    ------
    UnknownRuntimeError
        If the name is unknown; the message lists the supported ones.
    """
    try:
        return RUNTIMES[name]
    except KeyError:
        raise UnknownRuntimeError(name) from None


def _fill_templates(templates: Mapping[str, str], values: Mapping[str, str | None]) -> dict[str, str]:
    """Fill in templates, and omit those whose value is None."""
    unknown = [f"{{{name}}}" for name, value in values.items() if value is None]
    return {
        name: template.format(**values)
        for name, template in templates.items()
        if not any(placeholder in template for placeholder in unknown)
    }


def _setting(name: str, argv: Sequence[str], env: Mapping[str, str]) -> str:
    """Return the value of a setting: the last argument of that name, or the variable."""
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
        raise LaunchError(f"{name} must be a port from 1 to 65535, got {value!r}")
    return int(value)


_MLSERVER = Runtime(
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
    environment="kserve-mlserver",
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
    # No worker process. Processor time of a call with the tutorial's forest in its serving form, calls
    # alternating between servers: 1 row 3.3 instead of 4.8 ms, 64 rows 6.5 instead of 8.5 ms; memory 250
    # instead of 455 MB. A model's error then has no reason; transformer/upstream/verification.py needs none.
    # Without gzip, metrics, warnings or the check for finite values, or with one OpenMP thread: the same
    # within 10 %, the noise of the measurement.
    tuned_env={"MLSERVER_DEBUG": "false", "MLSERVER_PARALLEL_WORKERS": "0"},
)

#: Arguments on this machine only; in a cluster, the server keeps the SDK's default.
_LOCAL_ARGS = ("--grpc_port={grpc_port}",)

_SKLEARNSERVER = Runtime(
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
    # No line per request for access and latency; errors are still logged. Processor time of a call, measured
    # as above: 1 row 2.7 instead of 3.0 ms, 64 rows 6.2 instead of 6.8 ms.
    tuned_args=("--configure_logging=false",),
    readiness_path="/v1/models/{model_name}",
    model_name_setting="--model_name",
    http_port_setting="--http_port",
    grpc_port_setting="--grpc_port",
    command=("{python}", "{here}/sklearnserver"),
    environment="kserve-sklearnserver",
    args=(
        "--model_name={model_name}",
        "--model_dir={model_dir}",
        "--http_port={http_port}",
        *_LOCAL_ARGS,
    ),
)

# One image for three frameworks. For scikit-learn it calls sklearnserver's model class, and its packages are
# sklearnserver's (scikit-learn ~=1.5.1), LightGBM and XGBoost, resolved when the image was built.
_PREDICTIVESERVER = replace(
    _SKLEARNSERVER,
    name="kserve-predictiveserver",
    image="kserve/predictiveserver",
    args=(*_SKLEARNSERVER.args, "--framework=sklearn", "--nthread=1"),
)

DEFAULT_RUNTIME = _MLSERVER.name
RUNTIMES: Mapping[str, Runtime] = MappingProxyType(
    {runtime.name: runtime for runtime in (_MLSERVER, _SKLEARNSERVER, _PREDICTIVESERVER)}
)
