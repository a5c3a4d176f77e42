"""Concurrent and killed writers never leave an incomplete version."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest

from storage import directories
from storage.bundles import publish
from storage.errors import VersionExistsError
from tests.support.bundle_copies import MODEL, bundle_copy
from transformer.bundle.format import MODEL_FILE, Bundle, load_bundle


@pytest.fixture
def make(trained_bundle: Path) -> Callable[..., Bundle]:
    return partial(bundle_copy, load_bundle(trained_bundle))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_exactly_one_of_several_writers_of_a_version_succeeds(tmp_path, make):
    models = [f"model {n}".encode() for n in range(8)]
    barrier = threading.Barrier(len(models))

    def write(model: bytes) -> bool:
        barrier.wait()
        try:
            publish(make("v1", model), model, tmp_path)
        except VersionExistsError:
            return False
        return True

    with ThreadPoolExecutor(len(models)) as pool:
        won = list(pool.map(write, models))
    assert won.count(True) == 1
    version = tmp_path / "placement" / "v1"
    assert (version / MODEL_FILE).read_bytes() == models[won.index(True)]
    assert load_bundle(version).model.sha256 == sha256(models[won.index(True)]).hexdigest()
    assert names(version.parent) == ["v1"]


def test_files_of_a_killed_writer_are_removed_after_a_while(tmp_path, make):
    publish(make("v1"), MODEL, tmp_path)
    for name, age in ((".v2.0.writing", directories.STALE_S + 60), (".v3.0.writing", 60)):
        left = tmp_path / "placement" / name
        left.mkdir()
        os.utime(left, (time.time() - age,) * 2)
    publish(make("v4"), MODEL, tmp_path)
    assert names(tmp_path / "placement") == [".v3.0.writing", "v1", "v4"]
