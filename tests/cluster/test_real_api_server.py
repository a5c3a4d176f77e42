"""A real API server with KServe behaves in every case that rollouts rely on as its imitation does."""

from collections.abc import Callable

import pytest
from kubernetes.config import kube_config

from inferenceservice.cluster.api_server import ApiServer
from tests.soak.cluster import ClusterService
from tests.support.cluster.api_cases import CASES, ApiUnderTest
from tests.support.paths import MANIFEST


@pytest.fixture(scope="module")
def serving(service: ClusterService) -> ClusterService:
    """The service, once its old version serves."""
    service.namespace.apply(MANIFEST.read_text(), service.old)
    return service


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_cluster(
    case: Callable[[ApiUnderTest], None],
    serving: ClusterService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    namespace = serving.namespace
    namespace.change(MANIFEST.read_text(), serving.old)
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(namespace.kubeconfig))
    case(ApiUnderTest(ApiServer.connect(), namespace.name, serving.old, serving.new))
