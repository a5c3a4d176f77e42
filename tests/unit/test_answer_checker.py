"""The checker of served answers tells right answers from wrong and mixed ones."""

import numpy as np
import pytest

from tests.soak.rollouts import Outcome
from tests.support.answer_checker import Answer, AnswerChecker
from tests.support.load import Tally
from tests.support.version_pairs import PAIRS, VersionPair, differ, misread
from transformer.bundle.format import UNVERIFIED


@pytest.fixture(scope="module")
def checker(pair) -> AnswerChecker:
    return AnswerChecker(
        pair.candidates,
        {label: [sklearn_reference] for label, sklearn_reference in pair.references.items()},
    )


def answer_from(pair: VersionPair, version: str, chosen: list[int], *by: str) -> Answer:
    """Return an answer that names a version, with each candidate's score from the version in `by`."""
    scores = [
        pair.references[one].probabilities([pair.candidates[number]])[0]
        for one, number in zip(by, chosen, strict=True)
    ]
    return Answer(version, scores, [score >= 0.5 for score in scores])


@pytest.mark.parametrize(
    ("version", "by", "verdict"),
    [
        ("v1", ("v1", "v1", "v1"), "right"),
        ("v2", ("v2", "v2", "v2"), "right"),
        ("v1", ("v2", "v2", "v2"), "wrong"),
        ("v3", ("v2", "v2", "v2"), "wrong"),
        ("v1", ("v1", "v2", "v1"), "mixed"),
        ("v2", ("v1", "v2", "v1"), "mixed"),
        (UNVERIFIED, ("v1", "v1", "v1"), "unverified"),
        (UNVERIFIED, ("v1", "v1", "v2"), "mixed"),
    ],
)
def test_the_checker_tells_right_answers_from_wrong_mixed_and_unverified_ones(
    version, by, verdict, pair, checker
):
    chosen = [3, 1, 4]
    assert checker.verdict(chosen, answer_from(pair, version, chosen, *by)) == verdict


def test_the_checker_compares_every_part_of_an_answer_with_the_model(pair, checker):
    chosen = [3, 1, 4]
    right = answer_from(pair, "v1", chosen, "v1", "v1", "v1")
    old, new = pair.references.values()
    misread_score = float(misread(old, new, pair.candidates)[3])
    for wrong in (
        Answer("v1", right.probabilities[:2], right.positive[:2]),
        Answer("v1", right.probabilities[::-1], right.positive[::-1]),
        Answer("v1", right.probabilities, [not one for one in right.positive]),
        Answer("v1", [misread_score, *right.probabilities[1:]], right.positive),
    ):
        assert checker.verdict(chosen, wrong) in {"wrong", "mixed"}
    assert checker.verdict([3], Answer("v1", [misread_score], [misread_score >= 0.5])) == "wrong"


def test_unknown_models_must_answer_as_unverified_and_must_not_be_mixed(pair):
    old, new = pair.references.values()
    checker = AnswerChecker(pair.candidates, {UNVERIFIED: [old, new]})
    for by in ("v1", "v2"):
        assert checker.verdict([0, 1], answer_from(pair, UNVERIFIED, [0, 1], by, by)) == "right"
        assert checker.verdict([0, 1], answer_from(pair, by, [0, 1], by, by)) == "wrong"
    assert checker.verdict([0, 1], answer_from(pair, UNVERIFIED, [0, 1], "v1", "v2")) == "mixed"
    checker = AnswerChecker(pair.candidates, {UNVERIFIED: [old]}, others=[new])
    assert checker.verdict([0, 1], answer_from(pair, UNVERIFIED, [0, 1], "v2", "v2")) == "wrong"


@pytest.mark.parametrize("name", PAIRS)
def test_every_candidate_of_a_pair_gets_different_scores_from_both_versions(name, version_pair):
    pair = version_pair(name)
    old, new = (
        np.array(sklearn_reference.probabilities(pair.candidates))
        for sklearn_reference in pair.references.values()
    )
    assert len(pair.candidates) >= 200
    assert differ(old, new).all()
    assert bool(pair.new_only_candidates) == (name != "retrained")


def test_many_candidates_get_another_score_through_the_wrong_encoding(pair):
    old, new = pair.references.values()
    scores = np.array(old.probabilities(pair.candidates))
    assert differ(scores, misread(old, new, pair.candidates)).mean() > 0.3


@pytest.mark.parametrize("verdict", ["wrong", "mixed", "unverified"])
def test_a_single_wrong_answer_makes_an_outcome_unexpected(verdict):
    tally = Tally(several=1, faults={verdict: ["an answer"]})
    tally.answered["v1"] += 1
    (unexpected,) = Outcome(tally).unexpected
    assert unexpected.startswith(f"1 answers were {verdict}")


def test_an_outcome_needs_answers_for_several_candidates_to_show_that_none_is_mixed():
    tally = Tally()
    tally.answered["v1"] += 1
    assert Outcome(tally).unexpected == ["no answer was to several candidates, so none could be mixed"]
