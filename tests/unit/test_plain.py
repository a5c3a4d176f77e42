"""`placement spec --plain` keeps what the spec says, and adds what KServe's controller would add."""

import copy
import json
from typing import Any

import pytest
import yaml
from kubernetes.client import ApiClient

from inferenceservice.plain import INITIALIZER, render
from inferenceservice.spec import SpecError
from tests.support.cluster.manifests import BASE, Manifest, documents, labels, pods, service
from tests.support.cluster.pod_security import violations
from tests.support.paths import MANIFEST
from tests.support.placement_command import error_of, run_placement

#: Specs without an autoscaler, which only KServe makes.
SPECS = [BASE, "collocated", "hardened", "s3", "sklearnserver"]


def of_kind(name: str, kind: str) -> dict[str, Manifest]:
    """Return the rendered objects of a kind, by name."""
    rendered = render(documents(name))
    return {one["metadata"]["name"]: one for one in rendered if one["kind"] == kind}


def container(deployment: Manifest, name: str = "kserve-container") -> Manifest:
    containers = deployment["spec"]["template"]["spec"]["containers"]
    return next(one for one in containers if one["name"] == name)


@pytest.mark.parametrize("name", SPECS)
def test_kubernetes_models_know_every_field(name: str) -> None:
    client = ApiClient()
    for one in render(documents(name)):
        model = client.deserialize(json.dumps(one), f"V1{one['kind']}", "application/json")
        assert client.sanitize_for_serialization(model) == one


@pytest.mark.parametrize("name", SPECS)
def test_pods_keep_the_security_probes_and_resources_of_the_spec(name: str) -> None:
    wanted = pods(service(name))
    found = of_kind(name, "Deployment")
    assert found.keys() == {f"placement-{component}" for component in wanted}
    for component, pod in wanted.items():
        template = found[f"placement-{component}"]["spec"]["template"]
        assert template["metadata"]["labels"] == labels(component)
        assert template["spec"]["securityContext"] == pod["spec"]["securityContext"]
        assert not violations(template)
        for one in pod["spec"]["containers"]:
            same = container(found[f"placement-{component}"], one["name"])
            kept = one.keys() & {"resources", "securityContext", "readinessProbe", "lifecycle", "ports"}
            assert {field: same[field] for field in kept} == {field: one[field] for field in kept}


def test_the_transformer_gets_the_arguments_that_kserve_adds() -> None:
    transformer = container(of_kind(BASE, "Deployment")["placement-transformer"])
    assert transformer["args"][-3:] == [
        "--model_name=placement",
        "--predictor_host=placement-predictor",
        "--http_port=8080",
    ]
    assert transformer["env"] == [{"name": "STORAGE_URI", "value": "/mnt/models"}]
    collocated = container(
        of_kind("collocated", "Deployment")["placement-predictor"], "transformer-container"
    )
    assert collocated["args"] == service("collocated")["spec"]["predictor"]["containers"][0]["args"]


def test_the_model_server_gets_the_settings_of_its_runtime() -> None:
    mlserver = container(of_kind(BASE, "Deployment")["placement-predictor"])
    assert mlserver["image"] == "seldonio/mlserver:1.7.1"
    env = {one["name"]: one["value"] for one in mlserver["env"]}
    assert (env["MLSERVER_MODEL_NAME"], env["MLSERVER_MODEL_URI"]) == ("placement", "/mnt/models")
    assert env["MLSERVER_PARALLEL_WORKERS"] == "0"
    sklearnserver = container(of_kind("sklearnserver", "Deployment")["placement-predictor"])
    assert sklearnserver["args"] == [
        "--model_name=placement",
        "--model_dir=/mnt/models",
        "--http_port=8080",
        "--configure_logging=false",
    ]


@pytest.mark.parametrize(("name", "replicas"), [(BASE, 1), ("hardened", 2)])
def test_deployments_have_the_replicas_and_the_strategy_of_the_spec(name: str, replicas: int) -> None:
    for deployment in of_kind(name, "Deployment").values():
        assert deployment["spec"]["replicas"] == replicas
        assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_services_have_the_ports_of_kserves() -> None:
    services = of_kind(BASE, "Service")
    ports = {name: [one["port"] for one in part["spec"]["ports"]] for name, part in services.items()}
    assert ports == {"placement-predictor": [80], "placement-transformer": [80, 8081]}
    [entry] = of_kind("collocated", "Service").values()
    assert [(one["port"], one["targetPort"]) for one in entry["spec"]["ports"]] == [(80, 8080), (8081, 8081)]


def test_a_bundle_is_copied_from_its_claim_and_a_missing_one_is_an_error() -> None:
    for deployment in of_kind(BASE, "Deployment").values():
        pod = deployment["spec"]["template"]["spec"]
        [initializer] = pod["initContainers"]
        assert (initializer["name"], initializer["command"]) == (INITIALIZER, ["cp", "-r"])
        assert initializer["args"] == ["/mnt/pvc/placement/v1/.", "/mnt/models"]
        claims = [one["persistentVolumeClaim"]["claimName"] for one in pod["volumes"][-1:]]
        assert claims == ["models"]


def test_a_bundle_in_s3_is_downloaded_with_the_settings_of_the_secret() -> None:
    [initializer] = of_kind("s3", "Deployment")["placement-predictor"]["spec"]["template"]["spec"][
        "initContainers"
    ]
    assert initializer["args"] == ["s3://models/placement/v1/", "/mnt/models"]
    env = {one["name"]: one.get("value") for one in initializer["env"]}
    assert env["AWS_ENDPOINT_URL"] == "https://s3.amazonaws.com"
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"} <= env.keys()
    assert of_kind("s3", "Secret").keys() == {"placement-s3"}


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("autoscaling", {}, "spec.predictor.maxReplicas: needs KServe; remove it"),
        ("knative", {}, "deploymentMode: must be Standard without KServe, got Knative"),
        (BASE, {"runtime": "mine"}, "spec.predictor.model.runtime: unknown runtime 'mine'"),
        (BASE, {"storageUri": "gs://a/b"}, "storageUri: must be pvc:// or s3:// without KServe, got gs://a/b"),
    ],
)  # fmt: skip
def test_a_spec_that_needs_kserve_is_refused(name: str, change: dict[str, Any], said: str) -> None:
    objects = copy.deepcopy(documents(name))
    isvc = next(one for one in objects if one["kind"] == "InferenceService")
    isvc["spec"]["predictor"]["model"] |= change
    with pytest.raises(SpecError) as refused:
        render(objects)
    assert said in str(refused.value)


def test_the_command_prints_the_spec_with_another_bundle() -> None:
    printed = run_placement("spec", "-f", MANIFEST, "--model", "s3://models/placement/v2")
    [isvc] = yaml.safe_load_all(printed.stdout)
    assert isvc["spec"]["predictor"]["model"]["storageUri"] == "s3://models/placement/v2/"
    [variable] = isvc["spec"]["transformer"]["containers"][0]["env"]
    assert variable["value"] == "s3://models/placement/v2/"
    plain = run_placement("spec", "-f", MANIFEST, "--plain", "--model", "pvc://models/placement/v2").stdout
    assert plain.count("/mnt/pvc/placement/v2/.") == 2


def test_the_command_reports_a_missing_file() -> None:
    assert "No such file" in error_of(run_placement("spec", "-f", "missing.yaml"), "spec")
