"""Validation finds every problem of every candidate, and names it as the caller wrote it."""

import math
from typing import Any

import numpy as np
import pytest

from transformer.bundle.candidates import Candidates, Columns, Rows
from transformer.bundle.signature import Category, Number, Signature
from transformer.bundle.validation import validate
from transformer.errors import MAX_PROBLEMS, InvalidCandidates

SIGNATURE = Signature(
    fields=(
        Number(name="mark", minimum=0, maximum=100),
        Number(name="bonus", minimum=-5, maximum=5, default=0),
        Category(name="board", categories=("Central", "Others")),
        Category(name="city", categories=("Köln", "Łódź"), default="Köln"),
    )
)
VALID = {"mark": 71, "board": "Central"}


def candidates(*rows: dict) -> Candidates:
    return Rows(list(rows), "instances")


def problems(*rows: dict) -> tuple[str, ...]:
    with pytest.raises(InvalidCandidates) as raised:
        validate(candidates(*rows), SIGNATURE)
    return raised.value.problems


def test_valid_candidates_become_typed_columns_with_defaults_filled_in():
    valid = validate(
        candidates(VALID, {"mark": 0.5, "board": "Others", "bonus": -5, "city": "Łódź"}), SIGNATURE
    )
    assert valid.rows == 2
    assert valid.numbers["mark"].dtype == np.float64
    assert valid.numbers["mark"].tolist() == [71.0, 0.5]
    assert valid.numbers["bonus"].tolist() == [0.0, -5.0]
    assert valid.categories["board"] == ["Central", "Others"]
    assert valid.categories["city"] == ["Köln", "Łódź"]


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"mark": 710}, "instances[0].mark: must be 0 to 100, got 710"),
        ({"mark": -0.1}, "instances[0].mark: must be 0 to 100, got -0.1"),
        ({"mark": math.nan}, "instances[0].mark: must be 0 to 100, got nan"),
        ({"mark": math.inf}, "instances[0].mark: must be 0 to 100, got inf"),
        ({"mark": 10**400}, "instances[0].mark: must be 0 to 100, got a number of more than 64 bits"),
        ({"mark": "71"}, "instances[0].mark: must be a number, 0 to 100, got a string '71'"),
        ({"mark": True}, "instances[0].mark: must be a number, 0 to 100, got a boolean true"),
        ({"mark": [71]}, "instances[0].mark: must be a number, 0 to 100, got an array"),
        ({"mark": {}}, "instances[0].mark: must be a number, 0 to 100, got an object"),
        ({"mark": None}, "instances[0].mark: is required, expected 0 to 100"),
        ({"board": "Centre"}, "instances[0].board: must be one of Central, Others, got 'Centre'"),
        ({"board": 1}, "instances[0].board: must be a string, one of Central, Others, got the number 1"),
        (
            {"board": ["Central"]},
            "instances[0].board: must be a string, one of Central, Others, got an array",
        ),
        ({"board": None}, "instances[0].board: is required, expected one of Central, Others"),
        ({"board": "x\n" * 99}, r"got 'x\nx\nx\nx\nx\nx\nx\nx\nx\nx\nx\nx\nx\…"),
        ({"city": "Berlin"}, "instances[0].city: must be one of Köln, Łódź, got 'Berlin'"),
    ],
)
def test_a_bad_value_is_named_with_what_was_expected(changed, problem):
    (found,) = problems({**VALID, **changed})
    assert problem in found


def test_every_problem_is_named_in_the_order_of_the_candidates():
    assert problems(VALID, {"mark": 101}, {"board": "Central"}) == (
        "instances[1].mark: must be 0 to 100, got 101",
        "instances[1].board: is required, expected one of Central, Others",
        "instances[2].mark: is required, expected 0 to 100",
    )


def test_an_error_lists_twenty_problems_and_counts_the_rest():
    with pytest.raises(InvalidCandidates) as raised:
        validate(candidates(*[{**VALID, "mark": -1}] * 50), SIGNATURE)
    text = str(raised.value)
    assert text.count("must be 0 to 100") == MAX_PROBLEMS == 20
    assert text.endswith("; and 30 more problems")
    assert raised.value.rows == [*range(50)]


def test_an_error_knows_all_invalid_candidates():
    wrong_mark, wrong_board = {**VALID, "mark": -1}, {**VALID, "board": "Centre"}
    with pytest.raises(InvalidCandidates) as raised:
        validate(candidates(wrong_board, VALID, wrong_mark, VALID, {**wrong_mark, **wrong_board}), SIGNATURE)
    assert raised.value.rows == [0, 2, 4]


def test_each_candidate_that_is_no_object_is_a_problem():
    with pytest.raises(InvalidCandidates) as raised:
        validate(Rows([7, VALID, *[None] * 20], "instances"), SIGNATURE)
    assert raised.value.problems[:2] == (
        "instances[0]: must be an object of fields and values",
        "instances[2]: must be an object of fields and values",
    )
    assert str(raised.value).endswith(
        "instances[20]: must be an object of fields and values; and 1 more problem"
    )
    assert raised.value.rows == [0, *range(2, 22)]


def test_unknown_fields_are_ignored():
    valid = validate(candidates({**VALID, "name": "Ada"}), SIGNATURE)
    assert {*valid.numbers, *valid.categories} == set(SIGNATURE.names)


def test_an_unknown_category_can_be_ignored_but_no_other_problem():
    rows = candidates({**VALID, "board": "Centre"}, VALID)
    valid = validate(rows, SIGNATURE, unknown_category="ignore")
    assert valid.categories["board"] == [None, "Central"]
    with pytest.raises(InvalidCandidates, match="must be a string"):
        validate(candidates({**VALID, "board": 7}), SIGNATURE, unknown_category="ignore")


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i8", "u1", "u8"])
def test_numbers_may_come_as_arrays_of_any_numeric_type(dtype):
    columns: dict[str, Any] = {"mark": np.array([1, 100], dtype), "board": ["Central", "Others"]}
    valid = validate(Columns(2, columns), SIGNATURE)
    assert valid.numbers["mark"].tolist() == [1.0, 100.0]


def test_bad_values_in_arrays_are_named_by_their_position():
    columns = {"mark": np.array([1, np.nan, 101]), "board": np.array([1, 2, 3])}
    with pytest.raises(InvalidCandidates) as raised:
        validate(Columns(3, columns), SIGNATURE)
    assert raised.value.problems[1:3] == (
        "inputs.mark[1]: must be 0 to 100, got nan",
        "inputs.board[1]: must be a string, one of Central, Others, got the number 2",
    )


def test_boolean_arrays_are_not_numbers():
    columns: dict[str, Any] = {"mark": np.array([True]), "board": ["Central"]}
    with pytest.raises(InvalidCandidates, match="must be a number"):
        validate(Columns(1, columns), SIGNATURE)


@pytest.mark.parametrize(
    "field",
    [
        {"name": "a", "type": "number", "minimum": 2, "maximum": 1},
        {"name": "a", "type": "number", "minimum": 0, "maximum": 1, "default": 2},
        {"name": "a", "type": "category", "categories": []},
        {"name": "a", "type": "category", "categories": ["x", "x"]},
        {"name": "a", "type": "category", "categories": ["x"], "default": "y"},
        {"name": "", "type": "category", "categories": ["x"]},
        {"name": "a", "type": "date"},
        {"name": "a", "type": "category", "categories": ["x"], "datatype": "BYTES"},
    ],
)
def test_a_field_that_contradicts_itself_is_refused(field):
    with pytest.raises(ValueError, match="validation error"):
        Signature.model_validate({"fields": [field]})


def test_a_signature_names_each_field_once():
    field = {"name": "a", "type": "category", "categories": ["x"]}
    with pytest.raises(ValueError, match="duplicate field name 'a'"):
        Signature.model_validate({"fields": [field, field]})


# Numbers without a range


@pytest.mark.parametrize(
    ("limits", "valid", "invalid"),
    [
        ({}, [-1e308, 0, 1.7e308], {math.inf: "a finite number, got inf", "x": "a number, got a string 'x'"}),
        (
            {"minimum": 0},
            [0, 1.7e308],
            {-1: "at least 0, got -1", True: "a number, at least 0, got a bool"},
        ),
        ({"maximum": 9}, [-1e308, 9], {10: "at most 9, got 10", math.nan: "at most 9, got nan"}),
    ],
    ids=["none", "minimum", "maximum"],
)
def test_a_number_may_have_no_minimum_or_no_maximum(limits, valid, invalid):
    signature = Signature(fields=(Number(name="mark", **limits),))
    rows = [{"mark": value} for value in valid]
    assert validate(candidates(*rows), signature).numbers["mark"].tolist() == valid
    for value, problem in invalid.items():
        with pytest.raises(InvalidCandidates, match=rf"instances\[0\].mark: must be {problem}"):
            validate(candidates({"mark": value}), signature)


# Names that are not a field's


@pytest.mark.parametrize(
    "name", ["Bonus", "BONUS", " bonus", "bon_us", "bo-nus", "bonus.", "\uff42onus", "\ufeffbonus"]
)
def test_a_name_that_differs_from_a_missing_fields_only_in_spelling_is_refused(name):
    """Without this, the field would get its default, silently."""
    assert problems({**VALID, name: 5}) == (f"instances[0].bonus: must be spelled 'bonus', got {name!a}",)
    assert problems(VALID, {**VALID, name: None}, {**VALID, "bonus": None, name: 5}) == (
        f"instances[1].bonus: must be spelled 'bonus', got {name!a}",
        f"instances[2].bonus: must be spelled 'bonus', got {name!a}",
    )
    with pytest.raises(InvalidCandidates) as raised:
        validate(Columns(2, {"mark": [1, 2], "board": ["Central"] * 2}, [name]), SIGNATURE)
    assert raised.value.problems == (
        f"inputs.bonus[0]: must be spelled 'bonus', got {name!a}",
        f"inputs.bonus[1]: must be spelled 'bonus', got {name!a}",
    )


def test_a_required_field_may_be_misspelled_too():
    assert problems({"Mark": 71, "board": "Central"}) == (
        "instances[0].mark: must be spelled 'mark', got 'Mark'",
    )


def test_a_misspelled_name_beside_the_right_one_is_passed_over():
    """A client may send the names of two versions between which a field was renamed."""
    assert validate(candidates({**VALID, "bonus": 1, "Bonus": 5}), SIGNATURE).numbers["bonus"].tolist() == [1]


@pytest.mark.parametrize("name", ["bonuses", "town", "", "_", "é"])
def test_other_unknown_names_are_passed_over(name):
    assert validate(candidates({**VALID, name: 5}), SIGNATURE).numbers["bonus"].tolist() == [0]


def test_a_missing_field_names_the_unknown_names_that_were_sent_once():
    sent = {f"x{number}": 1 for number in range(7)}
    assert problems(sent, {"town": 1, "board": "Central"}, {}) == (
        "instances[0].mark: is required, expected 0 to 100, got unknown names 'x0', 'x1', 'x2', 'x3', 'x4' "
        "and 2 more",
        "instances[0].board: is required, expected one of Central, Others",
        "instances[1].mark: is required, expected 0 to 100, got unknown names 'town'",
        "instances[2].mark: is required, expected 0 to 100",
        "instances[2].board: is required, expected one of Central, Others",
    )
