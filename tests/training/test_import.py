"""An imported model becomes a version that predicts the same as the file."""

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import (
    GradientBoostingClassifier,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import (
    RidgeClassifierCV,
)
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, LabelEncoder, MaxAbsScaler, StandardScaler
from sklearn.svm import LinearSVC

from placement.cli import main
from storage.bundles import read_bundle
from tests.support.imported_models import (
    LABELS,
    POSITIVE,
    ROWS,
    encoder,
    fitted,
    served,
    solver,
)
from tests.support.placement_command import error_of, run_placement
from training.candidates import Task, TaskError
from training.data import DataError
from training.imports.equality import UnequalPredictionsError
from training.imports.inference import InferenceError
from training.imports.model_file import ModelFileError
from training.imports.pickles import scan
from training.imports.servable import NotServableError
from training.table_file import Reading
from transformer.bundle.candidates import Rows
from transformer.bundle.format import Bundle

random = np.random.default_rng(0)


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
    printed = json.loads(third.stdout)
    assert printed["uri"] == "other/leaves/v2"
    assert "the model is that of v1: answers cannot tell the two versions apart" in printed["notes"]
    bundle: Bundle = read_bundle("other/leaves/v2")
    assert (bundle.threshold, [one.version for one in bundle.previous]) == (0.3, ["v1"])
    capsys.readouterr()
    assert main(["report", "other/leaves/v2"]) == 1
    assert capsys.readouterr().err.endswith(
        "other/leaves/v2: was imported from churn.pkl; only trained versions have a report\n"
    )
    assert main(["versions", "--storage", "other", "--name", "leaves"]) == 0
    assert "v2" in capsys.readouterr().out
