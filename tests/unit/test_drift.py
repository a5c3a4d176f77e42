"""Figures and limits of `placement status --drift` are those of the recording rules and alerts."""

import pytest

from placement.drift import (
    IMPACT_LIMIT,
    MIN_CANDIDATES,
    MIN_GROUP,
    MIN_SHARE,
    PSI_LIMIT,
    SCORE_LIMIT,
    read_drift,
)
from tests.support.monitoring_overlay import rules


def text(positive: int, negative: int, women: int, training: str = "") -> str:
    """Return the metrics of one transformer."""
    total = positive + negative
    return f"""# TYPE transformer_decisions_total counter
transformer_decisions_total{{version="v1",decision="positive"}} {positive}
transformer_decisions_total{{version="v1",decision="negative"}} {negative}
# TYPE transformer_candidate_values_total counter
transformer_candidate_values_total{{version="v1",field="gender",bin="F"}} {women}
transformer_candidate_values_total{{version="v1",field="gender",bin="M"}} {total - women}
# TYPE transformer_candidate_score histogram
transformer_candidate_score_bucket{{version="v1",le="0.5"}} {negative}
transformer_candidate_score_bucket{{version="v1",le="1.0"}} {total}
transformer_candidate_score_bucket{{version="v1",le="+Inf"}} {total}
transformer_candidate_score_count{{version="v1"}} {total}
transformer_candidate_score_sum{{version="v1"}} {total / 2}
{training}"""


TRAINING = """# TYPE transformer_training_share gauge
transformer_training_share{version="v1",field="gender",bin="F"} 0.5
transformer_training_share{version="v1",field="gender",bin="M"} 0.5
transformer_training_share{version="v1",field="gender",bin="other"} 0
# TYPE transformer_training_score_share gauge
transformer_training_score_share{version="v1",score="0.5"} 0.4
transformer_training_score_share{version="v1",score="1.0"} 1
# TYPE transformer_training_candidates gauge
transformer_training_candidates{version="v1"} 100
"""


def test_figures_are_computed_over_all_transformers():
    (drift,) = read_drift([text(300, 100, 200, TRAINING), text(300, 100, 100, TRAINING)])
    assert (drift.version, drift.candidates, drift.training_candidates) == ("v1", 800, 100)
    assert drift.selection_rate == 0.75
    (field,) = drift.fields
    # Shares 3/8 and 5/8 instead of 1/2: -1/8 ln(3/4) + 1/8 ln(5/4).
    assert field.psi == pytest.approx(0.0638532, abs=1e-6)
    assert field.expected == pytest.approx(1 / 800 + 1 / 100)
    assert drift.score_distance == pytest.approx(0.15)
    assert (field.alert, drift.score_alert) == (False, False)


@pytest.mark.parametrize(("total", "alert"), [(498, False), (500, True)])
def test_a_figure_counts_from_a_minimum_of_candidates(total, alert):
    (drift,) = read_drift([text(0, total, total, TRAINING)])
    assert drift.fields[0].psi > PSI_LIMIT
    assert drift.score_distance == pytest.approx(0.6)
    assert (drift.fields[0].alert, drift.score_alert) == (alert, alert)


def test_without_the_trainings_distribution_there_are_still_selection_rates():
    (drift,) = read_drift([text(30, 10, 20)])
    assert (drift.training_candidates, drift.fields, drift.score_distance) == (None, (), None)
    assert drift.selection_rate == 0.75


def test_a_version_without_candidates_has_no_figures():
    assert read_drift([text(0, 0, 0, TRAINING)]) == []
    assert read_drift([]) == []


def test_the_limits_are_those_of_the_rules():
    expressions = {
        rule.get("alert") or rule["record"]: rule["expr"]
        for group in rules()["groups"]
        for rule in group["rules"]
    }
    assert f"> {PSI_LIMIT}" in expressions["CandidatesDrifted"]
    assert f">= {MIN_CANDIDATES}" in expressions["CandidatesDrifted"]
    assert f"> {SCORE_LIMIT}" in expressions["ScoresDrifted"]
    assert f">= {MIN_CANDIDATES}" in expressions["ScoresDrifted"]
    assert f"< {IMPACT_LIMIT}" in expressions["GroupSelectedLess"]
    assert expressions["field:transformer_disparate_impact:increase1d"].count(f">= {MIN_GROUP}") == 2
    assert expressions["field:transformer_candidate_psi:increase1d"].count(f"{MIN_SHARE:f}".rstrip("0")) == 4
