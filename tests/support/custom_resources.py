"""Schemas of other projects' custom resources, which are not a part of this project."""

import os
from pathlib import Path

import jsonschema_rs
import pytest
import yaml

from tests.support.open_inference_protocol import closed
from tests.support.paths import ROOT

#: Directory of the CustomResourceDefinitions.
CRDS = Path(os.environ.get("CRDS", ROOT.parent / "shared" / "crds"))


def spec_schema(file: str) -> jsonschema_rs.Draft4Validator:
    """Return the schema of a resource's `spec`, closed to other fields; without the file, skip the test."""
    path = CRDS / file
    if not path.is_file():
        pytest.skip(f"{file} is not at {CRDS}; CRDS names the directory of the CustomResourceDefinitions")
    # The flag is Go's; Python and ECMAScript do not take it there.
    content = yaml.load(path.read_text().replace("^(?i)", "^"), Loader=yaml.CSafeLoader)
    (version,) = (one for one in content["spec"]["versions"] if one["storage"])
    return jsonschema_rs.Draft4Validator(closed(version["schema"]["openAPIV3Schema"]["properties"]["spec"]))
