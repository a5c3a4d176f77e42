"""The InferenceService and its overlays: KServe reads every field, and each manifest keeps its promises."""

import copy
import functools
import json
import re
import tomllib
from types import SimpleNamespace

import kserve
import pytest
import yaml
from kubernetes.client import ApiClient
from kubernetes.client import models as kubernetes_models

from predictor.runtimes import get_runtime
from tests.support.async_processes import KNATIVE_ENV
from tests.support.cluster.manifests import (
    BASE,
    EVERY_MANIFEST,
    OPERATOR_KINDS,
    OVERLAY_NAMES,
    OVERLAYS,
    STANDARD_MODE,
    TWO_PODS,
    WITH_MLSERVER,
    Manifest,
    argument,
    components,
    containers,
    documents,
    environment,
    listening_ports,
    pause_seconds,
    rendered,
    service,
    transformer_container,
)
from tests.support.cluster.pod_security import violations
from tests.support.paths import MANIFEST, ROOT

DRAIN_SECONDS = 30  # Seconds that kserve.ModelServer gives running requests after SIGTERM.

RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def in_kserves_words(type_name: str) -> str:
    """Translate a type of the Kubernetes client's models into the notation of KServe's models."""
    if of_list := re.fullmatch(r"List\[(.*)\]", type_name):
        return f"list[{in_kserves_words(of_list[1])}]"
    if of_dict := re.fullmatch(r"Dict\[str, (.*)\]", type_name):
        return f"dict(str, {in_kserves_words(of_dict[1])})"
    return type_name


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch) -> kserve.ApiClient:
    """Return KServe's client with the Kubernetes models that its package lacks."""
    other_names = {"K8sIoApiAppsV1DeploymentStrategy": "V1DeploymentStrategy"}

    def kubernetes_model(name: str) -> type:
        model = getattr(kubernetes_models, other_names.get(name, name))
        types = {field: in_kserves_words(type_name) for field, type_name in model.openapi_types.items()}
        return type(name, (model,), {"openapi_types": types})

    monkeypatch.setattr(kserve.models, "__getattr__", kubernetes_model, raising=False)
    return kserve.ApiClient()


def read_and_write(sdk: kserve.ApiClient, manifest: Manifest) -> Manifest:
    """Parse a manifest with KServe's models and serialize it again; they know only the API's fields."""
    model = "V1beta1InferenceService" if manifest["kind"] == "InferenceService" else f"V1{manifest['kind']}"
    response = SimpleNamespace(data=json.dumps(manifest))
    written: Manifest = sdk.sanitize_for_serialization(sdk.deserialize(response, model))
    if manifest["kind"] == "InferenceService":
        # The SDK adds only an empty name.
        assert written["spec"]["predictor"]["model"].pop("name") == ""
    return written


def test_every_overlay_is_tested() -> None:
    assert sorted(path.parent.name for path in OVERLAYS.glob("*/kustomization.yaml")) == OVERLAY_NAMES


def test_the_overlays_build_on_the_documented_spec() -> None:
    assert MANIFEST.resolve() == (ROOT / "inferenceservice" / "base" / "placement.yaml").resolve()


@pytest.mark.parametrize("name", EVERY_MANIFEST)
def test_kserves_models_know_every_field_of_the_manifest(name: str, sdk: kserve.ApiClient) -> None:
    for manifest in documents(name):
        if manifest["kind"] in OPERATOR_KINDS:
            continue
        assert read_and_write(sdk, manifest) == manifest


@pytest.mark.parametrize(
    "where",
    [
        ("spec",),
        ("spec", "predictor"),
        ("spec", "predictor", "model"),
        ("spec", "predictor", "deploymentStrategy", "rollingUpdate"),
        ("spec", "transformer"),
        ("spec", "transformer", "containers", 0),
        ("spec", "transformer", "containers", 0, "securityContext"),
        ("spec", "predictor", "model", "lifecycle", "preStop"),
    ],
    ids=lambda where: ".".join(map(str, where)),
)
def test_a_misspelt_field_is_found(where: tuple[str | int, ...], sdk: kserve.ApiClient) -> None:
    manifest = copy.deepcopy(service(BASE))
    functools.reduce(lambda inner, key: inner[key], where, manifest)["misspelt"] = "x"  # type: ignore[index]
    assert read_and_write(sdk, manifest) == service(BASE)


@pytest.mark.parametrize("name", EVERY_MANIFEST)
def test_the_deployment_mode_is_stated(name: str) -> None:
    expected = "Knative" if name == "knative" else "Standard"
    assert service(name)["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == expected


@pytest.mark.parametrize("name", TWO_PODS)
def test_both_components_get_the_same_bundle(name: str) -> None:
    manifest = service(name)
    uri = manifest["spec"]["predictor"]["model"]["storageUri"]
    assert re.fullmatch(r"pvc://models/placement/v\d+|s3://models/placement/v\d+/", uri)
    assert environment(transformer_container(manifest))["STORAGE_URI"] == uri


@pytest.mark.parametrize("name", EVERY_MANIFEST)
def test_the_transformer_gets_the_predictors_protocol(name: str) -> None:
    manifest = service(name)
    told = argument(transformer_container(manifest), "predictor_protocol")
    assert told == manifest["spec"]["predictor"]["model"]["protocolVersion"]


@pytest.mark.parametrize("name", EVERY_MANIFEST)
def test_the_runtime_and_its_version_are_pinned(name: str) -> None:
    model = service(name)["spec"]["predictor"]["model"]
    pinned = {"kserve-mlserver": "1.7.1", "kserve-sklearnserver": "v0.20.0"}
    assert model["runtimeVersion"] == pinned[model["runtime"]]
    assert model["modelFormat"] == {"name": "sklearn"}


@pytest.mark.parametrize("name", EVERY_MANIFEST)
def test_the_image_has_the_version_of_the_project(name: str) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert transformer_container(service(name))["image"] == f"placement-transformer:{version}"
    assert "latest" not in rendered(name)


@pytest.mark.parametrize("field", RESTRICTED)
@pytest.mark.parametrize("name", EVERY_MANIFEST)
def test_containers_run_without_privileges(name: str, field: str) -> None:
    for component in components(service(name)):
        for container in containers(component):
            assert container["securityContext"][field] == RESTRICTED[field]
            assert container["securityContext"].keys() == RESTRICTED.keys()


@pytest.mark.parametrize("name", EVERY_MANIFEST)
def test_no_pod_gets_a_token_for_the_kubernetes_api(name: str) -> None:
    assert [part["automountServiceAccountToken"] for part in components(service(name))].count(True) == 0


@pytest.mark.parametrize("name", EVERY_MANIFEST)
def test_the_transformers_filesystem_is_read_only(name: str) -> None:
    assert "volumeMounts" not in transformer_container(service(name))


@pytest.mark.parametrize("name", EVERY_MANIFEST)
def test_the_model_server_can_write_only_to_tmp(name: str) -> None:
    predictor = service(name)["spec"]["predictor"]
    assert predictor["model"]["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]
    assert [volume["name"] for volume in predictor["volumes"]] == ["tmp"]


@pytest.mark.parametrize("name", WITH_MLSERVER)
def test_mlserver_writes_only_to_writable_directories(name: str) -> None:
    settings = environment(service(name)["spec"]["predictor"]["model"])
    assert settings["MLSERVER_METRICS_DIR"].startswith("/tmp/")
    assert settings["MLSERVER_ENVIRONMENTS_DIR"].startswith("/tmp/")


@pytest.mark.parametrize("name", EVERY_MANIFEST)
def test_the_model_server_has_the_settings_of_the_runtimes_table(name: str) -> None:
    model = service(name)["spec"]["predictor"]["model"]
    runtime = get_runtime(model["runtime"])
    settings = environment(model)
    expected = {**runtime.spec_env, **(KNATIVE_ENV if name == "knative" else {})}
    assert {variable: settings[variable] for variable in expected} == expected
    assert tuple(model.get("args", ())) == runtime.tuned_args


@pytest.mark.parametrize("name", WITH_MLSERVER)
def test_mlserver_reports_a_refused_request_without_a_traceback(name: str) -> None:
    settings = environment(service(name)["spec"]["predictor"]["model"])
    assert settings["MLSERVER_DEBUG"] == "false"


@pytest.mark.parametrize("name", EVERY_MANIFEST)
def test_every_container_has_resource_requests_and_limits(name: str) -> None:
    for component in components(service(name)):
        for container in containers(component):
            for kind in ("requests", "limits"):
                assert container["resources"][kind].keys() == {"cpu", "memory"}


@pytest.mark.parametrize("name", STANDARD_MODE)
def test_a_rolling_update_removes_a_pod_only_when_its_successor_is_ready(name: str) -> None:
    for component in components(service(name)):
        strategy = component["deploymentStrategy"]
        assert strategy["type"] == "RollingUpdate"
        assert strategy["rollingUpdate"]["maxUnavailable"] == 0
        assert strategy["rollingUpdate"]["maxSurge"] not in (0, "0%")


@pytest.mark.parametrize("name", STANDARD_MODE)
def test_the_grace_period_covers_the_pause_and_the_drain(name: str) -> None:
    for component in components(service(name)):
        for container in containers(component):
            assert pause_seconds(container) > 0
            assert component["terminationGracePeriodSeconds"] > pause_seconds(container) + DRAIN_SECONDS


@pytest.mark.parametrize("name", EVERY_MANIFEST)
def test_the_end_of_a_failed_containers_log_is_in_its_status(name: str) -> None:
    for component in components(service(name)):
        for container in containers(component):
            assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"


@pytest.mark.parametrize("name", EVERY_MANIFEST)
def test_readiness_follows_the_model_and_liveness_only_the_process(name: str) -> None:
    for component in components(service(name)):
        for container in containers(component):
            own_model = "modelFormat" in container
            ready = "/v2/models/placement/ready" if own_model else "/v2/health/ready"
            assert container["readinessProbe"]["httpGet"]["path"] == ready
            assert container["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"
            assert container["startupProbe"]["httpGet"]["path"] == "/v2/health/live"


@pytest.mark.parametrize("name", EVERY_MANIFEST)
def test_probes_and_scrapes_use_ports_that_containers_listen_on(name: str) -> None:
    manifest = service(name)
    for component in components(manifest):
        bound = [listening_ports(container) for container in containers(component)]
        for container, ports in zip(containers(component), bound, strict=True):
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert container[probe]["httpGet"]["port"] == ports[0]
        scraped = int(component["annotations"]["prometheus.io/port"])
        assert component["annotations"]["prometheus.io/scrape"] == "true"
        assert component["annotations"]["prometheus.io/path"] == "/metrics"
        assert any(scraped in ports for ports in bound)


@pytest.mark.parametrize(
    ("name", "predictor_port"), [(BASE, "8082"), ("sklearnserver", "8080"), ("collocated", "8080")]
)
def test_metrics_are_scraped_from_the_servers_path_and_port(name: str, predictor_port: str) -> None:
    predictor, *transformer = components(service(name))
    assert predictor["annotations"]["prometheus.io/port"] == predictor_port
    assert all(part["annotations"]["prometheus.io/port"] == "8080" for part in transformer)


@pytest.mark.parametrize("name", EVERY_MANIFEST)
def test_rest_is_the_first_port_and_grpc_the_second_except_on_knative(name: str) -> None:
    ports = [(port["name"], port["containerPort"]) for port in transformer_container(service(name))["ports"]]
    assert ports == ([("http1", 8080)] if name == "knative" else [("http1", 8080), ("grpc", 8081)])


def test_sklearnserver_is_asked_for_probabilities() -> None:
    predictor = service("sklearnserver")["spec"]["predictor"]
    assert predictor["model"]["protocolVersion"] == "v1"
    assert environment(predictor["model"])["PREDICT_PROBA"] == "true"


def test_a_collocated_transformer_shares_its_predictors_bundle() -> None:
    manifest = service("collocated")
    assert "transformer" not in manifest["spec"]
    assert "STORAGE_URI" not in environment(transformer_container(manifest))
    assert rendered("collocated").count("://") == 1
    assert transformer_container(manifest)["name"] == "transformer-container"


def test_collocated_containers_use_different_ports() -> None:
    manifest = service("collocated")
    bound = [listening_ports(each) for each in containers(manifest["spec"]["predictor"])]
    assert len(bound) == 2
    assert len({*bound[0], *bound[1]}) == len(bound[0]) + len(bound[1])


def test_a_collocated_transformer_gets_the_arguments_that_kserve_does_not_add() -> None:
    manifest = service("collocated")
    container, model = transformer_container(manifest), manifest["spec"]["predictor"]["model"]
    assert argument(container, "model_name") == manifest["metadata"]["name"]
    assert argument(container, "predictor_host") == f"localhost:{listening_ports(model)[0]}"
    assert argument(container, "http_port") == str(container["ports"][0]["containerPort"])


def test_a_collocated_model_server_outlives_the_transformer_beside_it() -> None:
    manifest = service("collocated")
    last_request = pause_seconds(transformer_container(manifest)) + DRAIN_SECONDS
    assert pause_seconds(manifest["spec"]["predictor"]["model"]) > last_request


@pytest.mark.parametrize("name", TWO_PODS)
def test_arguments_that_kserve_adds_are_not_in_the_manifest(name: str) -> None:
    container = transformer_container(service(name))
    assert [argument(container, name) for name in ("model_name", "predictor_host", "http_port")] == [None] * 3


def test_the_knative_overlay_has_no_field_that_knative_or_kserve_refuses() -> None:
    for component in components(service("knative")):
        assert component.keys().isdisjoint({"deploymentStrategy", "terminationGracePeriodSeconds"})
        assert all("lifecycle" not in container for container in containers(component))
        assert component["minReplicas"] >= 1


def test_s3_credentials_are_placeholders_and_reach_both_components() -> None:
    by_kind = {document["kind"]: document for document in documents("s3")}
    secret, account = by_kind["Secret"], by_kind["ServiceAccount"]
    assert set(secret["stringData"]) == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert set(secret["stringData"].values()) == {"replace-me"}
    assert {"serving.kserve.io/s3-endpoint", "serving.kserve.io/s3-usehttps"} <= set(
        secret["metadata"]["annotations"]
    )
    assert account["secrets"] == [{"name": secret["metadata"]["name"]}]
    for component in components(by_kind["InferenceService"]):
        assert component["serviceAccountName"] == account["metadata"]["name"]
    assert by_kind["InferenceService"]["spec"]["predictor"]["model"]["storageUri"].startswith("s3://")


def test_autoscaling_starts_with_two_replicas_and_uses_metrics_of_the_hpa() -> None:
    manifest = service("autoscaling")
    assert manifest["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "hpa"
    for component in components(manifest):
        assert 2 <= component["minReplicas"] < component["maxReplicas"]
        assert component["scaleMetric"] == "cpu"
        assert 1 <= component["scaleTarget"] <= 100
        # The target is a percentage of the requested resources.
        assert all(container["resources"]["requests"]["cpu"] for container in containers(component))


def test_the_images_user_is_a_number_that_is_not_root() -> None:
    # The kubelet checks runAsNonRoot against this number; with a name, the pod would not start.
    users = re.findall(r"^USER\s+(\S+)$", (ROOT / "Dockerfile.transformer").read_text(), re.MULTILINE)
    assert [int(part) > 0 for part in users[-1].split(":")] == [True, True]


def test_the_image_holds_only_the_transformer_of_this_project() -> None:
    copied = re.findall(r"^COPY (?!--from)(\S+)", (ROOT / "Dockerfile.transformer").read_text(), re.MULTILINE)
    assert copied == ["requirements/transformer.txt", "transformer/"]
    sent = {line for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sent == {f"!{path}" for path in copied}


@pytest.mark.parametrize("file", ["models.yaml", "rollout-role.yaml"])
def test_the_manifests_beside_the_spec_have_only_fields_that_kubernetes_knows(file: str) -> None:
    client = ApiClient()
    for manifest in documents_of(file):
        model = client.deserialize(json.dumps(manifest), f"V1{manifest['kind']}", "application/json")
        assert client.sanitize_for_serialization(model) == manifest


def test_the_pod_that_copies_versions_mounts_the_claim_of_the_spec_without_privileges() -> None:
    claim, pod = documents_of("models.yaml")
    assert (
        service(BASE)["spec"]["predictor"]["model"]["storageUri"].split("/")[2] == claim["metadata"]["name"]
    )
    assert pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert pod["spec"]["containers"][0]["image"] == transformer_container(service(BASE))["image"]
    assert violations(pod) == []


def documents_of(file: str) -> list[Manifest]:
    """Return the objects of a file in `inferenceservice`."""
    return list(yaml.safe_load_all((ROOT / "inferenceservice" / file).read_text()))


@pytest.mark.parametrize("name", STANDARD_MODE)
def test_pods_run_with_the_user_and_group_of_the_image(name: str) -> None:
    ids = {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}
    for component in components(service(name)):
        assert ids.items() <= component["securityContext"].items()


def test_hardened_gets_its_replicas_without_an_autoscaler() -> None:
    manifest = service("hardened")
    assert manifest["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "none"
    assert [component["minReplicas"] for component in components(manifest)] == [2, 2]
