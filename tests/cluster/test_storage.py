"""Bundles come from S3, and each component gets the files of one version only."""

from collections.abc import Iterator

import pytest

from tests.soak.cluster import ClusterService
from tests.support.cluster.manifests import rendered
from tests.support.protocol_clients import over_v1
from tests.support.real_cluster import ClusterNamespace, cluster_namespace
from tests.support.s3_pod import endpoint, start_s3, upload
from tests.support.version_pairs import VersionPair
from tests.support.waiting import wait_until_sync
from transformer.bundle.format import BUNDLE_FILE, MODEL_FILE

V1, V2 = "s3://models/placement/v1/", "s3://models/placement/v2/"
FILES = "import json, os; print(json.dumps(sorted(os.listdir('/mnt/models'))))"


@pytest.fixture(scope="module")
def unrestricted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterNamespace]:
    """A namespace for KServe's storage initializer, whose security context is the cluster's choice."""
    with cluster_namespace(tmp_path_factory.mktemp("s3"), restricted=False) as created:
        yield created


@pytest.fixture(scope="module")
def s3(
    unrestricted: ClusterNamespace, pair: VersionPair, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A bucket with both versions, and with neighbours whose names begin with v1."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "replace-me")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        url = start_s3(unrestricted, tmp_path_factory.mktemp("moto"))
        for version, files in (("v1", pair.old), ("v10", pair.old), ("v2", pair.new)):
            upload(url, "models", files, f"placement/{version}")
        patch.setenv("AWS_ENDPOINT_URL", url)
        yield url


async def test_the_overlay_downloads_one_version_and_is_rolled_out(
    s3: str, unrestricted: ClusterNamespace, pair: VersionPair
) -> None:
    manifest = rendered("s3").replace("s3.amazonaws.com", endpoint(unrestricted))
    manifest = manifest.replace('s3-usehttps: "1"', 's3-usehttps: "0"')
    unrestricted.kubectl("apply", "-f", "-", stdin=manifest)
    unrestricted.wait_until_serving(V1)
    for pod in unrestricted.pods():
        name = pod["metadata"]["name"]
        assert unrestricted.python(name, "kserve-container", FILES) == [BUNDLE_FILE, MODEL_FILE]
    url = unrestricted.address().url
    assert over_v1(url, pair.candidates[:1]).version == "v1"
    service = ClusterService(unrestricted, pair, V1, V2)
    done = await service.placement("rollout", V2.rstrip("/"))
    assert (done.returncode, done.stdout) == (0, "v2 serves\n"), done.stderr
    unrestricted.wait_until_serving(V2)
    # A connection to the old predictor may live for some seconds more.
    wait_until_sync(lambda: over_v1(url, pair.candidates[:1]).version == "v2", timeout_s=30, poll_s=0.5)
