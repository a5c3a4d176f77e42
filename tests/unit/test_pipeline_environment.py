"""The steps of the pipeline run with the packages that the other tests run with."""

import re

from tests.support.paths import ROOT

#: Packages of which Kubeflow's SDK requires one version.
PINNED_BY_KUBEFLOW = {"certifi", "requests"}


def versions(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE))


def test_the_steps_have_the_tested_packages():
    """Also the Kubernetes client, which Kubeflow's SDK would replace by one that cannot do a rollout."""
    tested, steps = versions("requirements/service.txt"), versions("pipelines/environment.txt")
    assert {"kfp", "kubernetes", "scikit-learn", "aiohttp"} <= steps.keys()
    different = {name for name in tested.keys() & steps.keys() if tested[name] != steps[name]}
    assert different <= PINNED_BY_KUBEFLOW
