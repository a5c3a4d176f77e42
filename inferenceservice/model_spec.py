"""The InferenceService of any model: the project's own spec, with the name and the URI of another bundle."""

import dataclasses
import json
import re
from pathlib import Path

from inferenceservice import spec
from inferenceservice.spec import InferenceService, SpecError
from storage import bundles
from storage.errors import StorageError
from storage.uris import serving_uri

#: The project's own spec. It is a part of the package, so that it is there outside a checkout, too.
TEMPLATE = Path(__file__).with_name("base") / "placement.yaml"
#: The same file, as it is in a checkout; there it may be edited.
CHECKOUT_SPEC = Path("inferenceservice/placement.yaml")
#: Kubernetes' rule for the name of an InferenceService, whose Services are named after it.
_DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,40}[a-z0-9])?")
_PLAIN_SCALAR = re.compile(r"[A-Za-z0-9/][-A-Za-z0-9:/._]*")


def service_name(model_name: str) -> str:
    """Return the name of the InferenceService for a model: ``customer-churn`` for ``Customer_churn``.

    Raises
    ------
    SpecError
        If Kubernetes allows no such name.
    """
    name = model_name.lower().replace("_", "-")
    if not _DNS_LABEL.fullmatch(name):
        raise SpecError(
            f"name {model_name!r}: an InferenceService's name must have at most 42 letters, digits and -, "
            "begin with a letter and end with a letter or digit; name another one with --name"
        )
    return name


def find_service(file: Path | None, model: str | None) -> InferenceService:
    """Return the InferenceService to run on this machine.

    Parameters
    ----------
    file
        Its spec. By default it is the project's own spec.
    model
        URI of the bundle to serve. Without `file`, the service has the name of its model. If that is not the
        name in the project's own spec, the service has this URI, too.

    Raises
    ------
    SpecError, storage.errors.StorageError, transformer.bundle.format.BundleError
        If the spec or the bundle cannot be read.
    """
    if file is not None or model is None:
        return spec.read(file or CHECKOUT_SPEC)
    service = spec.read(CHECKOUT_SPEC if CHECKOUT_SPEC.exists() else TEMPLATE)
    name = service_name(bundles.read_bundle(model).name)
    return service if name == service.name else dataclasses.replace(service, name=name, storage_uri=model)


def spec_text(uri: str, name: str) -> str:
    """Return the YAML of a model's InferenceService.

    Parameters
    ----------
    uri
        URI of the bundle for a cluster, see `cluster_uri`.
    name
        Name of the InferenceService.
    """
    _, _, text = TEMPLATE.read_text().partition("apiVersion:")
    for old, new in (
        ("\n  name: placement\n", f"\n  name: {name}\n"),
        ("&bundle pvc://models/placement/v1\n", f"&bundle {_scalar(uri)}\n"),
        ("/v2/models/placement/ready", f"/v2/models/{name}/ready"),
    ):
        text = text.replace(old, new)
    header = [
        f"# The InferenceService of {uri}: raw fields in, predictions out. Needs KServe v0.20.",
        f"# Clients call /v1/models/{name}:predict or /v2/models/{name}/infer.",
        "# To serve a new version, change the one URI below (&bundle) and apply again.",
    ]
    if uri.startswith("pvc://"):
        claim, _, path = uri.removeprefix("pvc://").partition("/")
        header.append(f"# The PersistentVolumeClaim {claim} must contain {path}.")
    elif uri.startswith("s3://"):
        header.append("# Add the service account with the bucket's keys: see inferenceservice/overlays/s3.")
    return "\n".join([*header, f"apiVersion:{text}"])


def cluster_uri(uri: str) -> str:
    """Return the URI of a bundle for a cluster: ``pvc://models/churn/v1`` for the path ``models/churn/v1``.

    Raises
    ------
    SpecError
        If it is a path that is not below a claim's directory, which no cluster can read.
    """
    uri = uri.rstrip("/")
    if "://" in uri and not uri.startswith("file://"):
        return serving_uri(uri)
    path = Path(uri)
    if "://" in uri or path.is_absolute() or ".." in path.parts or len(path.parts) < 2:
        raise SpecError(
            f"{uri}: a cluster cannot read this path; copy the version to a PersistentVolumeClaim or a "
            "bucket, and name its URI there: pvc://CLAIM/PATH or s3://BUCKET/PATH"
        )
    return f"pvc://{path.as_posix()}"


def model_name(uri: str) -> str:
    """Return the name of the model in a bundle.

    Raises
    ------
    SpecError
        If the bundle cannot be read here.
    """
    try:
        return bundles.read_bundle(uri).name
    except StorageError as error:
        raise SpecError(f"{error}, or name the model with --name") from error


def _scalar(uri: str) -> str:
    return uri if _PLAIN_SCALAR.fullmatch(uri) else json.dumps(uri)
