"""A rollout takes its steps in the safe order, checks the result, and undoes them if one fails."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inferenceservice.rollout import RolloutError, rollback, rollout
from inferenceservice.rollout_target import Canary, ForeignChange, Scores, State, TargetError
from tests.support.in_memory_target import InMemoryTarget, ignore_progress, unrelated_version
from transformer.bundle.format import BUNDLE_FILE, load_bundle


async def test_the_transformer_changes_first_in_a_rollout_and_last_in_a_rollback(pair):
    target = InMemoryTarget(str(pair.old))
    assert await rollout(target, str(pair.new), ignore_progress) == "v2"
    assert await rollback(target, ignore_progress) == "v1"
    assert target.steps == ["transformer v2", "predictor v2", "predictor v1", "transformer v1"]


@pytest.mark.parametrize(
    ("fail", "steps"),
    [
        ("transformer v2", ["transformer v2"]),
        ("predictor v2", ["transformer v2", "predictor v2", "transformer v1"]),
    ],
)
async def test_a_failed_step_is_undone_and_reported(fail, steps, pair):
    target = InMemoryTarget(str(pair.old), fail)
    before = target.now
    with pytest.raises(RolloutError, match=r"the previous state is restored: \w+ failed"):
        await rollout(target, str(pair.new), ignore_progress)
    assert target.steps == steps
    assert target.now == before


async def test_a_version_whose_scores_differ_from_its_bundle_is_rolled_back(pair):
    target = InMemoryTarget(str(pair.old))
    target.scores = lambda bundle, rows: Scores((0.5,) * len(rows), bundle.version)
    with pytest.raises(RolloutError, match="scores its reference rows differently"):
        await rollout(target, str(pair.new), ignore_progress)
    assert (target.now.transformer_uri, target.now.predictor_uri) == (str(pair.old), str(pair.old))


async def test_a_bundle_without_the_current_version_is_refused_with_a_remedy(pair, tmp_path):
    target = InMemoryTarget(pair.new)
    with pytest.raises(RolloutError, match=f"again with `--previous {pair.new}`") as raised:
        await rollout(target, str(unrelated_version(pair.new, tmp_path / "v9")), ignore_progress)
    assert str(raised.value).startswith("v9 does not recognise v2, which serves now")
    assert "--force" in str(raised.value)
    assert target.steps == []


def sibling(version: Path, directory: Path, **content: object) -> Path:
    """Copy a version under the name v3; it recognises the same earlier versions."""
    directory.mkdir()
    bundle = json.loads((version / BUNDLE_FILE).read_text())
    (directory / BUNDLE_FILE).write_text(json.dumps({**bundle, "version": "v3", **content}))
    return directory


@pytest.mark.parametrize(
    ("previous", "way"),
    [
        (True, "return to v1, which both recognise, with `placement rollback`, and then roll this one out"),
        (False, "roll v1 out first, which both recognise, and then roll this one out"),
    ],
    ids=["v1 served before", "v1 never served"],
)
async def test_two_versions_that_recognise_a_third_one_can_be_rolled_out_by_way_of_it(
    previous, way, pair, tmp_path
):
    target = InMemoryTarget(pair.new)
    if previous:
        target.now = replace(target.now, previous_uri=str(pair.old))
    with pytest.raises(RolloutError) as raised:
        await rollout(target, str(sibling(pair.new, tmp_path / "v3")), ignore_progress)
    assert str(raised.value) == (
        "v3 does not recognise v2, which serves now, so requests would get 503 during the change; train or "
        f"import it again with `--previous {pair.new}`, or {way}, or use --force"
    )


async def test_a_version_of_another_model_is_named_as_such(pair, tmp_path):
    target = InMemoryTarget(pair.old)
    churn = sibling(pair.old, tmp_path / "churn", name="churn", previous=[])
    with pytest.raises(RolloutError) as raised:
        await rollout(target, str(churn), ignore_progress)
    assert str(raised.value) == (
        "churn v3 is another model than placement v1, which serves now, so requests would get 503 during the "
        f"change; give it an InferenceService of its own (on this machine: `placement up --model {churn}`), "
        "or use --force"
    )


async def test_unrelated_versions_change_both_components_at_once_and_only_with_force(pair, tmp_path):
    target = InMemoryTarget(pair.new)
    progress: list[str] = []
    assert (
        await rollout(target, str(unrelated_version(pair.new, tmp_path / "v9")), progress.append, force=True)
        == "v9"
    )
    assert target.steps == ["both v9"]
    assert progress[0].startswith("v9 and v2 do not recognise each other: both components change at once")


@pytest.mark.parametrize(
    ("fail", "steps"),
    [
        pytest.param("both v9", ["both v9"], id="nothing had changed"),
        pytest.param(None, ["both v9", "both v2"], id="both had changed"),
    ],
)
async def test_a_failed_rollout_between_unrelated_versions_is_undone_in_one_step(fail, steps, pair, tmp_path):
    target = InMemoryTarget(pair.new, fail)
    target.scores = lambda bundle, rows: Scores((0.5,) * len(rows), bundle.version)
    with pytest.raises(RolloutError, match="v9 was not rolled out, the previous state is restored"):
        await rollout(target, str(unrelated_version(pair.new, tmp_path / "v9")), ignore_progress, force=True)
    assert target.steps == steps
    assert (target.now.transformer_uri, target.now.predictor_uri) == (str(pair.new), str(pair.new))


async def test_a_half_finished_change_of_both_components_is_undone_in_one_step(pair, tmp_path, monkeypatch):
    """Both components were to change at once, and only one has changed."""
    target = InMemoryTarget(pair.new)

    async def only_one(uri: str, progress: Any) -> None:
        target.now = replace(target.now, transformer_uri=uri)
        raise TargetError("the predictor does not get ready")

    monkeypatch.setattr(target, "set_both", only_one)
    with pytest.raises(RolloutError, match="the previous state is restored"):
        await rollout(target, str(unrelated_version(pair.new, tmp_path / "v9")), ignore_progress, force=True)
    assert target.steps == ["transformer v2"]


async def test_a_forced_rollout_does_not_need_the_current_versions_bundle(pair, tmp_path):
    target = InMemoryTarget(pair.old)
    target.unreadable.add(str(pair.old))
    with pytest.raises(TargetError, match="is out of reach"):
        await rollout(target, str(pair.new), ignore_progress)
    await rollout(target, str(pair.new), ignore_progress, force=True)
    assert target.steps == ["both v2"]


async def test_a_version_that_the_transformer_knows_changes_the_predictor_first(pair):
    """Rolling out an older version goes back."""
    target = InMemoryTarget(pair.new)
    assert await rollout(target, str(pair.old), ignore_progress) == "v1"
    assert target.steps == ["predictor v1", "transformer v1"]


async def test_a_collocated_service_changes_both_containers_at_once(pair):
    target = InMemoryTarget(pair.old, collocated=True)
    assert await rollout(target, str(pair.new), ignore_progress) == "v2"
    assert await rollback(target, ignore_progress) == "v1"
    assert target.steps == ["both v2", "both v1"]


async def test_a_canary_of_a_collocated_service_is_a_second_pod(pair):
    target = InMemoryTarget(pair.old, collocated=True)
    await rollout(target, str(pair.new), ignore_progress, canary=50)
    assert target.steps == ["check canary", "canary v2"]
    await rollout(target, str(pair.new), ignore_progress)
    assert target.steps[2:] == ["both v2"]


async def test_a_version_replaces_only_the_one_that_it_was_compared_with(pair, tmp_path):
    v1, v2 = str(pair.old), str(pair.new)
    other = str(unrelated_version(pair.old, tmp_path / "v7", "v7"))
    target = InMemoryTarget(other)
    with pytest.raises(RolloutError, match=f"{v2} was compared with {v1}, but {other} serves now; start"):
        await rollout(target, v2, ignore_progress, replaces=v1, force=True)
    assert target.steps == []
    target = InMemoryTarget(v1)
    # The second call is a step that Kubeflow starts again.
    for _ in range(2):
        assert await rollout(target, v2, ignore_progress, replaces=v1) == "v2"


async def test_a_bundle_that_cannot_be_read_changes_nothing(pair, tmp_path):
    target = InMemoryTarget(str(pair.old))
    with pytest.raises(TargetError, match=r"bundle\.json"):
        await rollout(target, str(tmp_path), ignore_progress)
    assert target.steps == []


async def test_a_canary_is_finished_by_a_rollout_or_undone_by_a_rollback(pair):
    target = InMemoryTarget(str(pair.old))
    await rollout(target, str(pair.new), ignore_progress, canary=10)
    assert target.now.canary == Canary(str(pair.new), 10)
    await rollout(target, str(pair.new), ignore_progress)
    assert target.now == State(str(pair.new), str(pair.new), str(pair.old))
    target = InMemoryTarget(str(pair.old))
    await rollout(target, str(pair.new), ignore_progress, canary=10)
    await rollback(target, ignore_progress)
    assert target.now == State(str(pair.old), str(pair.old))
    assert target.steps == ["check canary", "transformer v2", "canary v2", "end canary", "transformer v1"]


async def test_a_second_canary_and_a_canary_of_the_current_version_are_refused(pair, tmp_path):
    target = InMemoryTarget(str(pair.old))
    with pytest.raises(RolloutError, match="serves already"):
        await rollout(target, str(pair.old), ignore_progress, canary=10)
    target.now = State(str(pair.new), str(pair.old), None, Canary(str(tmp_path / "v3"), 10))
    with pytest.raises(RolloutError, match="is in progress; finish it with `placement rollout"):
        await rollout(target, str(pair.new), ignore_progress)


async def test_a_rollout_that_ended_half_way_can_be_finished_or_undone(pair):
    target = InMemoryTarget(str(pair.old))
    target.now = State(str(pair.new), str(pair.old))
    await rollout(target, str(pair.new), ignore_progress)
    assert target.steps == ["predictor v2"]
    target.now, target.steps = State(str(pair.new), str(pair.old)), []
    await rollback(target, ignore_progress)
    assert target.steps == ["transformer v1"]


@pytest.mark.parametrize("percent", [None, 50])
async def test_a_failed_step_restores_the_canary_that_was_there(percent, pair, monkeypatch):
    target = InMemoryTarget(pair.old)
    await rollout(target, str(pair.new), ignore_progress, canary=20)
    before, target.steps = target.now, []
    # The last step fails because nothing answers.
    monkeypatch.setattr(target, "score", failing("no answer"))
    with pytest.raises(RolloutError, match="the previous state is restored: no answer"):
        await rollout(target, str(pair.new), ignore_progress, canary=percent)
    assert replace(target.now, previous_uri=None) == before
    if percent is None:
        assert target.steps == ["predictor v2", "predictor v1", "canary v2"]
    else:
        assert target.steps == ["check canary", "canary v2", "canary v2"]


@pytest.mark.parametrize("percent", [None, 50])
async def test_a_canary_with_wrong_answers_is_removed(percent, pair):
    target = InMemoryTarget(pair.old)
    await rollout(target, str(pair.new), ignore_progress, canary=20)
    target.scores = lambda bundle, rows: Scores((0.5,) * len(rows), bundle.version)
    with pytest.raises(
        RolloutError, match=r"v2 was not rolled out, and its canary was removed: v\d scores its"
    ):
        await rollout(target, str(pair.new), ignore_progress, canary=percent)
    assert (target.now.transformer_uri, target.now.predictor_uri) == (str(pair.old), str(pair.old))
    assert target.now.canary is None


async def test_a_canary_must_know_the_current_version_even_with_force(pair, tmp_path):
    target = InMemoryTarget(pair.new)
    with pytest.raises(RolloutError, match="v9 does not recognise v2, which keeps the rest of the traffic"):
        await rollout(
            target, str(unrelated_version(pair.new, tmp_path / "v9")), ignore_progress, canary=10, force=True
        )
    assert target.steps == ["check canary"]


async def test_a_canary_with_the_model_of_the_current_version_is_refused(pair, tmp_path):
    shutil.copytree(pair.new, tmp_path / "v3")
    bundle = load_bundle(pair.new)
    changed = {"version": "v3", "threshold": 0.25, "previous": bundle.versions[:1]}
    (tmp_path / "v3" / BUNDLE_FILE).write_text(bundle.model_copy(update=changed).to_json())
    target = InMemoryTarget(pair.new)
    with pytest.raises(RolloutError) as raised:
        await rollout(target, str(tmp_path / "v3"), ignore_progress, canary=10)
    assert str(raised.value) == (
        "v3 and v2 have the same model, so the transformer cannot tell which of them answers; roll v3 out "
        "without --canary"
    )
    assert target.steps == ["check canary"]
    assert await rollout(target, str(tmp_path / "v3"), ignore_progress) == "v3"


async def test_rolling_out_the_current_version_ends_a_canary(pair):
    target = InMemoryTarget(pair.old)
    await rollout(target, str(pair.new), ignore_progress, canary=10)
    assert await rollout(target, str(pair.old), ignore_progress) == "v1"
    assert target.steps[-2:] == ["end canary", "transformer v1"]


@pytest.mark.parametrize(
    ("serving", "earlier", "steps"),
    [
        pytest.param("v2", "v1", ["predictor v1", "transformer v1"], id="the one that serves knows"),
        pytest.param("v1", "v2", ["transformer v2", "predictor v2"], id="the earlier one knows"),
        pytest.param("v2", "v9", ["both v9"], id="neither knows"),
    ],
)
async def test_a_rollback_takes_the_order_in_which_the_transformer_knows_the_predictor(
    serving, earlier, steps, pair, tmp_path
):
    versions = {"v1": pair.old, "v2": pair.new, "v9": unrelated_version(pair.new, tmp_path / "v9")}
    target = InMemoryTarget(versions[serving])
    target.now = replace(target.now, previous_uri=str(versions[earlier]))
    progress: list[str] = []
    assert await rollback(target, progress.append) == earlier
    assert target.steps == steps
    assert steps[0].split()[0] in progress[0], "which goes first, or both"


async def test_a_rollback_does_not_need_the_bundle_of_the_version_that_it_removes(pair):
    target = InMemoryTarget(pair.new)
    target.now = replace(target.now, previous_uri=str(pair.old))
    target.unreadable.add(str(pair.new))
    progress: list[str] = []
    await rollback(target, progress.append)
    assert target.steps == ["predictor v1", "transformer v1"]
    assert "is out of reach): the predictor changes first" in progress[0]


async def test_another_version_of_the_same_name_is_not_taken_for_a_known_one(pair, tmp_path):
    """This v1 is not the one that v2 was trained after."""
    target = InMemoryTarget(unrelated_version(pair.new, tmp_path / "v1", "v1"))
    with pytest.raises(RolloutError, match="v2 does not recognise v1, which serves now"):
        await rollout(target, str(pair.new), ignore_progress)


def failing(message: str) -> Any:
    """Return a step that fails."""

    async def fail(*_: object) -> Any:
        raise TargetError(message)

    return fail


async def test_a_failure_while_rolling_back_is_reported_too(pair, monkeypatch):
    target = InMemoryTarget(str(pair.old), "predictor v2")
    failing = iter(["transformer v1"])

    async def set_transformer(uri: str, progress: Any) -> None:
        if uri == str(pair.old):
            raise TargetError(f"{next(failing)} failed")
        target.now = State(uri, target.now.predictor_uri)

    monkeypatch.setattr(target, "set_transformer", set_transformer)
    with pytest.raises(RolloutError) as failed:
        await rollout(target, str(pair.new), ignore_progress)
    assert str(failed.value) == (
        "v2 was not rolled out (predictor failed), and rolling back failed: transformer v1 failed; two "
        "versions may be serving now: see `placement status`, and run "
        f"`placement rollout {pair.old}` to recover"
    )


@pytest.mark.parametrize("fail", [None, "predictor v2"], ids=["in the rollout", "while rolling back"])
async def test_a_change_by_another_client_is_left_and_reported_once(fail, pair):
    target = InMemoryTarget(str(pair.old), fail)

    async def changed(step: str) -> None:
        if step == ("transformer v2" if fail is None else "wait_until_idle") and len(target.steps) > 0:
            raise ForeignChange("another client changed it")

    target.during = changed
    lines: list[str] = []
    with pytest.raises(RolloutError) as failed:
        await rollout(target, str(pair.new), lines.append)
    why = ": " if fail is None else " (predictor failed), and not rolled back: "
    assert str(failed.value) == f"v2 was not rolled out{why}another client changed it"
    assert sum("another client" in line for line in lines) == 0
    assert target.steps == ["transformer v2", "predictor v2"][: 1 if fail is None else 2]


async def test_a_canary_that_the_target_refuses_changes_nothing(pair):
    target = InMemoryTarget(str(pair.old), "check canary")
    with pytest.raises(TargetError, match="check canary failed"):
        await rollout(target, str(pair.new), ignore_progress, canary=10)
    assert target.steps == ["check canary"]


async def test_a_rollback_is_refused_when_there_is_no_previous_version(pair):
    with pytest.raises(RolloutError, match="no earlier version"):
        await rollback(InMemoryTarget(str(pair.old)), ignore_progress)
