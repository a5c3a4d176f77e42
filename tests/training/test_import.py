"""An imported model becomes a version that predicts the same as the file."""

import json
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.compose import TransformedTargetRegressor
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import (
    GradientBoostingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
    VotingClassifier,
)
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    Ridge,
    RidgeClassifier,
    RidgeClassifierCV,
)
from sklearn.model_selection import FixedThresholdClassifier, GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, LabelEncoder, MaxAbsScaler, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeRegressor

from placement.cli import main
from storage.bundles import read_bundle
from tests.support.placement_command import error_of, run_placement
from training.candidates import Task, TaskError
from training.cross_validation import truth_of
from training.data import DataError
from training.estimators import output_of
from training.evaluation import metrics_of
from training.imports.equality import UnequalPredictionsError
from training.imports.imported_task import Source
from training.imports.importing import ImportedModel, import_model
from training.imports.inference import InferenceError
from training.imports.model_file import ModelFileError
from training.imports.pickles import scan
from training.imports.servable import NotServableError
from training.publishing import TrainingError
from training.table_file import Reading
from transformer.bundle.candidates import Rows
from transformer.bundle.encoder import Encoder
from transformer.bundle.format import Bundle

random = np.random.default_rng(0)
ROWS: list[dict[str, Any]] = [
    {
        "tenure": int(random.integers(0, 70)),
        "plan": str(random.choice(["monthly", "yearly", "two years"], p=[0.6, 0.3, 0.1])),
        "senior": bool(random.random() < 0.3),
    }
    for _ in range(120)
]
POSITIVE = np.array([row["tenure"] < 30 and row["plan"] == "monthly" for row in ROWS])
LABELS = POSITIVE.astype(int)


def solver() -> LogisticRegression:
    return LogisticRegression(solver="liblinear")


def several() -> LogisticRegression:
    # The default solver warns with a newer SciPy.
    return LogisticRegression(solver="newton-cg")


def fitted(estimator, *, labels=LABELS, rows=ROWS, **options):
    vectorizer = DictVectorizer(**{"sparse": False, **options})
    features = vectorizer.fit_transform(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return vectorizer, estimator.fit(features, labels)


@pytest.fixture
def bring(tmp_path, monkeypatch):
    """Import an object that is pickled as churn.pkl, with the sample customers.csv or another one."""
    monkeypatch.chdir(tmp_path)
    table = pd.DataFrame(ROWS).assign(churn=np.where(POSITIVE, "yes", "no"))
    table.to_csv("customers.csv", index=False)

    def imported(content: object, sample: str | None = "customers.csv", **options) -> ImportedModel:
        Path("churn.pkl").write_bytes(pickle.dumps(content))
        files = {
            key: options.pop(key) for key in ("vectorizer", "task", "label", "reading") if key in options
        }
        return import_model(Source("churn.pkl", sample=sample, **files), storage="models", **options)

    return imported


def encoder(imported: ImportedModel) -> Encoder:
    return Encoder(imported.bundle.vectorizer, imported.bundle.signature)


def served(imported: ImportedModel):
    return joblib.load(f"{imported.uri}/model.joblib")


# Objects that people save


def variants():
    vectorizer, model = fitted(solver())
    pipeline = make_pipeline(DictVectorizer(), MaxAbsScaler(), RandomForestClassifier(5, random_state=0))
    nested = Pipeline([("features", make_pipeline(DictVectorizer(), MaxAbsScaler())), ("model", solver())])
    search = GridSearchCV(make_pipeline(DictVectorizer(), solver()), {"logisticregression__C": [1]})
    inner = GridSearchCV(make_pipeline(MaxAbsScaler(), solver()), {"logisticregression__C": [1]})
    return {
        "tuple": (vectorizer, model),
        "the other order": (model, vectorizer),
        "dict with more": {"model": model, "dv": vectorizer, "threshold": 0.4, "columns": ["tenure"]},
        "with an encoder of labels": (vectorizer, model, LabelEncoder().fit(["no", "yes"])),
        "pipeline": pipeline.fit(ROWS, LABELS),
        "nested pipeline": nested.fit(ROWS, LABELS),
        "search": search.fit(ROWS, LABELS),
        "pipeline with a search": make_pipeline(DictVectorizer(), inner).fit(ROWS, LABELS),
    }


@pytest.mark.parametrize("kind", variants())
def test_every_object_that_people_save_is_imported(kind, bring):
    bundle = bring(variants()[kind]).bundle
    assert (bundle.name, bundle.version, bundle.positive_class) == ("churn", "v1", 1)
    assert bundle.signature.names == ("tenure", "plan", "senior")
    assert bundle.metrics["roc_auc"] > 0.9
    assert bundle.imported.file == "churn.pkl"


def test_the_vectorizer_can_be_a_file_of_its_own(bring):
    vectorizer, model = fitted(solver())
    Path("dv.bin").write_bytes(pickle.dumps(vectorizer))
    assert bring(model, vectorizer="dv.bin").bundle.signature.names == ("tenure", "plan", "senior")
    with pytest.raises(
        ModelFileError, match=r"churn\.pkl: expected .* or an estimator with --vectorizer FILE, got"
    ):
        bring(model)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (fitted(LinearSVC())[0], "got DictVectorizer"),
        (make_pipeline(DictVectorizer()).fit(ROWS), "got DictVectorizer"),
        (make_pipeline(StandardScaler(), solver()).fit(np.eye(2), [0, 1]), "got Pipeline"),
        ((DictVectorizer().fit(ROWS), solver()), "the LogisticRegression is not fitted"),
        ((DictVectorizer(), solver().fit(np.eye(2), [0, 1])), "the DictVectorizer is not fitted"),
        ((DictVectorizer().fit(ROWS), solver().fit(np.eye(2), [0, 1])), "expects 2 features, the .* gives 5"),
        (fitted(KMeans(2)), "expected a classifier or a regressor, got KMeans"),
        (fitted(RandomForestClassifier(2), labels=np.tile(LABELS, (2, 1)).T), "has 2 outputs, expected one"),
        (fitted(DummyClassifier(), labels=LABELS * 0), "must be two or more classes, got 1"),
    ],
)  # fmt: skip
def test_a_file_of_something_else_says_what_came_and_what_is_expected(content, problem, bring):
    with pytest.raises(ModelFileError, match=problem):
        bring(content)


def test_a_model_that_lacks_a_parameter_of_the_predictors_scikit_learn_is_refused(bring):
    vectorizer, model = fitted(RidgeClassifierCV())
    # As in a file of 1.4 or 1.7.
    del model.store_cv_results
    with pytest.raises(
        ModelFileError, match=r"no attribute 'store_cv_results' in the predictor's .*; fit the model again"
    ):
        bring((vectorizer, model))


def test_features_in_another_order_than_the_vectorizers_are_refused(bring):
    vectorizer, _ = fitted(solver())
    frame = pd.DataFrame(vectorizer.transform(ROWS), columns=vectorizer.feature_names_[::-1])
    with pytest.raises(
        ModelFileError, match="feature 1 of the estimator is 'tenure', of the DictVectorizer 'plan="
    ):
        bring((vectorizer, solver().fit(frame, LABELS)))


# The model that is served


@pytest.mark.parametrize(
    "estimator",
    [
        solver(),
        RandomForestClassifier(7, n_jobs=2),
        GradientBoostingClassifier(n_estimators=5),
        VotingClassifier([("a", solver()), ("b", RandomForestClassifier(3))], voting="soft"),
        DummyClassifier(),
        make_pipeline(FunctionTransformer(np.log1p), solver()),
        make_pipeline(StandardScaler(), RandomForestClassifier(7)),
    ],
    ids=lambda estimator: type(getattr(estimator, "steps", [(0, estimator)])[-1][1]).__name__,
)
def test_the_served_model_predicts_the_same_and_refuses_other_features(estimator, bring):
    vectorizer, original = fitted(estimator)
    features = vectorizer.transform(ROWS)
    expected = original.predict_proba(features)
    imported = bring((vectorizer, original))
    model, names = served(imported), list(imported.bundle.vectorizer.feature_names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(model.predict_proba(features)[:, 1], expected[:, 1])
        np.testing.assert_array_equal(
            model.predict_proba(pd.DataFrame(features, columns=names))[:, 1], expected[:, 1]
        )
        for other in (names[::-1], [*names[:-1], "other"]):
            with pytest.raises(ValueError, match="feature names should match"):
                model.predict_proba(pd.DataFrame(features, columns=other))
    written = joblib.load(f"{imported.uri}/model.joblib")
    named = {module.partition(".")[0] for module, _ in scan(pickle.dumps(written)).names}
    assert named <= {"numpy", "sklearn", "types", "operator", "builtins", "copyreg", "scipy"}
    assert not any(module.startswith("numpy.random") for module, _ in scan(pickle.dumps(written)).names)


@pytest.mark.parametrize("steps", [(), (StandardScaler(),)], ids=["forest", "pipeline"])
def test_a_forest_is_served_in_its_serving_form(steps, bring):
    bundle = bring(fitted(make_pipeline(*steps, RandomForestClassifier(7)))).bundle
    assert "GradientBoostingClassifier" in bundle.model.serving_form
    assert "RandomForestClassifier" in bundle.model.estimator


def test_a_version_that_would_predict_something_else_is_not_written(bring):
    rows = [{**row, "tenure": row["tenure"] + 0.5} for row in ROWS]
    Path("halves.json").write_text(json.dumps(rows))
    with pytest.raises(
        UnequalPredictionsError, match=r"differ, by up to .*; its DictVectorizer makes int64, and the"
    ):
        bring(fitted(solver(), rows=rows, dtype=np.int64), "halves.json")
    assert not Path("models").exists()


def test_a_model_that_the_stock_servers_cannot_load_is_not_written(bring, monkeypatch):
    monkeypatch.setattr("training.imports.servable._PREDICTOR_PACKAGES", {"numpy"})
    with pytest.raises(
        NotServableError, match=r"do not have .*sklearn\.linear_model\._logistic\.LogisticRegression"
    ):
        bring(fitted(solver()))
    assert not Path("models").exists()


# The signature


def test_the_sample_gives_types_ranges_order_and_defaults(bring):
    table = pd.DataFrame(ROWS).assign(id=range(120)).astype({"tenure": "Int64"})
    table.loc[0, "tenure"] = pd.NA
    table[["plan", "id", "tenure", "senior"]].to_csv("customers.csv", index=False)
    imported = bring(fitted(solver()))
    plan, tenure, senior = (field.model_dump(exclude_none=True) for field in imported.bundle.signature.fields)
    assert plan["categories"] == ("monthly", "yearly", "two years")
    assert (plan["name"], plan["type"], plan["open"]) == ("plan", "category", False)
    assert tenure == {"name": "tenure", "type": "integer", "minimum": 0, "maximum": 150, "default": 0}
    assert senior == {"name": "senior", "type": "boolean"}
    assert imported.notes == (
        "columns passed over: id",
        "no metrics: the sample has no label; name its column with --label",
    )
    assert imported.bundle.background is not None
    assert imported.bundle.distribution.rows == 120


def test_the_inferred_task_is_a_task_file_that_gives_the_same_version(bring):
    first = bring(fitted(solver()))
    Path("churn.json").write_text(first.task.text)
    task = Task.read("churn.json")
    again = bring(fitted(solver()), task=task).bundle
    for name in ("signature", "classes", "positive_class", "reference", "metrics", "distribution"):
        assert getattr(again, name) == getattr(first.bundle, name)


def test_a_task_overrides_what_is_inferred(bring):
    content = json.loads(bring(fitted(solver())).task.text)
    content["signature"]["fields"][0] = {"name": "tenure", "type": "number", "maximum": 40}
    content |= {"positive_class": 0, "row_name": "customer"}
    Path("task.json").write_text(json.dumps(content))
    imported = bring(fitted(solver()), task=Task.read("task.json"))
    assert imported.bundle.signature.fields[0].maximum == 40
    assert (imported.bundle.positive_class, imported.bundle.row_name) == (0, "customer")
    over = sum(row["tenure"] > 40 for row in ROWS)
    assert f"{over} of 120 rows passed over: tenure is not at most 40 ({over})" in imported.notes
    content["signature"]["fields"][1]["categories"] = ["monthly", "weekly"]
    Path("task.json").write_text(json.dumps(content))
    with pytest.raises(TaskError, match="but lacks plan=two years, plan=yearly and adds plan=weekly"):
        bring(fitted(solver()), task=Task.read("task.json"))


def test_without_a_sample_the_version_says_what_it_lacks(bring):
    imported = bring(fitted(RandomForestClassifier(5)), None)
    bundle = imported.bundle
    assert (bundle.background, bundle.distribution, bundle.metrics) == (None, None, {})
    assert bundle.signature.fields[-1].model_dump(exclude_none=True) == {"name": "tenure", "type": "number"}
    assert len(bundle.reference.candidates) >= 32
    assert imported.notes == (
        "without --sample: numbers have no range, there are no metrics, and explanations and drift are "
        "not available",
    )


def test_a_sample_is_read_as_json_and_by_spelling(bring):
    rows = [
        {"Tenure": row["tenure"], "PLAN": row["plan"].title(), "Senior": row["senior"], "Churn?": bool(one)}
        for row, one in zip(ROWS, LABELS, strict=True)
    ]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    imported = bring(fitted(solver(), labels=POSITIVE), "rows.jsonl", label="Churn?")
    assert "columns read by spelling: Tenure as tenure, PLAN as plan, Senior as senior" in imported.notes
    assert imported.bundle.classes == (False, True)
    assert imported.bundle.metrics["roc_auc"] > 0.9
    counts = imported.bundle.distribution.categories["plan"]
    assert counts["monthly"] == sum(row["plan"] == "monthly" for row in ROWS)


def test_a_sample_is_read_as_spreadsheets_and_parquet_write_it(bring):
    rows = [{**row, "tenure": row["tenure"] + 0.5} for row in ROWS]
    table = pd.DataFrame(rows).assign(churn=np.where(POSITIVE, "yes", "no"))
    table.to_csv("comma.csv", index=False)
    table.to_csv("semicolon.csv", index=False, sep=";", decimal=",")
    table.to_parquet("rows.parquet")
    pair = fitted(solver(), rows=rows)
    expected = bring(pair, "comma.csv").bundle
    reading = Reading(decimal=",")
    for one in (bring(pair, "semicolon.csv", reading=reading).bundle, bring(pair, "rows.parquet").bundle):
        assert (one.signature, one.distribution, one.background, one.metrics) == (
            expected.signature,
            expected.distribution,
            expected.background,
            expected.metrics,
        )


def test_rows_that_the_model_does_not_know_are_counted_and_passed_over(bring):
    rows = [*ROWS, {"tenure": 3, "senior": False}]
    Path("rows.json").write_text(json.dumps(rows))
    imported = bring(fitted(solver()), "rows.json")
    assert "1 of 121 rows passed over: plan is missing (1)" in imported.notes
    Path("task.json").write_text(imported.task.text)
    Path("rows.json").write_text(json.dumps([*rows, {**ROWS[0], "plan": "weekly"}]))
    assert (
        "2 of 122 rows passed over: plan is missing (1), plan has a value that the vectorizer does not know "
        "(1)" in bring(fitted(solver()), "rows.json", task=Task.read("task.json")).notes
    )
    Path("rows.json").write_text(json.dumps([{**ROWS[0], "plan": "weekly"}]))
    with pytest.raises(DataError, match="has no row that the model accepts; in 1 rows plan has a value that"):
        bring(fitted(solver()), "rows.json")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"plan": "monthly"}, r"must have a column for each field; missing: senior, tenure; found: plan"),
        (
            {**ROWS[0], "tenure": "long"},
            r"column 'tenure', a number in the vectorizer: must be a finite number, got",
        ),
    ],
)
def test_a_sample_of_other_data_is_refused(values, problem, bring):
    Path("rows.json").write_text(json.dumps([values]))
    with pytest.raises(DataError, match=problem):
        bring(fitted(solver()), "rows.json")


def test_a_label_that_has_other_classes_is_refused(bring):
    rows = [{key: value for key, value in row.items() if key != "plan"} for row in ROWS]
    with pytest.raises(DataError, match="column 'plan' must have the model's classes 0, 1, got"):
        bring(fitted(solver(), rows=rows), label="plan")


def test_a_separator_of_its_own_and_separators_in_names_are_understood(bring):
    rows = [{"a": row["tenure"], "b:c": row["plan"]} for row in ROWS]
    Path("rows.json").write_text(json.dumps(rows))
    bundle = bring(fitted(solver(), rows=rows, separator=":"), "rows.json").bundle
    assert bundle.vectorizer.separator == ":"
    assert bundle.signature.names == ("a", "b:c")


def test_a_field_that_is_a_number_and_a_category_is_refused(bring):
    rows = [{**ROWS[0], "plan": 0}, *ROWS[1:]]
    with pytest.raises(
        InferenceError, match="field 'plan' is a number and a category, as its features show: 'plan' "
    ):
        bring(fitted(solver(), rows=rows), None)


def test_two_fields_whose_features_have_one_name_are_refused_when_the_sample_is_read(bring):
    rows = [{"team=red": row["tenure"], "team": "red" if row["senior"] else "blue"} for row in ROWS]
    Path("rows.json").write_text(json.dumps(rows))
    with pytest.raises(
        InferenceError, match=r"'team=red' can be the number 'team=red' or the value 'red' of 'team'"
    ):
        bring(fitted(solver(), rows=rows), "rows.json")


def test_two_fields_whose_features_have_one_name_are_refused_when_the_task_is_read(tmp_path):
    fields = [
        {"name": "team=red", "type": "number"},
        {"name": "team", "type": "category", "categories": ["blue", "red"]},
    ]
    content = {
        "signature": {"fields": fields},
        "label": "won",
        "classes": ["no", "yes"],
        "positive_class": "yes",
    }
    (tmp_path / "task.json").write_text(json.dumps(content))
    with pytest.raises(TaskError) as refused:
        Task.read(tmp_path / "task.json")
    assert str(refused.value) == (
        f"{tmp_path}/task.json: signature: fields 'team=red' and 'team' have a feature of the same name, "
        "'team=red'; rename one of the fields"
    )


def test_a_category_is_open_if_the_sample_has_values_that_the_vectorizer_ignores(bring):
    rows = [*ROWS, {**ROWS[0], "plan": "weekly"}]
    Path("rows.json").write_text(json.dumps(rows))
    vectorizer, model = fitted(solver())
    imported = bring((vectorizer, model), "rows.json")
    plan = imported.bundle.signature.fields[1]
    assert (plan.open, set(plan.categories)) == (True, {"monthly", "yearly", "two years"})
    assert (
        "plan is open: 1 rows have values that the vectorizer does not know, and the model ignores them"
        in imported.notes
    )
    (features,) = encoder(imported).encode(Rows(rows[-1:], "rows"))
    assert features.tolist() == vectorizer.transform(rows[-1:])[0].tolist()
    # Values that the sample has may be names of people.
    assert "weekly" not in imported.bundle.to_json()


def test_every_type_of_field_is_inferred_and_encoded_as_dictvectorizer_does(bring):
    tags = ["a", "b", "c"]
    rows: list[dict[str, Any]] = [
        {
            **row,
            "price": row["tenure"] / 4,
            "tags": [str(one) for one in random.choice(tags, random.integers(4))],
            "area": str(random.choice(["01067", "1010", "2.0"])),
            "note": str(random.choice(["", "x"])),
        }
        for row in ROWS
    ]
    vectorizer, model = fitted(solver(), rows=rows)
    sample = [{**row, "area": 1067 if row["area"] == "01067" else row["area"]} for row in rows]
    del sample[0]["tags"], sample[0]["senior"], sample[1]["price"]
    Path("rows.json").write_text(json.dumps(sample))
    imported = bring((vectorizer, model), "rows.json")
    fields = {field.name: field.model_dump(exclude_none=True) for field in imported.bundle.signature.fields}
    assert {name: field["type"] for name, field in fields.items()} == {
        "tenure": "integer",
        "plan": "category",
        "senior": "boolean",
        "price": "number",
        "tags": "categories",
        "area": "category",
        "note": "category",
    }
    assert (fields["senior"]["default"], fields["tags"]["default"]) == (False, ())
    assert (fields["price"]["default"], fields["note"]["default"]) == (0, "")
    assert "default" not in fields["area"]
    assert imported.bundle.distribution.rows == 120
    assert imported.bundle.distribution.categories["area"]["01067"] == sum(
        row["area"] == "01067" for row in rows
    )
    np.testing.assert_array_equal(
        encoder(imported).encode(Rows(list(rows), "rows")), vectorizer.transform(rows)
    )
    # The types of a task hold without a sample, too.
    Path("task.json").write_text(imported.task.text)
    again = bring((vectorizer, model), None, task=Task.read("task.json"))
    assert again.bundle.signature == imported.bundle.signature


def test_codes_that_are_numbers_are_no_other_codes_by_spelling(bring):
    rows = [{"tenure": row["tenure"], "delay": str(random.choice(["-1", "2.0"]))} for row in ROWS]
    sample = [{**rows[0], "delay": value} for value in (-1, "-1", "-1.0", 2, "2", "1", "20")]
    Path("rows.json").write_text(json.dumps(sample))
    distribution = bring(fitted(solver(), rows=rows), "rows.json").bundle.distribution
    assert distribution.categories["delay"] == {"-1": 3, "2.0": 2}


# Kinds of question

NUMBER = np.array([row["tenure"] / 7 + len(row["plan"]) for row in ROWS])
PLACE = np.digitize(NUMBER, [10, 14])
THREE = np.array(["low", "mid", "high ä"])[PLACE]


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


# The command


def test_the_command_writes_the_version_and_a_task_to_edit(bring, capsys):
    bring(fitted(solver()))
    done = run_placement(
        "import", "churn.pkl", "--sample", "customers.csv", "--storage", "other", "--name", "leaves"
    )
    assert done.returncode == 0, done.stderr
    assert Task.read("leaves.json").label == "churn"
    lines = done.stdout.splitlines()
    assert lines[0] == "uri       other/leaves/v1"
    assert "predicts  the probability of churn = 1" in lines
    assert "note      label: no is 0, yes is 1" in lines
    again = run_placement("import", "churn.pkl", "--storage", "other", "--name", "leaves")
    assert error_of(again, "import") == (
        "leaves.json: exists and is not overwritten; use it with --task leaves.json, or name another file "
        "with --output"
    )
    third = run_placement(
        *("import", "churn.pkl", "--sample", "customers.csv", "--storage", "other", "--name", "leaves"),
        *("--task", "leaves.json", "--previous", "other/leaves/v1", "--threshold", "0.3", "--json"),
    )
    assert json.loads(third.stdout)["uri"] == "other/leaves/v2"
    bundle: Bundle = read_bundle("other/leaves/v2")
    assert (bundle.threshold, [one.version for one in bundle.previous]) == (0.3, ["v1"])
    capsys.readouterr()
    assert main(["report", "other/leaves/v2"]) == 1
    assert capsys.readouterr().err.endswith(
        "other/leaves/v2: was imported from churn.pkl; only trained versions have a report\n"
    )
    assert main(["versions", "--storage", "other", "--name", "leaves"]) == 0
    assert "v2" in capsys.readouterr().out
