"""The manifests for Seldon Core 2: valid, and the same pod as on KServe."""

import jsonschema_rs
import pytest

from inferenceservice.plain import render
from tests.support.cluster.manifests import Manifest, documents
from tests.support.custom_resources import spec_schema
from tests.support.paths import ROOT

SELDON = str(ROOT / "inferenceservice" / "seldon")


def deployment(rendered: list[Manifest]) -> Manifest:
    return next(
        one
        for one in rendered
        if one["kind"] == "Deployment" and one["metadata"]["name"] == "placement-transformer"
    )


def test_seldons_schema_knows_every_field_of_the_model():
    schema = spec_schema("seldon-models.crd.yaml")
    (model,) = (one for one in documents(SELDON) if one["kind"] == "Model")
    schema.validate(model["spec"])
    with pytest.raises(jsonschema_rs.ValidationError):
        schema.validate({**model["spec"], "misspelt": "x"})
    assert model["spec"]["secretName"] in {
        one["metadata"]["name"] for one in documents(SELDON) if one["kind"] == "Secret"
    }


def test_the_transformer_is_the_pod_of_the_overlay_s3_with_the_mesh_as_its_predictor():
    pod = deployment(documents(SELDON))["spec"]["template"]["spec"]
    expected = deployment(render(documents("s3")))["spec"]["template"]["spec"]
    # The keys come from the Secret itself, without a ServiceAccount.
    del expected["serviceAccountName"]
    host = expected["containers"][0]["args"].index("--predictor_host=placement-predictor")
    expected["containers"][0]["args"][host : host + 1] = [
        "--predictor_host=seldon-mesh",
        "--predictor_header=seldon-model:placement",
        "--verify=request",
    ]
    assert pod == expected


def test_both_parts_have_one_uri():
    (model,) = (one for one in documents(SELDON) if one["kind"] == "Model")
    (initializer,) = deployment(documents(SELDON))["spec"]["template"]["spec"]["initContainers"]
    assert initializer["args"][0] == model["spec"]["storageUri"]
