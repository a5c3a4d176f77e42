"""The Job, the TrainJob and the Experiment are valid, and run the command and the search that exist."""

import json
import re
from typing import Any

import jsonschema_rs
import pytest
import yaml
from kubernetes.client import ApiClient

from placement.cli import parser
from tests.support.cluster.manifests import documents
from tests.support.cluster.pod_security import violations
from tests.support.custom_resources import spec_schema
from tests.support.paths import ROOT
from training.estimators import ESTIMATORS

DIRECTORY = ROOT / "pipelines" / "cluster"
JOB, TRAIN_JOB, EXPERIMENT = (
    yaml.safe_load((DIRECTORY / f"{name}.yaml").read_text()) for name in ("job/job", "trainjob", "experiment")
)
TRIAL = EXPERIMENT["spec"]["trialTemplate"]
POD = JOB["spec"]["template"]
TRIAL_POD = TRIAL["trialSpec"]["spec"]["template"]


@pytest.fixture(scope="module")
def in_s3() -> dict[str, Any]:
    """The Job and the Secret of `job-s3`, by kind."""
    return {document["kind"]: document for document in documents(str(DIRECTORY / "job-s3"))}


def container_of(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["spec"]["containers"]
    return container


def options_of(container: dict[str, Any]) -> Any:
    words = container["command"] + container.get("args", [])
    assert words[0] == "placement"
    return parser().parse_args(words[1:])


def is_kubernetes_job(job: dict[str, Any]) -> bool:
    """Parse a Job with Kubernetes' models and serialize it again; they know only the API's fields."""
    client = ApiClient()
    parsed = client.deserialize(json.dumps(job), "V1Job", "application/json")
    return client.sanitize_for_serialization(parsed) == job


def test_kubernetes_knows_every_field_of_the_jobs(in_s3):
    trial = {**TRIAL["trialSpec"]}
    for job in (JOB, in_s3["Job"], trial):
        assert is_kubernetes_job(job)
    trial["misspelt"] = 1
    assert not is_kubernetes_job(trial)


def test_trainers_schema_knows_every_field_of_the_train_job():
    schema = spec_schema("trainjobs.crd.yaml")
    schema.validate(TRAIN_JOB["spec"])
    with pytest.raises(jsonschema_rs.ValidationError):
        schema.validate({**TRAIN_JOB["spec"], "misspelt": "x"})


@pytest.mark.parametrize("pod", [POD, TRIAL_POD], ids=["job", "trial"])
def test_the_pods_comply_with_the_standard_restricted(pod):
    assert violations(pod) == []
    assert container_of(pod)["securityContext"]["readOnlyRootFilesystem"]


def test_the_train_job_does_what_the_job_does():
    trainer, container = TRAIN_JOB["spec"]["trainer"], container_of(POD)
    assert {name: trainer[name] for name in ("image", "command", "args")} == {
        name: container[name] for name in ("image", "command", "args")
    }
    assert trainer["resourcesPerNode"] == container["resources"]
    (patch,) = TRAIN_JOB["spec"]["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    patched = replicated["template"]["spec"]["template"]["spec"]
    assert patched["securityContext"] == POD["spec"]["securityContext"]
    assert patched["volumes"] == POD["spec"]["volumes"]
    for name in ("securityContext", "volumeMounts"):
        assert container_of({"spec": patched})[name] == container[name]


def test_the_job_writes_its_version_and_its_search_to_the_claim():
    options = options_of(container_of(POD))
    (claim,) = [
        mount["mountPath"] for mount in container_of(POD)["volumeMounts"] if mount["name"] == "models"
    ]
    assert (options.command, options.storage) == ("train", claim)
    assert options.tune_storage.startswith(f"{claim}/")
    assert options.tune > 0


def test_the_job_for_s3_writes_to_the_bucket_with_the_keys_of_a_secret(in_s3):
    container = container_of(in_s3["Job"]["spec"]["template"])
    assert options_of(container).storage.startswith("s3://")
    assert container["envFrom"] == [{"secretRef": {"name": in_s3["Secret"]["metadata"]["name"]}}]
    volumes = {volume["name"] for volume in in_s3["Job"]["spec"]["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes == {"tmp"}


def test_katib_searches_the_space_of_the_estimator_that_its_trials_train():
    options = options_of(container_of(TRIAL_POD))
    space = ESTIMATORS[options.estimator].space
    parameters = {one["name"]: one for one in EXPERIMENT["spec"]["parameters"]}
    assert set(parameters) == set(space)
    for name, limits in space.items():
        feasible, kind = parameters[name]["feasibleSpace"], parameters[name]["parameterType"]
        assert (float(feasible["min"]), float(feasible["max"])) == (limits.low, limits.high)
        assert kind == ("int" if limits.is_integer else "double")
    of_trials = {one["name"]: one["reference"] for one in TRIAL["trialParameters"]}
    passed = dict(text.split("=") for text in options.parameter)
    assert {name: f"${{trialParameters.{one}}}" for one, name in of_trials.items()} == passed
    assert TRIAL["primaryContainerName"] == container_of(TRIAL_POD)["name"]


def test_katib_finds_its_metric_in_the_output_of_the_command():
    (pattern,) = EXPERIMENT["spec"]["metricsCollectorSpec"]["source"]["filter"]["metricsFormat"]
    found = re.findall(pattern, "brier     0.0410")
    assert found == [(EXPERIMENT["spec"]["objective"]["objectiveMetricName"], "0.0410")]
    assert not re.findall(pattern, "   7.4 s  support-vectors: Brier score 0.0410 ± 0.0073, accuracy 95.0%")


def test_one_image_trains_everywhere():
    images = {container_of(POD)["image"], container_of(TRIAL_POD)["image"]}
    assert images == {TRAIN_JOB["spec"]["trainer"]["image"]} == {"placement-training:0.1.0"}
