"""A rollout compares a service's answers with the reference rows of the version that each answer names."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from inferenceservice import answer_checks
from inferenceservice.answer_checks import (
    ReferenceRequest,
    WrongAnswer,
    check_canary_answers,
    requests_to_observe,
    wait_until_serving,
)
from inferenceservice.rollout import RolloutError, rollout
from inferenceservice.rollout_target import Canary, Scores, TargetError
from tests.support.in_memory_target import InMemoryTarget, ignore_progress, scores_of_bundle
from tests.support.version_pairs import accepts
from transformer.bundle.format import Bundle, load_bundle


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten all waits to tenths of seconds."""
    monkeypatch.setattr(answer_checks, "TIMEOUT_S", 0.3)
    monkeypatch.setattr(answer_checks, "UNVERIFIED_GRACE_S", 0.1)
    monkeypatch.setattr(answer_checks, "_POLL_S", 0.01)


def off_by(error: float, version: str) -> Any:
    """Return a version's scores, one of them wrong."""

    def scores(bundle: Bundle, rows: Sequence[dict[str, Any]]) -> Scores:
        right = scores_of_bundle(bundle, rows)
        if bundle.version != version:
            return right
        known = next(i for i, row in enumerate(rows) if row in bundle.reference.candidates)
        given = [one for one in right.answers if isinstance(one, float)]
        given[known] += error
        return Scores(tuple(given), bundle.version)

    return scores


def unverified(every: int) -> Any:
    """Return right answers, of which every n-th is from an unknown model."""
    count = iter(range(10**9))

    def scores(bundle: Bundle, rows: Sequence[dict[str, Any]]) -> Scores:
        right = scores_of_bundle(bundle, rows)
        return Scores(right.answers, "unverified") if next(count) % every == every - 1 else right

    return scores


def test_a_check_sends_only_rows_that_both_versions_accept(pair):
    bundles = [load_bundle(pair.old), load_bundle(pair.new)]
    request = ReferenceRequest(bundles)
    assert request.unchecked_versions == []
    for bundle in bundles:
        own = [dict(row) for row in bundle.reference.candidates]
        assert any(row in request.candidates for row in own)
        assert not all(row in request.candidates for row in own), "a renamed category is in one version only"
        assert all(accepts(bundle.signature, row) for row in request.candidates)


@pytest.mark.parametrize("percent", [1, 10, 50, 99])
async def test_a_canary_is_checked_until_both_versions_have_answered(percent, pair):
    target = InMemoryTarget(pair.old)
    seen: list[str] = []
    sent: list[int] = []

    def scores(bundle: Bundle, rows: Sequence[dict[str, Any]]) -> Scores:
        seen.append(bundle.version)
        if target.now.canary is not None:
            sent.append(len(rows))
        return scores_of_bundle(bundle, rows)

    target.scores = scores
    assert await rollout(target, str(pair.new), ignore_progress, canary=percent) == "v2"
    assert set(seen) == {"v1", "v2"}
    assert len(seen) >= answer_checks.MIN_ANSWERS
    assert set(sent) == {2}, "monitoring counts the rows: one of each version's in a request"


@pytest.mark.parametrize(("version", "percent"), [("v2", 10), ("v1", 90)])
async def test_a_canary_is_undone_for_one_wrong_score_of_either_version(version, percent, pair):
    target = InMemoryTarget(pair.old)
    target.scores = off_by(2e-6, version)
    with pytest.raises(
        RolloutError, match=f"the previous state is restored: {version} scores its reference rows differently"
    ):
        await rollout(target, str(pair.new), ignore_progress, canary=percent)
    assert target.steps[-2:] == ["end canary", "transformer v1"]


async def test_scores_are_compared_with_the_same_tolerance_as_in_verification(pair):
    target = InMemoryTarget(pair.old)
    target.scores = off_by(0.9e-6, "v2")
    await rollout(target, str(pair.new), ignore_progress, canary=50)


async def test_a_canary_is_undone_for_one_unverified_answer(pair):
    target = InMemoryTarget(pair.old)
    target.scores = unverified(every=15)
    with pytest.raises(
        RolloutError, match=r"no bundle describes \(`unverified`\) answers instead of v2 or v1"
    ):
        await rollout(target, str(pair.new), ignore_progress, canary=50)
    assert target.now.canary is None


async def test_a_canary_is_undone_for_an_answer_of_a_third_version(pair):
    target = InMemoryTarget(pair.old)
    target.scores = lambda bundle, rows: Scores(scores_of_bundle(bundle, rows).answers, "v7")
    with pytest.raises(RolloutError, match="v7 answers instead of v2 or v1"):
        await rollout(target, str(pair.new), ignore_progress, canary=50)


@pytest.mark.parametrize("scores", [(), (float("nan"),) * 100])
async def test_an_answer_without_scores_counts_as_wrong(scores, pair):
    target = InMemoryTarget(pair.old)
    target.scores = lambda bundle, rows: Scores(scores[: len(rows)], bundle.version)
    with pytest.raises(RolloutError, match=r"v1 (returned 0 scores|scores its reference rows differently)"):
        await rollout(target, str(pair.new), ignore_progress, canary=1)


@pytest.mark.parametrize(("silent", "share"), [("v2", 20), ("v1", 80)])
async def test_a_canary_whose_traffic_is_not_split_is_undone(silent, share, pair):
    """KServe may send it all traffic or none, whatever its status says."""
    target = InMemoryTarget(pair.old)
    only = load_bundle(pair.old if silent == "v2" else pair.new)
    target.scores = lambda _, rows: scores_of_bundle(only, rows)
    with pytest.raises(RolloutError) as failed:
        await rollout(target, str(pair.new), ignore_progress, canary=20)
    said = f"{silent} gave 0 of {requests_to_observe(20)} answers within"
    assert said in str(failed.value)
    assert str(failed.value).endswith(f"expected about {share} % of them")


async def test_a_canary_that_does_not_answer_in_time_is_undone(pair, hurried):
    target = InMemoryTarget(pair.old)
    target.scores = lambda _, rows: scores_of_bundle(load_bundle(pair.old), rows)
    with pytest.raises(RolloutError, match=r"v2 gave 0 of \d+ answers within 0 s, expected about 1 %"):
        await rollout(target, str(pair.new), ignore_progress, canary=1)


@pytest.mark.parametrize(("percent", "requests"), [(50, 49), (10, 1375), (1, 138149)])
def test_a_check_overlooks_a_canary_at_most_once_in_a_million_times(percent, requests):
    assert requests_to_observe(percent) == requests


async def test_versions_without_a_row_that_both_accept_are_not_compared(pair):
    old, new = load_bundle(pair.old), load_bundle(pair.new)
    reference = new.reference
    only = [i for i, row in enumerate(reference.candidates) if not accepts(old.signature, row)]
    reference = reference.model_copy(
        update={
            name: tuple(getattr(reference, name)[i] for i in only) for name in ("candidates", "probabilities")
        }
    )
    target = InMemoryTarget(pair.old)
    canary = Canary(str(pair.new), 50)
    target.now = replace(target.now, canary=canary)
    unknown = await check_canary_answers(target, canary, new.model_copy(update={"reference": reference}), old)
    assert unknown == ["v2"]


async def test_the_old_version_may_still_answer_while_it_is_being_replaced(pair, hurried):
    target = InMemoryTarget(pair.new)
    leaving = iter(["unverified", "v1", "unverified"])

    def scores(bundle: Bundle, rows: Sequence[dict[str, Any]]) -> Scores:
        right = scores_of_bundle(bundle, rows)
        return Scores(right.answers, next(leaving, right.version))

    target.scores = scores
    await wait_until_serving(target, load_bundle(pair.new))


async def test_a_rollout_sends_all_reference_rows_once_since_monitoring_counts_them(pair):
    target = InMemoryTarget(pair.new)
    sent: list[int] = []

    def scores(bundle: Bundle, rows: Sequence[dict[str, Any]]) -> Scores:
        sent.append(len(rows))
        return scores_of_bundle(bundle, rows)

    target.scores = scores
    bundle = load_bundle(pair.new)
    await wait_until_serving(target, bundle)
    assert sent == [1] * 19 + [len(bundle.reference.candidates)]


async def test_a_version_that_stays_unverified_is_rolled_back(pair, hurried):
    target = InMemoryTarget(pair.old)
    target.scores = unverified(every=3)
    with pytest.raises(
        RolloutError, match=r"describes \(`unverified`\) answers instead of v2; check that the"
    ):
        await rollout(target, str(pair.new), ignore_progress)
    assert target.now.predictor_uri == str(pair.old)


async def test_a_rollout_reports_an_old_version_that_keeps_answering(pair, hurried):
    with pytest.raises(TargetError, match="v1 answers instead of v2") as failed:
        await wait_until_serving(InMemoryTarget(pair.old), load_bundle(pair.new))
    assert not isinstance(failed.value, WrongAnswer)
