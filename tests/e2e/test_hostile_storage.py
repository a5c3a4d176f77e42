"""A storage that blocks, or that does not end, costs neither the process nor its memory."""

import os
import resource
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage import bundles, directories, s3_directory, s3_session
from storage.bundles import fetch, read_bundle, versions
from storage.errors import StorageError
from storage.s3_directory import S3Directory
from tests.support.bundle_copies import bundle_copy
from tests.support.hostile_s3 import (
    announcing,
    dripping,
    endless,
    endless_listing,
    hostile_s3,
    interrupted,
    silent,
)
from tests.support.paths import ROOT
from transformer.bundle.deadline import Deadline
from transformer.bundle.format import BUNDLE_FILE, MODEL_FILE, BundleError, load_bundle
from transformer.bundle.regular_file import MAX_BUNDLE_BYTES, MAX_MODEL_BYTES


def sparse(size: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.touch()
        os.truncate(path, size)

    return make


def fifo_behind_a_link(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


#: Files that are not a bundle's, and the error about each.
FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a FIFO": (os.mkfifo, "must be a regular file, got a FIFO"),
    "a link to a FIFO": (fifo_behind_a_link, "must be a regular file, got a FIFO"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "must be a regular file, got a device"),
    "a directory": (lambda path: path.mkdir(), "must be a regular file, got a directory"),
    "a sparse file of 3 GB": (
        sparse(3 * 10**9),
        "is too large: limit {limit} bytes, got at least 3000000000",
    ),
}


@pytest.fixture
def version(trained_bundle: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "storage" / "v1"
    shutil.copytree(trained_bundle, copy)
    return copy


@pytest.fixture
def memory_limit() -> Iterator[None]:
    """Limit what this process may take beyond what it has to 1 GiB."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def replaced(version: Path, file: str, kind: str, limit: int) -> str:
    """Replace a file of a version, and return the expected error."""
    (version / file).unlink()
    make, error = FILES[kind]
    make(version / file)
    return f"{version / file}: {error.format(limit=limit)}"


@pytest.mark.usefixtures("memory_limit")
@pytest.mark.parametrize("kind", FILES)
def test_a_bundle_file_that_is_not_a_file_of_bounded_size_is_refused(kind, version, tmp_path):
    error = replaced(version, BUNDLE_FILE, kind, MAX_BUNDLE_BYTES)
    for read in (
        lambda: read_bundle(version),
        lambda: fetch(version, tmp_path / "mnt"),
        lambda: bundles.check(version, Deadline(60)),
    ):
        with pytest.raises(StorageError) as refused:
            read()
        assert str(refused.value) == error
    with pytest.raises(BundleError) as not_served:
        load_bundle(version)
    assert str(not_served.value).startswith(error)
    assert not (tmp_path / "mnt").exists()


@pytest.mark.usefixtures("memory_limit")
@pytest.mark.parametrize("kind", FILES)
def test_a_model_that_is_not_a_file_of_bounded_size_is_refused(kind, version, tmp_path):
    error = replaced(version, MODEL_FILE, kind, MAX_MODEL_BYTES)
    for read in (lambda: fetch(version, tmp_path / "mnt"), lambda: bundles.check(version, Deadline(60))):
        with pytest.raises(StorageError) as refused:
            read()
        assert str(refused.value) == error


def test_the_transformer_refuses_a_fifo_in_one_line(version):
    error = replaced(version, BUNDLE_FILE, "a FIFO", MAX_BUNDLE_BYTES)
    done = subprocess.run(
        [sys.executable, "-m", "transformer", "--predictor_host=127.0.0.1:9"],
        env={**os.environ, "STORAGE_URI": str(version)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"transformer: {error}; ")
    assert "Traceback" not in done.stderr


def test_a_missing_model_says_what_to_do(version, tmp_path):
    (version / MODEL_FILE).unlink()
    with pytest.raises(StorageError) as refused:
        fetch(version, tmp_path / "mnt")
    assert str(refused.value) == (
        f"{version}/{MODEL_FILE}: is missing; restore it, or write a new version with `placement train`"
    )


@pytest.mark.parametrize("uri", ["a\0b", "a\ud800b"])
def test_a_uri_that_is_no_path_is_refused_in_one_line(uri):
    with pytest.raises(StorageError, match=r"use a URI that `placement train` printed"):
        read_bundle(uri)


# Exchanged files


def test_a_bundle_that_is_exchanged_during_the_copy_is_not_what_is_copied(version, tmp_path, monkeypatch):
    """The copy has the `bundle.json` whose digest was compared, and the model with that digest."""
    checked = load_bundle(version)

    model = (version / MODEL_FILE).read_bytes()

    class Exchanging(directories.LocalDirectory):
        def read_chunks(self, file, limit, deadline):
            content = list(super().read_chunks(file, limit, deadline))
            if file == BUNDLE_FILE:
                (version / file).write_text(bundle_copy(checked, "v1", b"forged").to_json())
            else:
                (version / file).write_bytes(b"forged")
            return iter(content)

    monkeypatch.setattr("storage.bundles.LocalDirectory", Exchanging)
    assert fetch(version, tmp_path / "mnt") == checked
    assert (version / MODEL_FILE).read_bytes() == b"forged"
    assert load_bundle(tmp_path / "mnt") == checked
    assert (tmp_path / "mnt" / MODEL_FILE).read_bytes() == model


# S3


@pytest.fixture(autouse=True)
def short_times(monkeypatch):
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3_session, "IDLE_TIMEOUT_S", 0.3)
    monkeypatch.setattr(s3_directory, "CALL_TIMEOUT_S", 3.0)
    monkeypatch.setattr(bundles, "READ_TIMEOUT_S", 3.0)


URI = "s3://models/placement/v1"
IN_TIME = r"check that the storage answers, then try again|[Tt]imeout on endpoint|timed out"


@pytest.mark.usefixtures("memory_limit")
@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        pytest.param(silent, IN_TIME, id="silent"),
        pytest.param(dripping, IN_TIME, id="dripping"),
        pytest.param(endless("200 OK"), f"is too large: limit {MAX_BUNDLE_BYTES} bytes", id="endless"),
        pytest.param(
            endless("500 Internal Server Error"), "the response is too large: limit", id="endless error"
        ),
        pytest.param(announcing(10**12), "is too large: limit .* got at least 1000000000000", id="1 TB"),
    ],
)
def test_reading_from_an_endpoint_that_does_not_end_fails(behaviour, error, monkeypatch):
    with hostile_s3(behaviour) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        with pytest.raises(StorageError, match=error) as failed:
            read_bundle(URI)
    assert str(failed.value).startswith(URI)
    assert "\n" not in str(failed.value)


@pytest.mark.usefixtures("memory_limit")
@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        pytest.param(silent, IN_TIME, id="silent"),
        pytest.param(dripping, IN_TIME, id="dripping"),
        pytest.param(endless("200 OK"), "the response is too large: limit 8388608 bytes", id="endless"),
        pytest.param(endless_listing, "the listing does not end: limit 100 pages", id="endless pages"),
    ],
)
def test_listing_an_endpoint_that_does_not_end_fails(behaviour, error, monkeypatch):
    with hostile_s3(behaviour) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        with pytest.raises(StorageError, match=error):
            versions("s3://models", "placement")


def test_a_broken_connection_is_continued_and_the_file_is_whole(monkeypatch):
    content = bytes(range(256)) * 20_000
    with hostile_s3(interrupted(content, parts=3)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        chunks = S3Directory(URI).read_chunks(MODEL_FILE, MAX_MODEL_BYTES, Deadline(30))
        assert b"".join(chunks) == content
    starts = [head.partition("range: bytes=")[2].split("-")[0] for head in server.requests]
    assert starts[0] == ""
    assert all(starts[1:])
    assert all("if-match: one" in head for head in server.requests[1:])


# Jumps of the clock


def test_a_jump_of_the_clock_does_not_remove_the_files_of_a_running_writer(version, tmp_path, monkeypatch):
    bundle = load_bundle(version)
    directory = directories.LocalDirectory(tmp_path / "placement")

    class Contents(dict[str, bytes]):
        def items(self):
            yield MODEL_FILE, b"slow"
            now = time.time()
            with monkeypatch.context() as jumped:
                jumped.setattr("time.time", lambda: now + 2 * directories.STALE_S)
                directory.create("v2", {MODEL_FILE: b"fast", BUNDLE_FILE: b"{}"})
            yield BUNDLE_FILE, bundle.to_json().encode()

    directory.create("v1", Contents({MODEL_FILE: b"", BUNDLE_FILE: b""}))
    assert directory.files() == {
        f"{one}/{file}" for one in ("v1", "v2") for file in (MODEL_FILE, BUNDLE_FILE)
    }
    assert stat.S_ISDIR((tmp_path / "placement" / "v1").stat().st_mode)
