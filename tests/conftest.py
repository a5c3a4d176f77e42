"""Fixtures: trained versions and processes that many tests share, because they take seconds to make."""

import gc
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from inferenceservice.local.launch import TransformerProcess
from predictor.process import PredictorProcess
from predictor.runtimes import get_runtime
from tests.support.faulty_predictor import FaultyHttpPredictor
from tests.support.ports import keep_ports_apart
from tests.support.sklearn_reference import SklearnReference
from tests.support.sync_processes import running_predictor, running_transformer
from tests.support.trained_versions import TrainedVersions, digest_of_sources
from tests.support.version_pairs import VersionPair

# Hypothesis tries the same examples in every run, so that failures are repeatable.
# HYPOTHESIS_PROFILE=random tries others. No example fails by its time.
settings.register_profile("random", deadline=None)
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

keep_ports_apart()

# Collections while modules and tests are loaded find nothing and take a quarter of the time.
gc.disable()


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()


#: Fixtures of the tests against a fake cluster.
pytest_plugins = ["tests.support.cluster.fixtures"]


@pytest.fixture(scope="session")
def trained_versions(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> TrainedVersions:
    """Versions that processes of pytest-xdist share, and later runs while the code stays the same."""
    cache = request.config.cache.mkdir(f"versions-{digest_of_sources()}")
    for other in cache.parent.glob("versions-*"):
        if other != cache:
            shutil.rmtree(other, ignore_errors=True)
    own = tmp_path_factory.getbasetemp()
    directory = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "versions"
    directory.mkdir(exist_ok=True)
    return TrainedVersions(cache, directory)


@pytest.fixture(scope="session")
def trained_bundle(trained_versions: TrainedVersions) -> Path:
    """Directory of a version that was trained on generated candidates."""
    return trained_versions.bundle()


@pytest.fixture(scope="session")
def version_pair(trained_versions: TrainedVersions) -> Callable[[str], VersionPair]:
    """Pairs of versions by name."""
    return trained_versions.pair


@pytest.fixture(scope="session")
def pair(version_pair: Callable[[str], VersionPair]) -> VersionPair:
    """Two versions between which a category was renamed: the encodings have the same width."""
    return version_pair("category_renamed")


@pytest.fixture(scope="session")
def sklearn_reference(trained_bundle: Path) -> SklearnReference:
    """The scores of scikit-learn for that version."""
    return SklearnReference(trained_bundle)


@pytest.fixture
async def predictor(sklearn_reference: SklearnReference) -> AsyncIterator[FaultyHttpPredictor]:
    """An HTTP predictor with that version, which gives faulty responses when a test asks for them."""
    predictor = FaultyHttpPredictor(sklearn_reference)
    await predictor.start()
    yield predictor
    await predictor.stop()


@pytest.fixture(scope="session")
def mlserver(trained_bundle: Path) -> Iterator[PredictorProcess]:
    """A real MLServer that serves the trained version."""
    with running_predictor(get_runtime("kserve-mlserver"), trained_bundle) as process:
        yield process


@pytest.fixture(scope="session")
def transformer_process(
    trained_bundle: Path, mlserver: PredictorProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TransformerProcess]:
    """A transformer process in front of that server with low limits, also on explanations."""
    ports = (mlserver.http_port, mlserver.grpc_port)
    log = tmp_path_factory.mktemp("transformer") / "log"
    limits = ("--max_candidates=50", "--max_explained_candidates=2", "--max_explanation_rows=1")
    with running_transformer(ports, trained_bundle, log, *limits) as process:
        yield process
