"""V1 requests that KServe's servers read as tables."""

import pytest

from transformer.errors import InvalidRequest
from transformer.protocols import v1

ROWS = [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]


def decoded(instances, **options):
    return v1.decode({"inputs": instances}, "placement", 10, **options).candidates.dicts()


@pytest.mark.parametrize(
    "instances", [ROWS, [ROWS], [ROWS[:1], ROWS[1]], [{"a": [1, 2], "b": ["x", "y"]}]], ids=str
)
def test_a_table_is_its_rows(instances):
    assert decoded(instances) == ROWS


@pytest.mark.parametrize("instance", [[], [1], [[]], {"a": []}, {"a": [1], "b": 2}], ids=str)
def test_other_lists_are_wrong_candidates(instance):
    assert decoded([instance]) == [instance]


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(InvalidRequest, match=r"^inputs\[0\]: must have lists of one length, got 1 to 2$"):
        decoded([{"a": [1, 2], "b": ["x"]}])


def test_a_candidate_whose_fields_are_all_lists_is_no_table():
    assert decoded([{"tags": ["lift", "pool"]}], only_lists=True) == [{"tags": ["lift", "pool"]}]
