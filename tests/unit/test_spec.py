"""A spec is read as it is, or refused with the file and the field that are wrong."""

import copy
import os
import re
from pathlib import Path

import pytest
import yaml

from inferenceservice.local.launch import predictor_protocol, runtime_of
from inferenceservice.spec import SpecError, argument, read

SPEC = Path("inferenceservice/placement.yaml")
PREDICTOR = ("spec", "predictor", "model")
CONTAINER = ("spec", "transformer", "containers", 0)
REMOVED = object()


def changed(document, path, value):
    """Return a copy of the document with one value set or removed."""
    document = copy.deepcopy(document)
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    if value is REMOVED:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return document


@pytest.fixture
def document():
    return yaml.safe_load(SPEC.read_text())


@pytest.fixture
def written(tmp_path):
    """Write documents (or text) as a spec's file."""

    def write(*documents):
        path = tmp_path / "service.yaml"
        path.write_text("---\n".join(d if isinstance(d, str) else yaml.safe_dump(d) for d in documents))
        return path

    return write


def test_the_projects_own_spec_is_read_in_full():
    service = read(SPEC)
    assert (service.name, service.namespace, service.collocated) == ("placement", "default", False)
    assert (service.runtime, service.runtime_version) == ("kserve-mlserver", "1.7.1")
    assert service.storage_uri == service.transformer_env["STORAGE_URI"] == "pvc://models/placement/v1"
    assert all(name.startswith(("MLSERVER_", "PYTHONWARNINGS")) for name in service.predictor_env)
    assert predictor_protocol(service) == "v2"
    assert runtime_of(service).name == "kserve-mlserver"


def test_documents_of_other_kinds_are_ignored(document, written):
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3"}}
    assert read(written(secret, document, secret)).name == "placement"


def test_variables_from_secrets_are_ignored(document, written):
    from_secret = {"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": {"secretKeyRef": {"name": "s3", "key": "k"}}}
    env = [*document["spec"]["predictor"]["model"]["env"], from_secret, {"name": "EMPTY"}]
    service = read(written(changed(document, (*PREDICTOR, "env"), env)))
    assert "AWS_SECRET_ACCESS_KEY" not in service.predictor_env
    assert service.predictor_env["EMPTY"] == ""


def test_a_transformer_in_the_predictors_pod_is_collocated(document, written):
    container = {
        **document["spec"]["transformer"]["containers"][0],
        "name": "transformer-container",
        "env": [],
    }
    del document["spec"]["transformer"]
    document["spec"]["predictor"]["containers"] = [{"name": "sidecar"}, container]
    service = read(written(document))
    assert service.collocated
    assert service.transformer_args == tuple(container["args"])


BROKEN = [
    pytest.param(
        (*PREDICTOR, "storageUri"),
        REMOVED,
        "spec.predictor.model.storageUri: is required",
        id="storage-uri",
    ),
    pytest.param((*PREDICTOR, "storageUri"), 1, "spec.predictor.model.storageUri: ", id="storage-uri-number"),
    pytest.param((*PREDICTOR, "runtimeVersion"), 1.7, "spec.predictor.model.runtimeVersion: ", id="unquoted"),
    pytest.param(
        (*PREDICTOR, "modelFormat", "name"),
        "xgboost",
        "spec.predictor.model.modelFormat.name: must be sklearn",
        id="format",
    ),
    pytest.param(("spec", "predictor"), REMOVED, "spec.predictor: is required", id="no-predictor"),
    pytest.param(
        ("spec", "transformer"),
        REMOVED,
        "spec.transformer: is required, or transformer-container in the predictor's pod",
        id="no-transformer",
    ),
    pytest.param(
        ("spec", "transformer", "containers"), [], "spec.transformer.containers: ", id="no-container"
    ),
    pytest.param((*CONTAINER, "args"), "--a", "spec.transformer.containers[0].args: ", id="args-no-list"),
    pytest.param((*CONTAINER, "args"), [8080], "spec.transformer.containers[0].args[0]: ", id="args-number"),
    pytest.param(
        (*CONTAINER, "env", 0, "value"),
        "pvc://models/placement/v2",
        "STORAGE_URI must be the predictor's storageUri, pvc://models/placement/v1, "
        "got pvc://models/placement/v2",
        id="two-versions",
    ),
    pytest.param((*CONTAINER, "env"), [], "STORAGE_URI must be the predictor's storageUri", id="no-version"),
    pytest.param(("metadata", "name"), REMOVED, "metadata.name: is required", id="no-name"),
    pytest.param(
        ("kind",), "Deployment", "must hold one InferenceService, got Deployment", id="another-kind"
    ),
]


@pytest.mark.parametrize(("path", "value", "error"), BROKEN)
def test_a_broken_spec_is_refused_with_its_file_and_field(path, value, error, document, written):
    file = written(changed(document, path, value))
    with pytest.raises(SpecError) as raised:
        read(file)
    assert str(raised.value).startswith(f"{file}: ")
    assert error in str(raised.value)
    assert "\n" not in str(raised.value)


DOCUMENTED_URI = "gs://kfserving-examples/models/sklearn/1.0/model"


def documented(**predictor):
    """Return a spec as KServe's documentation shows them: without a transformer."""
    head = {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService"}
    return {**head, "metadata": {"name": "sklearn-iris"}, "spec": {"predictor": predictor}}


@pytest.mark.parametrize(
    "predictor",
    [
        {"sklearn": {"storageUri": DOCUMENTED_URI}},
        {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": DOCUMENTED_URI}},
        {
            "minReplicas": 1,
            "model": {
                "modelFormat": {"name": "sklearn"},
                "protocolVersion": "v2",
                "runtime": "kserve-sklearnserver",
                "storageUri": DOCUMENTED_URI,
                "resources": {"requests": {"cpu": "1"}},
            },
        },
    ],
)
@pytest.mark.parametrize("scheme", ["gs", "hf", "oci", "https"])
def test_a_spec_of_kserves_documentation_is_told_all_that_it_lacks(predictor, scheme, written):
    name = "model" if "model" in predictor else "sklearn"
    predictor[name]["storageUri"] = uri = f"{scheme}://examples/sklearn/model"
    file = written(documented(**predictor))
    with pytest.raises(SpecError) as raised:
        read(file)
    storage, transformer = str(raised.value).splitlines()
    assert storage == (
        f"{file}: spec.predictor.model.storageUri: {uri}: scheme {scheme!r} is not supported, expected a "
        "path, file, pvc or s3; copy the bundle there, or name one with --model"
    )
    assert transformer.startswith(f"{file}: spec.transformer: is required, or transformer-container in")


def test_a_storage_key_of_a_cluster_is_named(written):
    storage = {"key": "localMinIO", "path": "sklearn/v1"}
    file = written(documented(model={"modelFormat": {"name": "sklearn"}, "storage": storage}))
    with pytest.raises(SpecError) as raised:
        read(file)
    assert str(raised.value).splitlines()[0] == (
        f"{file}: spec.predictor.model.storage: key 'localMinIO' is in a Secret of the cluster; set "
        "spec.predictor.model.storageUri, for example s3://BUCKET/sklearn/v1"
    )


def test_another_framework_is_named(written):
    with pytest.raises(SpecError, match=r"spec\.predictor: must have model or sklearn, got xgboost"):
        read(written(documented(xgboost={"storageUri": DOCUMENTED_URI})))


@pytest.mark.parametrize(
    ("protocol", "runtime"),
    [(None, "kserve-sklearnserver"), ("v1", "kserve-sklearnserver"), ("v2", "kserve-mlserver")],
)
def test_a_spec_without_a_runtime_gets_kserves_default(protocol, runtime, document, written):
    model = document["spec"]["predictor"].pop("model")
    sklearn = {"storageUri": model["storageUri"]} | ({"protocolVersion": protocol} if protocol else {})
    document["spec"]["predictor"]["sklearn"] = sklearn
    service = read(written(document))
    assert (service.runtime, service.runtime_version) == (runtime, None)
    if runtime == "kserve-mlserver":
        assert runtime_of(service).name == runtime
    else:
        with pytest.raises(SpecError, match=r"spec\.predictor\.model\.env: PREDICT_PROBA must be 'true'"):
            runtime_of(service)


def test_uris_that_differ_only_by_a_final_slash_are_one_version(document, written):
    for own, other in (("pvc://models/v1", "pvc://models/v1/"), ("s3://models/v1/", "s3://models/v1")):
        changed_uri = changed(document, (*PREDICTOR, "storageUri"), own)
        assert read(written(changed(changed_uri, (*CONTAINER, "env", 0, "value"), other))).storage_uri == own


def test_a_file_of_several_services_is_refused(document, written):
    file = written(document, document)
    with pytest.raises(SpecError, match=re.escape(f"{file}: must hold one InferenceService, got 2")):
        read(file)


@pytest.mark.parametrize("text", ["", "- 1", "just words", "null"])
def test_a_file_without_a_service_is_refused(text, written):
    with pytest.raises(SpecError, match="must hold one InferenceService, got 0"):
        read(written(text))


@pytest.mark.parametrize("text", ["a: [", "a: b: c", "\tkind: x", "\0"])
def test_a_file_that_is_not_yaml_is_refused_in_one_line(text, written):
    with pytest.raises(SpecError, match=r"service\.yaml: is not YAML: ") as raised:
        read(written(text))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_text_is_refused_in_one_line(tmp_path):
    file = tmp_path / "service.yaml"
    file.write_bytes(b"kind: \xff\xfe")
    with pytest.raises(SpecError, match=r"service\.yaml: is not ") as raised:
        read(file)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SpecError, match=r"missing\.yaml: No such file or directory"):
        read(tmp_path / "missing.yaml")


def test_a_kustomize_directory_is_rendered_without_asking_a_cluster(tmp_path, monkeypatch):
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\ncat {SPEC.resolve()}\n')
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert read("inferenceservice/overlays/collocated").name == "placement"
    arguments = (tmp_path / "arguments").read_text().split()
    assert arguments == ["--server=http://127.0.0.1:1", "kustomize", "inferenceservice/overlays/collocated"]


def test_a_rendering_error_is_reported_in_kubectls_words(tmp_path, monkeypatch):
    kubectl = tmp_path / "kubectl"
    kubectl.write_text("#!/bin/sh\necho error: no such patch >&2\nexit 1\n")
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(SpecError, match=r"collocated: kubectl kustomize: error: no such patch$"):
        read("inferenceservice/overlays/collocated")


def test_a_rendering_that_does_not_end_is_given_up(tmp_path, monkeypatch):
    kubectl = tmp_path / "kubectl"
    kubectl.write_text("#!/bin/sh\nexec sleep 1000\n")
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("inferenceservice.spec._KUSTOMIZE_TIMEOUT_S", 0.2)
    with pytest.raises(SpecError, match=r"collocated: kubectl kustomize did not end within 0\.2 s"):
        read("inferenceservice/overlays/collocated")


def test_a_fifo_and_a_large_file_are_no_specs(tmp_path):
    os.mkfifo(tmp_path / "fifo.yaml")
    with pytest.raises(SpecError, match=r"fifo\.yaml: must be a regular file, got a FIFO"):
        read(tmp_path / "fifo.yaml")
    (tmp_path / "large.yaml").touch()
    os.truncate(tmp_path / "large.yaml", 10**9)
    with pytest.raises(SpecError, match=r"large\.yaml: is too large: limit 1000000 bytes"):
        read(tmp_path / "large.yaml")


def test_a_kustomize_directory_needs_kubectl_and_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SpecError, match="kubectl, which is not installed"):
        read("inferenceservice/overlays/collocated")


UNRUNNABLE = [
    pytest.param((*PREDICTOR, "runtime"), "triton", "spec.predictor.model.runtime: unknown", id="runtime"),
    pytest.param(
        (*PREDICTOR, "runtimeVersion"),
        "1.5.0",
        "spec.predictor.model.runtimeVersion: must be 1.7.1, the only version of kserve-mlserver that "
        "runs on this machine, got 1.5.0",
        id="version",
    ),
    pytest.param(
        (*CONTAINER, "args"),
        ["--predictor_protocol=v1"],
        "--predictor_protocol: must be one of v2, grpc-v2 for kserve-mlserver, got v1",
        id="protocol",
    ),
    pytest.param((*CONTAINER, "args"), [], "--predictor_protocol: must be one of v2, ", id="kserves-default"),
]


@pytest.mark.parametrize(("path", "value", "error"), UNRUNNABLE)
def test_a_runtime_that_cannot_be_run_here_is_refused_with_its_field(path, value, error, document, written):
    service = read(written(changed(document, path, value)))
    with pytest.raises(SpecError, match=re.escape(error)):
        runtime_of(service)


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ((), None),
        (("--port=1",), "1"),
        (("--port", "1"), "1"),
        (("--port=1", "--port", "2"), "2"),
        (("--port", "1", "--port=2"), "2"),
        (("--port=a=b",), "a=b"),
        (("--port=",), ""),
        (("--port",), None),
        (("--ports=1", "--no-port=2"), None),
        (("--name", "--port=1"), "1"),
    ],
    ids=str,
)
def test_arguments_are_parsed_as_by_argparse(arguments, value):
    assert argument(arguments, "--port") == value
