"""Fixtures: a namespace of the cluster that KUBECONFIG names, deleted at the end, also after Ctrl-C."""

import signal
from collections.abc import Iterator

import pytest

from tests.soak.cluster import ClusterService
from tests.support.real_cluster import ClusterNamespace, NoClusterError, cluster_namespace
from tests.support.version_pairs import VersionPair


@pytest.fixture(scope="session", autouse=True)
def sigterm() -> None:
    """Let SIGTERM clean up as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterNamespace]:
    """A namespace that admits only pods of the Pod Security Standard "restricted"."""
    try:
        with cluster_namespace(tmp_path_factory.mktemp("cluster")) as created:
            yield created
    except NoClusterError as error:
        pytest.exit(f"no cluster: {error}", returncode=1)


@pytest.fixture(scope="session")
def service(namespace: ClusterNamespace, pair: VersionPair) -> ClusterService:
    """Two versions in the namespace's claim, and commands for the service that serves one of them."""
    return ClusterService.in_claim(namespace, pair)
