"""The metrics of a model are those on candidates that it has not seen."""

import numpy as np
import pytest

from training.candidates import PLACEMENT, SIGNATURE, Candidate
from training.data import Dataset
from training.encoding import encode, fit_vectorizer
from training.evaluation import evaluate
from training.fitting import fit
from training.generator import generate
from training.reports.charts import wilson_interval
from training.threshold import parse


@pytest.fixture(scope="module")
def evaluation():
    return fit(generate(300), "logistic-regression").evaluation


def test_the_metrics_agree_with_the_confusion_matrix(evaluation):
    (rejected, false_alarms), (missed, found) = evaluation.confusion.tolist()
    metrics = evaluation.metrics
    assert rejected + false_alarms + missed + found == 300
    assert metrics["accuracy"] == pytest.approx((rejected + found) / 300)
    assert metrics["precision"] == pytest.approx(found / (found + false_alarms))
    assert metrics["recall"] == pytest.approx(found / (found + missed))
    assert set(metrics) == {"accuracy", "roc_auc", "brier", "log_loss", "f1", "precision", "recall"}
    assert all(type(value) is float for value in metrics.values())


def test_calibration_counts_every_candidate_once(evaluation):
    means, parts, counts = evaluation.calibration
    assert counts.sum() == 300
    assert np.sum(parts * counts) == pytest.approx(evaluation.truth.sum())
    assert np.sum(means * counts) == pytest.approx(evaluation.probabilities.sum())
    assert (np.diff(means) > 0).all()


def test_every_category_in_the_data_is_a_group(evaluation):
    for name in ("gender", "workex"):
        groups = [group for group in evaluation.groups if group.field == name]
        assert sum(group.rows for group in groups) == 300
        right = sum(group.rows * group.quality for group in groups)
        assert right / 300 == pytest.approx(evaluation.metrics["accuracy"])


def test_only_the_field_that_decides_has_importance():
    rng = np.random.default_rng(0)
    plain = generate(300).candidates
    candidates: list[Candidate] = [
        {**candidate, "degree_t": ["Sci&Tech", "Comm&Mgmt", "Others"][rng.integers(3)]} for candidate in plain
    ]
    labels = ["Placed" if candidate["degree_t"] == "Others" else "Not Placed" for candidate in candidates]
    importances = fit(
        Dataset(PLACEMENT, candidates, labels, "", "0" * 64), "forest-50"
    ).evaluation.importances
    assert importances[0].field == "degree_t"
    assert importances[0].mean > 0.3
    assert all(abs(item.mean) < 0.02 for item in importances[1:])
    assert {item.field for item in importances} == set(SIGNATURE.names)


def test_out_of_fold_probabilities_come_from_models_without_the_candidate():
    dataset = generate(200)
    noise = np.random.default_rng(1).permutation(dataset.labels).tolist()
    fitted = fit(Dataset(PLACEMENT, dataset.candidates, noise, "", "0" * 64), "forest-50")
    seen = fitted.model.predict_proba(encode(fitted.vectorizer, dataset.candidates))[:, 1]
    assert np.mean((seen >= 0.5) == fitted.evaluation.truth) > 0.95
    assert fitted.evaluation.metrics["roc_auc"] < 0.65


def test_evaluating_twice_gives_the_same_result():
    dataset = generate(200)
    first = fit(dataset, "support-vectors")
    features = encode(fit_vectorizer(SIGNATURE), dataset.candidates)
    again = evaluate(dataset, features, first.chosen, parse("0.5"))
    assert (again.metrics, again.importances) == (first.evaluation.metrics, first.evaluation.importances)


def test_wilsons_interval_contains_the_fraction_and_stays_within_bounds():
    parts, counts = np.array([0.0, 0.5, 1.0]), np.array([5, 50, 5])
    low, high = wilson_interval(parts, counts)
    assert ((low <= parts + 1e-9) & (parts - 1e-9 <= high)).all()
    assert low.min() >= -1e-9
    assert high.max() <= 1 + 1e-9
