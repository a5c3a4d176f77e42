"""`placement` works in a cluster with the rights of inferenceservice/rollout-role.yaml and no others."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.soak.cluster import ClusterService
from tests.support.paths import ROOT
from tests.support.real_cluster import ClusterNamespace

ROLE = ROOT / "inferenceservice" / "rollout-role.yaml"


@pytest.fixture(scope="module")
def operator(service: ClusterService, tmp_path_factory: pytest.TempPathFactory) -> ClusterService:
    """The service with the commands of a user who has only the role's rights."""
    namespace = service.namespace
    namespace.kubectl("apply", "-f", str(ROLE))
    account = f"--serviceaccount={namespace.name}:operator"
    namespace.kubectl("create", "rolebinding", "placement-rollout", "--role=placement-rollout", account)
    kubeconfig = kubeconfig_of(namespace, "operator", tmp_path_factory.mktemp("operator"))
    return replace(service, kubeconfig=kubeconfig)


def kubeconfig_of(namespace: ClusterNamespace, name: str, directory: Path) -> Path:
    """Create a service account, and return a kubeconfig with its token."""
    namespace.kubectl("create", "serviceaccount", name)
    token = namespace.kubectl("create", "token", name).strip()
    kubeconfig = Path(shutil.copy(namespace.kubeconfig, directory / "kubeconfig"))
    own = f"--kubeconfig={kubeconfig}"
    namespace.kubectl("config", "set-credentials", name, f"--token={token}", own)
    namespace.kubectl("config", "set-context", "--current", f"--user={name}", own)
    return kubeconfig


async def test_the_documented_rights_are_enough(service: ClusterService, operator: ClusterService) -> None:
    await service.apply(service.old)
    done = await operator.placement("rollout", service.new)
    assert (done.returncode, done.stdout) == (0, "v2 serves\n"), done.stderr
    status = json.loads((await operator.placement("status", "--json")).stdout)
    assert (status["transformer_uri"], status["predictor_uri"]) == (service.new, service.new)
    assert status["connections_unknown"] is None
    # A connection to the old predictor lives for some seconds more.
    assert "v2" in {one["version"] for one in status["connections"] if one["state"] == "usable"}
    done = await operator.placement("rollback")
    assert (done.returncode, done.stdout) == (0, "v1 serves\n"), done.stderr
    storage = service.pair.old.parent.parent
    versions = json.loads((await operator.placement("versions", f"--storage={storage}", "--json")).stdout)
    assert [(one["version"], one["serves"]) for one in versions] == [("v1", ["serves"])]


async def test_a_user_without_rights_gets_one_line(service: ClusterService, tmp_path: Path) -> None:
    stranger = replace(service, kubeconfig=kubeconfig_of(service.namespace, "stranger", tmp_path))
    for arguments in (("status",), ("rollout", service.new)):
        done = await stranger.placement(*arguments)
        assert done.returncode == 1
        assert 'cannot get resource "inferenceservices"' in done.stderr
        assert done.stderr.count("\n") == 1
