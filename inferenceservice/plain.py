"""Deployments and Services that serve an InferenceService's spec in a cluster without KServe.

They have the names, labels, arguments, variables and probes of those that KServe's controller makes in
Standard mode. An init container copies the bundle into each pod, from a claim or from S3.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from inferenceservice.cluster.workloads import SOURCE_URI
from inferenceservice.spec import COLLOCATED_CONTAINER, SpecError, argument
from predictor.runtimes import MODEL_MOUNT, UnknownRuntimeError, get_runtime

Json = dict[str, Any]

#: Downloads a bundle from S3; the image that KServe uses.
STORAGE_INITIALIZER = "kserve/storage-initializer:v0.20.0"
#: Name of the init container whose first argument is the bundle's source.
INITIALIZER = "storage-initializer"
#: Directory where the init container mounts a claim.
_CLAIM_MOUNT = "/mnt/pvc"
_CONTAINER = "kserve-container"
_S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_MODE = "serving.kserve.io/deploymentMode"
_INITIALIZER_RESOURCES = {
    "requests": {"cpu": "100m", "memory": "100Mi"},
    "limits": {"cpu": "1", "memory": "1Gi"},
}
#: Fields of a component that are not its pod's.
_NOT_THE_PODS = {"model", "containers", "annotations", "minReplicas", "deploymentStrategy"}
#: Fields of a component that only KServe can serve.
_ONLY_KSERVE = ("canaryTrafficPercent", "maxReplicas", "scaleMetric", "scaleTarget")
#: Fields of a model that are not its container's.
_NOT_THE_CONTAINERS = {"modelFormat", "runtime", "runtimeVersion", "protocolVersion", "storageUri"}


def render(documents: Sequence[Json]) -> list[Json]:
    """Return Deployments and Services instead of the InferenceService; other documents stay as they are.

    Parameters
    ----------
    documents
        A spec that `spec.read` accepts, with the objects beside it.

    Raises
    ------
    SpecError
        If a field of the spec needs KServe; the message names it.
    """
    rendered: list[Json] = []
    for document in documents:
        if document["kind"] == "InferenceService":
            rendered += _of_service(document, documents)
        else:
            rendered.append(document)
    return rendered


def claim_of(uri: str) -> str | None:
    """Return the claim of a pvc:// URI, or None for s3://.

    Raises
    ------
    SpecError
        If it is neither.
    """
    scheme, _, path = uri.partition("://")
    if scheme not in ("pvc", "s3"):
        raise SpecError(f"spec.predictor.model.storageUri: must be pvc:// or s3:// without KServe, got {uri}")
    return path.partition("/")[0] if scheme == "pvc" else None


def source_of(uri: str) -> str:
    """Return the first argument of the init container for a bundle."""
    claim = claim_of(uri)
    return uri if claim is None else f"{_CLAIM_MOUNT}/{uri.removeprefix(f'pvc://{claim}/')}/."


def _of_service(isvc: Json, documents: Sequence[Json]) -> Iterator[Json]:
    _require_no_kserve(isvc)
    for component in sorted(isvc["spec"].keys() & {"predictor", "transformer"}):
        yield _deployment(isvc, component, documents)
        yield _service(isvc, component)


def _require_no_kserve(isvc: Json) -> None:
    mode = isvc["metadata"].get("annotations", {}).get(_MODE, "Standard")
    if mode != "Standard":
        raise SpecError(f"metadata.annotations.{_MODE}: must be Standard without KServe, got {mode}")
    for component, part in isvc["spec"].items():
        for field in _ONLY_KSERVE:
            if field in part:
                raise SpecError(f"spec.{component}.{field}: needs KServe; remove it")


def _deployment(isvc: Json, component: str, documents: Sequence[Json]) -> Json:
    part = isvc["spec"][component]
    metadata = _metadata(isvc, component)
    template = _pod(isvc["metadata"]["name"], component, isvc["spec"], documents)
    template["metadata"]["labels"] = metadata["labels"]
    spec = {
        "replicas": part.get("minReplicas", 1),
        "selector": _selector(metadata),
        "template": template,
    }
    if "deploymentStrategy" in part:
        spec["strategy"] = part["deploymentStrategy"]
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}


def _service(isvc: Json, component: str) -> Json:
    metadata = _metadata(isvc, component)
    ports = _service_ports(isvc["spec"][component])
    selector = _selector(metadata)["matchLabels"]
    spec = {"selector": selector, "ports": ports}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def _metadata(isvc: Json, component: str) -> Json:
    """Return namespace, name and labels of a component's objects."""
    name = isvc["metadata"]["name"]
    labels = {
        "app": f"isvc.{name}-{component}",
        "serving.kserve.io/inferenceservice": name,
        "component": component,
    }
    namespace = {key: value for key, value in isvc["metadata"].items() if key == "namespace"}
    return {**namespace, "name": f"{name}-{component}", "labels": labels}


def _selector(metadata: Json) -> Json:
    return {"matchLabels": {"app": metadata["labels"]["app"]}}


def _pod(name: str, component: str, spec: Json, documents: Sequence[Json]) -> Json:
    """Return the pod template of a component, without labels."""
    part = spec[component]
    uri = spec["predictor"]["model"]["storageUri"]
    containers = [dict(one) for one in part.get("containers", ())]
    if component == "transformer":
        containers[0] = _transformer_container(name, containers[0])
    else:
        containers.insert(0, _model_container(name, part["model"]))
    for container in containers:
        if container["name"] in (_CONTAINER, COLLOCATED_CONTAINER):
            container["volumeMounts"] = [
                *container.get("volumeMounts", ()),
                {"name": "bundle", "mountPath": MODEL_MOUNT, "readOnly": True},
            ]
    image = (spec.get("transformer") or spec["predictor"])["containers"][0]["image"]
    initializer, volumes = _initializer(uri, image, documents)
    initializer["securityContext"] = containers[0].get("securityContext", {})
    pod = {field: value for field, value in part.items() if field not in _NOT_THE_PODS}
    pod["volumes"] = [*pod.get("volumes", ()), {"name": "bundle", "emptyDir": {}}, *volumes]
    pod["initContainers"] = [initializer, *part.get("initContainers", ())]
    pod["containers"] = containers
    annotations = {**part.get("annotations", {}), SOURCE_URI: uri}
    return {"metadata": {"annotations": annotations}, "spec": pod}


def _model_container(name: str, model: Json) -> Json:
    try:
        runtime = get_runtime(model["runtime"])
    except UnknownRuntimeError as error:
        raise SpecError(f"spec.predictor.model.runtime: {error}") from error
    args, variables = runtime.container_settings(name)
    of_runtime = [{"name": key, "value": value} for key, value in variables.items()]
    env = {one["name"]: one for one in [*of_runtime, *model.get("env", ())]}
    return {
        **{field: value for field, value in model.items() if field not in _NOT_THE_CONTAINERS},
        "name": _CONTAINER,
        "image": f"{runtime.image}:{model.get('runtimeVersion', runtime.version)}",
        "args": [*args, *model.get("args", ())],
        "env": [*env.values()],
    }


def _transformer_container(name: str, container: Json) -> Json:
    """Add the arguments that KServe's controller adds, and the path of the bundle."""
    args = [*container.get("args", ())]
    added = {"--model_name": name, "--predictor_host": f"{name}-predictor", "--http_port": "8080"}
    args += [f"{key}={value}" for key, value in added.items() if argument(tuple(args), key) is None]
    env = [
        {**one, "value": MODEL_MOUNT} if one["name"] == "STORAGE_URI" else one
        for one in container.get("env", ())
    ]
    return {**container, "name": _CONTAINER, "args": args, "env": env}


def _service_ports(part: Json) -> list[Json]:
    """Return port 80 for REST, and each further port of the transformer's container under its own number."""
    container = part.get("containers", [{}])[0]
    first, *others = container.get("ports") or [{"name": "http", "containerPort": 8080}]
    ports = [{"name": first["name"], "port": 80, "targetPort": first["containerPort"]}]
    return ports + [
        {"name": one["name"], "port": one["containerPort"], "targetPort": one["containerPort"]}
        for one in others
    ]


def _initializer(uri: str, image: str, documents: Sequence[Json]) -> tuple[Json, list[Json]]:
    """Return the init container that copies a bundle to the pod, and the volumes that it needs."""
    container: Json = {
        "name": INITIALIZER,
        "args": [source_of(uri), MODEL_MOUNT],
        "resources": _INITIALIZER_RESOURCES,
        # `placement rollout` and `status` show the last line of its log.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    mounts: list[Json] = [{"name": "bundle", "mountPath": MODEL_MOUNT}]
    if (claim := claim_of(uri)) is not None:
        # Unlike a mounted subPath, a copy fails for a version that does not exist.
        container |= {"image": image, "command": ["cp", "-r"]}
        mounts.append({"name": "claim", "mountPath": _CLAIM_MOUNT, "readOnly": True})
        volumes = [{"name": "claim", "persistentVolumeClaim": {"claimName": claim}}]
    else:
        container |= {"image": STORAGE_INITIALIZER, "env": _s3_variables(documents)}
        volumes = []
    return {**container, "volumeMounts": mounts}, volumes


def _s3_variables(documents: Sequence[Json]) -> list[Json]:
    """Return the variables that KServe's controller makes from the Secret beside the spec."""
    secret = next((one for one in documents if one["kind"] == "Secret"), None)
    if secret is None:
        return []
    annotations: Mapping[str, str] = secret["metadata"].get("annotations", {})

    def setting(name: str, default: str) -> str:
        return annotations.get(f"serving.kserve.io/s3-{name}", default)

    scheme = "http" if setting("usehttps", "1") == "0" else "https"
    variables = {
        "AWS_ENDPOINT_URL": f"{scheme}://{setting('endpoint', 's3.amazonaws.com')}",
        "AWS_DEFAULT_REGION": setting("region", "us-east-1"),
        "S3_VERIFY_SSL": setting("verifyssl", "1"),
        "awsAnonymousCredential": setting("useanoncredential", "false"),
    }
    name = secret["metadata"]["name"]
    keys = ({"name": key, "valueFrom": {"secretKeyRef": {"name": name, "key": key}}} for key in _S3_KEYS)
    return [*keys, *({"name": key, "value": value} for key, value in variables.items())]
