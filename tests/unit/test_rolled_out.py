"""The local service starts with what was rolled out last, and says what it starts with and why."""

from pathlib import Path

import pytest

from inferenceservice.local.rolled_out import (
    THE_LAST_START,
    RolledOutFile,
    choose_version,
    last_started,
    record_start,
)
from inferenceservice.rollout_target import Canary

SPEC_URI = "pvc://models/placement/v1"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def file(spec_uri: str = SPEC_URI, service: str = "default/placement") -> RolledOutFile:
    return RolledOutFile(Path(".run/rolled_out.json"), service, spec_uri)


def start(here: Path, *, model: str | None = None, spec_uri: str = SPEC_URI) -> tuple[str, str | None]:
    """Return what is said, and the bundle that was rolled out if it starts."""
    said: list[str] = []
    last = choose_version(model, file(spec_uri), said.append)
    (line,) = said
    return line, None if last is None else str(Path(last.uri).relative_to(here))


def test_without_a_rollout_the_specs_bundle_starts(here):
    assert start(here) == ("starting models/placement/v1: the spec names it", None)


def test_the_last_rollout_starts_again(here):
    v1, v2 = f"{here}/models/placement/v1", f"{here}/models/placement/v2"
    file().record(v2, [v1], None)
    said, uri = start(here)
    assert said.startswith("starting models/placement/v2: it was rolled out on ")
    assert said.endswith("; the spec names models/placement/v1, which --model models/placement/v1 starts")
    assert uri == "models/placement/v2"
    last = file().read()
    assert last is not None
    assert last.history == (v1,)


def test_a_canary_starts_again(here):
    v1, v2 = f"{here}/models/placement/v1", f"{here}/models/placement/v2"
    file().record(v1, [], Canary(v2, 10))
    said, uri = start(here)
    assert said.startswith(
        "starting models/placement/v1, with 10 % for models/placement/v2: it was rolled out"
    )
    assert uri == "models/placement/v1"


def test_a_rollback_to_the_specs_bundle_needs_no_explanation(here):
    file().record(f"{here}/models/placement/v1", [], None)
    assert start(here) == ("starting models/placement/v1: the spec names it", "models/placement/v1")


def test_the_command_line_overrides_a_rollout(here):
    file().record(f"{here}/models/placement/v2", [], None)
    said, uri = start(here, model="models/placement/v3")
    assert said.startswith(
        "starting models/placement/v3: --model names it; models/placement/v2, which was rolled out on "
    )
    assert (said.endswith("does not start"), uri) == (True, None)
    assert start(here, model="./models/placement/v2/") == (
        "starting models/placement/v2: --model names it",
        None,
    )


def test_a_changed_spec_overrides_a_rollout(here):
    file().record(f"{here}/models/placement/v2", [], None)
    said, uri = start(here, spec_uri="pvc://models/placement/v3")
    assert said.startswith(
        "starting models/placement/v3: the spec has been changed to it; models/placement/v2"
    )
    assert uri is None


def test_rollouts_of_another_service_are_kept_apart(here):
    file(service="default/churn").record(f"{here}/models/churn/v7", [], None)
    file().record(f"{here}/models/placement/v2", [], None)
    assert start(here)[1] == "models/placement/v2"
    other = file(service="default/churn").read()
    assert other is not None
    assert other.uri == f"{here}/models/churn/v7"


@pytest.mark.parametrize("content", ["", "{", '{"services": {"default/placement": {}}}', "[]"])
def test_a_damaged_record_is_named_and_replaced(content, here):
    (here / ".run").mkdir()
    (here / ".run" / "rolled_out.json").write_text(content)
    said: list[str] = []
    assert choose_version(None, file(), said.append) is None
    assert said == [
        ".run/rolled_out.json: is not a record of rollouts; what was rolled out last is not known",
        "starting models/placement/v1: the spec names it",
    ]
    file().record(f"{here}/models/placement/v2", [], None)
    assert start(here)[1] == "models/placement/v2"


def test_a_model_without_a_spec_starts_again_with_what_was_rolled_out(here):
    path, said = here / ".run" / "rolled_out.json", list[str]()
    assert last_started(path) is None
    record_start(path, "models/churn/v1")
    assert last_started(path) == "models/churn/v1"
    churn = file("models/churn/v1", "default/churn")
    assert choose_version(None, churn, said.append, source=THE_LAST_START) is None
    churn.record(f"{here}/models/churn/v2", [f"{here}/models/churn/v1"], None)
    assert last_started(path) == "models/churn/v1"
    last = choose_version(None, churn, said.append, source=THE_LAST_START)
    assert last is not None
    assert last.uri == f"{here}/models/churn/v2"
    assert said[0] == "starting models/churn/v1: the last start names it"
    assert said[1].startswith("starting models/churn/v2: it was rolled out on ")
    assert said[1].endswith("; the last start names models/churn/v1, which --model models/churn/v1 starts")
    record_start(path, None)
    assert last_started(path) is None
    assert churn.read() == last


def test_a_record_of_an_earlier_release_has_no_last_start(here):
    (here / ".run").mkdir()
    (here / ".run" / "rolled_out.json").write_text('{"services": {}}')
    assert last_started(here / ".run" / "rolled_out.json") is None
