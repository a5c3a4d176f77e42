"""`placement explain` explains the predictions of a running service with a real MLServer."""

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from tests.support.expected_explanation import ExpectedExplanation
from tests.support.placement_command import CommandResult, PlacementUp, error_of, run_placement
from training.candidates import SAMPLE


@pytest.fixture
def refused(sklearn_reference) -> dict[str, Any]:
    """A background row with a negative answer, of which two fields are changed: few rows explain it."""
    rows = [dict(row) for row in sklearn_reference.bundle.background.candidates]
    scores = sklearn_reference.probabilities(rows)
    return {**rows[scores.index(min(scores))], "etest_p": 50.25, "ssc_p": 40.0}


@pytest.fixture
def file(tmp_path, refused) -> Path:
    path = tmp_path / "candidates.json"
    path.write_text(json.dumps([SAMPLE, refused]))
    return path


def explain(up: PlacementUp, *arguments: object) -> CommandResult:
    return run_placement("explain", "--url", f"http://127.0.0.1:{up.port}", *arguments)


def test_explain_prints_the_explanations_as_json(up, file, refused, sklearn_reference):
    done = explain(up, "--json", file)
    assert done.returncode == 0, done.stderr
    expected = ExpectedExplanation(sklearn_reference)
    for candidate, one in zip([SAMPLE, refused], json.loads(done.stdout), strict=True):
        assert max(expected.differences(candidate, one)) < 1e-9
        assert one["model_version"] == "v1"
        for change in one.get("changes", []):
            (score,) = sklearn_reference.probabilities([{**candidate, **change}])
            assert score >= sklearn_reference.bundle.threshold


def test_explain_prints_bars_that_lead_from_the_baseline_to_the_probability(
    up, file, refused, sklearn_reference
):
    done = explain(up, file)
    assert done.returncode == 0, done.stderr
    parts = done.stdout.split("\n\n")
    assert len(parts) == 2
    for number, (candidate, text) in enumerate(zip([SAMPLE, refused], parts, strict=True), start=1):
        head, baseline, *bars = text.splitlines()
        (score,) = sklearn_reference.probabilities([candidate])
        answer = "yes" if score >= sklearn_reference.bundle.threshold else "no"
        assert head == f"row {number}: placement {answer}, probability {score:.3f} (v1)"
        assert baseline.split()[0] == "baseline"
        values = [re.fullmatch(r"  (\w+) = (\S+) +([+-]\d\.\d{3})  ( *)(█*)│(█*)", bar) for bar in bars[:12]]
        fields = {found[1]: found[2] for found in values if found}
        assert fields == {name: str(value) for name, value in candidate.items()}
        contributions = [float(found[3]) for found in values if found]
        assert contributions == sorted(contributions, key=abs, reverse=True)
        total = float(baseline.split()[1]) + sum(contributions)
        assert total == pytest.approx(score, abs=0.001 * 7)
        for found, value in zip(values, contributions, strict=True):
            assert found is not None
            assert not (found[5] if value > 0 else found[6])
        assert bars[12].split() == ["probability", f"{score:.3f}"]
    assert "turn" in parts[1]
    assert "turn" not in parts[0]


def test_explain_writes_a_page_with_a_chart_for_each_candidate(up, file, tmp_path):
    page = tmp_path / "page.html"
    done = explain(up, "--html", page, file)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    charts = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(charts) == 2
    for chart in charts:
        ET.fromstring(chart.replace("<svg", '<svg xmlns:xlink="http://www.w3.org/1999/xlink"', 1))
        assert "baseline" in chart
    assert "degree_t = Sci&amp;Tech" in charts[0]
    assert "<script" not in text
    assert "Row 2: placement no" in text


def test_explain_reports_a_bad_value_by_its_place_in_the_file(up, tmp_path):
    path = tmp_path / "candidates.json"
    path.write_text(json.dumps([SAMPLE, {**SAMPLE, "ssc_p": 710}]))
    message = error_of(explain(up, path), "explain")
    assert message == f"{path}: row 2, field 'ssc_p': must be 0 to 100, got 710"


def test_explain_reports_a_page_that_it_cannot_write(up, file, tmp_path):
    done = explain(up, "--html", tmp_path / "missing" / "page.html", file)
    assert error_of(done, "explain").endswith("page.html: No such file or directory")


def test_explain_reports_that_no_service_answers(file):
    done = run_placement("explain", "--url", "http://127.0.0.1:1", file)
    assert error_of(done, "explain").startswith("http://127.0.0.1:1 does not answer")
