"""The gate names every bound that a version breaks, with the value and the bound."""

import dataclasses
import json
import math
import re
from typing import Any

import pytest

from pipelines.gate import DEFAULT, Bounds, reasons
from pipelines.step import PipelineError
from pipelines.summary import Comparison, GroupResult, Summary
from placement.drift import MIN_CANDIDATES, MIN_GROUP
from tests.support.paths import ROOT

GOOD = {"accuracy": 0.9, "roc_auc": 0.95, "brier": 0.05, "recall": 0.9}


def compared(metrics=GOOD, serving=GOOD, *, rows=400, psi=None, psi_rows=2000):
    """Return the summary of a version v2 beside v1, on 400 held-out rows."""
    comparison = Comparison(
        version="v1", rows=rows, metrics=metrics, serving_metrics=serving, psi=psi or {}, psi_rows=psi_rows
    )
    return Summary(version="v2", rows=400, metrics=GOOD, comparison=comparison, groups=[])


def by_gender(women, men):
    """Return the summary of a first version; each group has rows, accuracy and selection rate."""
    groups = [
        GroupResult(field="gender", group=name, rows=rows, accuracy=accuracy, selection_rate=rate)
        for name, (rows, accuracy, rate) in (("F", women), ("M", men))
    ]
    return Summary(version="v1", rows=400, metrics=GOOD, comparison=None, groups=groups)


def test_an_equal_version_passes():
    assert reasons(compared(psi={"ssc_p": 0.01})) == []


def test_a_first_version_is_compared_with_nothing():
    poor = Summary(version="v1", rows=400, metrics={"accuracy": 0.1}, comparison=None, groups=[])
    assert reasons(poor) == []


def test_a_metric_may_be_worse_by_its_bound_and_no_more():
    bounds = Bounds(max_worse={"accuracy": 0.25, "brier": 0.25})
    at_the_bounds = compared({"accuracy": 0.5, "brier": 0.5}, {"accuracy": 0.75, "brier": 0.25})
    assert reasons(at_the_bounds, bounds) == []
    beyond = compared({"accuracy": 0.4, "brier": 0.6}, {"accuracy": 0.75, "brier": 0.25})
    assert reasons(beyond, bounds) == [
        "accuracy is 0.4000 on 400 held-out rows, and 0.7500 for v1: 0.3500 worse, max_worse 0.25",
        "brier is 0.6000 on 400 held-out rows, and 0.2500 for v1: 0.3500 worse, max_worse 0.25",
    ]


def test_a_better_metric_passes_in_its_own_direction():
    better = {"accuracy": 0.99, "roc_auc": 0.99, "brier": 0.001, "recall": 0.99}
    assert reasons(compared(better)) == []
    assert len(reasons(compared(GOOD, better))) == 3


def test_a_metric_that_is_no_number_does_not_pass():
    assert reasons(compared({**GOOD, "accuracy": math.nan})) == [
        "accuracy is nan on 400 held-out rows, and 0.9000 for v1: nan worse, max_worse 0.02"
    ]


def test_bounds_that_compare_nothing_do_not_pass():
    (reason,) = reasons(compared(), Bounds(max_worse={"r2": 0.02}))
    assert reason == (
        "no metric in max_worse (r2) can be compared; there are: accuracy, roc_auc, brier, recall"
    )


def test_too_few_comparable_rows_do_not_pass_unless_the_bound_allows_them():
    few = compared({}, {}, rows=0)
    assert reasons(few) == ["v1 accepts 0 of 400 held-out rows, 0%, min_comparable 50%"]
    assert reasons(few, Bounds(min_comparable=0.0)) == []


def test_a_field_that_has_drifted_is_named():
    psi = {"ssc_p": 0.251, "hsc_p": 0.25}
    assert reasons(compared(psi=psi)) == [
        "ssc_p has drifted from the data of v1: its stability index is 0.251, max_psi 0.25"
    ]
    assert reasons(compared(psi=psi, psi_rows=MIN_CANDIDATES - 1)) == []


def test_selection_rates_of_groups_may_differ_by_the_bound():
    assert reasons(by_gender((100, 0.9, 0.4), (300, 0.9, 0.5))) == []
    assert reasons(by_gender((100, 0.9, 0.3), (300, 0.9, 0.6))) == [
        "selection rates by gender are F 0.300, M 0.600: the lowest is 0.50 of the highest, min_impact 0.8"
    ]


def test_accuracies_of_groups_may_differ_by_the_bound():
    assert reasons(by_gender((100, 0.5, 0.5), (300, 0.75, 0.5)), Bounds(max_accuracy_gap=0.25)) == []
    assert reasons(by_gender((100, 0.7, 0.5), (300, 0.9, 0.5))) == [
        "accuracies by gender are F 0.700, M 0.900: they differ by 0.200, max_accuracy_gap 0.1"
    ]


def test_small_groups_do_not_count():
    assert reasons(by_gender((MIN_GROUP - 1, 0.1, 0.1), (300, 0.9, 0.9))) == []


def test_groups_of_numbers_have_no_rates_to_compare():
    assert reasons(by_gender((200, None, None), (200, None, None))) == []


@pytest.mark.parametrize("bound", [field.name for field in dataclasses.fields(Bounds)])
def test_each_bound_can_stop_a_version(bound):
    """A version that breaks all bounds but one passes none of the others by it."""
    fair = by_gender((100, 0.7, 0.3), (300, 0.9, 0.6))
    bad = compared({**GOOD, "accuracy": 0.5}, psi={"ssc_p": 1.0})
    everything = bad.model_copy(update={"groups": fair.groups})
    loose: dict[str, Any] = {
        "max_worse": {"accuracy": 1.0},
        "min_comparable": 0.0,
        "max_psi": 2.0,
        "min_impact": 0.0,
        "max_accuracy_gap": 1.0,
    }
    assert reasons(everything, Bounds(**loose)) == []
    if bound == "min_comparable":
        everything = compared({}, {}, rows=1).model_copy(update={"groups": fair.groups})
    strict = {name: value for name, value in loose.items() if name != bound}
    assert any(bound in reason for reason in reasons(everything, Bounds(**strict)))


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        (
            {"max_worse": {"accuracy": 0.02, "roc_acu": 0.02}},
            "max_worse: 'roc_acu' is no metric, expected some of accuracy, roc_auc, ",
        ),
        ({"max_worse": {"accuracy": "x"}}, "max_worse: accuracy: must be a finite number, got 'x'"),
        ({"max_worse": {"accuracy": True}}, "max_worse: accuracy: must be a finite number, got True"),
        ({"max_worse": {"accuracy": math.inf}}, "max_worse: accuracy: must be a finite number, got inf"),
        (
            {"min_comparable": 1.5},
            "min_comparable: must be a finite number, minimum 0, maximum 1, got 1.5",
        ),
        ({"max_psi": math.nan}, "max_psi: must be a finite number, minimum 0, got nan"),
        ({"min_impact": -0.1}, "min_impact: must be a finite number, minimum 0, maximum 1, got -0.1"),
        (
            {"max_accuracy_gap": 10},
            "max_accuracy_gap: must be a finite number, minimum 0, maximum 1, got 10",
        ),
    ],
)
def test_a_wrong_bound_is_an_error(bounds, message):
    with pytest.raises(PipelineError, match=re.escape(message)):
        Bounds(**bounds)


def test_a_metric_must_be_better_by_a_bound_below_0():
    (reason,) = reasons(compared(), Bounds(max_worse={"accuracy": -0.01}))
    assert reason.endswith("0.0000 worse, max_worse -0.01")


def test_the_documented_defaults_are_those_of_the_gate():
    (table,) = re.findall(r"<!-- bounds -->\n(.*?)\n\n", (ROOT / "docs/pipelines.md").read_text(), re.DOTALL)
    told = {
        name: json.loads(text) for name, text in re.findall(r"^\| `(\w+)` \| `(.*?)` \|", table, re.MULTILINE)
    }
    assert told == {field.name: getattr(DEFAULT, field.name) for field in dataclasses.fields(Bounds)}
