"""An imported model of every kind of question becomes a version that predicts the same as the file."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import (
    GradientBoostingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
    VotingClassifier,
)
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import (
    LinearRegression,
    Ridge,
    RidgeClassifier,
)
from sklearn.model_selection import FixedThresholdClassifier, GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeRegressor

from tests.support.imported_models import (
    LABELS,
    NUMBER,
    PLACE,
    POSITIVE,
    ROWS,
    THREE,
    encoder,
    fitted,
    served,
    several,
    solver,
)
from training.candidates import Task, TaskError
from training.data import DataError
from training.estimators import output_of
from training.evaluation import metrics_of
from training.imports.servable import NotServableError
from training.publishing import TrainingError
from training.selection import truth_of
from transformer.bundle.candidates import Rows
from transformer.bundle.format import Bundle


@dataclass(frozen=True)
class Kind:
    """A kind of question: an estimator and its labels, and what its bundle must say."""

    estimator: Any
    labels: Any
    kind: str
    classes: tuple[Any, ...] = ()
    positive: Any = None
    serving_form: str = ""


KINDS = {
    "texts": Kind(solver(), np.where(POSITIVE, "yes", "no"), "binary", ("no", "yes"), "yes"),
    "the first class is positive": Kind(
        solver(), np.where(POSITIVE, "churn", "stayed"), "binary", ("churn", "stayed"), "churn"
    ),
    "0 and 1 as small integers": Kind(RandomForestClassifier(7), LABELS.astype("i1"), "binary", (0, 1), 1,
                                      "FixedThreshold"),
    "1 and 2": Kind(solver(), LABELS + 1, "binary", (1, 2), 1),
    "0.0 and 1.0": Kind(solver(), LABELS.astype(float), "binary", (0.0, 1.0), 1.0),
    "booleans": Kind(VotingClassifier([("a", solver()), ("b", RandomForestClassifier(3))], voting="soft"),
                     POSITIVE, "binary", (False, True), True),
    "two classes without probabilities": Kind(LinearSVC(), LABELS, "binary", (0, 1), 1),
    "booleans without probabilities": Kind(RidgeClassifier(), POSITIVE, "binary", (False, True), True),
    "three texts of pandas": Kind(make_pipeline(MaxAbsScaler(), several()),
                                  THREE.astype(object), "multiclass", ("high ä", "low", "mid")),
    "three integers by a forest": Kind(RandomForestClassifier(7), PLACE * 2, "multiclass", (0, 2, 4),
                                       serving_form="GradientBoostingClassifier"),
    "three numbers": Kind(GradientBoostingClassifier(n_estimators=3), PLACE / 1, "multiclass",
                          (0.0, 1.0, 2.0)),
    "three texts without probabilities": Kind(LinearSVC(), THREE.astype(object), "multiclass",
                                              ("high ä", "low", "mid")),
    "three integers without probabilities": Kind(make_pipeline(MaxAbsScaler(), RidgeClassifier()), PLACE,
                                                 "multiclass", (0, 1, 2)),
    "a number": Kind(Ridge(), 1e5 * NUMBER, "regression"),
    "a number, by a forest": Kind(make_pipeline(MaxAbsScaler(), RandomForestRegressor(7)), NUMBER,
                                  "regression", serving_form="GradientBoostingRegressor"),
    "a number of another scale": Kind(TransformedTargetRegressor(LinearRegression(), func=np.log,
                                                                 inverse_func=np.exp), NUMBER, "regression"),
    "whole numbers": Kind(DecisionTreeRegressor(), LABELS * 3, "regression"),
}  # fmt: skip
WRAPPERS: dict[str, Callable[[Any, Any], Any]] = {
    "tuple": lambda estimator, labels: fitted(estimator, labels=labels),
    "pipeline": lambda estimator, labels: make_pipeline(DictVectorizer(), estimator).fit(ROWS, labels),
    "search": lambda estimator, labels: GridSearchCV(
        make_pipeline(DictVectorizer(sparse=False), estimator), {}, cv=2
    ).fit(ROWS, labels),
}


def answers_of(content: Any, bundle: Bundle) -> list[Any]:
    """Return scikit-learn's own answers to the rows, as `Target.fingerprint_of` takes them."""
    predictor = content if not isinstance(content, tuple) else make_pipeline(*content)
    if not hasattr(predictor, "predict_proba"):
        predicted = predictor.predict(ROWS).tolist()
        return (
            predicted
            if bundle.positive_class is None
            else [one == bundle.positive_class for one in predicted]
        )
    shares = predictor.predict_proba(ROWS)
    if bundle.positive_class is None:
        return [tuple(one) for one in shares.tolist()]
    return shares[:, predictor.classes_.tolist().index(bundle.positive_class)].tolist()


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_question_is_imported_and_predicts_the_same(name, wrapper, bring):
    kind = KINDS[name]
    content = WRAPPERS[wrapper](clone(kind.estimator), kind.labels)
    pd.DataFrame(ROWS).assign(churn=kind.labels).to_csv("customers.csv", index=False)
    imported = bring(content)
    bundle, model = imported.bundle, served(imported)
    target = bundle.target
    assert (target.kind, target.classes, target.positive_class) == (kind.kind, kind.classes, kind.positive)
    assert [type(one) for one in target.classes] == [type(one) for one in kind.classes]
    assert target.has_probabilities == hasattr(content[1] if wrapper == "tuple" else content, "predict_proba")
    assert kind.serving_form in (bundle.model.serving_form or "")
    # As the transformer encodes, and the stock server answers.
    features = encoder(imported).encode(Rows(list(ROWS), "rows"))
    given = output_of(model, pd.DataFrame(features, columns=bundle.vectorizer.feature_names), target)
    assert given.dtype.kind != "O"
    scores = target.read(given, len(ROWS))
    rounding = 1e-12 if wrapper == "pipeline" else 0
    np.testing.assert_allclose(
        target.fingerprint(scores), target.fingerprint_of(answers_of(content, bundle)), rounding, rounding
    )
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(pd.DataFrame(features, columns=bundle.vectorizer.feature_names[::-1]))
    expected = metrics_of(target, truth_of(list(kind.labels), imported.task.task), scores)
    assert bundle.metrics == pytest.approx(expected)
    assert len(bundle.reference.candidates) >= (32 if target.has_probabilities or not target.classes else 128)
    assert bundle.background is not None


@pytest.mark.parametrize("name", KINDS)
def test_the_task_file_of_every_kind_gives_the_same_version_again(name, bring):
    kind = KINDS[name]
    content = fitted(clone(kind.estimator), labels=kind.labels)
    pd.DataFrame(ROWS).assign(churn=kind.labels).to_csv("customers.csv", index=False)
    imported = bring(content)
    bundle, target = imported.bundle, imported.bundle.target
    Path("churn.json").write_text(imported.task.text)
    again = bring(content, task=Task.read("churn.json"), previous=imported.uri).bundle
    assert (again.signature, again.target, again.metrics) == (bundle.signature, target, bundle.metrics)
    without = bring(content, None).bundle
    assert (without.target, without.metrics) == (target, {})


def test_labels_of_each_kind_are_read_as_tables_have_them(bring):
    for labels, cells in (
        (POSITIVE, np.where(POSITIVE, "yes", "no")),
        (POSITIVE, LABELS),
        (PLACE, PLACE.astype(float)),
        (THREE, [f" {one} ".title() for one in THREE]),
    ):
        pd.DataFrame(ROWS).assign(churn=cells).to_csv("customers.csv", index=False)
        pair = fitted(several(), labels=labels)
        bundle = bring(pair).bundle
        expected = make_pipeline(*pair).score(ROWS, labels)
        assert bundle.metrics["accuracy"] == pytest.approx(expected)
    pd.DataFrame(ROWS).assign(price="much").to_csv("customers.csv", index=False)
    with pytest.raises(DataError, match="column 'price' must have finite numbers, got much"):
        bring(fitted(Ridge(), labels=NUMBER), label="price")


def test_a_task_of_another_kind_or_with_other_classes_is_refused(bring):
    text = bring(fitted(solver())).task.text
    content = json.loads(text)
    for change, problem in (
        ({"classes": ["0", "1"], "positive_class": "1"}, r'model, \[0, 1\], got \["0", "1"\]'),
        ({"kind": "regression", "classes": [], "positive_class": None}, "model, binary, got regression"),
    ):
        Path("task.json").write_text(json.dumps(content | change))
        with pytest.raises(TaskError, match=problem):
            bring(fitted(solver()), task=Task.read("task.json"))


def test_a_version_of_another_kind_than_the_previous_one_is_refused(bring):
    first = bring(fitted(Ridge(), labels=NUMBER))
    with pytest.raises(TrainingError) as refused:
        bring(fitted(solver()), previous=first.uri)
    assert str(refused.value) == (
        "churn/v2: previous version v1 has a regression model and other outputs than this binary model; use "
        "another name for another kind of question"
    )


def test_a_threshold_needs_the_probabilities_of_two_classes(bring):
    with pytest.raises(TaskError, match=r"threshold: .* and this is a binary \(no probabilities\) model"):
        bring(fitted(LinearSVC()), threshold=0.3)
    assert not Path("models").exists()


def test_a_regressor_of_several_numbers_is_refused(bring):
    with pytest.raises(
        NotServableError, match="output of LinearRegression is invalid: wrong shape; expected one number for"
    ):
        bring(fitted(LinearRegression(), labels=np.tile(NUMBER, (2, 1)).T))


def test_a_model_whose_predict_does_not_follow_its_probabilities_is_noted(bring):
    vectorizer, model = fitted(FixedThresholdClassifier(solver(), threshold=0.9))
    differing = int((model.predict(features := vectorizer.transform(ROWS))
                     != (model.predict_proba(features)[:, 1] >= 0.5)).sum())  # fmt: skip
    assert differing
    note = (
        f"the model's predict does not follow its probabilities in {differing} of 120 rows; the service does,"
        " and gives a positive answer from 0.5 on; see --threshold"
    )
    assert note in bring((vectorizer, model)).notes
    assert note not in bring(fitted(solver())).notes
    assert not any("predict" in one for one in bring((vectorizer, model), threshold=0.9).notes)
