"""Storage: a version is complete or absent, and never changes."""

import errno
import os
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from storage import s3_directory
from storage.bundles import check_free, fetch, next_version, publish, read_bundle, versions, write_beside
from storage.errors import StorageError, VersionExistsError
from storage.uris import local_path, serving_uri, version_uri
from tests.support.bundle_copies import MODEL, bundle_copy
from transformer.bundle.format import BUNDLE_FILE, MODEL_FILE, Bundle, load_bundle


@pytest.fixture
def make(trained_bundle: Path) -> Callable[..., Bundle]:
    return partial(bundle_copy, load_bundle(trained_bundle))


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_server,
    }.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{random.getrandbits(48):x}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/models"


@pytest.fixture(params=["directory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "directory":
        return str(tmp_path / "models")
    s3: str = request.getfixturevalue("s3")
    return s3


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_published_version_can_be_fetched_unchanged(storage, make, tmp_path):
    bundle = make("v1")
    uri = publish(bundle, MODEL, storage)
    assert uri == serving_uri(f"{storage}/placement/v1")
    assert read_bundle(uri) == bundle
    assert fetch(uri, tmp_path / "mnt") == bundle
    assert names(tmp_path / "mnt") == [BUNDLE_FILE, MODEL_FILE]
    assert (tmp_path / "mnt" / MODEL_FILE).read_bytes() == MODEL
    assert load_bundle(tmp_path / "mnt") == bundle


def test_an_existing_version_is_never_overwritten(storage, make):
    uri = publish(make("v1"), MODEL, storage)
    with pytest.raises(VersionExistsError, match=r"placement/v1: this version exists"):
        publish(make("v1", b"another"), b"another", storage)
    assert read_bundle(uri) == make("v1")


def test_versions_are_numbered_one_after_another(storage, make):
    assert (versions(storage, "placement"), next_version(storage, "placement")) == ([], "v1")
    for version in ("v1", "v10", "v9", "trial"):
        publish(make(version), MODEL, storage)
    assert versions(storage, "placement") == ["trial", "v1", "v9", "v10"]
    assert next_version(storage, "placement") == "v11"


def test_the_slower_of_two_uploads_is_refused(s3, make, monkeypatch):
    faster = make("v1", b"faster")

    class Slow(s3_directory.S3Directory):
        def create(self, version, contents):
            with monkeypatch.context() as unslowed:
                unslowed.setattr("storage.bundles.S3Directory", s3_directory.S3Directory)
                publish(faster, b"faster", s3)
            super().create(version, contents)

    monkeypatch.setattr("storage.bundles.S3Directory", Slow)
    with pytest.raises(VersionExistsError, match="another writer has created this version just now"):
        publish(make("v1"), MODEL, s3)
    assert read_bundle(version_uri(s3, "placement", "v1")) == faster


def test_an_interrupted_upload_is_not_a_version_and_the_error_says_so(s3, make):
    bucket, _, prefix = s3.removeprefix("s3://").partition("/")
    boto3.client("s3").put_object(Bucket=bucket, Key=f"{prefix}/placement/v1/{MODEL_FILE}", Body=b"half")
    assert versions(s3, "placement") == []
    with pytest.raises(
        VersionExistsError, match=rf"holds {MODEL_FILE} but no {BUNDLE_FILE}: its upload is in"
    ):
        check_free(s3, "placement", "v1")
    with pytest.raises(StorageError, match=f"no version here, {BUNDLE_FILE} is missing"):
        read_bundle(f"{s3}/placement/v1")
    assert next_version(s3, "placement") == "v2"


def test_the_bundle_is_uploaded_last(s3, make, monkeypatch):
    written = []
    directory = s3_directory.S3Directory(s3 + "/placement")
    monkeypatch.setattr(
        directory._s3, "pipe_file", lambda path, *_, **__: written.append(path.rpartition("/")[2])
    )
    monkeypatch.setattr("storage.bundles.S3Directory", lambda _: directory)
    monkeypatch.setattr("storage.bundles.check_free", lambda *_: None)
    publish(make("v1"), MODEL, s3)
    assert written == [MODEL_FILE, BUNDLE_FILE]


def test_kserves_variables_for_the_s3_endpoint_work_too(s3, s3_server, make, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("S3_ENDPOINT", s3_server.removeprefix("http://"))
    monkeypatch.setenv("S3_USE_HTTPS", "0")
    assert read_bundle(publish(make("v1"), MODEL, s3)) == make("v1")


def test_a_version_is_readable_by_the_servers_user(tmp_path, make):
    umask = os.umask(0o022)
    try:
        uri = publish(make("v1"), MODEL, tmp_path)
    finally:
        os.umask(umask)
    assert Path(uri).stat().st_mode & 0o777 == 0o755
    assert (Path(uri) / MODEL_FILE).stat().st_mode & 0o777 == 0o644


def test_a_model_that_differs_from_its_digest_is_not_fetched(storage, make, tmp_path):
    uri = publish(make("v1"), b"something else", storage)
    with pytest.raises(StorageError, match=rf"v1/{MODEL_FILE}: SHA-256 is .*the file was changed"):
        fetch(uri, tmp_path / "mnt")


def test_fetching_into_a_directory_that_is_not_empty_is_refused(tmp_path, make):
    uri = publish(make("v1"), MODEL, tmp_path / "models")
    (tmp_path / "mnt").mkdir()
    (tmp_path / "mnt" / "old.joblib").touch()
    with pytest.raises(StorageError, match="mnt: must be empty"):
        fetch(uri, tmp_path / "mnt")


def test_a_file_beside_a_version_is_replaced_as_a_whole(storage, make):
    uri = publish(make("v1"), MODEL, storage)
    for content in (b"first", b"second"):
        assert write_beside(uri, ".html", content, "text/html") == uri.rstrip("/") + ".html"
    if not storage.startswith("s3"):
        assert Path(uri + ".html").read_bytes() == b"second"
        assert names(Path(storage, "placement")) == ["v1", "v1.html"]
    assert versions(storage, "placement") == ["v1"]


def test_the_uri_of_a_version_on_s3_is_the_prefix_of_its_files_only(s3, make):
    uri = publish(make("v1"), MODEL, s3)
    publish(make("v10"), MODEL, s3)
    write_beside(uri, ".html", b"report", "text/html")
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    found = boto3.client("s3").list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]
    assert [one["Key"].removeprefix(prefix) for one in found] == [BUNDLE_FILE, MODEL_FILE]
    assert read_bundle(uri).version == "v1"


@pytest.mark.parametrize(
    ("given", "served"),
    [
        ("s3://models/placement/v1", "s3://models/placement/v1/"),
        ("s3://models/placement/v1/", "s3://models/placement/v1/"),
        ("pvc://models/placement/v1/", "pvc://models/placement/v1"),
        (Path("models/placement/v1"), "models/placement/v1"),
    ],
)
def test_only_uris_of_s3_end_with_a_slash_in_a_spec(given, served):
    assert serving_uri(given) == served


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("models/placement/v1", "models/placement/v1"),
        ("file:///srv/my%20models", "/srv/my models"),
        ("pvc://models/placement/v1", "models/placement/v1"),
        ("pvc://models", "models"),
        ("s3://bucket/prefix", None),
    ],
)
def test_a_uri_names_a_local_path_or_none(uri, path):
    assert local_path(uri) == (None if path is None else Path(path))


def test_a_pvc_uri_is_a_directory_of_the_working_directory(tmp_path, make, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert publish(make("v1"), MODEL, "pvc://models") == "pvc://models/placement/v1"
    assert load_bundle(tmp_path / "models" / "placement" / "v1") == make("v1")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("gs://bucket/v1", r"gs://bucket/v1: scheme 'gs' is not supported, expected a path, file, pvc or s3"),
        ("nowhere/v1", r"nowhere/v1: no version here, bundle.json is missing"),
    ],
)
def test_the_error_for_an_unreadable_uri_names_it(uri, message):
    with pytest.raises(StorageError, match=message):
        read_bundle(uri)


@pytest.mark.parametrize("file", [MODEL_FILE, BUNDLE_FILE])
def test_a_file_that_this_user_cannot_read_is_named_with_a_remedy(file, tmp_path, make, monkeypatch):
    uri = publish(make("v1"), MODEL, tmp_path / "models")
    original = os.open

    def refusing(path: str, *arguments: Any, **options: Any) -> int:
        if Path(path).name == file:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return original(path, *arguments, **options)

    # The superuser, who may run the tests, can read every file.
    monkeypatch.setattr("transformer.bundle.regular_file.os.open", refusing)
    with pytest.raises(StorageError) as raised:
        fetch(uri, tmp_path / "mnt")
    assert str(raised.value) == (
        f"{uri}/{file}: Permission denied for user {os.geteuid()}; change its owner or its permissions"
    )


def test_the_error_for_unwritable_storage_names_it(tmp_path, make, s3):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/placement/v1: .+"):
        publish(make("v1"), MODEL, tmp_path / "file")
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/placement/v1: .*bucket"):
        publish(make("v1"), MODEL, "s3://no-such-bucket")


def test_missing_credentials_are_a_one_line_error(s3, monkeypatch, tmp_path):
    import s3fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match="set AWS_ACCESS_KEY_ID"):
        versions(s3, "placement")
    s3fs.S3FileSystem.clear_instance_cache()
