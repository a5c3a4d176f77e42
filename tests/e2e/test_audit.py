"""The SBOM of the image lists all of its packages, as the pinned audit tools write it."""

import json
import re

from predictor.environment import ensure
from tests.unit.test_audit import audit


def test_the_sbom_lists_every_package_of_the_image_with_its_version(tmp_path) -> None:
    tools = ensure(audit._ENVIRONMENT, progress=lambda _: None).parent
    audit.write_sbom(tools, tmp_path / "new" / "sbom.json")
    sbom = json.loads((tmp_path / "new" / "sbom.json").read_text())
    assert sbom["bomFormat"] == "CycloneDX"
    assert sbom["metadata"]["component"]["name"] == "placement"
    listed = {(one["name"], one["version"]) for one in sbom["components"]}
    pinned = re.findall(r"^([\w.-]+)==([\w.+!-]+)", audit.installed_in_the_image(), re.MULTILINE)
    assert listed == set(pinned)
    assert len(listed) > 20
