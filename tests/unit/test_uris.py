"""All spellings of a URI are one version, which is shown as people type it."""

from pathlib import Path

import pytest

from storage.uris import canonical, shown


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models" / "v1").mkdir(parents=True)
    (tmp_path / "models" / "current").symlink_to("v1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "spelling",
    ["models/v1", "models/v1/", "./models//v1", "models/../models/v1", "pvc://models/v1", "models/current"],
)
def test_a_local_version_has_one_canonical_uri(spelling, here):
    assert canonical(spelling) == f"{here}/models/v1"
    assert shown(spelling) == "models/v1"


def test_absolute_spellings_are_the_same_version(here):
    assert canonical(f"file://{here}/models/v1") == canonical(f"{here}/models/v1") == canonical("models/v1")
    assert shown(f"file://{here}/models/v1") == "models/v1"


def test_a_version_elsewhere_is_shown_with_its_whole_path(here):
    assert shown("../v1") == f"{here.parent}/v1"


@pytest.mark.parametrize(
    ("uri", "same"),
    [("s3://bucket/v1/", "s3://bucket/v1"), ("gs://bucket/v1", "gs://bucket/v1"), ("a\0b", "a\0b"), ("", "")],
)
def test_other_uris_stay_as_they_are(uri, same):
    assert (canonical(uri), shown(uri)) == (same, same)
