"""The threshold is a number, or what a rule chooses among all steps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.threshold import ThresholdError, parse

STEPS = np.arange(1001) / 1000


@st.composite
def scored(draw):
    """True classes, both of them, and probabilities, among them some of the steps."""
    rows = draw(
        st.lists(st.tuples(st.booleans(), st.floats(0, 1) | st.sampled_from(STEPS.tolist())), max_size=40)
    )
    rows += [(True, draw(st.floats(0, 1))), (False, draw(st.floats(0, 1)))]
    positive, probabilities = zip(*rows, strict=True)
    return np.array(positive), np.array(probabilities, float)


def counts(data):
    """True positives, false positives and missed positives of each step."""
    positive, probabilities = data
    predicted = probabilities >= STEPS[:, np.newaxis]
    return (predicted & positive).sum(1), (predicted & ~positive).sum(1), (~predicted & positive).sum(1)


def step_of(threshold):
    return int(np.flatnonzero(threshold == STEPS)[0])


@given(scored())
def test_f1_chooses_the_largest_f1(data):
    true, false, missed = counts(data)
    scores = 2 * true / np.maximum(2 * true + false + missed, 1)
    assert scores[step_of(parse("f1")(*data))] == scores.max()


@given(scored(), st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_recall_chooses_the_highest_threshold_with_that_recall(data, recall):
    true, _, missed = counts(data)
    enough = STEPS[true >= recall * (true + missed)]
    assert parse(f"recall={recall}")(*data) == enough.max()


@given(scored(), st.sampled_from(["1:5", "5:1", "0.5:2", "0:1", "1:0"]))
def test_cost_chooses_the_lowest_cost(data, text):
    of_false_positive, of_false_negative = map(float, text.split(":"))
    _, false, missed = counts(data)
    costs = of_false_positive * false + of_false_negative * missed
    assert costs[step_of(parse(f"cost={text}")(*data))] == costs.min()


def test_of_equal_thresholds_the_one_nearest_to_a_half_is_chosen():
    positive = np.array([False, True])
    assert parse("f1")(positive, np.array([0.1, 0.9])) == 0.5
    assert parse("f1")(positive, np.array([0.1, 0.3])) == 0.3
    assert parse("f1")(positive, np.array([0.7, 0.9])) == 0.701


@pytest.mark.parametrize("text", ["0", "0.5", "1", "3e-1"])
def test_a_number_is_the_threshold(text):
    assert parse(text)(np.array([True]), np.array([0.5])) == float(text)


@pytest.mark.parametrize(
    "text",
    ["", "f2", "f1=1", "1.5", "-0.1", "nan", "inf", "recall", "recall=2", "recall=x", "cost", "cost=1",
     "cost=1:", "cost=-1:2", "cost=1:2:3", "cost=1:inf"],
)  # fmt: skip
def test_anything_else_is_refused(text):
    with pytest.raises(ThresholdError, match="is not known, expected a number from 0 to 1, f1, recall="):
        parse(text)
