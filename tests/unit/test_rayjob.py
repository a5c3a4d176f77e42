"""The RayJob of bulk scoring is valid, and runs the command and the Ray that the project has."""

import re
import shlex
import tomllib

import jsonschema_rs
import pytest
import yaml

from placement.cli import parser
from tests.support.custom_resources import spec_schema
from tests.support.paths import ROOT

MANIFEST = yaml.safe_load((ROOT / "scoring" / "rayjob.yaml").read_text())
GROUPS = [MANIFEST["spec"]["rayClusterSpec"][name] for name in ("headGroupSpec", "workerGroupSpecs")]
HEAD, (WORKER,) = GROUPS


def test_kuberays_schema_knows_every_field():
    schema = spec_schema("rayjobs.crd.yaml")
    schema.validate(MANIFEST["spec"])
    with pytest.raises(jsonschema_rs.ValidationError):
        schema.validate({**MANIFEST["spec"], "misspelt": "x"})


def test_the_entrypoint_is_a_command_and_its_paths_are_mounted():
    program, *arguments = shlex.split(MANIFEST["spec"]["entrypoint"])
    options = parser().parse_args(arguments)
    assert (program, options.command, options.engine) == ("placement", "score", "ray")
    for group in (HEAD, WORKER):
        (container,) = group["template"]["spec"]["containers"]
        mounted = tuple(f"{mount['mountPath']}/" for mount in container["volumeMounts"])
        for path in (str(options.input), str(options.output), options.model):
            assert path.startswith(mounted)


def test_the_ray_of_the_manifest_is_the_locked_one():
    lock = (ROOT / "requirements" / "engines.txt").read_text()
    (locked,) = re.findall(r"^ray==(\S+)", lock, re.MULTILINE)
    assert MANIFEST["spec"]["rayClusterSpec"]["rayVersion"] == locked


def test_the_image_gets_every_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.partition(".")[0] for name in project["tool"]["setuptools"]["packages"]}
    ignored = (ROOT / "Dockerfile.scoring.dockerignore").read_text().splitlines()
    assert packages <= {line.strip("!/") for line in ignored if line.startswith("!")}
