"""Parser of an InferenceService's spec: the fields that decide which processes run and how they connect."""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storage.uris import serving_uri, unsupported_scheme
from transformer.bundle.plain_errors import first_problem
from transformer.bundle.regular_file import read_text

#: Name that KServe gives to the transformer's container inside the predictor's pod (collocation).
COLLOCATED_CONTAINER = "transformer-container"
#: Runtime that KServe chooses for a scikit-learn model without one, by protocol.
_DEFAULT_RUNTIMES = {"v1": "kserve-sklearnserver"}
_OTHER_FRAMEWORKS = (
    "huggingface",
    "lightgbm",
    "onnx",
    "paddle",
    "pmml",
    "pytorch",
    "tensorflow",
    "triton",
    "xgboost",
)
_MAX_BYTES = 10**6
_KUSTOMIZE_TIMEOUT_S = 120


class SpecError(Exception):
    """A spec that cannot be run on this machine; the message names the field and the expected value."""


class _Part(BaseModel):
    # Unknown fields are allowed: KServe's API server checks the full schema.
    model_config = ConfigDict(extra="ignore", strict=True)


class _Variable(_Part):
    name: str
    value: str | None = None
    valueFrom: dict[str, Any] | None = None  # noqa: N815 (Kubernetes' own name)


class _Container(_Part):
    name: str = ""
    args: list[str] = Field(default_factory=list)
    env: list[_Variable] = Field(default_factory=list)


class _Format(_Part):
    name: str


class _Storage(_Part):
    key: str = ""
    path: str = ""


class _PredictorModel(_Part):
    modelFormat: _Format  # noqa: N815
    runtime: str | None = None
    runtimeVersion: str | None = None  # noqa: N815
    protocolVersion: str = "v1"  # noqa: N815
    storageUri: str | None = None  # noqa: N815
    storage: _Storage | None = None
    args: list[str] = Field(default_factory=list)
    env: list[_Variable] = Field(default_factory=list)


class _Predictor(_Part):
    model: _PredictorModel
    containers: list[_Container] = Field(default_factory=list)


class _Transformer(_Part):
    containers: list[_Container] = Field(min_length=1)


class _Spec(_Part):
    predictor: _Predictor
    transformer: _Transformer | None = None

    @property
    def transformer_container(self) -> _Container | None:
        """The transformer's container: the component's first, or the one in the predictor's pod."""
        if self.transformer is not None:
            return self.transformer.containers[0]
        return next((one for one in self.predictor.containers if one.name == COLLOCATED_CONTAINER), None)


class _Metadata(_Part):
    name: str
    namespace: str = "default"


class _Document(_Part):
    metadata: _Metadata
    spec: _Spec


@dataclass(frozen=True, slots=True)
class InferenceService:
    """Fields of an InferenceService that decide how its processes run.

    Attributes
    ----------
    name, namespace
        From the metadata.
    runtime, runtime_version
        The predictor's ClusterServingRuntime; without a version, the runtime's default.
    storage_uri
        URI of the bundle.
    predictor_args, predictor_env
        Arguments and variables of the model server.
    transformer_args, transformer_env
        Arguments and variables of the transformer's container, including `STORAGE_URI`.
    collocated
        True if both components run in one pod.
    """

    name: str
    namespace: str
    runtime: str
    runtime_version: str | None
    storage_uri: str
    predictor_args: tuple[str, ...]
    predictor_env: Mapping[str, str]
    transformer_args: tuple[str, ...]
    transformer_env: Mapping[str, str]
    collocated: bool


def read(path: str | Path) -> InferenceService:
    """Read the one InferenceService of a YAML file, or of a kustomize directory.

    Raises
    ------
    SpecError
        If it cannot be read, does not hold exactly one, or lacks a required field.
    """
    return service_of(documents(path), path)


def service_of(objects: Sequence[Mapping[str, Any]], path: str | Path) -> InferenceService:
    """Return the one InferenceService of a spec's objects.

    Parameters
    ----------
    path
        Source of the objects, for errors.

    Raises
    ------
    SpecError
        If they do not hold exactly one, or it lacks a required field.
    """
    found = [one for one in objects if one.get("kind") == "InferenceService"]
    if len(found) != 1:
        kinds = ", ".join(str(one.get("kind")) for one in objects) if objects and not found else ""
        raise SpecError(f"{path}: must hold one InferenceService, got {kinds or len(found)}")
    try:
        document = _Document.model_validate(_with_model(found[0], path))
    except ValidationError as error:
        raise SpecError(f"{path}: {first_problem(error)}") from error
    return _service(document, path)


def documents(path: str | Path) -> list[dict[str, Any]]:
    """Return all objects of a YAML file, or of a kustomize directory.

    Raises
    ------
    SpecError
        If it cannot be read.
    """
    path = Path(path)
    try:
        text = _kustomized(path) if path.is_dir() else read_text(path, _MAX_BYTES)
        return [document for document in yaml.safe_load_all(text) if isinstance(document, dict)]
    except OSError as error:
        raise SpecError(
            f"{path}: {error.strerror}; name a spec with -f or a bundle with --model, or run the command in "
            "the checkout"
        ) from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: is not UTF-8: invalid byte at position {error.start}") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error


def _kustomized(path: Path) -> str:
    # Without --server kubectl queries localhost:8080, the default port of our own ingress, for a schema.
    command = ["kubectl", "--server=http://127.0.0.1:1", "kustomize", str(path)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_KUSTOMIZE_TIMEOUT_S
        )
    except FileNotFoundError as error:
        raise SpecError(
            f"{path}: is a kustomize directory and needs kubectl, which is not installed; install it, or "
            "name a YAML file"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SpecError(
            f"{path}: kubectl kustomize did not end within {_KUSTOMIZE_TIMEOUT_S} s; check its resources"
        ) from error
    if done.returncode:
        raise SpecError(f"{path}: kubectl kustomize: {done.stderr.strip()}")
    return done.stdout


def _with_model(content: Mapping[str, Any], path: str | Path) -> Mapping[str, Any]:
    """Return an InferenceService with ``predictor.model`` in place of ``predictor.sklearn``, as in KServe."""
    spec: Any = content.get("spec")
    predictor: Any = spec.get("predictor") if isinstance(spec, dict) else None
    if not isinstance(predictor, dict) or "model" in predictor:
        return content
    other = next((name for name in _OTHER_FRAMEWORKS if name in predictor), None)
    if other is not None:
        raise SpecError(f"{path}: spec.predictor: must have model or sklearn, got {other}")
    if not isinstance(predictor.get("sklearn"), dict):
        return content
    model = {"modelFormat": {"name": "sklearn"}, **predictor["sklearn"]}
    return {**content, "spec": {**spec, "predictor": {**predictor, "model": model}}}


def _missing(document: _Document) -> Iterator[str]:
    """Yield each problem of a spec that KServe accepts, but that cannot serve raw fields."""
    model, transformer = document.spec.predictor.model, document.spec.transformer
    container = document.spec.transformer_container
    name = "spec.predictor.model"
    if model.storageUri is None and model.storage is not None:
        yield (
            f"{name}.storage: key {model.storage.key!r} is in a Secret of the cluster; set "
            f"{name}.storageUri, for example s3://BUCKET/{model.storage.path.strip('/')}"
        )
    elif not model.storageUri:
        yield f"{name}.storageUri: is required"
    if container is None:
        yield (
            f"spec.transformer: is required, or {COLLOCATED_CONTAINER} in the predictor's pod: it makes the "
            "numbers that the model server takes of raw fields; `placement spec --model URI` prints a whole "
            "spec"
        )
    elif transformer is not None and model.storageUri:
        own = _environment(container.env).get("STORAGE_URI")
        if serving_uri(own or "") != serving_uri(model.storageUri):
            yield (
                "spec.transformer.containers[0].env: STORAGE_URI must be the predictor's storageUri, "
                f"{model.storageUri}, got {own}"
            )


def _service(document: _Document, path: str | Path) -> InferenceService:
    predictor, transformer = document.spec.predictor, document.spec.transformer
    model = predictor.model
    if (model_format := model.modelFormat.name) != "sklearn":
        raise SpecError(f"{path}: spec.predictor.model.modelFormat.name: must be sklearn, got {model_format}")
    uri = model.storageUri or ""
    problems = [*_missing(document)]
    if problems and (unreadable := unsupported_scheme(uri)):
        problems.insert(0, f"spec.predictor.model.storageUri: {unreadable}")
    if problems:
        raise SpecError("\n".join(f"{path}: {problem}" for problem in problems))
    container = document.spec.transformer_container
    assert container is not None  # noqa: S101 (see _missing)
    return InferenceService(
        name=document.metadata.name,
        namespace=document.metadata.namespace,
        runtime=model.runtime or _DEFAULT_RUNTIMES.get(model.protocolVersion, "kserve-mlserver"),
        runtime_version=model.runtimeVersion,
        storage_uri=uri,
        predictor_args=tuple(model.args),
        predictor_env=_environment(model.env),
        transformer_args=tuple(container.args),
        transformer_env=_environment(container.env),
        collocated=transformer is None,
    )


def _environment(variables: list[_Variable]) -> dict[str, str]:
    """Return the variables with a literal value; those from Secrets and the like need a cluster."""
    return {variable.name: variable.value or "" for variable in variables if variable.valueFrom is None}


def argument(arguments: tuple[str, ...], name: str) -> str | None:
    """Return the value of the last ``--name value`` or ``--name=value``, as argparse reads it, or None."""
    found = None
    for position, text in enumerate(arguments):
        if text == name and position + 1 < len(arguments):
            found = arguments[position + 1]
        elif text.startswith(f"{name}="):
            found = text.removeprefix(f"{name}=")
    return found


def without(arguments: tuple[str, ...], *names: str) -> tuple[str, ...]:
    """Return the arguments without every ``--name value`` and ``--name=value`` of these names."""
    kept = []
    value_follows = False
    for text in arguments:
        name, equals, _ = text.partition("=")
        if value_follows:
            value_follows = False
        elif name in names:
            value_follows = not equals
        else:
            kept.append(text)
    return tuple(kept)
