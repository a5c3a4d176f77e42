"""Changes turn a negative answer, are small, and stay inside the signature."""

from typing import Any

import numpy as np
import pytest

from tests.support.explained_model import BACKGROUND, CANDIDATE, SIGNATURE, ExplainedModel, Model
from transformer.bundle.candidates import Rows
from transformer.bundle.signature import Category, Number, Signature
from transformer.bundle.validation import validate
from transformer.explanation.changes import MAX_PROPOSALS, REFINEMENTS, STEPS, VALUES_IN_PAIRS, changes

REFUSED: dict[str, Any] = {"hsc_s": "Arts", "ssc_p": 58.66, "gender": "F", "mba_p": 61.3}
MANY_ROWS = 65_536
#: A number from 0 to 100 is found to this precision: its finest step, and rounding to four digits.
PRECISION = 100 / STEPS**REFINEMENTS + 0.01


def search(model: Model, *fixed: str, candidate: dict[str, Any] = REFUSED, **options: Any) -> Any:
    explained = ExplainedModel(model, **options)
    row = explained.encode(candidate)
    found = explained.run(changes(explained.game, row, 0.5, set(fixed), MANY_ROWS))
    for change in found:
        changed = {**candidate, **change}
        assert model(changed) >= 0.5, change
        validate(Rows([changed], "changed"), explained.signature)
    return found


def above(points: float) -> float:
    return 0.9 if points >= 0 else 0.1


def test_a_number_is_changed_as_little_as_the_finer_grid_allows():
    (found,) = search(lambda row: above(row["ssc_p"] - 70.2))
    assert list(found) == ["ssc_p"]
    assert 70.2 <= found["ssc_p"] <= 70.2 + PRECISION


def test_a_number_is_also_changed_downwards():
    (found,) = search(lambda row: above(30 - row["mba_p"]))
    assert 30 - PRECISION <= found["mba_p"] <= 30


def test_of_several_ways_the_nearest_number_is_found():
    (found,) = search(lambda row: above((row["ssc_p"] < 40) + (row["ssc_p"] > 65) - 0.5))
    assert 65 < found["ssc_p"] <= 65 + PRECISION


def test_another_category_is_proposed():
    assert search(lambda row: above((row["hsc_s"] == "Science") - 0.5)) == [{"hsc_s": "Science"}]


def test_each_field_that_is_enough_by_itself_is_proposed_smallest_change_first():
    found = search(lambda row: above(max(row["ssc_p"] - 90, row["mba_p"] - 70, (row["gender"] == "M") - 1)))
    assert [list(change) for change in found] == [["mba_p"], ["ssc_p"], ["gender"]]


def test_fixed_fields_are_never_proposed():
    def model(row):
        return above(max(row["mba_p"] - 70, (row["gender"] == "M") - 1))

    assert [list(change) for change in search(model)] == [["mba_p"], ["gender"]]
    assert [list(change) for change in search(model, "gender")] == [["mba_p"]]
    assert search(model, "gender", "mba_p") == []
    assert search(model, *SIGNATURE.names) == []


def test_two_fields_are_changed_where_none_is_enough():
    found = search(lambda row: above(min(row["ssc_p"] - 80, (row["hsc_s"] == "Commerce") - 1)))
    assert [set(change) for change in found] == [{"ssc_p", "hsc_s"}]
    assert found[0]["hsc_s"] == "Commerce"
    assert 80 <= found[0]["ssc_p"] <= 80 + PRECISION


def test_both_numbers_of_a_pair_are_changed_as_little_as_possible():
    (found,) = search(lambda row: above(min(row["ssc_p"] - 80, row["mba_p"] - 75)))
    assert 80 <= found["ssc_p"] <= 80 + PRECISION
    assert 75 <= found["mba_p"] <= 75 + PRECISION


def test_a_pair_with_a_fixed_field_is_not_proposed():
    def model(row):
        return above(min(row["ssc_p"] - 80, (row["gender"] == "M") - 1))

    assert [set(change) for change in search(model)] == [{"ssc_p", "gender"}]
    assert search(model, "gender") == []


def test_no_change_is_proposed_where_none_helps():
    assert search(lambda _: 0.1) == []


def test_bounds_of_the_signature_are_proposed_if_nothing_less_is_enough():
    assert search(lambda row: above(row["ssc_p"] - 100)) == [{"ssc_p": 100.0}]
    assert search(lambda row: above(-row["ssc_p"])) == [{"ssc_p": 0.0}]


def test_an_ignored_category_may_become_any():
    def model(row):
        return above((row["hsc_s"] == "Commerce") - 1)

    explained = ExplainedModel(model)
    row = explained.encode(REFUSED)
    row[explained.game.field_of == 0] = 0.0
    assert explained.run(changes(explained.game, row, 0.5, (), MANY_ROWS)) == [{"hsc_s": "Commerce"}]


def test_a_field_with_one_possible_value_is_not_changed():
    only = Signature(
        fields=(Category(name="town", categories=("here",)), Number(name="year", minimum=7, maximum=7))
    )
    row = {"town": "here", "year": 7.0}
    assert search(lambda _: 0.1, candidate=row, signature=only, background=[row], weights=[1.0]) == []


def test_a_number_without_limits_is_changed_within_the_background_rows_and_its_own_value():
    unlimited = Signature(
        fields=tuple(
            Number(name=field.name) if isinstance(field, Number) else field for field in SIGNATURE.fields
        )
    )
    highest = max(row["ssc_p"] for row in BACKGROUND)
    (found,) = search(lambda row: above(row["ssc_p"] - 60.2), signature=unlimited)
    assert 60.2 <= found["ssc_p"] <= 60.2 + PRECISION
    assert search(lambda row: above(row["ssc_p"] - highest - 0.1), signature=unlimited) == []
    assert search(lambda row: above(30 - row["ssc_p"]), signature=unlimited) == []
    lowest = {**REFUSED, "ssc_p": -50.0}
    (found,) = search(lambda row: above(row["ssc_p"] + 20.5), candidate=lowest, signature=unlimited)
    assert -20.5 <= found["ssc_p"] <= -20.5 + 2 * PRECISION


@pytest.fixture
def wide() -> ExplainedModel:
    """A model of 60 numbers, of which the last two must both be above 6."""
    names = [f"n{order}" for order in range(60)]
    signature = Signature(fields=tuple(Number(name=name, minimum=0, maximum=9) for name in names))
    row = dict.fromkeys(names, 1.0)

    def model(row):
        return 0.1 * (row["n58"] > 6) + 0.1 * (row["n59"] > 6) + 0.4 * (row["n58"] > 6) * (row["n59"] > 6)

    return ExplainedModel(model, signature, [row], [1.0])


@pytest.mark.parametrize("max_rows", [1, 100, 1_000])
def test_a_wide_signature_stays_within_the_budget_and_tries_the_most_helpful_fields(wide, max_rows):
    row = wide.encode(dict.fromkeys(wide.signature.names, 1.0))
    (found,) = wide.run(changes(wide.game, row, 0.5, (), max_rows))
    assert set(found) == {"n58", "n59"}
    assert all(6 < value < 6.01 for value in found.values())
    singles, finer = 60 * (STEPS + 1), 2 * REFINEMENTS * STEPS
    assert wide.scored <= singles + max(max_rows, VALUES_IN_PAIRS**2) + finer


def test_at_most_five_changes_are_proposed(wide):
    model = ExplainedModel(lambda row: 0.9 * (max(row.values()) > 6), wide.signature, wide.background, [1.0])
    row = model.encode(dict.fromkeys(wide.signature.names, 1.0))
    assert len(model.run(changes(model.game, row, 0.5, (), MANY_ROWS))) == MAX_PROPOSALS


def test_numbers_have_four_significant_digits():
    found = search(lambda row: above(row["ssc_p"] - 70.2) * 1.0, candidate={**CANDIDATE, "ssc_p": 1 / 3})
    assert all(value == float(f"{value:.4g}") for change in found for value in change.values())
    assert np.isfinite(found[0]["ssc_p"])
    assert BACKGROUND
