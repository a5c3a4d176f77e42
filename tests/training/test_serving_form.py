"""A forest's serving form gives the forest's results, or the forest is kept."""

import pickle
import pickletools
import zlib
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from training import served as served_module
from training.bundling import dump
from training.candidates import SIGNATURE
from training.encoding import encode, fit_vectorizer
from training.generator import generate
from training.served import UnequalError, compare, rows_around_splits, serve
from training.serving_form import forest_of, forms

DATASET = generate(300)
VECTORIZER = fit_vectorizer(SIGNATURE)
FEATURES = encode(VECTORIZER, DATASET.candidates)
UNSEEN = encode(VECTORIZER, generate(2000, 1).candidates)
LABELS = np.array(DATASET.labels)
#: Three classes: the label, divided by a field.
THREE = np.where(FEATURES["hsc_s=Arts"] + FEATURES["gender=F"] > 0, "third", LABELS)

FORESTS: dict[str, dict[str, Any]] = {
    "fully grown": {},
    "impure leaves": {"max_depth": 4},
    "weights": {"min_samples_leaf": 3, "class_weight": "balanced"},
    "without bootstrap": {"bootstrap": False, "max_features": 3},
}


def results(model: Any, rows: Any) -> np.ndarray:
    given: np.ndarray = (
        model.predict_proba(rows) if hasattr(model, "predict_proba") else model.predict(rows)[:, np.newaxis]
    )
    return given


@pytest.mark.parametrize("forest", [RandomForestClassifier, ExtraTreesClassifier])
@pytest.mark.parametrize("trees", [1, 2, 3, 50, 64, 100])
@pytest.mark.parametrize("kind", FORESTS)
def test_the_served_probability_is_that_of_the_forest_to_the_last_bit(forest, trees, kind):
    fitted = forest(trees, random_state=0, **FORESTS[kind]).fit(FEATURES, LABELS)
    for column in (0, 1):
        served: Any = serve(fitted, FEATURES, column)
        assert served.rows > len(FEATURES)
        assert served.model is not fitted
        for rows in (UNSEEN, rows_around_splits(fitted, UNSEEN)):
            expected, given = fitted.predict_proba(rows), served.model.predict_proba(rows)
            np.testing.assert_array_equal(given[:, column], expected[:, column])
            np.testing.assert_allclose(given, expected, rtol=0, atol=1e-12)
            np.testing.assert_array_equal(served.model.predict(rows), fitted.predict(rows))
        assert list(served.model.classes_) == list(fitted.classes_)


def test_both_probabilities_are_equal_if_leaves_are_pure_and_the_trees_a_power_of_two():
    fitted = RandomForestClassifier(64, random_state=0).fit(FEATURES, LABELS)
    served = serve(fitted, FEATURES, 1)
    assert served.rounding == 0
    np.testing.assert_array_equal(served.model.predict_proba(UNSEEN), fitted.predict_proba(UNSEEN))


@pytest.mark.parametrize("trees", [2, 50])
def test_a_tie_is_predicted_as_the_forest_predicts_it(trees):
    fitted = RandomForestClassifier(trees, random_state=0).fit(FEATURES, LABELS)
    served: Any = serve(fitted, FEATURES, 1)
    tied = UNSEEN[fitted.predict_proba(UNSEEN)[:, 1] == 0.5]
    assert len(tied) > 3
    assert set(served.model.predict(tied)) == {"Not Placed"} == set(fitted.predict(tied))
    assert isinstance(served.model, FixedThresholdClassifier)


@pytest.mark.parametrize(
    "model",
    [
        RandomForestClassifier(50, random_state=0),
        ExtraTreesClassifier(64, max_depth=5, random_state=0),
        RandomForestRegressor(50, random_state=0),
        RandomForestRegressor(32, max_depth=5, random_state=0),
        ExtraTreesRegressor(7, random_state=0),
    ],
)
def test_forests_of_more_classes_and_of_numbers_have_equal_results_in_all_columns(model):
    targets = THREE if "Classifier" in type(model).__name__ else FEATURES["mba_p"] * 1.7
    fitted = model.fit(FEATURES, targets)
    served: Any = serve(fitted, FEATURES)
    assert served.rows
    assert served.rounding == 0
    for rows in (UNSEEN, rows_around_splits(fitted, UNSEEN)):
        np.testing.assert_array_equal(results(served.model, rows), results(fitted, rows))
        np.testing.assert_array_equal(served.model.predict(rows), fitted.predict(rows))


@pytest.mark.parametrize("trees", [50, 64])
def test_the_last_step_of_a_pipeline_is_rewritten(trees):
    fitted = make_pipeline(StandardScaler(), RandomForestClassifier(trees, random_state=0))
    fitted.fit(FEATURES, LABELS)
    served: Any = serve(fitted, FEATURES, 1)
    assert list(served.model.named_steps) == ["standardscaler", "randomforestclassifier"]
    assert served.model[0] is fitted[0]
    assert forest_of(served.model) is None
    np.testing.assert_array_equal(
        served.model.predict_proba(UNSEEN)[:, 1], fitted.predict_proba(UNSEEN)[:, 1]
    )
    np.testing.assert_array_equal(served.model.predict(UNSEEN), fitted.predict(UNSEEN))
    with pytest.raises(ValueError, match="feature names should match"):
        served.model.predict_proba(UNSEEN[UNSEEN.columns[::-1]])


def test_rows_around_splits_are_at_every_threshold_and_on_both_sides():
    fitted = RandomForestClassifier(3, random_state=0).fit(FEATURES, LABELS)
    around: Any = rows_around_splits(fitted, FEATURES)
    assert list(around.columns) == list(FEATURES.columns)
    for tree in (one.tree_ for one in fitted.estimators_):
        inner = tree.feature >= 0
        for feature, threshold in zip(tree.feature[inner], tree.threshold[inner], strict=True):
            values = around.iloc[:, feature].to_numpy()
            nearest = np.float32(threshold)
            assert threshold in values
            for end in (-np.inf, np.inf):
                assert np.nextafter(nearest, np.float32(end)) in values


def test_rows_are_made_for_a_sample_of_very_many_splits(monkeypatch):
    fitted = RandomForestClassifier(50, random_state=0).fit(FEATURES, LABELS)
    everything = {
        value for tree in fitted.estimators_ for value in tree.tree_.threshold[tree.tree_.feature >= 0]
    }
    monkeypatch.setattr(served_module, "MAX_THRESHOLDS", 10)
    around: Any = rows_around_splits(fitted, FEATURES)
    assert len(around) == 60
    assert all(everything & set(around[name]) for name in ("ssc_p", "mba_p"))


# Names of features


@pytest.mark.parametrize("labels", [LABELS, THREE], ids=["two classes", "three classes"])
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (FEATURES.columns[::-1], "must be in the same order"),
        (FEATURES.columns[:-1], "yet now missing"),
        (["other", *FEATURES.columns[1:]], "unseen at fit time"),
    ],
    ids=["another order", "one missing", "another name"],
)
def test_other_feature_names_are_refused_as_the_forest_refuses_them(labels, columns, message):
    fitted = RandomForestClassifier(5, random_state=0).fit(FEATURES, labels)
    form: Any = serve(fitted, FEATURES, 1).model
    assert list(form.feature_names_in_) == list(FEATURES.columns)
    assert form.n_features_in_ == len(FEATURES.columns)
    other = pd.DataFrame(FEATURES.to_numpy()[:, : len(columns)], columns=columns)
    errors = []
    for model in (fitted, form):
        for method in (model.predict_proba, model.predict):
            with pytest.raises(ValueError, match=message) as raised:
                method(other)
            errors.append(str(raised.value))
    assert len(set(errors)) == 1


def test_arrays_of_another_width_are_refused():
    fitted = RandomForestClassifier(5, random_state=0).fit(FEATURES.to_numpy(), LABELS)
    form: Any = serve(fitted, FEATURES.to_numpy(), 1).model  # type: ignore[arg-type]
    assert not hasattr(form, "feature_names_in_")
    with pytest.raises(ValueError, match="features"):
        form.predict_proba(FEATURES.to_numpy()[:, 1:])


# The file


def modules_of(content: bytes) -> set[str]:
    """Return the modules that a pickle imports."""
    modules: set[str] = set()
    strings: list[str] = []
    for code, argument, _ in pickletools.genops(content):
        if code.name == "GLOBAL":
            modules.add(str(argument).split()[0])
        elif code.name == "STACK_GLOBAL":
            modules.add(strings[-2])
        elif "UNICODE" in code.name:
            strings.append(str(argument))
    return modules


@pytest.mark.parametrize("trees", [50, 64])
@pytest.mark.parametrize("labels", [LABELS, THREE], ids=["two classes", "three classes"])
def test_the_file_needs_nothing_but_scikit_learn(trees, labels):
    fitted = RandomForestClassifier(trees, random_state=0).fit(FEATURES, labels)
    served = serve(fitted, FEATURES, 1)
    # Memoised strings would hide names from this test; protocol 0 writes each in full.
    packages = {name.split(".")[0] for name in modules_of(pickle.dumps(served.model, protocol=0))}
    assert packages <= {"sklearn", "numpy", "copy_reg", "_codecs", "__builtin__", "types", "operator"}
    assert b"numpy.random" not in zlib.decompress(dump(served.model))


def test_the_same_forest_is_written_as_the_same_bytes():
    def content() -> bytes:
        fitted = RandomForestClassifier(50, random_state=0).fit(FEATURES, LABELS)
        return dump(serve(fitted, FEATURES, 1).model)

    assert content() == content()


# Reasons to keep the forest


def test_a_model_without_a_forest_is_served_as_it_is():
    fitted = make_pipeline(StandardScaler(), LogisticRegression(solver="newton-cholesky")).fit(
        FEATURES, LABELS
    )
    served = serve(fitted, FEATURES, 1)
    assert (served.model, served.rows, served.reason) == (fitted, 0, "")


def test_another_scikit_learn_keeps_the_forest(monkeypatch):
    fitted = RandomForestClassifier(5, random_state=0).fit(FEATURES, LABELS)
    monkeypatch.setattr(sklearn, "__version__", "1.6.0")
    served = serve(fitted, FEATURES, 1)
    assert served.model is fitted
    assert served.reason == "scikit-learn is 1.6.0, expected 1.5.2"
    assert str(served) == "serving form not used: scikit-learn is 1.6.0, expected 1.5.2"


def test_a_forest_of_several_outputs_is_kept():
    fitted = RandomForestClassifier(5, random_state=0).fit(FEATURES, np.c_[LABELS, THREE])
    assert serve(fitted, FEATURES, 1).reason == "the forest has 2 outputs, expected 1"


def test_a_forest_that_was_fitted_with_missing_values_is_kept():
    features = FEATURES.mask(FEATURES > 80)
    fitted = RandomForestClassifier(5, random_state=0).fit(features, LABELS)
    served = serve(fitted, features, 1)
    assert served.model is fitted
    assert "contains NaN" in served.reason


def test_a_form_with_another_probability_keeps_the_forest(monkeypatch):
    fitted = RandomForestClassifier(50, random_state=0).fit(FEATURES, LABELS)
    other = RandomForestClassifier(50, random_state=1).fit(FEATURES, LABELS)
    monkeypatch.setattr(served_module, "forms", lambda _: forms(other))
    served = serve(fitted, FEATURES, 1)
    assert served.model is fitted
    assert served.reason.startswith("its results differ by up to 0.")


def test_a_probability_that_differs_in_the_last_digit_is_a_difference():
    fitted = RandomForestClassifier(50, random_state=0).fit(FEATURES, LABELS)
    form: Any = next(forms(fitted))
    # One multiplication for each tree, where the forest divides once.
    form.estimator_.learning_rate = 1 / 50
    form.estimator_._loss.link.inverse = np.asarray
    np.testing.assert_allclose(form.predict_proba(FEATURES), fitted.predict_proba(FEATURES), atol=1e-12)
    with pytest.raises(UnequalError, match="differ by up to"):
        compare(fitted, form, FEATURES, 1)


def test_a_form_that_predicts_another_class_is_a_difference():
    fitted = RandomForestClassifier(2, random_state=0).fit(FEATURES, LABELS)
    form: Any = next(forms(fitted))
    form.threshold = 0.5
    with pytest.raises(UnequalError, match="predicts another class"):
        compare(fitted, form, UNSEEN, 1)
