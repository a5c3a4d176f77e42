"""The spec of any model is the project's own, with another name and another URI."""

import shutil

import pytest
import yaml

from inferenceservice import model_spec, spec
from inferenceservice.model_spec import TEMPLATE, cluster_uri, find_service, service_name, spec_text
from inferenceservice.spec import SpecError
from placement import cli
from storage.bundles import publish
from transformer.bundle.format import MODEL_FILE, load_bundle


@pytest.fixture
def churn(trained_bundle, tmp_path, monkeypatch):
    """A model named churn, in a directory that is no checkout."""
    monkeypatch.chdir(tmp_path)
    bundle = load_bundle(trained_bundle).model_copy(update={"name": "churn"})
    return publish(bundle, (trained_bundle / MODEL_FILE).read_bytes(), "models")


def test_the_spec_differs_from_the_projects_only_in_name_and_uri():
    made = yaml.safe_load(spec_text("s3://bucket/churn/v7", "churn"))
    text = TEMPLATE.read_text().replace("pvc://models/placement/v1", "s3://bucket/churn/v7")
    expected = yaml.safe_load(text.replace("models/placement/", "models/churn/"))
    expected["metadata"]["name"] = "churn"
    assert made == expected


@pytest.mark.parametrize("uri", ["pvc://models/churn/v1", "s3://b/a: b/v1", "s3://b/x#y/v1"])
def test_the_spec_can_be_read_and_serves_the_uri_in_both_components(uri, tmp_path):
    (tmp_path / "churn.yaml").write_text(spec_text(uri, "churn"))
    service = spec.read(tmp_path / "churn.yaml")
    assert (service.name, service.storage_uri) == ("churn", uri)
    assert service.transformer_env["STORAGE_URI"] == uri


def test_placement_spec_prints_the_spec_of_a_bundle(churn, capsys):
    assert cli.main(["spec", "--model", churn]) == 0
    assert capsys.readouterr().out == spec_text("pvc://models/churn/v1", "churn")
    assert cli.main(["spec", "--model", "s3://no/such", "--name", "other"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["metadata"]["name"] == "other"


def test_a_service_has_the_name_of_its_model_outside_a_checkout(churn):
    service = find_service(None, churn)
    assert (service.name, service.storage_uri) == ("churn", "models/churn/v1")


def test_the_checkouts_spec_is_used_where_there_is_one(churn, tmp_path):
    edited = tmp_path / model_spec.CHECKOUT_SPEC
    edited.parent.mkdir()
    shutil.copy(TEMPLATE, edited)
    edited.write_text(edited.read_text().replace("--max_batch_rows=4096", "--max_batch_rows=77"))
    service = find_service(None, churn)
    assert (service.name, "--max_batch_rows=77" in service.transformer_args) == ("churn", True)
    assert find_service(None, None).name == "placement"
    assert find_service(edited, churn).name == "placement", "a spec that the user names keeps its name"


@pytest.mark.parametrize(
    ("model", "service"),
    [("churn", "churn"), ("Customer_Churn", "customer-churn"), ("x" * 42, "x" * 42)],
)
def test_an_underscore_becomes_a_dash_in_kubernetes(model, service):
    assert service_name(model) == service


@pytest.mark.parametrize("model", ["x" * 43, "churn_", "1st"])
def test_a_name_that_kubernetes_refuses_is_refused(model):
    with pytest.raises(SpecError, match="an InferenceService's name must have at most 42 letters"):
        service_name(model)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("models/churn/v1", "pvc://models/churn/v1"),
        ("./models/churn/v1/", "pvc://models/churn/v1"),
        ("s3://bucket/churn/v1", "s3://bucket/churn/v1/"),
        ("pvc://claim/v1", "pvc://claim/v1"),
    ],
)
def test_a_path_below_a_claim_is_the_claims_uri_in_a_cluster(uri, expected):
    assert cluster_uri(uri) == expected


@pytest.mark.parametrize("uri", ["/models/churn/v1", "file:///models/churn/v1", "../models/churn/v1", "v1"])
def test_a_path_that_no_cluster_can_read_is_refused(uri):
    with pytest.raises(SpecError, match=r"a cluster cannot read this path; .*pvc://CLAIM/PATH"):
        cluster_uri(uri)


def test_a_bundle_that_cannot_be_read_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["spec", "--model", "models/none/v1"]) == 1
    assert capsys.readouterr().err == (
        "placement spec: models/none/v1: no version here, bundle.json is missing; use a URI that `placement "
        "train` printed, or name the model with --name\n"
    )
