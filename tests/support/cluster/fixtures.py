"""Fixtures: an InferenceService in a fake cluster, and versions to roll out."""

import copy
import functools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from inferenceservice.cluster import api_server
from inferenceservice.cluster.api_server import ApiServer
from inferenceservice.cluster.cluster_target import ClusterTarget
from storage.bundles import publish
from tests.support.bundle_copies import MODEL, bundle_copy
from tests.support.cluster.kserve_controllers import Json
from tests.support.cluster.kubernetes_api import Cluster
from tests.support.paths import MANIFEST
from transformer.bundle.format import Bundle, Reference, Version, load_bundle

#: Three versions of which each knows the earlier ones, and one that knows no other.
URIS = {version: f"pvc://models/placement/{version}" for version in ("v1", "v2", "v3", "v9")}
V1, V2, V3, V9 = URIS.values()


@dataclass
class Versions:
    """The versions, and a service that answers with their scores."""

    bundles: dict[str, Bundle]
    copies: dict[str, str]
    #: Number of predictions to refuse with 503.
    unready: int = 0
    #: Pairs of the transformer's and the predictor's bundle that answered.
    answered: set[tuple[str, str]] = field(default_factory=set)

    def serve_other_scores(self, uri: str) -> None:
        """Let a version's model give other scores than its bundle says."""
        served = self.bundles[uri]
        wrong = tuple(1 - p for p in positive_probabilities(served.reference))
        reference = served.reference.model_copy(update={"probabilities": wrong})
        self.bundles[uri] = served.model_copy(update={"reference": reference})

    def service(
        self, transformer: str, predictor: str, instances: list[Json]
    ) -> tuple[int, dict[str, str], Json]:
        """Answer with the scores of the predictor's reference rows if the transformer knows its version."""
        known, served = self.bundles[transformer], self.bundles[predictor]
        if self.unready or served.version not in {one.version for one in known.versions}:
            self.unready = max(self.unready - 1, 0)
            return 503, {"retry-after": "1"}, {"error": "no verified predictor"}
        self.answered.add((transformer, predictor))
        rows = served.reference
        scores = {str(dict(row)): p for row, p in zip(rows.candidates, rows.probabilities, strict=True)}
        answers = [{"placement": True, "placement_probability": scores[str(one)]} for one in instances]
        return 200, {"x-model-version": served.version}, {"predictions": answers}


def positive_probabilities(reference: Reference) -> list[float]:
    return [one for one in reference.probabilities if isinstance(one, float)]


@pytest.fixture
def versions(trained_bundle: Path, tmp_path: Path) -> Versions:
    template = load_bundle(trained_bundle).model_copy(update={"previous": ()})
    bundles: dict[str, Bundle] = {}
    earlier: tuple[Version, ...] = ()
    for number, (name, uri) in enumerate(URIS.items()):
        bundle = bundle_copy(template, name)
        lower = tuple(p * 0.9**number for p in positive_probabilities(bundle.reference))
        reference = bundle.reference.model_copy(update={"probabilities": lower})
        previous = () if uri == V9 else earlier
        bundle = bundle.model_copy(update={"previous": previous, "reference": reference})
        bundles[uri] = bundle
        earlier = (bundle.as_previous(), *earlier)
        publish(bundle, MODEL, tmp_path / "models")
    return Versions(bundles, {"pvc://models": str(tmp_path / "models")})


@functools.cache
def _project_manifest() -> Json:
    content: Json = yaml.safe_load(MANIFEST.read_text())
    return content


def manifest(mode: str = "Standard", *, collocated: bool = False) -> Json:
    """Return the InferenceService of this repository."""
    content = copy.deepcopy(_project_manifest())
    content["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] = mode
    if collocated:
        container = content["spec"].pop("transformer")["containers"][0]
        container |= {"name": "transformer-container", "env": container["env"][1:]}
        content["spec"]["predictor"]["containers"] = [container]
    return content


Start = Callable[..., Any]


@pytest.fixture
async def start(versions: Versions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """Start a cluster and point the kubeconfig at it."""
    clusters: list[Cluster] = []

    async def started(mode: str = "Standard", *, collocated: bool = False) -> Cluster:
        cluster = Cluster(manifest(mode, collocated=collocated), versions.service)
        await cluster.start()
        clusters.append(cluster)
        monkeypatch.setattr(api_server, "PAUSE_S", 0.005)
        file = tmp_path / "kubeconfig"
        file.write_text(yaml.safe_dump(cluster.kubeconfig()))
        from kubernetes.config import kube_config

        monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(file))
        return cluster

    yield started
    for cluster in clusters:
        await cluster.close()


@pytest.fixture
def target(versions: Versions) -> Callable[..., ClusterTarget]:
    """Connect to the cluster that was started."""

    def connected(name: str = "placement", **options: Any) -> ClusterTarget:
        api = ApiServer.connect(options.pop("context", None))
        settings = {"bundle_copies": versions.copies, "timeout_s": 10, "poll_s": 0.005, **options}
        return ClusterTarget(api, name, **settings)

    return connected


def paths(cluster: Cluster) -> list[tuple[str, str, Any]]:
    """Return the operations of all patches: operation, last two parts of the path, value."""
    return [
        (one["op"], "/".join(one["path"].split("/")[2:3] + one["path"].split("/")[-1:]), one.get("value"))
        for patch in cluster.patches
        for one in patch
    ]
